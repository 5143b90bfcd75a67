"""Another UNet on a base model: its layouts, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kdrt.backends.loading import load_engines
from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError
from kdrt_export import stage
from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.sources import open_source
from kdrt_export.sources.replacement_unet import replace_unet, replacement_unet
from kdrt_export.verify import relative_error
from tests.support.single_file import PLAYGROUND, checkpoint
from tests.support.tiny_networks import randomized, text_encoder, unet, vae

PREFIX = "model.diffusion_model."


LAYOUTS = ["folder", "pipeline", "diffusers", "prefixed", "ldm", "alone", "whole", "bin", "CKPT"]


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *(("sd", layout) for layout in LAYOUTS),
        ("lcm", "diffusers"),
        ("inpainting", "diffusers"),
        ("inpainting", "ldm"),
    ],
)
def test_every_form_of_a_unet(layout: str, kind: str, tmp_path: Path) -> None:
    """Also of one that takes a guidance scale or masks, where the model's own does not."""
    changes = {"in_channels": 9} if kind == "inpainting" else {}
    other = randomized(unet("lcm" if kind == "lcm" else "sd", **changes), seed=5)
    state: dict[str, torch.Tensor] = other.state_dict()
    whole = checkpoint(other, vae(), text_encoder()) if kind != "lcm" else {}
    path = tmp_path / "unet.safetensors"
    if layout == "folder":
        other.save_pretrained(path := tmp_path / "folder")
    elif layout == "pipeline":
        other.save_pretrained(tmp_path / "pipeline" / "unet")
        path = tmp_path / "pipeline"
    elif layout == "diffusers":
        save_file(state, path := tmp_path / "unet.SafeTensors")
    elif layout == "prefixed":
        save_file({f"unet.{name}": t for name, t in state.items()}, path)
    elif layout in ("ldm", "alone"):
        part = {name: t for name, t in whole.items() if name.startswith(PREFIX)}
        cut = PREFIX if layout == "alone" else ""
        save_file({name.removeprefix(cut): t for name, t in part.items()}, path)
    elif layout == "whole":
        save_file(whole, path)
    elif layout == "bin":
        torch.save(state, path := tmp_path / "dmd2.bin")
    else:
        torch.save({"state_dict": whole}, path := tmp_path / "whole.CKPT")
    pickle = layout in ("bin", "CKPT")
    loaded = replacement_unet(str(path), unet("sd").config, allow_pickle=pickle).network()
    ours, expected = loaded.state_dict(), other.state_dict()
    assert set(ours) == set(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    assert loaded.config.in_channels == other.config.in_channels
    assert loaded.config.time_cond_proj_dim == other.config.time_cond_proj_dim
    if pickle:
        with pytest.raises(SourceError, match=r"is a pickle.*--allow-pickle"):
            replacement_unet(str(path), unet("sd").config)


def test_what_does_not_fit(tmp_path: Path) -> None:
    own = unet("sd").config

    def refused(state: dict[str, Any], words: str) -> None:
        save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(SourceError, match=words):
            replacement_unet(str(tmp_path / "other.safetensors"), own).check()

    state = unet("sd").state_dict()
    refused(unet("sd", cross_attention_dim=32).state_dict(), "other shapes: .* not for this base")
    refused({n: t for n, t in state.items() if n != "conv_out.bias"}, r"it lacks conv_out\.bias")
    refused(state | {"extra.weight": torch.zeros(1)}, r"holds besides extra\.weight")
    refused({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, "holds no UNet")
    refused(vae().state_dict(), "holds no UNet|lacks")
    for what in ("nonsense", "a/b/c", "missing.safetensors"):
        with pytest.raises(SourceError, match="is no UNet: give a diffus"):
            replacement_unet(what, own)
    with pytest.raises(InvalidRequestError, match="no home folder for ~nobody-at-all"):
        replacement_unet("~nobody-at-all/x", own)


@pytest.mark.parametrize("layout", ["diffusers", "prefixed", "alone"])
@pytest.mark.parametrize(
    ("markers", "metadata", "expected"),
    [
        ({}, {}, {}),
        ({"v_pred": ()}, {}, {"prediction_type": "v_prediction"}),
        ({}, {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        ({}, {"modelspec.prediction_type": "sample"}, {"prediction_type": "sample"}),
        ({}, {"modelspec.prediction_type": "Flow"}, {"prediction_type": "flow"}),  # refused later
        (
            {"v_pred": (), "ztsnr": ()},
            {},
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        ),
        (
            {"edm_vpred.sigma_max": (99.0,)},
            {},
            {"_class_name": "EDMEulerScheduler", "sigma_max": 99.0, "sigma_data": 1.0},
        ),
        (PLAYGROUND, {}, None),
    ],
)
def test_what_a_unets_file_says_of_its_training_counts(
    markers: dict[str, tuple[float, ...]],
    metadata: dict[str, str],
    expected: dict[str, Any] | None,
    layout: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    prefix = {"diffusers": "", "prefixed": "unet.", "alone": ""}[layout]
    state = {f"{prefix}{name}": tensor for name, tensor in unet("sd").state_dict().items()}
    if layout == "alone":
        whole = checkpoint(unet("sd"), vae(), text_encoder())
        state = {n.removeprefix(PREFIX): t for n, t in whole.items() if n.startswith(PREFIX)}
    state |= {name: torch.tensor(values) for name, values in markers.items()}
    save_file(state, tmp_path / "unet.safetensors", metadata)
    opened = open_source(str(sd_folder))
    own = dict(opened.scheduler)
    if expected is None:
        with pytest.raises(UnsupportedModelError, match=r"edm_mean and edm_std.*Playground"):
            replace_unet(opened, str(tmp_path / "unet.safetensors"))
        return
    replace_unet(opened, str(tmp_path / "unet.safetensors"))
    opened.check()
    whole_scheduler = "_class_name" not in expected
    assert opened.scheduler == {**own, **expected} or not whole_scheduler
    assert opened.scheduler.items() >= expected.items()


def test_a_pipelines_unet_brings_its_scheduler(
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    unet("sd").save_pretrained(other / "unet")
    scheduler = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"}
    (other / "scheduler").mkdir()
    (other / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    opened = open_source(str(sd_folder))
    own = opened.scheduler
    replace_unet(opened, str(other / "unet"))
    assert opened.scheduler == own
    replace_unet(opened, str(other))
    assert opened.scheduler == scheduler


def test_a_bundle_with_another_unet(sd_folder: Path, tmp_path: Path) -> None:
    other = randomized(unet("sd"), seed=5)
    save_file(other.state_dict(), tmp_path / "turbo.safetensors")
    file = str(tmp_path / "turbo.safetensors")
    bundle = Bundle.open(stage.export(str(sd_folder), tmp_path / "out", unet=file))
    manifest = bundle.manifest
    assert manifest.name == f"{sd_folder.name}-turbo"
    assert manifest.source == f"{sd_folder.name} with the UNet turbo.safetensors"
    binding = load_engines(bundle, "onnxruntime", threads=1)["unet"].bind(B=1, h=4, w=4, L=5)
    for name, tensor in binding.inputs.items():
        tensor.copy_(torch.ones(tensor.shape) if name == "freeu" else torch.randn(tensor.shape))
    binding.run()
    inputs = binding.inputs
    expected = other(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]).sample
    assert relative_error(binding.outputs["noise_pred"], expected) < 1e-5


def test_a_unet_of_another_model_is_refused_before_it_is_traced(
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    """A folder has a configuration of its own."""
    for changes, words in (
        ({"cross_attention_dim": 32}, "encoder_hidden_states of width 32, and the text encoders"),
        ({"out_channels": 8, "in_channels": 8}, "latents of 8 channels, and the VAE decodes.* 4"),
    ):
        unet("sd", **changes).save_pretrained(tmp_path / "unet")
        with pytest.raises(SourceError, match=words):
            stage.export(str(sd_folder), tmp_path / "out", unet=str(tmp_path / "unet"))
