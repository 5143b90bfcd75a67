"""How much memory a bundle or a request will take at least, known before anything is allocated.

Weights are files, so their sizes are known; some engines keep them in another form too, so it is
what they take at least. What a network needs while it runs is known of engines that were built,
whose builder said so, and of no other: that is said, not guessed. Of a request the latents, their
noise and the decoded images are known. What fails all the same is named in one sentence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdrt.backends.engine_files import engine_folders
from kdrt.backends.loading import chosen_engine, device_of, needed_components
from kdrt.backends.offload import stage_of
from kdrt.backends.records import EngineRecord, check_record, read_record
from kdrt.backends.torch_programs import torch_program
from kdrt.bundle import Bundle
from kdrt.common.memory import _size, free_memory
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.errors import EngineRejectedError
from kdrt_engines.cuda_graphs import CUDA_GRAPH_MEMORY
from kdrt_engines.tensorrt.flavour import FLAVOURS


@dataclass(frozen=True)
class ComponentMemory:
    """One component: bytes of its weights, and of what it needs while it runs, if that is known."""

    component: str
    weights: int
    activations: int | None


@dataclass(frozen=True)
class MemoryEstimate:
    """What a pipeline will take of a device, in bytes.

    Attributes:
        engine: what runs it.
        device: ``cuda`` or ``cpu``.
        parts: what text to image loads.
        graphs: the most that captured graphs may hold.
        free: what the device has left now; None if it cannot be asked.
        offloaded: components are loaded one stage after another.
    """

    engine: str
    device: str
    parts: tuple[ComponentMemory, ...]
    graphs: int
    free: int | None
    offloaded: bool

    @property
    def weights(self) -> int:
        """At once: of all components, or of the largest stage."""
        if not self.offloaded:
            return sum(part.weights for part in self.parts)
        stages = {stage_of(part.component) for part in self.parts}
        return max(
            sum(p.weights for p in self.parts if stage_of(p.component) == stage) for stage in stages
        )

    @property
    def activations(self) -> int | None:
        """One block serves all components; None if none of them says."""
        return max((p.activations for p in self.parts if p.activations is not None), default=None)

    @property
    def needed(self) -> int:
        """Weights and what is known of activations: it takes at least that."""
        return self.weights + (self.activations or 0)

    @property
    def fits(self) -> bool:
        """Whether that is free; True if nobody can tell."""
        return self.free is None or self.needed <= self.free

    def line(self) -> str:
        """The plan in one line."""
        activations = "unknown" if self.activations is None else _size(self.activations)
        parts = [
            f"weights {_size(self.weights)}" + (" (in turn)" if self.offloaded else ""),
            f"activations {activations}",
        ]
        if self.graphs:
            parts.append(f"graphs up to {_size(self.graphs)}")
        free = "unknown" if self.free is None else _size(self.free)
        return f"memory: {', '.join(parts)}; free on {self.device}: {free}"

    def table(self) -> list[tuple[str, str, str]]:
        """Component, weights, activations; the sum last."""
        rows = [
            (
                part.component,
                _size(part.weights),
                "unknown" if part.activations is None else _size(part.activations),
            )
            for part in self.parts
        ]
        total = "unknown" if self.activations is None else _size(self.activations)
        return [*rows, ("at once", _size(self.weights), total)]

    def advice(self) -> str | None:
        """What to do where it does not fit; None where it does."""
        if self.fits:
            return None
        assert self.free is not None  # or it would fit
        lacking = (
            f"this needs at least {_size(self.needed)} of memory on {self.device}, and "
            f"{_size(self.free)} are free"
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
) -> MemoryEstimate:
    """What ``kdrt.load`` with the same arguments will take.

    Raises:
        InvalidRequestError, EngineUnavailableError: as ``kdrt.load``.
        BundleError: the bundle lacks a component that every generation needs.
    """
    name = chosen_engine(engine, bundle)
    device = device_of(name)
    on_cuda = device.type == "cuda"
    return MemoryEstimate(
        engine=name,
        device=device.type,
        parts=tuple(_part(bundle, name, each) for each in needed_components(bundle.manifest)),
        graphs=CUDA_GRAPH_MEMORY if on_cuda and cuda_graph != "off" else 0,
        free=free_memory(device),
        offloaded=low_vram,
    )


def _part(bundle: Bundle, engine: str, component: str) -> ComponentMemory:
    if engine in FLAVOURS:
        records = list(_records(bundle, engine, component))
        if not records:
            return ComponentMemory(component, _network_size(bundle, component), None)
        record = max(records, key=lambda r: sum(p.looseness for p in r.key.profiles))
        return ComponentMemory(component, record.size, record.built.scratch_memory)
    program = torch_program(bundle, component)
    if engine == "torch" and program.is_file():
        return ComponentMemory(component, program.stat().st_size, None)
    return ComponentMemory(component, _network_size(bundle, component), None)


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
