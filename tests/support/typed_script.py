"""What a user writes, under the strictest settings."""

import kdrt
from kdrt import Request

with kdrt.load("demo", threads=1) as pipe:
    result = pipe("a red circle", steps=4, seed=7, sampler="DPM++ 2M Karras", freeu="sdxl")
    result.images[0].save("circle.png")
    result.images[0].resize((32, 32)).convert("L")
    mean: float = float(pipe("a", output_type="np").images.mean())
    shape: tuple[int, ...] = tuple(pipe("a", output_type="pt").images.shape)
    request = Request(prompt=["a", "b"], steps=30, guidance_interval=(0.3, 5.4))
    pipe.generate(request).images[1].save("b.png")
    again = kdrt.request_from("circle.png", steps=50)
    pipe(**again).images[0].save("again.png")
    generation = pipe.stream("a", negative_prompt="b", clip_skip=1)
    for step in generation:
        print(step.index, step.sigma)
    generation.result().images[0].save("c.png")
