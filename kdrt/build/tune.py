"""Which engine runs each component fastest on this machine, measured.

Engines take turns, so that a machine that slows down does so for all of them. Only engines of equal
precision are compared, and only such whose results agree. One is chosen over the engine that would
be used anyway only if it is faster beyond doubt: the intervals of their medians do not touch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from kdrt.backends.choice import chosen_engine, computed_dtype, device_type, needed_components
from kdrt.backends.loader import Loader
from kdrt.backends.loading import make_loader
from kdrt.backends.profiles import DEFAULT
from kdrt.backends.tuned import Timing, TunedComponent
from kdrt.build.sizes import usual_sizes
from kdrt.bundle import Bundle, Component
from kdrt.common.progress import Progress
from kdrt.common.validation import check_int
from kdrt.errors import EngineError
from kdrt_engines import Binding
from kdrt_engines.comparison import greatest_error, random_inputs, results
from kdrt_engines.registry import find_engines

ROUNDS = 10
"""The fewest: of less the interval would be all there is."""
_MOST_ROUNDS = 10_000
_LEFT_OUT = {
    "onnxruntime-tensorrt": "it builds for minutes at the first run, of every size",
    "inductor": "it is compiled for some sizes, and runs the others as torch does",
}
"""Why an engine is never chosen, by name."""
_AGREEMENT = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 1e-1}
"""How far the results of two engines of equal precision may be apart, relative. An engine that
computed in bfloat16 in place of float32 would be off by several times as much."""
_REST = 0.01
"""Seconds between two runs: threads of one engine look for work for a moment before they sleep, and
must not slow down the next."""

MakeLoader = Callable[[Bundle, str], Loader]


def tune(
    bundle: Bundle,
    *,
    components: Sequence[str] = (),
    profiles: Sequence[str] = DEFAULT,
    rounds: int = ROUNDS,
    report: Progress,
    engines: Sequence[str] | None = None,
    make: MakeLoader = make_loader,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, TunedComponent]:
    """Time the engines of this machine on the sizes of a bundle. This does not record the result.

    All engines of a component are in memory at once.

    Args:
        bundle: an opened bundle.
        components: the components to time; empty for those that every image needs.
        profiles: the first one gives the sizes; see :mod:`kdrt.backends.profiles`.
        rounds: runs of each engine, at least ``ROUNDS``.
        report: receives the progress.
        engines: names of engines; None for all that this machine has.
        make: makes the loader of an engine.
        clock: returns the time in seconds.

    Returns:
        The timings and the fastest engine of each component.

    Raises:
        InvalidRequestError: there are too few rounds.
        EngineError: a component or a profile is unknown; or the engine fails that is used without
            tuning.
        EngineUnavailableError: this machine has no engine.
    """
    rounds = check_int("rounds", rounds, ROUNDS, _MOST_ROUNDS)
    automatic = chosen_engine(None, bundle)
    names = [each.name for each in find_engines() if each.usable] if engines is None else engines
    others = [name for name in names if name != automatic]
    wanted = list(components) or list(needed_components(bundle.manifest))
    found = {}
    left_out: dict[str, str] = {}
    for component, dims in usual_sizes(bundle.manifest, wanted, profiles[:1]):
        report.start(f"{component}: {', '.join([automatic, *others])}")
        candidates = _Candidates(bundle, component, dims, make)
        candidates.add(automatic)
        for name in others:
            candidates.try_to_add(name)
        found[component] = _tuned(candidates, automatic, rounds, clock)
        report.done(found[component].why())
        left_out = candidates.left_out | left_out
    for name, reason in left_out.items():
        report.note(f"{name} is not compared: {reason}")
    return found


class _Candidates:
    """The engines of one component, bound to the same sizes and given the same inputs."""

    def __init__(
        self, bundle: Bundle, component: str, dims: Mapping[str, int], make: MakeLoader
    ) -> None:
        self.dims = dict(dims)
        self.bindings: dict[str, Binding] = {}
        self.left_out: dict[str, str] = {}
        self._bundle, self._component, self._make = bundle, component, make
        self._inputs = _usual_inputs(bundle.manifest.components[component], dims)
        self._expected: dict[str, torch.Tensor] = {}
        self._like = ("", "")

    def add(self, engine: str) -> None:
        """The engine that the others are compared with."""
        self._like = self._kind(engine)
        binding = self._bound(engine)
        self._expected = results(binding, self._inputs)
        self.bindings[engine] = binding

    def try_to_add(self, engine: str) -> None:
        """Another one, unless there is a reason not to."""
        if engine in _LEFT_OUT:
            self.left_out[engine] = _LEFT_OUT[engine]
            return
        precision, device = self._kind(engine)
        if device != self._like[1]:
            self.left_out[engine] = f"its tensors are on another device ({device})"
        elif precision != self._like[0]:
            self.left_out[engine] = f"it computes in {precision}, not in {self._like[0]}"
        else:
            try:
                binding = self._bound(engine)
                error = greatest_error(results(binding, self._inputs), self._expected)
            except EngineError as reason:
                self.left_out[engine] = str(reason)
                return
            if error <= _AGREEMENT[self._like[0]]:
                self.bindings[engine] = binding
            else:
                self.left_out[engine] = f"its results differ by {error:.1e} relative"

    def _kind(self, engine: str) -> tuple[str, str]:
        return computed_dtype(self._bundle, engine, self._component), device_type(engine)

    def _bound(self, engine: str) -> Binding:
        return self._make(self._bundle, engine).load(self._component).bind(**self.dims)


def _usual_inputs(component: Component, dims: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Random inputs, but those that turn something off at values that do, as in most images:
    engines may do less work then."""
    inputs = random_inputs(component.spec(), dims)
    graphs = component.onnxruntime
    for name, values in ({} if graphs is None else graphs.neutral).items():
        inputs[name] = inputs[name].copy_(torch.tensor(values))
    return inputs


def _tuned(
    candidates: _Candidates, automatic: str, rounds: int, clock: Callable[[], float]
) -> TunedComponent:
    seconds = _in_turns(candidates.bindings, rounds, clock)
    timings = tuple(_timing(name, values) for name, values in seconds.items())
    best = min(timings, key=lambda timing: timing.median)
    usual = next(timing for timing in timings if timing.engine == automatic)
    return TunedComponent(
        engine=best.engine if best.high < usual.low else automatic,
        automatic=automatic,
        dims=candidates.dims,
        rounds=rounds,
        timings=timings,
        left_out=candidates.left_out,
    )


def _in_turns(
    bindings: Mapping[str, Binding], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each run. In every other round the order is turned round, so that none always
    follows the same one."""
    seconds: dict[str, list[float]] = {name: [] for name in bindings}
    for index in range(rounds):
        for name in list(bindings)[:: 1 if index % 2 == 0 else -1]:
            time.sleep(_REST)
            _wait_for_device()
            started = clock()
            bindings[name].run()
            _wait_for_device()
            seconds[name].append(clock() - started)
    return seconds


def _timing(engine: str, seconds: Sequence[float]) -> Timing:
    low, high = median_interval(seconds)
    ordered = sorted(seconds)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return Timing(engine=engine, median=middle, low=low, high=high)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two of the values between which the true median lies with at least this probability, for any
    distribution: the number of values below the median is binomial.

    Args:
        values: at least six for 95 percent.
        confidence: the probability.

    Returns:
        The lower and the upper value.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 1 / 2**count, 0
    # Raising the rank by one adds what is left of it on both sides.
    while 2 * (more := outside + math.comb(count, rank + 1) / 2**count) <= 1 - confidence:
        outside, rank = more, rank + 1
    return ordered[rank], ordered[count - 1 - rank]


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
