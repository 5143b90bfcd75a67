"""How much memory a bundle or a request will take at least, known before anything is allocated.

Weights are files, so their sizes are known. They are a lower bound, because some engines keep the
weights in another form too. The memory that a network needs while it runs is known for engines
whose builder reported it. For the others, :mod:`kdrt.pipeline.activations` counts a lower bound,
and the estimate says so. torch is imported only to ask a CUDA device how much memory is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdrt.backends.choice import (
    chosen_engine,
    computed_dtype,
    device_type,
    needed_components,
    torch_program,
)
from kdrt.backends.engine_files import engine_folders
from kdrt.backends.records import EngineRecord, check_record, read_record
from kdrt.backends.stages import stage_of
from kdrt.bundle import Bundle
from kdrt.common.memory import free_memory
from kdrt.common.units import size
from kdrt.errors import EngineRejectedError
from kdrt.pipeline.activations import least_activations
from kdrt_engines.tensorrt.flavour import FLAVOURS

if TYPE_CHECKING:
    from kdrt.denoise.graph_level import CudaGraphLevel


@dataclass(frozen=True)
class ComponentMemory:
    """Memory of one component in bytes: its weights, and the activations it needs while it runs,
    if they are known. ``at_least`` says that the activations may take more."""

    component: str
    weights: int
    activations: int | None
    at_least: bool = False


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a pipeline will take on a device, in bytes.

    Attributes:
        engine: the engine that runs the networks.
        device: ``cuda`` or ``cpu``.
        parts: the components that text to image loads.
        graphs: the most that captured CUDA graphs may hold.
        free: what the device has free now; None if it was not asked, or cannot tell.
        offloaded: whether components are loaded one stage after another.
    """

    engine: str
    device: str
    parts: tuple[ComponentMemory, ...]
    graphs: int
    free: int | None
    offloaded: bool

    @property
    def weights(self) -> int:
        """Weights that are loaded at the same time: all components, or the largest stage."""
        if not self.offloaded:
            return sum(part.weights for part in self.parts)
        stages = {stage_of(part.component) for part in self.parts}
        return max(
            sum(p.weights for p in self.parts if stage_of(p.component) == stage) for stage in stages
        )

    @property
    def activations(self) -> int | None:
        """Activations: all components share one block; None if no component's are known."""
        return max((p.activations for p in self.parts if p.activations is not None), default=None)

    @property
    def at_least(self) -> bool:
        """Whether the activations may take more than that."""
        return any(part.at_least for part in self.parts)

    @property
    def needed(self) -> int:
        """The least the pipeline takes: the weights, and the activations as far as known."""
        return self.weights + (self.activations or 0)

    @property
    def fits(self) -> bool:
        """Whether :attr:`needed` is free; True if that is unknown."""
        return self.free is None or self.needed <= self.free

    def line(self) -> str:
        """The estimate in one line."""
        activations = _activations(self.activations, self.at_least)
        parts = [
            f"weights {size(self.weights)}" + (" (in turn)" if self.offloaded else ""),
            f"activations {activations}",
        ]
        if self.graphs:
            parts.append(f"graphs up to {size(self.graphs)}")
        free = "unknown" if self.free is None else size(self.free)
        return f"memory: {', '.join(parts)}; free on {self.device}: {free}"

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of component, weights and activations; the last row is the sum."""
        rows = [
            (
                part.component,
                size(part.weights),
                _activations(part.activations, part.at_least),
            )
            for part in self.parts
        ]
        total = _activations(self.activations, self.at_least)
        return [*rows, ("at once", size(self.weights), total)]

    def advice(self) -> str | None:
        """What to do if the pipeline does not fit; None if it fits."""
        if self.fits:
            return None
        assert self.free is not None  # or it would fit
        lacking = (
            f"this needs at least {size(self.needed)} of memory on {self.device}, and "
            f"{size(self.free)} are free"
        )
        if self.offloaded:
            return f"{lacking}; end other programs, or export the model in half precision"
        return f"{lacking}; load it with low_vram=True (--low-vram), or end other programs"


def estimate_memory(
    bundle: Bundle,
    engine: str | None = None,
    *,
    cuda_graph: CudaGraphLevel | None = None,
    low_vram: bool = False,
    ask_device: bool = True,
) -> MemoryEstimate:
    """Estimate the memory that ``kdrt.load`` with the same arguments will take.

    Args:
        bundle: an open bundle.
        engine: see ``kdrt.load``.
        cuda_graph: see ``kdrt.load``.
        low_vram: see ``kdrt.load``.
        ask_device: whether to ask the device how much memory is free, which takes seconds for CUDA.

    Raises:
        InvalidRequestError, EngineUnavailableError: as ``kdrt.load``.
        BundleError: the bundle lacks a component that every generation needs.
    """
    name = chosen_engine(engine, bundle)
    device = device_type(name)
    return MemoryEstimate(
        engine=name,
        device=device,
        parts=tuple(_part(bundle, name, each) for each in needed_components(bundle.manifest)),
        graphs=_cuda_graphs() if ask_device and device == "cuda" and cuda_graph != "off" else 0,
        free=free_memory(device) if ask_device else None,
        offloaded=low_vram,
    )


def _part(bundle: Bundle, engine: str, component: str) -> ComponentMemory:
    if engine in FLAVOURS:
        records = list(_records(bundle, engine, component))
        if records:
            record = max(records, key=lambda r: sum(p.looseness for p in r.key.profiles))
            return ComponentMemory(component, record.size, record.built.scratch_memory)
    program = torch_program(bundle, component)
    in_program = engine in ("inductor", "torch") and program.is_file()
    weights = program.stat().st_size if in_program else _network_size(bundle, component)
    dtype = computed_dtype(bundle, engine, component)
    return ComponentMemory(component, weights, least_activations(bundle, component, dtype), True)


def _records(bundle: Bundle, engine: str, component: str) -> Iterable[EngineRecord]:
    for folder in engine_folders(bundle, FLAVOURS[engine], component):
        try:
            record = read_record(bundle, folder)
            check_record(bundle, record, component, record.key.backend_version)
        except EngineRejectedError:
            continue
        yield record


def _network_size(bundle: Bundle, component: str) -> int:
    folder: Path = bundle.file(bundle.manifest.components[component].onnx).parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _activations(count: int | None, at_least: bool) -> str:
    if count is None:
        return "unknown"
    return f"at least {size(count)}" if at_least else size(count)


def _cuda_graphs() -> int:
    from kdrt_engines.cuda_graphs import CUDA_GRAPH_MEMORY

    return CUDA_GRAPH_MEMORY
