"""Which experiments a suite holds.

An experiment compares rows on the same workloads, in the same rounds, with one of them as anchor:
ratios and likeness are to it. The names of the scenarios are MLPerf's: SingleStream (one request
after the other, batch 1), Offline (as many images as possible), Server (requests at random).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from kdrt.bundle import LatentFacts, open_bundle
from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS
from kdrt_bench.ablation import AT_REAL_SIZE, TECHNIQUES, Technique
from kdrt_bench.errors import BenchmarkError
from kdrt_bench.jobs import Forward, ImageWorkload, Model, Workload
from kdrt_bench.peers import ALIASES, PEERS
from kdrt_engines.openvino.config import is_openvino
from kdrt_engines.registry import ENGINES

Scenario = Literal["SingleStream", "Offline", "Server", "Startup"]
Kind = Literal["rows", "curve", "ablation", "server", "startup"]
SUITES = ("quick", "full", "gpu")
ANCHOR = "eager"

QUICK_PEERS = ("eager", "diffusers", "onnxruntime-plain", "openvino")
FULL_PEERS = (
    "eager",
    "diffusers",
    "openvino",
    "onnxruntime-plain",
    "compile",
    "openvino-default",
    "eager-bf16",
)
GPU_PEERS = ("eager", "diffusers", "compile")
HEAVY_PEERS = ("eager", "openvino", "onnxruntime-plain", "openvino-default")
"""What runs at real size unless asked otherwise: compiling there takes longer than all the rest."""

TOGETHER = 3
"""Processes with networks of real size that are alive at once: together they need 20 GB."""


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


@dataclass(frozen=True)
class RealSize:
    """Networks of the size people use, and the latents they are run on."""

    model: Model
    tokens: int = 77
    side: int = 64


def peers_of(suite: str, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """The peers of a run, the anchor first and kdrt second.

    Raises:
        BenchmarkError: there is no such suite or peer.
    """
    if suite not in SUITES:
        raise BenchmarkError(f"there is no suite '{suite}'; there are {', '.join(SUITES)}")
    defaults = {"quick": QUICK_PEERS, "full": FULL_PEERS, "gpu": GPU_PEERS}
    names = [ALIASES.get(name, name) for name in (chosen or defaults[suite])]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise BenchmarkError(f"there is no peer '{unknown[0]}'; there are {', '.join(PEERS)}")
    return tuple(dict.fromkeys([ANCHOR, "kdrt", *names]))


def experiments(
    suite: str,
    demo: Model,
    real: RealSize | None,
    chosen: tuple[str, ...] | None = None,
    rounds: int | None = None,
) -> list[Experiment]:
    """The experiments of a suite, in order.

    Args:
        suite: one of ``SUITES``.
        demo: the model of whole generations.
        real: networks of real size, for the full suite.
        chosen: peers; None takes the suite's own.
        rounds: of every experiment; None takes each one's own.
    """
    peers = peers_of(suite, chosen)
    if suite == "gpu":
        found = gpu(demo, peers)
    else:
        found = [image(demo, peers), step(demo, peers), startup(demo, peers)]
    if suite == "full":
        heavy = peers if chosen else peers_at_real_size(peers)
        found += at_real_size(real, heavy) if real else []
        found += [ablation(demo), *curves(demo), server(demo, peers)]
    if rounds is None:
        return found
    # A server's requests are many in one round.
    return [e if e.kind == "server" else replace(e, rounds=rounds) for e in found]


def selected(found: list[Experiment], keys: tuple[str, ...] | None) -> list[Experiment]:
    """The experiments of these keys, in the suite's order; None is all.

    Raises:
        BenchmarkError: there is none of that key, or one that needs another that is left out.
    """
    if keys is None:
        return found
    known = [each.key for each in found]
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise BenchmarkError(
            f"this suite has no experiment '{unknown[0]}'; it has {', '.join(known)}"
        )
    if "server" in keys and "image" not in keys:
        raise BenchmarkError("the experiment 'server' needs 'image': name both")
    return [each for each in found if each.key in keys]


def peers_at_real_size(peers: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are not too slow to prepare there."""
    return tuple(peer for peer in peers if peer == "kdrt" or peer in HEAVY_PEERS)


def rows_of(peers: tuple[str, ...], *, forward: bool = False) -> tuple[RowPlan, ...]:
    """A row for each peer; of those that can, where single networks are called."""
    return tuple(RowPlan(p, p) for p in peers if not forward or PEERS[p].forward)


def image(demo: Model, peers: tuple[str, ...]) -> Experiment:
    return Experiment(
        key="image",
        title="An image, prompt to pixels",
        question="How long does one image take, all of it: text encoders, 20 steps of Euler's "
        "method with guidance, VAE?",
        scenario="SingleStream",
        kind="rows",
        model=demo,
        workloads=(ImageWorkload(),),
        rows=rows_of(peers),
        rounds=20,
    )


def step(demo: Model, peers: tuple[str, ...]) -> Experiment:
    facts, tokens = facts_of(demo)
    sizes = {"h": facts.default_height // facts.scale, "w": facts.default_width // facts.scale}
    return Experiment(
        key="step",
        title=f"A step of the UNet, {demo.name}",
        question="How long does one call of the UNet take, batch 2 as guidance needs it?",
        scenario="SingleStream",
        kind="rows",
        model=demo,
        workloads=(Forward(component="unet", dims={"B": 2, "L": tokens, **sizes}),),
        rows=rows_of(peers, forward=True),
        rounds=20,
    )


def startup(demo: Model, peers: tuple[str, ...]) -> Experiment:
    names = [name for name in ("diffusers", "kdrt") if name in peers or name == "kdrt"]
    return Experiment(
        key="startup",
        title="Start-up",
        question="How long from starting Python to the first image? A new process every time; "
        "files are in the page cache.",
        scenario="Startup",
        kind="startup",
        model=demo,
        workloads=(ImageWorkload(),),
        rows=tuple(RowPlan(name, name) for name in names),
        rounds=5,
        anchor=names[0],
    )


def at_real_size(real: RealSize, peers: tuple[str, ...]) -> list[Experiment]:
    """UNet, VAE and text encoder alone, so that few processes are alive at once, what techniques
    bring there, and an image of all networks."""
    name, side = real.model.name, real.side
    sizes = {"h": side, "w": side}
    unet = Forward(component="unet", dims={"B": 1, "L": real.tokens, **sizes})
    guided = Forward(component="unet", dims={"B": 2, "L": real.tokens, **sizes})
    vae = Forward(component="vae_decoder", dims={"B": 1, **sizes})
    text = Forward(component="text_encoder", dims={"B": 1, "L": real.tokens})
    groups = _groups(peers)

    def one(
        key: str,
        title: str,
        question: str,
        workload: Workload,
        rows: tuple[RowPlan, ...],
        rounds: int,
        kind: Kind = "rows",
    ) -> Experiment:
        return Experiment(
            key=key,
            title=title,
            question=question,
            scenario="SingleStream",
            kind=kind,
            model=real.model,
            workloads=(workload,),
            rows=rows,
            rounds=rounds,
            anchor=rows[0].label,
            warmups=0,
        )

    found = []
    for number, group in enumerate(groups):
        more = "" if number == 0 else f", {' and '.join(PEERS[p].title for p in group[1:])}"
        found.append(
            one(
                f"unet-{number + 1}",
                f"A step of the UNet, {name}{more}",
                f"How long does one call take at {side} × {side} latents, batch 1?",
                unet,
                rows_of(group, forward=True),
                rounds=10 if number == 0 else 5,
            )
        )
    for key, title, workload, rounds in (
        ("vae", "VAE decoder", vae, 4),
        ("text", "Text encoder", text, 20),
    ):
        question, rows = "How long does one call take?", rows_of(groups[0], forward=True)
        found.append(one(key, f"{title}, {name}", question, workload, rows, rounds))
    for key, title, workload in (
        ("ablation-unet", "UNet with guidance", guided),
        ("ablation-vae", "VAE decoder", vae),
    ):
        title = f"What each technique brings, {title}, {name}"
        question = "How long does one call take as techniques are added one by one?"
        rows = techniques(AT_REAL_SIZE)
        found.append(one(key, title, question, workload, rows, 4, "ablation"))
    # Few steps, as they are all alike: what it is for is the memory of all networks together.
    pixels = side * facts_of(real.model)[0].scale
    image_of_two = one(
        "image-real",
        f"An image of two steps, {name}",
        "How long does a whole image take, and how much memory?",
        ImageWorkload(steps=2, height=pixels, width=pixels),
        rows_of((ANCHOR, "kdrt")),
        rounds=4,
    )
    return [*found, image_of_two]


def techniques(added: tuple[Technique, ...]) -> tuple[RowPlan, ...]:
    """A row for each of these."""
    return tuple(RowPlan(t.label, "kdrt", t.options, t.changes) for t in added)


def ablation(demo: Model) -> Experiment:
    return Experiment(
        key="ablation",
        title="What each technique brings",
        question="What does an image take as techniques are added one by one, each row with all "
        "of those above it?",
        scenario="SingleStream",
        kind="ablation",
        model=demo,
        workloads=(ImageWorkload(),),
        rows=(RowPlan(ANCHOR, ANCHOR), *techniques(TECHNIQUES)),
        rounds=20,
    )


def curves(demo: Model) -> list[Experiment]:
    """How time grows with steps, batch and resolution."""
    side = facts_of(demo)[0].default_width
    axes: list[tuple[str, str, Scenario, str, tuple[int, ...]]] = [
        ("steps", "Steps", "SingleStream", "steps", (5, 10, 20, 40)),
        ("batch", "Batch", "Offline", "images in a batch", (1, 2, 4, 8)),
        ("side", "Resolution", "SingleStream", "pixels a side", (side, side * 3 // 2, side * 2)),
    ]
    found = []
    for key, title, scenario, axis, points in axes:
        workloads = tuple(_at(key, point) for point in points)
        found.append(
            Experiment(
                key=key,
                title=f"{title}, {demo.name}",
                question=f"How does the time of a run grow with {axis}?",
                scenario=scenario,
                kind="curve",
                model=demo,
                workloads=workloads,
                rows=rows_of((ANCHOR, "kdrt")),
                rounds=6,
                points=tuple(map(float, points)),
                axis=axis,
            )
        )
    return found


def server(demo: Model, peers: tuple[str, ...]) -> Experiment:
    shown = tuple(p for p in peers if p in (ANCHOR, "kdrt", "openvino"))
    return Experiment(
        key="server",
        title="Requests at random",
        question="What do 99 of 100 requests wait at most, if 0.7 of what eager PyTorch can serve "
        "arrive at random? Latency counts from arrival.",
        scenario="Server",
        kind="server",
        model=demo,
        workloads=(ImageWorkload(),),
        rows=rows_of(shown),
        rounds=1,
        load=0.7,
        requests=40,
    )


def gpu(demo: Model, peers: tuple[str, ...]) -> list[Experiment]:
    """Every engine of kdrt on CUDA at every graph level. Never run on a GPU yet."""
    rows = [RowPlan(peer, peer) for peer in peers if peer != "kdrt"]
    rows += [
        RowPlan(f"kdrt {engine}, graph {level}", "kdrt", {"engine": engine, "cuda_graph": level})
        for engine in ENGINES
        if engine != "onnxruntime" and not is_openvino(engine)
        for level in CUDA_GRAPH_LEVELS
    ]
    return [replace(image(demo, peers), rows=tuple(rows), rounds=10)]


def facts_of(model: Model) -> tuple[LatentFacts, int]:
    """The sizes of a model's latents, and the tokens its text encoders read."""
    manifest = open_bundle(str(model.bundle)).manifest
    return manifest.latents, manifest.text_encoders[0].max_length


def _at(key: str, point: int) -> ImageWorkload:
    if key == "side":
        return ImageWorkload(height=point, width=point)
    return ImageWorkload(**{key: point})  # type: ignore[arg-type]


def _groups(peers: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The anchor with as many others as may be alive at once, again and again; kdrt and the best
    of its peers come first, so that they meet in the same rounds."""
    others = [peer for peer in peers if peer != ANCHOR and PEERS[peer].forward]
    size = TOGETHER - 1
    return [(ANCHOR, *others[i : i + size]) for i in range(0, len(others), size)]
