"""ONNX Runtime behind the engine contract.

Inputs and outputs are torch tensors bound by address, so nothing is copied around a call. A
provider that ONNX Runtime cannot give is an error here; by itself it would fall back in silence.

On a CPU, a batch as large as there are threads is computed image by image, each on a thread of its
own: threads that share one operator wait for each other at its end, a thousand times a call, and
these wait once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnxruntime as ort
import torch

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import KdrtError, OutOfMemoryError, ShapeError, is_out_of_memory
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork, ReducedGraph
from kdrt_engines.onnxruntime.invariants import Invariants, invariant_specs
from kdrt_engines.onnxruntime.io_binding import bind_tensors
from kdrt_engines.onnxruntime.sessions import (
    SessionCache,
    check_provider,
    make_session,
    value_of,
)
from kdrt_engines.onnxruntime.thread_pool import ThreadPool
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_engines.torch_eager import allocate

_BATCH = "B"
"""The symbol of the size along which a run can be divided, where it is the first of a tensor."""


class OrtEngine(Engine):
    """An ONNX file, external weights beside it, run by one execution provider.

    Args:
        network: the file, or all graphs of the component.
        spec: what the component takes and gives.
        config: options; by default those of a CPU.
        weights: replace the file's, by the name of the initialiser.
        check: called before a file is read, which can be long after the engine was made; raises
            if the files are no longer those that the rest was read from.

    Raises:
        EngineUnavailableError: ONNX Runtime does not have this provider, or does not use it.
        EngineError: the file cannot be loaded.
        OutOfMemoryError: it does not fit.
    """

    capturable = False

    def __init__(
        self,
        network: OrtNetwork | Path,
        spec: EngineSpec,
        config: OrtConfig | None = None,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.network = OrtNetwork(OrtGraph(network)) if isinstance(network, Path) else network
        self.spec = spec
        self.config = config or OrtConfig()
        self.device, self.stream = self.config.device, self.config.stream
        if self.network.reduced is not None:
            self.neutral_inputs = frozenset(self.network.reduced.neutral)
        check_provider(self.config.provider)
        if self.config.engine_cache is not None:
            self.config.engine_cache.mkdir(parents=True, exist_ok=True)
        self._check = check
        self._providers = self.config.providers(spec)
        # The sessions read from these as long as they live.
        self._weights = {name: value_of(tensor) for name, tensor in (weights or {}).items()}
        self.invariants: ort.InferenceSession | None = None
        self.invariant_specs: tuple[TensorSpec, ...] = ()
        """What ``network.invariants`` gives the other graphs besides the inputs of the spec."""
        if self.network.invariants is not None:
            self.invariants = self._make_session(self.network.invariants, self.config.threads)
            self.invariant_specs = invariant_specs(self.invariants)
        self._cuda_graph_ids = itertools.count(1)
        self._pool: ThreadPool | None = None
        self._sessions = SessionCache()
        self._sessions.make_ahead(
            self.network.usual,
            self.config.threads // self.parts(self.config.usual_batch),
            self._make_session,
        )

    def bind(self, **dims: int) -> OrtBinding:
        """See :meth:`Engine.bind`. Makes the session for these sizes unless it exists; the one made
        with the engine is dropped if the first binding needs another."""
        return OrtBinding(self, dims)

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> OrtEngine:
        """New sessions; this engine stays usable, and both are in memory until one is dropped."""
        return OrtEngine(self.network, self.spec, self.config, weights=weights, check=self._check)

    def session(self, graph: OrtGraph, parts: int = 1) -> ort.InferenceSession:
        """The session that computes one of so many parts of a batch with a graph."""
        return self._sessions.get(graph, self.config.threads // parts, self._make_session)

    def reduced_for(self, dims: Mapping[str, int]) -> ReducedGraph | None:
        """The reduced graph, if it computes these sizes."""
        reduced = self.network.reduced
        return reduced if reduced is not None and reduced.fits(dims) else None

    def parts(self, batch: int) -> int:
        """Into how many parts a batch is divided: one for each thread, or none at all."""
        threads = self.config.threads
        tensors = [*self.spec.inputs, *self.invariant_specs, *self.spec.outputs]
        divisible = (
            self.config.on_cpu
            and batch % threads == 0
            and all(_BATCH not in t.symbols() or t.shape[0] == _BATCH for t in tensors)
            and all(t.shape[:1] == (_BATCH,) for t in self.spec.outputs)
        )
        return threads if divisible else 1

    def thread_pool(self) -> ThreadPool:
        """The threads that share a divided batch."""
        if self._pool is None:
            self._pool = ThreadPool(self.config.threads)
        return self._pool

    def run_options(self) -> ort.RunOptions | None:
        """Options of one binding's runs: on a stream of ours nothing waits, and every binding has
        a CUDA graph of its own, since a CUDA graph repeats addresses. None on the CPU."""
        if self.stream is None:
            return None
        options = ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if self.config.cuda_graphs:
            options.add_run_config_entry("gpu_graph_id", str(next(self._cuda_graph_ids)))
        return options

    def _make_session(self, graph: OrtGraph, threads: int) -> ort.InferenceSession:
        self._check()
        config = replace(self.config, threads=threads)
        return make_session(graph, config, self._providers, self._weights_of(graph))

    def _weights_of(self, graph: OrtGraph) -> Mapping[str, ort.OrtValue]:
        """The replaced weights that a graph has: ONNX Runtime takes no others. Names that no graph
        has are kept, so that ONNX Runtime refuses them."""
        invariants = self.network.invariants
        if invariants is None or not self._weights:
            return self._weights
        own = stored_weights(graph.path).keys()
        others = set() if graph is invariants else stored_weights(invariants.path).keys()
        wanted = own if graph is invariants else self._weights.keys() - (others - own)
        return {name: value for name, value in self._weights.items() if name in wanted}


class OrtBinding(Binding):
    """One set of sizes, at fixed addresses, in one part or several."""

    def __init__(self, engine: OrtEngine, dims: dict[str, int]) -> None:
        self._engine = engine
        self._parts = engine.parts(dims.get(_BATCH, 1))
        self.inputs = allocate(engine.spec.inputs, dims, engine.device)
        self.outputs = allocate(engine.spec.outputs, dims, engine.device)
        self._invariant_tensors = allocate(engine.invariant_specs, dims, engine.device)
        self._invariants: Invariants | None = None
        if engine.invariants is not None:
            self._invariants = Invariants(engine.invariants, self.inputs, self._invariant_tensors)
        self._run_whole: Callable[[], None] | None = None
        self._run_reduced: Callable[[], None] | None = None
        self._neutral: list[tuple[torch.Tensor, torch.Tensor]] = []
        reduced = engine.reduced_for(dims)
        if reduced is None:
            self._run_whole = self._run_of(engine.network.whole)
        else:
            self._run_reduced = self._run_of(reduced.graph)
            for name, values in reduced.neutral.items():
                # Filled here, not in each run, which compares them.
                neutral = torch.empty_like(self.inputs[name]).copy_(torch.tensor(values))
                self._neutral.append((self.inputs[name], neutral))

    def run(self) -> None:
        try:
            if self._invariants is not None:
                self._invariants.refresh()
            if self._run_reduced is not None and all(itertools.starmap(torch.equal, self._neutral)):
                self._run_reduced()
                return
            # Loaded when the reduced graph will not do for the first time: most never come here.
            self._run_whole = self._run_whole or self._run_of(self._engine.network.whole)
            self._run_whole()
        except KdrtError:
            raise
        except Exception as error:  # ONNX Runtime raises bare RuntimeErrors of many kinds
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"ONNX Runtime ran out of memory ({error}): make fewer or smaller images at a "
                    "time"
                ) from error
            raise ShapeError(f"ONNX Runtime rejected these sizes: {error}") from error

    def invalidate(self) -> None:
        """Compute everything anew at the next run, also what follows from inputs that have not
        changed."""
        if self._invariants is not None:
            self._invariants.invalidate()

    def _run_of(self, graph: OrtGraph) -> Callable[[], None]:
        engine = self._engine
        session, options = engine.session(graph, self._parts), engine.run_options()

        def run_part(io: ort.IOBinding) -> None:
            session.run_with_iobinding(io, options)

        runs = []
        for part in range(self._parts):
            inputs = self._part((*engine.spec.inputs, *engine.invariant_specs), part)
            io = bind_tensors(session, inputs, self._part(engine.spec.outputs, part))
            runs.append(partial(run_part, io))
        if len(runs) == 1:
            return runs[0]
        return partial(engine.thread_pool().run, runs)

    def _part(self, specs: Iterable[TensorSpec], part: int) -> dict[str, torch.Tensor]:
        """One part of these tensors; of those that have no batch the whole."""
        tensors = {**self.inputs, **self._invariant_tensors, **self.outputs}
        return {
            spec.name: tensors[spec.name].chunk(self._parts)[part]
            if spec.shape[:1] == (_BATCH,)
            else tensors[spec.name]
            for spec in specs
        }
