"""The engines that read a bundle, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import kdrt
from kdrt.bundle import Bundle, open_bundle
from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS, CudaGraphLevel
from kdrt.errors import BundleError
from kdrt_bench.cuda_calls import count_calls
from kdrt_bench.gpu_day.clock import WARM_UP, median, step_milliseconds
from kdrt_bench.gpu_day.rows import Figures
from kdrt_bench.gpu_day.setting import (
    REHEARSED_ENGINE,
    Measurement,
    Measurements,
    Setting,
    installed,
)
from kdrt_bench.gpu_day.sizes import image_of
from kdrt_engines.tensorrt.flavour import FLAVOURS


class _Quiet:
    """Progress of a build that nobody reads."""

    def start(self, stage: str) -> None: ...

    def running(self, detail: str, memory: int) -> None: ...

    def done(self, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def of(engine: str) -> Measurements:
    """The rows of an engine."""
    return partial(measurements, engine)


def measurements(engine: str, setting: Setting) -> Iterator[Measurement]:
    """A row for each graph level, and before them for what has to be built."""
    bundle = _bundle(setting)
    if engine in FLAVOURS:
        yield "build", partial(_built, bundle, engine)
    for level in CUDA_GRAPH_LEVELS[:1] if engine == REHEARSED_ENGINE else CUDA_GRAPH_LEVELS:
        yield level, partial(_measured, bundle, engine, level, setting)


def _bundle(setting: Setting) -> Bundle:
    """The bundle that was asked for; the demo is exported if there is none of that name."""
    try:
        return open_bundle(setting.bundle)
    except BundleError:
        if setting.bundle != "demo":
            raise
    from kdrt_export.stage import export

    return open_bundle(export("demo", setting.scratch("bundle") / "demo"))


def _built(bundle: Bundle, engine: str) -> Figures:
    from kdrt.build.engines import build_engines

    major, minor = torch.cuda.get_device_capability()
    records = build_engines(bundle, FLAVOURS[engine], (10 * major + minor,), report=_Quiet())
    return {"engines": len(records), "seconds": sum(each.built.seconds for each in records)}


def _measured(bundle: Bundle, engine: str, level: CudaGraphLevel, setting: Setting) -> Figures:
    pipe = kdrt.load(bundle, engine=engine, cuda_graph=level)
    image = image_of(pipe)
    for _ in range(WARM_UP):
        image(setting.steps)
    steps = sorted(step_milliseconds(image, setting.steps) for _ in range(setting.rounds))
    found: Figures = {
        "version": installed(engine),
        "model": f"{bundle.manifest.name} {bundle.manifest.precision}",
        "step ms": steps[len(steps) // 2],
        "image ms": median(lambda: image(setting.steps), setting.rounds),
    }
    if torch.cuda.is_available():
        found |= count_calls(lambda: image(setting.steps))
    return found
