"""Which experiments a suite holds.

An experiment compares rows on the same workloads, in the same rounds, with one of them as anchor:
ratios and likeness are to it. The names of the scenarios are MLPerf's: SingleStream (one request
after the other, batch 1), Offline (as many images as possible), Server (requests at random).
"""

from __future__ import annotations

import re
from dataclasses import replace

from kdrt.denoise.cuda_graphs import CUDA_GRAPH_LEVELS
from kdrt_bench.ablation import TECHNIQUES
from kdrt_bench.errors import BenchmarkError
from kdrt_bench.experiment import (
    ANCHOR,
    AS_USUAL,
    Experiment,
    RealSize,
    RowPlan,
    Sampling,
    Scenario,
    facts_of,
    rows_of,
    techniques,
)
from kdrt_bench.jobs import Forward, ImageWorkload, Model
from kdrt_bench.peers import ALIASES, info_of
from kdrt_bench.real_size import at_real_size
from kdrt_engines.openvino.config import is_openvino
from kdrt_engines.registry import ENGINES

SUITES = ("quick", "full", "gpu")

QUICK_PEERS = ("eager", "diffusers", "onnxruntime-plain", "openvino", "openvino-genai")
FULL_PEERS = (
    "eager",
    "diffusers",
    "openvino",
    "openvino-genai",
    "onnxruntime-plain",
    "compile",
    "openvino-default",
    "eager-bf16",
)
GPU_PEERS = ("eager", "diffusers", "compile")


def peers_of(suite: str, chosen: tuple[str, ...] | None) -> tuple[str, ...]:
    """The peers of a run, the anchor first and kdrt second.

    Raises:
        BenchmarkError: there is no such suite or peer.
        InvalidRequestError: kdrt has no such engine.
    """
    if suite not in SUITES:
        raise BenchmarkError(f"there is no suite '{suite}'; there are {', '.join(SUITES)}")
    defaults = {"quick": QUICK_PEERS, "full": FULL_PEERS, "gpu": GPU_PEERS}
    names = [ALIASES.get(name, name) for name in (chosen or defaults[suite])]
    for name in names:
        info_of(name)
    return tuple(dict.fromkeys([ANCHOR, "kdrt", *names]))


def experiments(
    suite: str,
    demo: Model,
    real: RealSize | None,
    chosen: tuple[str, ...] | None = None,
    rounds: int | None = None,
    sampling: Sampling = AS_USUAL,
) -> list[Experiment]:
    """The experiments of a suite, in order.

    Args:
        suite: one of ``SUITES``.
        demo: the model of whole generations.
        real: networks of real size, for the full suite.
        chosen: peers; None takes the suite's own.
        rounds: of every experiment; None takes each one's own.
        sampling: of the images of ``image``, ``server`` and ``image-real``.
    """
    peers = peers_of(suite, chosen)
    if suite == "gpu":
        found = gpu(demo, peers)
    else:
        found = [image(demo, peers, sampling), step(demo, peers), startup(demo, peers)]
    if suite == "full":
        found += at_real_size(real, peers if chosen else None, sampling) if real else []
        found += [ablation(demo), *curves(demo), server(demo, peers, sampling)]
    if rounds is None:
        return found
    # A server's requests are many in one round.
    return [e if e.kind == "server" else replace(e, rounds=rounds) for e in found]


def selected(found: list[Experiment], keys: tuple[str, ...] | None) -> list[Experiment]:
    """The experiments of these keys, in the suite's order; None is all. What is measured in groups
    has keys with a number, and without it all of them are meant.

    Raises:
        BenchmarkError: there is none of that key, or one that needs another that is left out.
    """
    if keys is None:
        return found
    known = [each.key for each in found]
    unknown = [key for key in keys if not any(is_chosen(each, (key,)) for each in known)]
    if unknown:
        raise BenchmarkError(
            f"this suite has no experiment '{unknown[0]}'; it has {', '.join(known)}"
        )
    if "server" in keys and "image" not in keys:
        raise BenchmarkError("the experiment 'server' needs 'image': name both")
    return [each for each in found if is_chosen(each.key, keys)]


def is_chosen(key: str, keys: tuple[str, ...]) -> bool:
    """Whether an experiment is among these, by its key or by that without its number."""
    return key in keys or _unnumbered(key) in keys


def _unnumbered(key: str) -> str:
    """``unet`` of ``unet-2``."""
    return re.sub(r"-\d+$", "", key)


def image(demo: Model, peers: tuple[str, ...], sampling: Sampling = AS_USUAL) -> Experiment:
    workload = sampling.of(ImageWorkload())
    return Experiment(
        key="image",
        title="An image, prompt to pixels",
        question="How long does one image take, all of it: text encoders, "
        f"{workload.words()}, VAE?",
        scenario="SingleStream",
        kind="rows",
        model=demo,
        workloads=(workload,),
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


def server(demo: Model, peers: tuple[str, ...], sampling: Sampling = AS_USUAL) -> Experiment:
    shown = tuple(p for p in peers if p in (ANCHOR, "kdrt", "openvino"))
    return Experiment(
        key="server",
        title="Requests at random",
        question="What do 99 of 100 requests wait at most, if 0.7 of what eager PyTorch can serve "
        "arrive at random? Latency counts from arrival.",
        scenario="Server",
        kind="server",
        model=demo,
        workloads=(sampling.of(ImageWorkload()),),
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


def _at(key: str, point: int) -> ImageWorkload:
    if key == "side":
        return ImageWorkload(height=point, width=point)
    return ImageWorkload(**{key: point})  # type: ignore[arg-type]
