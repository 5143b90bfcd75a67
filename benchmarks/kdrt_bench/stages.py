"""Where the time of a run goes: the engines are timed, whoever's they are.

What is left of a run is the host's own: tokenizer, sampler, guidance, images.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch

from kdrt_engines import Binding, Engine

STAGES = ("encode", "denoise", "decode")
"""Text encoders, UNet, VAE decoder."""


def stage_of(component: str) -> str:
    """The stage that a component works in."""
    if component.startswith("text_encoder"):
        return "encode"
    return {"unet": "denoise", "vae_decoder": "decode"}.get(component, "other")


class StageClock:
    """Adds up seconds by stage.

    On CUDA work is enqueued, so marks are events, and the seconds are known once all of it has
    run; what is enqueued in between is not waited for.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def reset(self) -> None:
        """Begin a run."""
        self._seconds.clear()
        self._events.clear()

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def begin(self) -> float | torch.cuda.Event:
        """Mark now."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def end(self, stage: str, begun: float | torch.cuda.Event) -> None:
        """Count the time since a mark."""
        if isinstance(begun, float):
            self.add(stage, time.perf_counter() - begun)
            return
        ended = self.begin()
        assert not isinstance(ended, float)
        self._events.append((stage, begun, ended))

    def seconds(self) -> dict[str, float]:
        """By stage, since the last reset. On CUDA it waits for the device."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for stage, begun, ended in self._events:
            self.add(stage, begun.elapsed_time(ended) / 1000)
        self._events.clear()
        return dict(self._seconds)


@runtime_checkable
class _Invalidates(Protocol):
    """A binding that keeps results between runs, as ONNX Runtime's."""

    def invalidate(self) -> None: ...


class TimedEngine(Engine):
    """An engine whose runs are timed."""

    def __init__(self, engine: Engine, stage: str, clock: StageClock) -> None:
        self.engine, self.stage, self.clock = engine, stage, clock
        self.spec, self.device, self.stream = engine.spec, engine.device, engine.stream
        self.capturable = engine.capturable
        self._bindings: weakref.WeakSet[TimedBinding] = weakref.WeakSet()

    def bind(self, **dims: int) -> TimedBinding:
        binding = TimedBinding(self.engine.bind(**dims), self.stage, self.clock)
        self._bindings.add(binding)
        return binding

    def invalidate(self) -> None:
        """Have every binding compute anew, at its next run, what it keeps between runs."""
        for binding in self._bindings:
            binding.invalidate()

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return self.engine.limits()

    def allows(self, **dims: int) -> bool:
        return self.engine.allows(**dims)


class TimedBinding(Binding):
    def __init__(self, binding: Binding, stage: str, clock: StageClock) -> None:
        self.inputs, self.outputs = binding.inputs, binding.outputs
        self._binding, self._stage, self._clock = binding, stage, clock

    def run(self) -> None:
        begun = self._clock.begin()
        self._binding.run()
        self._clock.end(self._stage, begun)

    def invalidate(self) -> None:
        """As the binding itself; most keep nothing between runs, and cannot be invalidated."""
        if isinstance(self._binding, _Invalidates):
            self._binding.invalidate()

    def workspace(self) -> tuple[torch.Tensor, ...]:
        return self._binding.workspace()


def timed(engines: Mapping[str, Engine], clock: StageClock) -> dict[str, TimedEngine]:
    """The same engines, with their runs timed by stage."""
    return {name: TimedEngine(e, stage_of(name), clock) for name, e in engines.items()}
