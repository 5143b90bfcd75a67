"""Whether a deserialised engine is the one that its record describes."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from kdrt_engines.dtypes import FROM_TENSORRT
from kdrt_engines.errors import EngineError
from kdrt_engines.profiles import Profile
from kdrt_engines.spec import EngineSpec

_REBUILD = "build it again with `kdrt build`"


def check_tensors(trt: ModuleType, cuda_engine: Any, spec: EngineSpec) -> frozenset[str]:
    """The names of the engine's inputs and outputs, which must be those of its component: else data
    would be read as something else.

    Raises:
        EngineError: they are not.
    """
    names = [cuda_engine.get_tensor_name(i) for i in range(cuda_engine.num_io_tensors)]
    inputs = {n for n in names if cuda_engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
    for tensors, given, side in (
        (spec.inputs, inputs, "inputs"),
        (spec.outputs, set(names) - inputs, "outputs"),
    ):
        # A graph may not read every input of its component: a UNet without time conditioning.
        wanted = {tensor.name for tensor in tensors}
        if not given <= wanted or (side == "outputs" and given != wanted):
            raise EngineError(
                f"the engine's {side} are {', '.join(sorted(given))}, the component's "
                f"{', '.join(sorted(wanted))}; {_REBUILD}"
            )
    by_name = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
    for name in names:
        kind = cuda_engine.get_tensor_dtype(name).name
        dtype = FROM_TENSORRT[kind].name if kind in FROM_TENSORRT else kind
        if dtype != by_name[name].dtype:
            raise EngineError(
                f"'{name}' is {dtype} in the engine and {by_name[name].dtype} in the bundle; "
                f"{_REBUILD}"
            )
    return frozenset(names)


def check_profiles(
    cuda_engine: Any, spec: EngineSpec, names: frozenset[str], profiles: Sequence[Profile]
) -> None:
    """Whether the engine's optimization profiles are those of its record: else sizes would be
    refused late, or taken for another profile's.

    Raises:
        EngineError: they are not.
    """
    count = cuda_engine.num_optimization_profiles
    if count != len(profiles):
        raise EngineError(
            f"the engine has {count} optimization profiles, its record names {len(profiles)}; "
            f"{_REBUILD}"
        )
    dynamic = [t for t in spec.inputs if t.name in names and t.symbols()]
    for index, profile in enumerate(profiles):
        for tensor in dynamic:
            shapes = cuda_engine.get_tensor_profile_shape(tensor.name, index)
            if [tuple(shape) for shape in shapes] != [
                tensor.resolve(profile.sizes(which)) for which in ("min", "opt", "max")
            ]:
                raise EngineError(
                    f"the sizes of '{tensor.name}' in the engine are not those of its profile "
                    f"{profile}; {_REBUILD}"
                )
