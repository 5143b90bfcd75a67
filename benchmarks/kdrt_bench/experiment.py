"""What an experiment is: rows on the same workloads, in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kdrt.bundle import LatentFacts, open_bundle
from kdrt_bench.ablation import Technique
from kdrt_bench.jobs import ImageWorkload, Model, Workload
from kdrt_bench.peers import info_of

Scenario = Literal["SingleStream", "Offline", "Server", "Startup"]
Kind = Literal["rows", "curve", "ablation", "server", "startup"]
ANCHOR = "eager"


@dataclass(frozen=True)
class RowPlan:
    """One row: a peer with options, and what it does differently with a workload."""

    label: str
    peer: str
    options: dict[str, str] = field(default_factory=dict)
    changes: dict[str, object] = field(default_factory=dict)

    def workload(self, workload: Workload) -> Workload:
        """The workload as this row runs it."""
        return workload.model_copy(update=self.changes) if self.changes else workload


@dataclass(frozen=True)
class Experiment:
    """One question.

    Attributes:
        key: short and unique; file names begin with it.
        question: what it answers, for people.
        model: whose networks.
        workloads: by point; one, unless it is a curve.
        points: what differs between them, as numbers on an axis.
        axis: what those numbers are.
        anchor: label of the row that the others are compared with.
        load: Server only: how much of what the anchor can do arrives.
        apart: its rows do not fit into memory together: a new process for every turn.
        discard: rounds before those that count.
        first_call: every row is called once as a part of loading, in which engines may still
            compile.
    """

    key: str
    title: str
    question: str
    scenario: Scenario
    kind: Kind
    model: Model
    workloads: tuple[Workload, ...]
    rows: tuple[RowPlan, ...]
    rounds: int
    anchor: str = ANCHOR
    points: tuple[float, ...] = (0,)
    axis: str = ""
    warmups: int = 1
    load: float = 0.0
    requests: int = 0
    apart: bool = False
    discard: int = 1
    first_call: bool = True


@dataclass(frozen=True)
class RealSize:
    """Networks of the size people use, and the latents they are run on."""

    model: Model
    tokens: int = 77
    side: int = 64


@dataclass(frozen=True)
class Sampling:
    """How to sample whole images; None is each experiment's own way.

    Attributes:
        steps: of the sampler.
        guidance: its scale; 1 is none.
    """

    steps: int | None = None
    guidance: float | None = None

    def of(self, workload: ImageWorkload) -> ImageWorkload:
        """The workload, sampled so."""
        given = {"steps": self.steps, "guidance": self.guidance}
        return workload.model_copy(update={k: v for k, v in given.items() if v is not None})


AS_USUAL = Sampling()


def rows_of(peers: tuple[str, ...], *, forward: bool = False) -> tuple[RowPlan, ...]:
    """A row for each peer; of those that can, where single networks are called."""
    return tuple(RowPlan(p, p) for p in peers if not forward or info_of(p).forward)


def techniques(added: tuple[Technique, ...]) -> tuple[RowPlan, ...]:
    """A row for each of these."""
    return tuple(RowPlan(t.label, "kdrt", t.options, t.changes) for t in added)


def facts_of(model: Model) -> tuple[LatentFacts, int]:
    """The sizes of a model's latents, and the tokens its text encoders read."""
    manifest = open_bundle(str(model.bundle)).manifest
    return manifest.latents, manifest.text_encoders[0].max_length
