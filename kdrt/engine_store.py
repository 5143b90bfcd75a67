"""From a bundle to loaded engines: which files each engine reads, and what it says without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdrt.bundle import Bundle, Component, Manifest
from kdrt.errors import BundleError, EngineError, EngineUnavailable, InvalidRequest
from kdrt_engines import Engine, EngineSpec
from kdrt_engines.registry import choose

ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime", "torch")
"""Every name ``engine=`` takes."""


def load_engines(
    bundle: Bundle, engine: str | None = None, *, threads: int | None = None
) -> Mapping[str, Engine]:
    """Load the components that turn text into a picture, and the others on demand.

    Args:
        bundle: an opened bundle.
        engine: one of ``ENGINES``; None takes the best that this machine has.
        threads: CPU threads a component may use; None is one a core. For ``torch`` this sets the
            threads of the whole process, since PyTorch has one pool.

    Returns:
        One engine a component, by the component's name in the manifest.

    Raises:
        InvalidRequest: an unknown engine name, or ``threads`` below 1.
        EngineUnavailable: the engine is not on this machine, or not in this bundle.
        EngineError: a file cannot be loaded.
        BundleError: the bundle lacks a component that every generation needs.
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise InvalidRequest(f"threads must be a whole number of at least 1, not {threads!r}")
    loader = _loader(_chosen(engine), threads)
    loaded = {
        name: loader(bundle, name, component)
        for name, component in needed_components(bundle.manifest).items()
    }
    return OnDemand(loaded, bundle.manifest.components, partial(loader, bundle))


class OnDemand(Mapping[str, Engine]):
    """The engines of a bundle; what was not loaded at first is loaded when it is first asked for.

    Args:
        loaded: the engines there are.
        components: every component of the bundle, by name.
        load: makes the engine of a component.
    """

    def __init__(
        self,
        loaded: Mapping[str, Engine],
        components: Mapping[str, Component],
        load: Callable[[str, Component], Engine],
    ) -> None:
        self._loaded, self._components, self._load = dict(loaded), components, load

    def __getitem__(self, name: str) -> Engine:
        if name not in self._loaded:
            self._loaded[name] = self._load(name, self._components[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter({**self._loaded, **self._components})

    def __len__(self) -> int:
        return len({*self._loaded, *self._components})


def load_engine(
    bundle: Bundle, component: str, engine: str | None = None, *, threads: int | None = None
) -> Engine:
    """Load one component, such as one of a variant; see :func:`load_engines`."""
    return _loader(_chosen(engine), threads)(
        bundle, component, bundle.manifest.components[component]
    )


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


Loader = Callable[[Bundle, str, Component], Engine]


def _chosen(engine: str | None) -> str:
    if engine is None:
        best = choose()
        if best is None:
            raise EngineUnavailable(
                "no engine is installed here; pip install onnxruntime, or see `kdrt doctor`"
            )
        return best.name
    if engine not in ENGINES:
        raise InvalidRequest(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    return engine


def _loader(engine: str, threads: int | None) -> Loader:
    if engine.startswith("tensorrt"):
        raise EngineUnavailable(
            f"{engine} engines can be built (`kdrt build`), but running {engine} engines is not "
            "implemented yet; choose onnxruntime or torch"
        )
    if engine == "torch":
        if threads is not None:
            torch.set_num_threads(threads)
        return _load_torch
    return lambda bundle, _, component: _load_onnxruntime(
        bundle, component, cuda=engine.endswith("-cuda"), threads=threads
    )


def _load_onnxruntime(
    bundle: Bundle, component: Component, *, cuda: bool, threads: int | None
) -> Engine:
    try:
        from kdrt_engines.ort import OrtEngine
    except ImportError as error:
        raise EngineUnavailable(
            "ONNX Runtime is not installed; pip install onnxruntime, or choose another engine"
        ) from error
    if not cuda and any(tensor.dtype == "bfloat16" for tensor in component.inputs):
        raise EngineUnavailable(
            f"ONNX Runtime has no bfloat16 on a CPU, and the bundle '{bundle.manifest.name}' is "
            "bf16; export it with --precision fp32, or with --target torch and use that engine"
        )
    return OrtEngine(
        bundle.file(component.onnx),
        component.spec(),
        provider="CUDAExecutionProvider" if cuda else "CPUExecutionProvider",
        device="cuda" if cuda else "cpu",
        threads=threads,
    )


def torch_program(bundle: Bundle, component: str) -> Path:
    """Where ``--target torch`` keeps a component's exported program."""
    return bundle.file(f"engines/torch/{component}.pt2")


def _load_torch(bundle: Bundle, name: str, component: Component) -> Engine:
    path = torch_program(bundle, name)
    if not path.is_file():
        raise EngineUnavailable(
            f"the bundle has no torch engine ({path} is missing); "
            f"export it with `kdrt export {bundle.manifest.source} --target torch`"
        )
    from kdrt_engines.torch_eager import TorchEngine, load_program

    try:
        module = _Program(load_program(path))
    except Exception as error:  # a damaged archive raises anything from zip to pickle errors
        raise EngineError(f"PyTorch cannot load {path}: {error}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec: EngineSpec = component.spec()
    return TorchEngine(module, spec, device)


class _Program(torch.nn.Module):
    """An exported program as a plain module. PyTorch forbids ``eval()`` on one, since its mode is
    fixed in the graph; everything else a module does is passed on."""

    def __init__(self, program: torch.nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _Program:
        return self

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.program(*inputs)
