"""From a bundle to loaded engines: which files each engine reads, and what it says without them."""

from __future__ import annotations

import importlib
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.export.passes

from kdrt.backends.fallback import FallbackEngine, warn_of_fallback
from kdrt.backends.files import engine_folders, handle, network_hash, open_engine, profile_of
from kdrt.backends.offload import OffloadedEngine, Offloader
from kdrt.backends.ort_cache import optimized
from kdrt.backends.refit_gate import refit_gate
from kdrt.bundle import Bundle, Component, Manifest
from kdrt.common.home import Digests, home, is_trusted, trust
from kdrt.common.validation import check_int
from kdrt.errors import (
    BundleError,
    EngineError,
    EngineRejectedError,
    EngineUnavailableError,
    InvalidRequestError,
)
from kdrt_engines import Engine, EngineSpec
from kdrt_engines.registry import ENGINES, choose, find_engines
from kdrt_engines.tensorrt.flavour import FLAVOURS, Flavour
from kdrt_engines.torch_programs import refuse_pickles

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.gate import RefitGate

_logger = logging.getLogger(__name__)

_MAX_THREADS = 1024

_PROVIDERS = {
    "onnxruntime": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}


def load_engines(
    bundle: Bundle,
    engine: str | None = None,
    *,
    threads: int | None = None,
    fallback: str | None = None,
    offloader: Offloader | None = None,
    own_graphs: bool = False,
) -> OnDemand:
    """Load the components that turn text into an image, and the others on demand.

    Args:
        bundle: an opened bundle.
        engine: one of ``kdrt_engines.registry.ENGINES``; None takes the best that this machine
            has and the bundle was built for.
        threads: CPU threads a component may use; None is one a core. For ``torch`` this sets the
            threads of the whole process, since PyTorch has one pool.
        fallback: another of ``ENGINES``, for what the first has not, may not load, or was not
            built for.
        offloader: load nothing yet, but each component when its turn comes.
        own_graphs: let an engine that nobody else can capture make CUDA graphs of its own.

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
    loader = _logged(_loader(chosen, threads, own_graphs), chosen)
    if fallback is not None:
        loader = _with_fallback(loader, chosen, _known(fallback), threads, own_graphs)
    if offloader is not None:
        loader = _offloaded(loader, offloader, device_of(chosen))
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

    def another(self, name: str) -> Engine:
        """The engine of a component as it is in the bundle, loaded anew: whoever changed the
        weights of the one before keeps that one."""
        engine = self._load(name, self._components[name])
        if name in self._loaded:
            self._loaded[name] = engine
        return engine

    def __contains__(self, name: object) -> bool:
        return name in self._loaded or name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter({**self._loaded, **self._components})

    def __len__(self) -> int:
        return len({*self._loaded, *self._components})


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


def chosen_engine(engine: str | None, bundle: Bundle) -> str:
    """The engine asked for, or the best one that is here and in the bundle.

    Raises:
        InvalidRequestError: an unknown name.
        EngineUnavailableError: there is none.
    """
    if engine is not None:
        return _known(engine)
    best = choose()
    if best is not None and not _is_built(bundle, best.name):
        best = choose(tuple(e for e in find_engines() if _is_built(bundle, e.name)))
    if best is None:
        raise EngineUnavailableError(
            "no engine is installed here; pip install onnxruntime, or see `kdrt doctor`"
        )
    return best.name


def _known(engine: str) -> str:
    if engine not in ENGINES:
        raise InvalidRequestError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    return engine


def _is_built(bundle: Bundle, engine: str) -> bool:
    """Whether the bundle has what the engine needs; only TensorRT's are built beforehand."""
    return engine not in FLAVOURS or all(
        engine_folders(bundle, FLAVOURS[engine], name)
        for name in needed_components(bundle.manifest)
    )


def device_of(engine: str) -> torch.device:
    """Where an engine runs."""
    on_cuda = torch.cuda.is_available() if engine == "torch" else engine != "onnxruntime"
    return torch.device("cuda" if on_cuda else "cpu")


def _offloaded(load: Loader, offloader: Offloader, device: torch.device) -> Loader:
    return lambda bundle, name, component: OffloadedEngine(
        offloader, name, component.spec(), device, partial(load, bundle, name, component)
    )


def _with_fallback(
    load: Loader, engine: str, fallback: str, threads: int | None, own_graphs: bool
) -> Loader:
    # What the fallback needs is only asked for if it is needed.
    def other(bundle: Bundle, name: str, component: Component) -> Engine:
        load = _logged(_loader(fallback, threads, own_graphs), fallback)
        return load(bundle, name, component)

    def load_either(bundle: Bundle, name: str, component: Component) -> Engine:
        try:
            first = load(bundle, name, component)
        except (EngineRejectedError, EngineUnavailableError) as error:
            warn_of_fallback(name, fallback, error)
            return other(bundle, name, component)
        if engine not in FLAVOURS:
            return first
        return FallbackEngine(first, name, fallback, partial(other, bundle, name, component))

    return load_either


def _loader(engine: str, threads: int | None, own_graphs: bool) -> Loader:
    if engine in FLAVOURS:
        return _tensorrt_loader(FLAVOURS[engine])
    if engine == "torch":
        if threads is not None:
            torch.set_num_threads(threads)
        return _load_torch
    return _onnxruntime_loader(engine, threads, own_graphs)


def _logged(load: Loader, engine: str) -> Loader:
    """The same loader, which logs what it loaded and how long that took."""

    def load_and_log(bundle: Bundle, name: str, component: Component) -> Engine:
        started = time.perf_counter()
        loaded = load(bundle, name, component)
        seconds = time.perf_counter() - started
        _logger.info("loaded %s with %s on %s in %.3f s", name, engine, loaded.device, seconds)
        return loaded

    return load_and_log


def _tensorrt_loader(flavour: Flavour) -> Loader:
    """Loads built engines; all of a pipeline compute in one block of memory."""
    try:
        module = importlib.import_module(flavour.module)
    except ImportError as error:
        raise EngineUnavailableError(
            f"{flavour.title} is not installed; pip install 'kdrt[{flavour.name}]', or choose "
            "another engine"
        ) from error
    if not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"{flavour.title} runs on NVIDIA GPUs, and CUDA sees none here; choose another engine "
            "(`kdrt build` works without a GPU for tensorrt-rtx)"
        )
    from kdrt_engines.tensorrt.run import Scratch, TensorRTEngine

    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    scratch = Scratch(device)
    gates: dict[str, RefitGate] = {}

    def load(bundle: Bundle, name: str, component: Component) -> Engine:
        opened = open_engine(bundle, flavour, name, 10 * major + minor)
        network = bundle.file(component.onnx)
        if opened.record.key.refittable and name not in gates:
            # Kept beside the engine, which may be loaded anew for every image.
            gates[name] = refit_gate(network)
        return TensorRTEngine(
            module,
            opened.plan,
            opened.spec,
            profiles=opened.profiles,
            scratch=scratch,
            device=device,
            runtime_cache=opened.runtime_cache,
            choose=partial(profile_of, bundle, opened.record),
            network=network if opened.record.key.refittable else None,
            check=gates.get(name),
        )

    return load


def _onnxruntime_loader(engine: str, threads: int | None, own_graphs: bool) -> Loader:
    try:
        from kdrt_engines.onnxruntime.engine import OrtEngine, ReducedGraph
        from kdrt_engines.onnxruntime.sessions import OrtGraph
    except ImportError as error:
        raise EngineUnavailableError(
            "ONNX Runtime is not installed; pip install onnxruntime, or choose another engine"
        ) from error
    on_cuda = engine != "onnxruntime"
    if on_cuda and not torch.cuda.is_available():
        raise EngineUnavailableError(
            f"{engine} runs on NVIDIA GPUs, and CUDA sees none here; choose another engine"
        )
    # Components hand tensors to each other, so all run on one stream.
    stream = torch.cuda.Stream() if on_cuda else None  # type: ignore[no-untyped-call]

    def load(bundle: Bundle, name: str, component: Component) -> Engine:
        if not on_cuda and any(tensor.dtype == "bfloat16" for tensor in component.inputs):
            raise EngineUnavailableError(
                f"ONNX Runtime has no bfloat16 on a CPU, and the bundle '{bundle.manifest.name}' "
                "is bf16; export it with --precision fp32, or with --target torch and use that "
                "engine"
            )
        graph, reduced, invariants = OrtGraph(bundle.file(component.onnx)), None, None
        graphs = component.onnxruntime
        if graphs is not None and engine == "onnxruntime-cuda":
            # TensorRT, also inside ONNX Runtime, knows the standard operators only.
            graph = OrtGraph(bundle.file(graphs.fused))
        elif graphs is not None and not on_cuda:
            made = optimized(bundle, name)
            network, others = (made.network, made.invariants) if made else (None, None)
            whole = bundle.file(graphs.whole_on_cpu)
            if graphs.plain is None:
                graph = OrtGraph(whole, network)
            else:  # that one was optimised
                plain = OrtGraph(bundle.file(graphs.plain), network)
                graph = OrtGraph(whole)
                reduced = ReducedGraph(plain, graphs.neutral, graphs.multiples)
            if graphs.invariants is not None:
                invariants = OrtGraph(bundle.file(graphs.invariants), others)
        return OrtEngine(
            graph,
            component.spec(),
            reduced=reduced,
            invariants=invariants,
            # Most images are made with guidance.
            usual_batch=2 if name == "unet" else 1,
            # Its results are the largest of a generation, and it runs once an image.
            estimate_memory=not name.startswith("vae"),
            provider=_PROVIDERS[engine],
            device="cuda" if on_cuda else "cpu",
            threads=threads,
            stream=stream,
            # What runs once an image is not worth a graph of its own.
            graphs=own_graphs and on_cuda and name == "unet",
            cache=_kernels(bundle, name) if engine == "onnxruntime-tensorrt" else None,
            check=bundle.check_unchanged,
        )

    return load


def _kernels(bundle: Bundle, component: str) -> Path | None:
    """Where ONNX Runtime keeps what TensorRT builds for it: with the user, since it is code."""
    folder = home() / "kernels" / network_hash(bundle.manifest, component)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: it is built every time
        return None
    return folder


def torch_program(bundle: Bundle, component: str) -> Path:
    """Where ``--target torch`` keeps a component's exported program."""
    return bundle.file(f"engines/torch/{component}.pt2")


def _load_torch(bundle: Bundle, name: str, component: Component) -> Engine:
    path = torch_program(bundle, name)
    if not path.is_file():
        raise EngineUnavailableError(
            f"the bundle has no torch engine ({path} is missing); "
            f"export it with `{bundle.manifest.export_command} --target torch`"
        )
    if not is_trusted(*_description(bundle, name)):
        raise EngineUnavailableError(
            f"{path} was not exported by you, or not with these networks, and a torch program can "
            f"run any code: run `kdrt trust {shlex.quote(handle(bundle))}` if you trust whoever "
            "exported it, or choose another engine"
        )
    refuse_pickles(path)
    from kdrt_engines.torch_eager import TorchEngine, load_program

    device = device_of("torch")
    try:
        module = _Program(load_program(path, device))
    except Exception as error:  # a damaged archive raises anything from zip to pickle errors
        raise EngineError(f"PyTorch cannot load {path}: {error}") from error
    spec: EngineSpec = component.spec()
    return TorchEngine(module, spec, device)


def trust_program(bundle: Bundle, component: str) -> Path | None:
    """Load the torch program of a component, whoever exported it.

    Returns:
        Where it is; None if there is none.

    Raises:
        EngineError: it is damaged, or holds a pickle.
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    path = torch_program(bundle, component)
    if not path.is_file():
        return None
    refuse_pickles(path)
    trust(*_description(bundle, component))
    return path


def _description(bundle: Bundle, component: str) -> tuple[str, ...]:
    path = torch_program(bundle, component)
    digests = Digests(path.parent)
    try:
        digest = digests.of(path.name)
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror}") from error
    digests.save()
    return "torch program", component, network_hash(bundle.manifest, component), digest


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
