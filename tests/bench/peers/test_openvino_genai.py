"""OpenVINO GenAI as a peer: what is written for it, and where it is installed, its image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdrt.bundle import open_bundle
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.genai_folder import TextEncoder, UNet, check_scheduler, check_steps
from kdrt_bench.inputs import example_inputs, read_by_peers
from kdrt_bench.jobs import BenchJob, ImageWorkload
from kdrt_bench.models import model_of
from kdrt_bench.networks import plain_network, source_of
from kdrt_bench.peers import load_peer
from kdrt_bench.runners import noise_levels
from kdrt_bench.stages import StageClock
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts


def test_a_model_of_continuous_noise_levels_is_refused() -> None:
    facts = scheduler_facts({"_class_name": "EDMEulerScheduler"}, Silent())
    with pytest.raises(PeerUnavailableError, match="leave 'openvino-genai' out of --vs"):
        check_scheduler(facts)


def test_steps_that_it_would_round_are_refused() -> None:
    check_steps(20, 1000)
    with pytest.raises(PeerUnavailableError, match="30 steps of 1000"):
        check_steps(30, 1000)


def test_its_rounded_timesteps_are_the_noise_levels_of_the_others(demo_bundle: Path) -> None:
    """As its scheduler's source has them for the spacing that is written: the steps counted down
    from the last, each the nearest whole timestep."""
    bundle = open_bundle(str(demo_bundle))
    facts = bundle.manifest.scheduler
    betas = torch.linspace(facts.beta_start**0.5, facts.beta_end**0.5, 1000).double() ** 2
    kept = torch.cumprod(1 - betas, 0)
    timesteps = [round(1000 - index * 1000 / 20) - 1 for index in range(20)]
    theirs = [float(((1 - kept[t]) / kept[t]) ** 0.5) for t in timesteps]
    assert noise_levels(bundle, 20) == pytest.approx([*theirs, 0.0], rel=1e-5)


@torch.no_grad()
def test_its_text_encoders_give_sdxls_states_where_it_reads_them(demo_bundle: Path) -> None:
    """The pooled text of the second encoder first; the states before the last layer of both at
    the number of layers + 1."""
    source = source_of(model_of(str(demo_bundle)))
    tokens = torch.randint(0, 600, (1, 32), generator=torch.Generator().manual_seed(0))
    for index in (0, 1):
        model = source.text_encoder(index)
        outputs = TextEncoder(model, every_state=True)(tokens)
        wanted = model(tokens, output_hidden_states=True)
        assert torch.equal(outputs[model.config.num_hidden_layers + 1], wanted.hidden_states[-2])
        if index == 1:
            assert torch.equal(outputs[0], wanted.text_embeds)


@torch.no_grad()
def test_its_unet_is_the_others(demo_bundle: Path) -> None:
    model = model_of(str(demo_bundle))
    spec = open_bundle(str(demo_bundle)).manifest.components["unet"].spec()
    source = source_of(model)
    names = read_by_peers(spec)
    given = example_inputs(spec, {"B": 2, "L": 32, "h": 16, "w": 16}, 0)
    given["timestep"] = torch.full((2,), 500.0)
    ours = plain_network(source, "unet", names)(*(given[name] for name in names))
    theirs = UNet(source.unet(), sdxl=True)(
        given["sample"],
        torch.tensor([500]),
        given["encoder_hidden_states"],
        given["text_embeds"],
        given["time_ids"],
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_its_image_is_eagers_to_eight_bits(demo_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    model = model_of(str(demo_bundle)).model_copy(update={"cache": tmp_path})
    workload = ImageWorkload(steps=4)
    images = {}
    for name in ("eager", "openvino-genai"):
        job = BenchJob(peer=name, model=model, workloads=(workload,), threads=1, folder=tmp_path)
        peer = load_peer(name)(job, open_bundle(str(demo_bundle)), {"precision": "f32"})
        runner = peer.generator(workload, StageClock())
        runner.run()
        (images[name],) = runner.outputs()
    # It cuts off what is below a whole level, and has its noise levels in float32.
    assert abs(images["eager"] - images["openvino-genai"]).max() < 2 / 255
