"""Which engine runs a bundle, and where; nothing is loaded, and torch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdrt.bundle import Bundle, Component, Manifest
from kdrt.common.validation import unknown_word
from kdrt.errors import BundleError, EngineUnavailableError, InvalidRequestError
from kdrt_engines.cuda_devices import cuda_available
from kdrt_engines.openvino.config import config_of, is_openvino
from kdrt_engines.registry import ENGINES, choose, engines_in_turn
from kdrt_engines.tensorrt.flavour import FLAVOURS


def chosen_engine(engine: str | None, bundle: Bundle) -> str:
    """The engine asked for, or the best one that is here and in the bundle.

    Raises:
        InvalidRequestError: an unknown name.
        EngineUnavailableError: there is none.
    """
    if engine is not None:
        return known_engine(engine)
    usable = (status for status in engines_in_turn() if status.usable)
    best = choose(status for status in usable if _is_built(bundle, status.name))
    if best is None:
        raise EngineUnavailableError(
            "no engine is installed here; pip install onnxruntime, or see `kdrt doctor`"
        )
    return best.name


def known_engine(engine: str) -> str:
    """``engine``, if it is the name of one, perhaps with a precision (``openvino:bf16``).

    Raises:
        InvalidRequestError: it is not.
    """
    if is_openvino(engine):
        try:
            config_of(engine)
        except ValueError as error:
            raise InvalidRequestError(str(error)) from error
    elif engine not in ENGINES:
        raise InvalidRequestError(unknown_word("engine", engine, ENGINES))
    return engine


def _is_built(bundle: Bundle, engine: str) -> bool:
    """Whether the bundle has what the engine needs; only TensorRT's are built beforehand."""
    if engine not in FLAVOURS:
        return True
    from kdrt.backends.engine_files import engine_folders  # most machines have no TensorRT

    return all(
        engine_folders(bundle, FLAVOURS[engine], name)
        for name in needed_components(bundle.manifest)
    )


def device_type(engine: str) -> str:
    """Where an engine's inputs and outputs are: ``cuda`` or ``cpu``."""
    if engine in ("inductor", "torch"):
        on_cuda = cuda_available()
    else:
        on_cuda = engine != "onnxruntime" and not is_openvino(engine)
    return "cuda" if on_cuda else "cpu"


def computed_dtype(bundle: Bundle, engine: str, component: str) -> str:
    """What an engine computes a component in: a key of ``kdrt_engines.dtypes.DTYPES``."""
    if is_openvino(engine):
        return {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[config_of(engine).precision]
    if engine == "onnxruntime":
        return "float32"  # on a CPU, whatever the weights are
    return bundle.manifest.components[component].outputs[0].dtype


def needed_components(manifest: Manifest) -> Mapping[str, Component]:
    """The components text-to-image runs: the UNet, every text encoder, the VAE's decoder.

    Raises:
        BundleError: one is missing.
    """
    names = ["unet", *(facts.component for facts in manifest.text_encoders), "vae_decoder"]
    missing = [name for name in names if name not in manifest.components]
    if missing:
        raise BundleError(
            f"the bundle '{manifest.name}' has no {', '.join(missing)}; export the model again"
        )
    return {name: manifest.components[name] for name in names}


def torch_program(bundle: Bundle, component: str) -> Path:
    """Where ``--target torch`` keeps a component's exported program."""
    return bundle.file(f"engines/torch/{component}.pt2")
