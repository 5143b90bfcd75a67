"""Code that Inductor compiled ahead of time, beside the same network in eager PyTorch: the UNet of
Stable Diffusion 1.5 with random weights, in float16. A rehearsal compiles the demo's text encoder,
which takes seconds on a CPU where the UNet takes a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from kdrt.build.sizes import usual_sizes
from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS
from kdrt_bench.gpu_day.rows import Figures
from kdrt_bench.gpu_day.setting import Measurement, Setting
from kdrt_bench.gpu_day.sizes import compared, image_of, model
from kdrt_engines import ShapeError
from kdrt_engines.comparison import greatest_error, random_inputs, results
from kdrt_engines.inductor.compiling import check_compiler, compile_module, own_cache
from kdrt_engines.inductor.engine import InductorEngine, Sizes
from kdrt_engines.torch_eager import TorchEngine


def measurements(setting: Setting) -> Iterator[Measurement]:
    """A row for the build, and one for each graph level."""
    made = model("sd15", setting)
    component = "text_encoder" if setting.dry_run else "unet"
    ((_, dims),) = usual_sizes(made.bundle.manifest, [component])
    plain = made.engines[component]
    assert isinstance(plain, TorchEngine)
    package = setting.scratch("inductor") / "network.pt2"

    def refuse(other: Sizes) -> None:
        raise ShapeError(f"{component} is wanted at {other}, and compiled for {dims}")

    engine = InductorEngine(
        plain.module,
        plain.spec,
        plain.device,
        kept=lambda asked: package if asked == dims else None,
        missing=refuse,
    )

    def built() -> Figures:
        check_compiler()
        inputs = random_inputs(plain.spec, dims)
        expected = results(plain.bind(**dims), inputs)
        started = time.perf_counter()
        with own_cache():
            given = tuple(each.to(plain.device) for each in inputs.values())
            compile_module(engine.module, given, package)
        seconds = time.perf_counter() - started
        return {
            "network": component,
            "seconds": seconds,
            "MB": package.stat().st_size / 1e6,
            "relative error": greatest_error(results(engine.bind(**dims), inputs), expected),
        }

    yield "build", built
    eager = image_of(made.pipeline("off", made.plain))
    for level in CUDA_GRAPH_LEVELS:
        ours = image_of(made.pipeline(level, others={component: engine}))
        yield f"{level}, eager UNet", partial(compared, ours, eager, setting)
