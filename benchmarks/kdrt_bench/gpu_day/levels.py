"""The demo model at every graph level beside the CPU: errors, launches, waits, allocations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kdrt
from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS
from kdrt.pipeline.pipeline import Pipeline
from kdrt_bench.cuda_calls import count_calls
from kdrt_bench.gpu_day.rows import Figures
from kdrt_bench.gpu_day.setting import Measurement, Setting
from kdrt_bench.gpu_day.unexported import Unexported, outlines, unexported
from kdrt_bench.in_flight import PROMPT

SAMPLERS = ("euler", "dpmpp_2m_sde", "heun")

FEATURES: dict[str, dict[str, Any]] = {
    "perturbed attention": {"pag_scale": 3.0},
    "hires": {"hires_scale": 1.5, "hires_steps": 2},
    "ControlNet": {"control": kdrt.ControlImage(outlines())},
}
"""By name, what a request asks for."""

COUNTED = 4
"""Steps that are counted, as the difference of two images; powers of two, as graphs of a loop are
made for."""


def levels(setting: Setting) -> Iterator[Measurement]:
    """A row of errors and a row of calls for each level."""
    here, there = models(setting)
    on_cpu = there.pipeline("off")
    asked: dict[str, dict[str, Any]] = {
        each: {"sampler": each, "steps": setting.steps} for each in SAMPLERS
    }
    expected = {name: latents(on_cpu, options) for name, options in asked.items()}
    for level in CUDA_GRAPH_LEVELS:
        pipe = here.pipeline(level)
        yield f"{level}: relative error", partial(errors, pipe, asked, expected)
        yield f"{level}: the host, a step", partial(calls, pipe)


def features(setting: Setting) -> Iterator[Measurement]:
    """A row of the error for each feature, with steps captured."""
    here, there = models(setting, features=True)
    on_cpu, pipe = there.pipeline("off"), here.pipeline("step")
    for name, feature in FEATURES.items():
        asked = {"steps": setting.steps, **feature}

        def compared(name: str = name, options: dict[str, Any] = asked) -> Figures:
            return errors(pipe, {name: options}, {name: latents(on_cpu, options)})

        yield f"{name}, step: relative error", compared


def models(setting: Setting, *, features: bool = False) -> tuple[Unexported, Unexported]:
    """The demo in float32, without TF32, on the device and on the CPU."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    here, there = (
        unexported(
            "demo",
            setting.scratch(f"demo-{device}"),
            precision="fp32",
            device=torch.device(device),
            random_weights=False,
            perturbed=features,
            controlled=features,
        )
        for device in (setting.device, "cpu")
    )
    return here, there


def latents(pipe: Pipeline, options: dict[str, Any]) -> Tensor:
    """Those of an image, copied to the CPU."""
    asked: dict[str, Any] = {"seed": 7, "output_type": "latent", **options}
    made = pipe(PROMPT, **asked).images
    return torch.as_tensor(made).detach().double().cpu().clone()


def errors(
    pipe: Pipeline, asked: dict[str, dict[str, Any]], expected: dict[str, Tensor]
) -> Figures:
    """Of each image, twice: the second time everything is captured."""
    found: Figures = {}
    for name, options in asked.items():
        wanted = expected[name]
        worst = max(
            float((latents(pipe, options) - wanted).norm() / wanted.norm()) for _ in range(2)
        )
        found[name] = worst
    return found


def calls(pipe: Pipeline) -> Figures:
    """Calls and allocations of the host, a step: the difference of two images leaves out what an
    image costs once. Of a whole image, the launches of graphs."""

    def image(steps: int) -> None:
        latents(pipe, {"steps": steps})

    if not torch.cuda.is_available():
        return {"counted": "nothing, on a CPU"}
    few, many = COUNTED, 2 * COUNTED
    for steps in (few, many, few, many):
        image(steps)
    counts = {steps: count_calls(partial(image, steps)) for steps in (few, many)}
    asked = {steps: allocations(partial(image, steps)) for steps in (few, many)}
    found: Figures = {
        name: (counts[many][name] - counts[few][name]) / COUNTED for name in counts[few]
    }
    found["graph launches an image"] = counts[many]["graph launches"]
    for name in asked[few]:
        found[name] = (asked[many][name] - asked[few][name]) / COUNTED
    return found


def allocations(work: Any) -> dict[str, int]:
    """How often PyTorch's allocator was asked for memory, and how often it asked CUDA."""
    names = {"allocations": "allocation.all.allocated", "of the device": "num_device_alloc"}
    before = torch.cuda.memory_stats()
    work()
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    return {said: after.get(name, 0) - before.get(name, 0) for said, name in names.items()}
