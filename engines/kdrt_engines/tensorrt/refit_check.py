"""Whether a refittable engine computes what it should: compared with ONNX Runtime on the CPU, which
reads the very network the engine was built from, and takes the same weights.

TensorRT 11.3 lost biases in refittable engines, refitted or not, without an error. So an engine is
checked once when it is built, in each of its profiles: as built, with every weight that can change
changed, with each of them changed alone, and back at its base weights. That says nothing of the
process that uses the engine later, with its own driver and kernels: there a :class:`RefitGate`
compares again.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from kdrt_engines.comparison import bound_of, greatest_error, random_inputs, results
from kdrt_engines.errors import EngineError
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.profiles import Profile, sizes
from kdrt_engines.spec import EngineSpec
from kdrt_engines.tensorrt.engine import TensorRTEngine
from kdrt_engines.tensorrt.refit import EngineWeights
from kdrt_engines.tensorrt.refit_result import RefitResult

When = Literal["first", "every", "never"]
"""Which refits of an engine are compared."""

WHEN: tuple[str, ...] = get_args(When)

CHANGE = 0.25
"""How far the check changes a weight, as a part of it: far enough that one which does not follow
shows, and less than what would make half precision overflow."""

_INSTEAD_OF_ZERO = 0.01

_SIGNIFICANT = 5.0
"""The changed weights must move the reference by this many times the bound, or agreement would
prove nothing."""

Outputs = Mapping[str, Tensor]


class Trial:
    """An engine in one of its profiles at the smallest sizes, with inputs: run again and again."""

    def __init__(self, engine: TensorRTEngine, profile: Profile) -> None:
        self._gpu, self.dims = engine.gpu, profile.sizes("min")
        self.inputs = random_inputs(engine.spec, self.dims)
        with self._gpu.own_stream():
            self._binding = engine.bind_in(profile, self.dims)

    def outputs(self) -> Outputs:
        with self._gpu.own_stream():
            return results(self._binding, self.inputs)


def check_refit(engine: TensorRTEngine, network: Path, wanted: Collection[str]) -> RefitResult:
    """Compare a new engine with its network; it ends with the weights it came with.

    Args:
        engine: refittable.
        network: the ONNX file it was built from.
        wanted: the weights that should be able to change.

    Raises:
        EngineError: it is wrong, or cannot be refitted.
    """
    names = sorted(engine.weights.names & set(wanted)) if engine.weights else []
    if engine.weights is None or not names:
        raise EngineError("TensorRT built an engine of which no weight can change")
    spec = engine.spec
    trials = [Trial(engine, profile) for profile in engine.profiles]
    base = [trial.outputs() for trial in trials]
    reference = _references(network, spec, trials, {})
    built = _error("as built", spec, trials, base, reference)

    weights = changed_weights(engine.weights, names)
    moved = _references(network, spec, trials, weights)
    _check_significant(spec, moved, reference)
    engine.with_weights(weights)
    refitted = _error("refitted", spec, trials, [trial.outputs() for trial in trials], moved)

    for name in names:
        _check_follows(engine, name, engine.weights.base(name), trials[0], base[0])
    engine.with_weights({})
    restored = _error("restored", spec, trials, [trial.outputs() for trial in trials], base)
    return RefitResult(len(names), len(set(wanted)) - len(names), built, refitted, restored)


class RefitGate:
    """Compares an engine after a refit, in its smallest profile at its smallest sizes.

    That runs the whole network on the CPU once, in float32 and with all of its weights in memory.
    What is wrong with every refit of an engine shows at the first, while weights may change with
    every image. So only the first refit is compared by default.

    Args:
        network: the ONNX file that the engine was built from.
        when: which refits to compare. ``every`` includes those back to the base weights.
    """

    def __init__(self, network: Path, when: When = "first") -> None:
        self.when = when
        self._network = network
        self._passed = False

    def __call__(self, engine: TensorRTEngine, weights: Mapping[str, Tensor]) -> None:
        """Raises EngineError: the engine is wrong."""
        if self.when == "never" or (self.when == "first" and (self._passed or not weights)):
            return
        smallest = min(engine.profiles, key=lambda profile: profile.volume("min"))
        trial = Trial(engine, smallest)
        expected = _references(self._network, engine.spec, [trial], weights)
        _error("refitted", engine.spec, [trial], [trial.outputs()], expected)
        self._passed = True


def changed_weights(weights: EngineWeights, names: Iterable[str]) -> dict[str, Tensor]:
    """These weights, each element larger or smaller by ``CHANGE`` of itself, as a random sign
    seeded by the name decides."""
    changed = {}
    for name in names:
        base = weights.base(name)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        signs = torch.randint(0, 2, base.shape, generator=generator) * 2 - 1
        changed[name] = (base.float() * (1 + CHANGE * signs)).to(base.dtype)
    return changed


def _references(
    network: Path, spec: EngineSpec, trials: Sequence[Trial], weights: Mapping[str, Tensor]
) -> list[Outputs]:
    engine = OrtEngine(network, spec, OrtConfig(lean=True), weights=weights)
    return [results(engine.bind(**trial.dims), trial.inputs) for trial in trials]


def _check_follows(
    engine: TensorRTEngine, name: str, value: Tensor, trial: Trial, base: Outputs
) -> None:
    """Whether one weight changed alone changes the outputs: among many that change, one that does
    not follow is easily lost in rounding."""
    other = torch.where(value == 0, _INSTEAD_OF_ZERO, -value.float()).to(value.dtype)
    engine.with_weights({name: other})
    if greatest_error(trial.outputs(), base) == 0:
        raise EngineError(f"the engine does not follow the weight '{name}'")


def _error(
    what: str,
    spec: EngineSpec,
    trials: Sequence[Trial],
    outputs: Sequence[Outputs],
    expected: Sequence[Outputs],
) -> float:
    """The greatest relative error. Raises EngineError where it is out of bounds."""
    bound = bound_of(spec)
    errors = [greatest_error(o, e) for o, e in zip(outputs, expected, strict=True)]
    for trial, error in zip(trials, errors, strict=True):
        if error > bound:
            raise EngineError(
                f"{what}, the engine is off by {error:.2g} relative at {sizes(trial.dims)}, where "
                f"{bound:.0e} is allowed"
            )
    return max(errors)


def _check_significant(
    spec: EngineSpec, moved: Sequence[Outputs], reference: Sequence[Outputs]
) -> None:
    distance = min(greatest_error(m, r) for m, r in zip(moved, reference, strict=True))
    if distance < _SIGNIFICANT * bound_of(spec):
        raise EngineError(
            f"changing its weights moves the network by {distance:.2g} only, too little to tell "
            "whether the engine follows"
        )
