"""ONNX Runtime behind the engine contract.

Inputs and outputs are torch tensors bound by address, so nothing is copied around a call. A
provider that ONNX Runtime cannot give is an error here; by itself it would fall back in silence.

On a CPU, a batch as large as there are threads is computed image by image, each on a thread of
its own: threads that share one operator wait for each other at its end, a thousand times a call,
and these wait once. Sessions are made when a binding first needs one, and kept. What follows from
inputs that rarely change, if there is a graph for that, is computed when they have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnxruntime as ort
import torch

from kdrt_engines.base import Binding, Engine
from kdrt_engines.dtypes import from_torch
from kdrt_engines.errors import (
    EngineError,
    KdrtError,
    OutOfMemoryError,
    ShapeError,
    is_out_of_memory,
)
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.onnxruntime.sessions import (
    CPU,
    OrtGraph,
    check_provider,
    make_session,
    providers_of,
    value_of,
)
from kdrt_engines.onnxruntime.teams import Team
from kdrt_engines.processors import cores
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_engines.torch_eager import allocate

_BATCH = "B"
"""The symbol of the size along which a run can be divided, where it is the first of a tensor."""


@dataclass(frozen=True)
class ReducedGraph:
    """A graph that computes the same as the whole one, and less, at certain sizes and while inputs
    hold certain values.

    Attributes:
        graph: the smaller graph; it does not read those inputs.
        neutral: the values, by input.
        multiples: what its sizes can be divided by, by symbol.
    """

    graph: OrtGraph
    neutral: Mapping[str, tuple[float, ...]]
    multiples: Mapping[str, int] = field(default_factory=dict)

    def fits(self, dims: Mapping[str, int]) -> bool:
        """Whether it computes these sizes."""
        return all(dims.get(s, 0) % divisor == 0 for s, divisor in self.multiples.items())


class OrtEngine(Engine):
    """An ONNX file, external weights beside it, run by one execution provider.

    Args:
        graph: the file, or with what ONNX Runtime made of it before.
        spec: what the component takes and gives.
        provider: ONNX Runtime's name of it.
        device: where it runs.
        threads: CPU threads; None is one a core.
        lean, estimate_memory: see :func:`kdrt_engines.onnxruntime.sessions.session_options`.
        weights: in place of the file's, by the name of the initialiser.
        stream: CUDA only: where every run is enqueued. A session is tied to one for life.
        graphs: CUDA only: have ONNX Runtime capture the runs of each binding.
        cache: where the TensorRT provider keeps what it builds.
        reduced: CPU only: a smaller graph for usual sizes and values of some inputs.
        invariants: CPU only: what computes further inputs of the graphs from some of the spec's,
            those that rarely change.
        usual_batch: the batch most bindings will have: what it needs is loaded at once.
        check: called before a file is read, which happens later too; raises if the files are no
            longer those that the rest was read from.

    Raises:
        EngineUnavailableError: ONNX Runtime has not got this provider, or does not use it.
        EngineError: the file cannot be loaded.
        OutOfMemoryError: it does not fit.
    """

    capturable = False

    def __init__(
        self,
        graph: Path | OrtGraph,
        spec: EngineSpec,
        *,
        provider: str = CPU,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        lean: bool = False,
        estimate_memory: bool = True,
        weights: Mapping[str, torch.Tensor] | None = None,
        stream: torch.cuda.Stream | None = None,
        graphs: bool = False,
        cache: Path | None = None,
        reduced: ReducedGraph | None = None,
        invariants: OrtGraph | None = None,
        usual_batch: int = 1,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        check_provider(provider)
        self._check = check
        self.spec = spec
        self.device = torch.device(device)
        self.threads = threads or cores()
        self._graph = graph if isinstance(graph, OrtGraph) else OrtGraph(graph)
        self.reduced, self._graph_of_invariants = reduced, invariants
        self._lean, self._plan_memory = lean, estimate_memory
        self._usual_batch, self._is_bound = usual_batch, False
        self.stream, self._graphs, self._cache = stream, graphs, cache
        self._on_cpu = provider == CPU
        self._provider = provider
        self._providers = providers_of(provider, spec, self.device, stream, graphs, cache)
        # The sessions read from these as long as they live.
        self._weights = {name: value_of(tensor) for name, tensor in (weights or {}).items()}
        self.invariants = None if invariants is None else self._make_session(invariants)
        self.given = () if self.invariants is None else _results(self.invariants)
        """What :attr:`invariants` gives the graphs besides the inputs of the spec."""
        self._sessions: dict[tuple[OrtGraph, int], ort.InferenceSession] = {}
        self._graph_ids = itertools.count(1)
        self._team: Team | None = None
        self.session(self.parts(usual_batch), whole=reduced is None)

    def session(self, parts: int = 1, *, whole: bool = True) -> ort.InferenceSession:
        """The session that computes one of so many parts of a batch, with the whole graph or the
        reduced one."""
        graph = self._graph if whole or self.reduced is None else self.reduced.graph
        key = graph, self.threads // parts
        if key not in self._sessions:
            self._sessions[key] = self._make_session(graph, key[1])
        return self._sessions[key]

    def _make_session(self, graph: OrtGraph, threads: int | None = None) -> ort.InferenceSession:
        self._check()
        return make_session(
            graph,
            self._providers,
            threads or self.threads,
            lean=self._lean,
            estimate_memory=self._plan_memory,
            weights=self._weights_of(graph),
        )

    def _weights_of(self, graph: OrtGraph) -> Mapping[str, ort.OrtValue]:
        """Those that a graph has: ONNX Runtime takes no others. What neither has is the caller's
        mistake, and ONNX Runtime says so of the network."""
        invariants = self._graph_of_invariants
        if invariants is None or not self._weights:
            return self._weights
        own = stored_weights(graph.path).keys()
        others = set() if graph is invariants else stored_weights(invariants.path).keys()
        wanted = own if graph is invariants else self._weights.keys() - (others - own)
        return {name: value for name, value in self._weights.items() if name in wanted}

    def reduced_for(self, dims: Mapping[str, int]) -> ReducedGraph | None:
        """The reduced graph, if it computes these sizes."""
        return self.reduced if self.reduced is not None and self.reduced.fits(dims) else None

    def parts(self, batch: int) -> int:
        """Into how many parts a batch is divided: one for each thread, or none at all."""
        tensors = [*self.spec.inputs, *self.given, *self.spec.outputs]
        divisible = (
            self._on_cpu
            and batch % self.threads == 0
            and all(_BATCH not in t.symbols() or t.shape[0] == _BATCH for t in tensors)
            and all(t.shape[:1] == (_BATCH,) for t in self.spec.outputs)
        )
        return self.threads if divisible else 1

    def team(self) -> Team:
        """The threads that share a divided batch."""
        if self._team is None:
            self._team = Team(self.threads)
        return self._team

    def run_options(self) -> ort.RunOptions | None:
        """Those of one binding: on a stream of ours nothing waits, and every binding has a graph
        of its own, since a graph repeats addresses. None on the CPU."""
        if self.stream is None:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(next(self._graph_ids)))
        return options

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> OrtEngine:
        """New sessions; this engine stays usable, and both are in memory until one is dropped."""
        return OrtEngine(
            self._graph,
            self.spec,
            provider=self._provider,
            device=self.device,
            threads=self.threads,
            lean=self._lean,
            estimate_memory=self._plan_memory,
            weights=weights,
            stream=self.stream,
            graphs=self._graphs,
            cache=self._cache,
            reduced=self.reduced,
            invariants=self._graph_of_invariants,
            usual_batch=self._usual_batch,
            check=self._check,
        )

    def bind(self, **dims: int) -> OrtBinding:
        is_usual = self.parts(dims.get(_BATCH, 1)) == self.parts(self._usual_batch)
        if not self._is_bound and not (is_usual and self.reduced_for(dims) is self.reduced):
            self._sessions.clear()  # what was loaded is not needed
        self._is_bound = True
        return OrtBinding(self, dims)


class OrtBinding(Binding):
    """One set of sizes, at fixed addresses, in one part or several."""

    def __init__(self, engine: OrtEngine, dims: dict[str, int]) -> None:
        self._engine = engine
        self._parts = engine.parts(dims.get(_BATCH, 1))
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._given = allocate(engine.given, dims, engine.device)
        self._invariants: _Invariants | None = None
        if engine.invariants is not None:
            self._invariants = _Invariants(engine.invariants, self.inputs, self._given)
        self._whole: Callable[[], None] | None = None
        self._short: Callable[[], None] | None = None
        self._neutral: list[tuple[torch.Tensor, list[float]]] = []
        reduced = engine.reduced_for(dims)
        if reduced is None:
            self._whole = self._run_of(whole=True)
        else:
            self._short = self._run_of(whole=False)
            self._neutral = [
                (self.inputs[name], list(values)) for name, values in reduced.neutral.items()
            ]

    def run(self) -> None:
        try:
            if self._invariants is not None:
                self._invariants.refresh(self._engine.times_forgotten)
            if self._short is not None and all(t.tolist() == v for t, v in self._neutral):
                self._short()
                return
            # Loaded when the reduced graph will not do for the first time: most never come here.
            self._whole = self._whole or self._run_of(whole=True)
            self._whole()
        except KdrtError:
            raise
        except Exception as error:  # ONNX Runtime raises bare RuntimeErrors of many kinds
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"ONNX Runtime ran out of memory ({error}): make fewer or smaller images at a "
                    "time"
                ) from error
            raise ShapeError(f"ONNX Runtime rejected these sizes: {error}") from error

    def _run_of(self, *, whole: bool) -> Callable[[], None]:
        session, spec = self._engine.session(self._parts, whole=whole), self._engine.spec
        options = self._engine.run_options()

        def run_part(io: ort.IOBinding) -> None:
            session.run_with_iobinding(io, options)

        runs = []
        for part in range(self._parts):
            inputs = self._part((*spec.inputs, *self._engine.given), part)
            runs.append(partial(run_part, _bound(session, inputs, self._part(spec.outputs, part))))
        if len(runs) == 1:
            return runs[0]
        return partial(self._engine.team().run, runs)

    def _part(self, specs: Iterable[TensorSpec], part: int) -> dict[str, torch.Tensor]:
        """One part of these tensors; of those that have no batch the whole."""
        tensors = {**self.inputs, **self._given, **self.outputs}
        return {
            spec.name: tensors[spec.name].chunk(self._parts)[part]
            if spec.shape[:1] == (_BATCH,)
            else tensors[spec.name]
            for spec in specs
        }


class _Invariants:
    """Results that follow from inputs that rarely change, computed when those have."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, torch.Tensor],
        results: Mapping[str, torch.Tensor],
    ) -> None:
        self._session, self._io = session, _bound(session, inputs, results)
        # As integers: they are compared by their bits.
        self._inputs = [_bits(inputs[value.name]) for value in session.get_inputs()]
        self._before: list[torch.Tensor] | None = None
        self._times_forgotten = 0

    def refresh(self, times_forgotten: int) -> None:
        """Make the results those of the inputs. See :meth:`Engine.forget`."""
        is_made = self._before is not None and all(map(torch.equal, self._inputs, self._before))
        if is_made and times_forgotten == self._times_forgotten:
            return
        self._before = None  # until they are made, they belong to no inputs
        self._session.run_with_iobinding(self._io)
        self._before = [tensor.clone() for tensor in self._inputs]
        self._times_forgotten = times_forgotten


def _results(session: ort.InferenceSession) -> tuple[TensorSpec, ...]:
    """What a session makes, in float32.

    Raises:
        EngineError: it makes something else, or does not say what size that has.
    """
    values = session.get_outputs()
    for value in values:
        if value.type != "tensor(float)" or not all(isinstance(d, int | str) for d in value.shape):
            raise EngineError(
                f"the network's '{value.name}' is {value.type} {value.shape}, where float32 of "
                "known sizes is needed; export the model again"
            )
    return tuple(TensorSpec(v.name, "float32", tuple(v.shape)) for v in values)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(sizes[tensor.itemsize])


def _bound(
    session: ort.InferenceSession,
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
) -> ort.IOBinding:
    """A session at these addresses. It need not read every input: a UNet without time conditioning
    has one too many."""
    io = session.io_binding()
    used = {value.name for value in session.get_inputs()}
    for name, tensor in inputs.items():
        if name in used:
            io.bind_input(*_address(name, tensor))
    for name, tensor in outputs.items():
        io.bind_output(*_address(name, tensor))
    return io


def _address(name: str, tensor: torch.Tensor) -> tuple[str, str, int, int, list[int], int]:
    device = tensor.device
    return (
        name,
        device.type,
        device.index or 0,
        from_torch(tensor.dtype).onnx,
        list(tensor.shape),
        tensor.data_ptr(),
    )
