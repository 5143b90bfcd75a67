"""From a bundle to loaded engines: which engine, which components, and when each is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from kdrt.backends.choice import chosen_engine, device_type, known_engine, needed_components
from kdrt.backends.loader import Loader, LoggingLoader
from kdrt.backends.tuned import tuned_components
from kdrt.bundle import Bundle, Component
from kdrt.common.validation import check_int
from kdrt.errors import EngineUnavailableError, InvalidRequestError
from kdrt_engines import Engine
from kdrt_engines.openvino.config import check_installed, is_openvino
from kdrt_engines.tensorrt.flavour import FLAVOURS

if TYPE_CHECKING:
    from kdrt.backends.offload import Offloader

_logger = logging.getLogger(__name__)

_MAX_THREADS = 1024


class LazyEngines(Mapping[str, Engine]):
    """The engines of a bundle by component, each loaded when it is first asked for.

    Args:
        loader: loads them.
        components: of the bundle, by name.
    """

    def __init__(self, loader: Loader, components: Mapping[str, Component]) -> None:
        self._loader, self._components = loader, components
        self._loaded: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        if name not in self._components:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._loader.load(name)
        return self._loaded[name]

    def reload(self, name: str) -> Engine:
        """The engine of a component loaded anew, with the weights of the bundle. Whoever still has
        the one before keeps it."""
        engine = self._loader.load(name)
        if name in self._loaded:
            self._loaded[name] = engine
        return engine

    def __contains__(self, name: object) -> bool:
        # Mapping's own would load the engine.
        return name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)


def load_engines(
    bundle: Bundle,
    engine: str | None = None,
    *,
    threads: int | None = None,
    fallback: str | None = None,
    offloader: Offloader | None = None,
    own_cuda_graphs: bool = False,
) -> LazyEngines:
    """Load the components that turn text into an image, and the others on demand.

    Args:
        bundle: an opened bundle.
        engine: one of ``kdrt_engines.registry.ENGINES``, of OpenVINO's also with a precision, as
            in ``openvino:bf16``; None takes, for each component, what
            `kdrt tune` found fastest here, or else the best that this machine has and the bundle
            was built for.
        threads: CPU threads a component may use; None is one a core. For ``torch`` and
            ``inductor`` this sets the threads of the whole process, since PyTorch has one pool.
        fallback: another engine, for components and sizes that the first cannot run.
        offloader: load nothing yet, but each component at its stage of an image.
        own_cuda_graphs: let engines that the pipeline cannot capture make CUDA graphs of their
            own.

    Returns:
        One engine a component, by the component's name in the manifest.

    Raises:
        InvalidRequestError: an unknown engine name, ``threads`` below 1, or a fallback together
            with offloading.
        EngineUnavailableError: the engine is not on this machine, or not in this bundle.
        EngineRejectedError: a built engine is missing, or must not be used.
        EngineError: a file cannot be loaded.
        BundleError: the bundle lacks a component that every generation needs.

    Warns:
        FallbackWarning: a component runs on the fallback, and why.
    """
    if threads is not None:
        threads = check_int("threads", threads, 1, _MAX_THREADS)
    if fallback is not None and offloader is not None:
        raise InvalidRequestError(
            "low_vram needs to know where a component runs before it is loaded, so it cannot have "
            "a fallback; leave one of the two out"
        )
    chosen = chosen_engine(engine, bundle)
    reason = "the best of this machine and bundle" if engine is None else "asked for"
    _logger.info("engine %s, %s", chosen, reason)
    low_vram = offloader is not None

    def made(name: str) -> Loader:
        return make_loader(bundle, name, threads, own_cuda_graphs, low_vram)

    loader: Loader = made(chosen)
    if engine is None:
        tuned = {
            name: each.engine
            for name, each in tuned_components(bundle).items()
            if each.automatic == chosen and each.engine != chosen
        }
        if tuned:
            from kdrt.backends.tuned_loader import TunedLoader

            loader = TunedLoader(loader, chosen, tuned, made)
    if fallback is not None:
        from kdrt.backends.fallback import FallbackLoader

        loader = FallbackLoader(loader, fallback, partial(made, known_engine(fallback)))
    if offloader is not None:
        from kdrt.backends.offload import OffloadLoader

        loader = OffloadLoader(bundle, loader, offloader)
    engines = LazyEngines(loader, bundle.manifest.components)
    for name in needed_components(bundle.manifest):
        engines[name]
    return engines


def make_loader(
    bundle: Bundle,
    engine: str,
    threads: int | None = None,
    own_cuda_graphs: bool = False,
    low_vram: bool = False,
) -> Loader:
    """What loads the components of a bundle for one engine.

    Raises:
        EngineUnavailableError: this machine lacks the engine's package or device.
    """
    loader = _make_loader(bundle, engine, threads, own_cuda_graphs, low_vram)
    return LoggingLoader(loader, engine)


def _make_loader(
    bundle: Bundle, engine: str, threads: int | None, own_cuda_graphs: bool, low_vram: bool
) -> Loader:
    # What loads for the other engines is not imported.
    if engine in FLAVOURS:
        from kdrt.backends.tensorrt import TensorRTLoader

        return TensorRTLoader(bundle, FLAVOURS[engine])
    if engine == "torch":
        from kdrt.backends.torch_programs import TorchLoader

        return TorchLoader(bundle, device_of(engine), threads)
    if engine == "inductor":
        from kdrt.backends.inductor import InductorLoader

        return InductorLoader(bundle, device_of(engine), threads)
    if is_openvino(engine):
        return _openvino_loader(bundle, engine, threads)
    try:
        import onnxruntime  # noqa: F401 - whether it is there, before our own code needs it
    except ImportError as error:
        raise EngineUnavailableError(
            "ONNX Runtime is not installed; pip install onnxruntime, or choose another engine"
        ) from error
    from kdrt.backends.onnxruntime import OrtLoader

    return OrtLoader(bundle, engine, threads, own_cuda_graphs, low_vram)


def _openvino_loader(bundle: Bundle, engine: str, threads: int | None) -> Loader:
    check_installed()  # before our own code needs it
    from kdrt.backends.openvino import OpenVinoLoader

    return OpenVinoLoader(bundle, engine, threads)


def device_of(engine: str) -> torch.device:
    """Where an engine runs."""
    return torch.device(device_type(engine))
