"""Experiments with networks of the size people use, of which a few at most fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from kdrt.bundle import open_bundle
from kdrt.common.memory import whole_memory
from kdrt_bench.ablation import AT_REAL_SIZE
from kdrt_bench.experiment import (
    ANCHOR,
    AS_USUAL,
    Experiment,
    RealSize,
    Sampling,
    facts_of,
    rows_of,
    techniques,
)
from kdrt_bench.jobs import Forward, ImageWorkload, Workload
from kdrt_bench.peers import info_of

HEAVY_PEERS = ("eager", "openvino", "onnxruntime-plain", "openvino-default")
"""What runs at real size unless asked otherwise: compiling there takes longer than all the rest."""

HEAVY_IMAGE_PEERS = ("openvino-genai", "sd-cpp-f32", "sd-cpp-f16", "sd-cpp-q8_0")
"""What makes whole images there besides."""

FEW_STEPS = ImageWorkload(steps=4, guidance=1)
"""As people with slow processors make images, with models that are distilled for it."""

_SHARE = 0.9
"""Of this machine's memory: the rest is the system's and the files'."""


def at_real_size(
    real: RealSize, peers: tuple[str, ...] | None, sampling: Sampling = AS_USUAL
) -> list[Experiment]:
    """UNet, VAE and text encoder alone, what techniques bring there, and an image of all networks.

    Args:
        real: the networks.
        peers: the anchor and kdrt first; None takes those that are not too slow to prepare.
        sampling: of the images, where it is not the usual.
    """
    name, side = real.model.name, real.side
    sizes = {"h": side, "w": side}
    unet = Forward(component="unet", dims={"B": 1, "L": real.tokens, **sizes})
    guided = Forward(component="unet", dims={"B": 2, "L": real.tokens, **sizes})
    vae = Forward(component="vae_decoder", dims={"B": 1, **sizes})
    text = Forward(component="text_encoder", dims={"B": 1, "L": real.tokens})
    pixels = side * facts_of(real.model)[0].scale
    few = sampling.of(FEW_STEPS).model_copy(update={"height": pixels, "width": pixels})
    base = peers or (ANCHOR, "kdrt", *HEAVY_PEERS[1:])
    single = [peer for peer in base if info_of(peer).forward]
    whole = peers or (ANCHOR, "kdrt", *HEAVY_IMAGE_PEERS)
    call = "How long does one call take?"
    found = in_groups(
        _one(
            real,
            "unet",
            f"A step of the UNet, {name}",
            f"How long does one call take at {side} × {side} latents, batch 1?",
            unet,
            rounds=10,
        ),
        single,
        room(real, ["unet"]),
        later_rounds=3,
    )
    for plan, component in (
        (_one(real, "vae", f"VAE decoder, {name}", call, vae, rounds=10), "vae_decoder"),
        (_one(real, "text", f"Text encoder, {name}", call, text, rounds=20), "text_encoder"),
    ):
        found += in_groups(plan, single, room(real, [component]), most=3)[:1]
    for key, title, workload in (
        ("ablation-unet", "UNet with guidance", guided),
        ("ablation-vae", "VAE decoder", vae),
    ):
        rows = techniques(AT_REAL_SIZE)
        plan = _one(
            real,
            key,
            f"What each technique brings, {title}, {name}",
            "How long does one call take as techniques are added one by one?",
            workload,
            rounds=2,
        )
        needed = sum(info_of(row.peer).memory for row in rows)
        apart = needed > room(real, [workload.component])
        found.append(replace(plan, kind="ablation", rows=rows, anchor=rows[0].label, apart=apart))
    image = _one(
        real,
        "image-real",
        f"An image, {name}",
        f"How long does a whole image take, and how much memory? {pixels} pixels a side, "
        f"{few.words()}.",
        few,
        rounds=2,
    )
    components = list(open_bundle(str(real.model.bundle)).manifest.components)
    images = in_groups(image, whole, room(real, components), later_rounds=1)
    return found + list(map(with_warm_up, images))


def with_warm_up(plan: Experiment) -> Experiment:
    """An experiment of whole images, with the runs that do not count."""
    if all(info_of(row.peer).ahead for row in plan.rows):
        # Where nothing is made ready in a first call, it is as any other, and takes minutes.
        return replace(plan, first_call=False)
    # All networks of all rows nearly fill the memory: while the last row loads, pages of files
    # that the first one maps are dropped.
    return replace(plan, discard=0 if plan.apart else 1)


def in_groups(
    plan: Experiment,
    peers: Iterable[str],
    memory: float,
    *,
    later_rounds: int | None = None,
    most: int | None = None,
) -> list[Experiment]:
    """An experiment with these peers, as often as it takes for those alive at once to fit into
    memory, each with the anchor anew; kdrt and the best of its peers come first, so that they meet
    in the same rounds. Where not even two fit, every turn is a process of its own.

    Args:
        plan: without rows; its key gets a number unless ``most`` is given.
        peers: the anchor and others.
        memory: what there is, in :attr:`PeerInfo.memory`'s unit.
        later_rounds: of all but the first; None is the plan's own.
        most: rows in a group at most.
    """
    groups: list[list[str]] = []
    for peer in (p for p in peers if p != ANCHOR):
        last = groups[-1] if groups else []
        needed = sum(info_of(p).memory for p in (*last, peer))
        if not last or needed > memory or len(last) == most:
            groups.append([ANCHOR, peer])
        else:
            last.append(peer)
    found = []
    for number, group in enumerate(groups):
        others = " and ".join(info_of(p).title for p in group[1:])
        found.append(
            replace(
                plan,
                key=plan.key if most else f"{plan.key}-{number + 1}",
                title=plan.title if number == 0 else f"{plan.title}, {others}",
                rows=rows_of(tuple(group)),
                rounds=later_rounds if number and later_rounds else plan.rounds,
                apart=sum(info_of(p).memory for p in group) > memory,
            )
        )
    return found


def room(real: RealSize, components: Iterable[str]) -> float:
    """How many times the float32 weights of some components fit into this machine's memory,
    or into what its container may have."""
    parts = open_bundle(str(real.model.bundle)).manifest.components
    weights = 4 * sum(parts[name].parameters for name in components)
    return _SHARE * whole_memory() / weights


def _one(
    real: RealSize, key: str, title: str, question: str, workload: Workload, *, rounds: int
) -> Experiment:
    """One question, still without its rows."""
    return Experiment(
        key=key,
        title=title,
        question=question,
        scenario="SingleStream",
        kind="rows",
        model=real.model,
        workloads=(workload,),
        rows=(),
        rounds=rounds,
        warmups=0,
        discard=0,
    )
