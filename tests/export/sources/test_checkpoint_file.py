"""What a checkpoint file is: told from the names and shapes of real architectures, without weights,
and described so that diffusers needs no hub."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from kdrt_export import stage
from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.families import SD15, SD20, SD21, SDXL, SDXL_REFINER, Architecture
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts
from kdrt_export.sources import checkpoint_file, open_source
from kdrt_export.sources.base import text_config, text_model
from kdrt_export.sources.checkpoint_file import CheckpointKind, Header, detect, read_header
from kdrt_export.sources.clip_vocabulary import clip_tokenizer
from kdrt_export.sources.weights import build
from tests.support.single_file import MEAN, PLAYGROUND, STD, checkpoint, open_clip, unet_shapes
from tests.support.tiny_networks import randomized, text_encoder, unet, vae

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
CROSS = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
ENCODERS = {
    "sd1": ("cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",),
    "sd2": ("cond_stage_model.model.transformer.resblocks.9.mlp.c_proj.bias",),
    "sdxl": (
        "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
    ),
    "none": (),
    "refiner": ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",),
}


_SHAPES: dict[int, dict[str, tuple[int, ...]]] = {}


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    if id(architecture) not in _SHAPES:
        with torch.device("meta"):
            _SHAPES[id(architecture)] = unet_shapes(UNet2DConditionModel(**architecture.unet))
    return _SHAPES[id(architecture)]


def sparse_checkpoint(
    path: Path,
    architecture: Architecture,
    encoder: str,
    *markers: str,
    channels: int = 4,
    **meta: str,
) -> Path:
    """A safetensors file of a real architecture in the original layout: a header, and a hole
    where the weights would be."""
    shapes = {name: list(shape) for name, shape in shapes_of(architecture).items()}
    shapes[FIRST][1] = channels
    shapes |= {name: [1] for name in (*ENCODERS[encoder], *markers)}
    header: dict[str, Any] = {"__metadata__": meta} if meta else {}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path


@pytest.mark.parametrize(
    ("architecture", "encoder", "markers", "channels", "meta", "expected"),
    [
        (SD15, "sd1", (), 4, {}, ("Stable Diffusion 1", SD15, "epsilon")),
        (SD15, "sd1", (), 9, {}, ("Stable Diffusion 1 inpainting", SD15, "epsilon")),
        (SD21, "sd2", (), 4, {}, ("Stable Diffusion 2", SD21, "v_prediction")),
        (SD20, "sd2", (), 9, {}, ("Stable Diffusion 2 inpainting", SD20, "epsilon")),
        (
            SD20,
            "sd2",
            (),
            4,
            {"modelspec.prediction_type": "epsilon"},
            ("Stable Diffusion 2", SD20, "epsilon"),
        ),
        (SDXL, "sdxl", (), 4, {}, ("SDXL", SDXL, "epsilon")),
        (SDXL, "sdxl", ("v_pred", "ztsnr"), 4, {}, ("SDXL", SDXL, "v_prediction")),
        (SD15, "sd1", ("v_pred",), 4, {}, ("Stable Diffusion 1", SD15, "v_prediction")),
        (
            SD15,
            "sd1",
            ("v_pred", "ztsnr"),
            9,
            {},
            ("Stable Diffusion 1 inpainting", SD15, "v_prediction"),
        ),
        (SD21, "sd2", ("v_pred", "ztsnr"), 4, {}, ("Stable Diffusion 2", SD21, "v_prediction")),
        (SD21, "sd2", ("v_pred",), 9, {}, ("Stable Diffusion 2 inpainting", SD21, "v_prediction")),
        (
            SDXL_REFINER,
            "refiner",
            ("v_pred", "ztsnr"),
            4,
            {},
            ("SDXL refiner", SDXL_REFINER, "v_prediction"),
        ),
        (
            SDXL,
            "sdxl",
            ("v_pred",),
            4,
            {"modelspec.prediction_type": "epsilon"},
            ("SDXL", SDXL, "epsilon"),
        ),
        (
            SDXL,
            "sdxl",
            (),
            4,
            {"modelspec.prediction_type": "v"},
            ("SDXL", SDXL, "v_prediction"),
        ),
        (SDXL, "sdxl", (), 9, {}, ("SDXL inpainting", SDXL, "epsilon")),
        (SDXL_REFINER, "refiner", (), 4, {}, ("SDXL refiner", SDXL_REFINER, "epsilon")),
        (SD20, "refiner", (), 4, {}, ("Stable Diffusion 2", SD20, "epsilon")),  # SD Turbo
    ],
)
def test_real_architectures_are_told_apart(
    tmp_path: Path,
    architecture: Architecture,
    encoder: str,
    markers: tuple[str, ...],
    channels: int,
    meta: dict[str, str],
    expected: tuple[str, Architecture, str],
) -> None:
    path = tmp_path / "model.safetensors"
    sparse_checkpoint(path, architecture, encoder, *markers, channels=channels, **meta)
    kind = detect(read_header(path), path.name)
    label, family, prediction = expected
    assert kind.label == label
    assert kind.architecture.unet == {**family.unet, "in_channels": channels}
    assert kind.architecture.text_encoders == family.text_encoders
    assert kind.architecture.scheduler["prediction_type"] == prediction
    assert kind.architecture.scheduler.get("rescale_betas_zero_snr", False) == ("ztsnr" in markers)
    untold = label == "Stable Diffusion 2" and encoder == "sd2" and not meta and not markers
    assert bool(kind.remark) == untold


@pytest.mark.parametrize(
    ("architecture", "millions", "encoders"),
    [
        (SD15, 859.5, [123.1]),
        (SD20, 865.9, [340.4]),
        (SD21, 865.9, [340.4]),
        (SDXL, 2567.5, [123.1, 694.7]),
        (SDXL_REFINER, 2259.5, [694.7]),
    ],
)
def test_architectures_are_the_published_networks(
    architecture: Architecture, millions: float, encoders: list[float]
) -> None:
    """As they are built to be compared with a file's tensors; sizes as published."""

    def size(kind: type[torch.nn.Module], config: Any) -> float:
        network = build(kind, config, "it", most=1000)
        return sum(p.numel() for p in network.parameters()) / 1e6

    assert size(UNet2DConditionModel, architecture.unet) == pytest.approx(millions, abs=0.1)
    assert size(AutoencoderKL, architecture.vae) == pytest.approx(83.7, abs=0.1)
    places = [1] if architecture.is_refiner else [0, 1][: len(encoders)]
    for place, raw, expected in zip(places, architecture.text_encoders, encoders, strict=True):
        assert size(text_model(place), text_config(raw, "it")) == pytest.approx(expected, abs=0.1)


def test_the_vocabulary_is_clips() -> None:
    """Ids as published with CLIP."""
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer.model_max_length == 77
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello  world!").input_ids == [49406, 3306, 1002, 256, 49407]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        49406,
        49407,
        49407,
    )
    assert clip_tokenizer("!").pad_token_id == 0
    assert tokenizer.decode(tokenizer("ünïcode 🙂").input_ids[1:-1]).strip() == "ünïcode 🙂"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"lora_unet_x": (1,)}, "no Stable Diffusion UNet"),
        ({"model.diffusion_model.joint_blocks.0": (1,)}, "another architecture"),
        ({"model.diffusion_model.x": (1,), "edm_mean": (1,)}, "another architecture"),
    ],
)
def test_what_is_none_of_them(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        detect(Header(shapes), "x.safetensors")


def test_a_unet_alone_is_for_its_base_model(tmp_path: Path) -> None:
    path = sparse_checkpoint(tmp_path / "unet.safetensors", SDXL, "none")
    with pytest.raises(UnsupportedModelError, match=r"kdrt export sdxl --unet unet\.safetensors"):
        open_source(str(path))


def test_other_widths_and_channels_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match="width 640; Stable Diffusion 1 has 768"):
        detect(Header({FIRST: (320, 4, 3, 3), CROSS: (320, 640)}), "x")
    with pytest.raises(UnsupportedModelError, match="takes 8 channels"):
        detect(Header({FIRST: (320, 8, 3, 3), CROSS: (320, 768)}), "x")
    step = Header({FIRST: (320, 4, 3, 3), CROSS: (320, 1024)}, global_step=875_000)
    assert detect(step, "x").architecture == SD20


@pytest.mark.parametrize(
    ("markers", "prediction", "expected"),
    [
        (PLAYGROUND, "epsilon", (0.002, 80.0, 0.5)),
        ({"edm_vpred.sigma_max": (120.0,)}, "v_prediction", (0.002, 120.0, 1.0)),
        (
            {"edm_vpred.sigma_max": (99.0,), "edm_vpred.sigma_min": (0.01,)},
            "v_prediction",
            (0.01, 99.0, 1.0),
        ),
    ],
)
@pytest.mark.parametrize(
    ("first", "label"),
    [
        ({CROSS: (320, 1024)}, "Stable Diffusion 2 EDM"),
        (dict.fromkeys(ENCODERS["sdxl"], (1,)), "SDXL EDM"),
    ],
)
def test_markers_of_the_edm_formulation(
    markers: dict[str, tuple[float, ...]],
    prediction: str,
    expected: tuple[float, ...],
    first: dict[str, tuple[int, ...]],
    label: str,
) -> None:
    shapes = {FIRST: (320, 4, 3, 3), **first} | {n: (1, len(v), 1, 1) for n, v in markers.items()}
    kind = detect(Header(shapes, markers=markers), "x")
    facts = scheduler_facts(kind.architecture.scheduler, Silent())
    assert facts.edm is not None
    assert (facts.edm.sigma_min, facts.edm.sigma_max, facts.edm.sigma_data) == expected
    assert (kind.label, kind.remark, facts.prediction_type) == (label, "", prediction)
    vae = kind.architecture.vae
    if "edm_mean" in markers:
        assert (vae["latents_mean"], vae["latents_std"], vae["scaling_factor"]) == (MEAN, STD, 0.5)
    else:
        assert vae == (SDXL if "XL" in label else SD21).vae


@pytest.mark.parametrize(
    "markers",
    [
        {"edm_mean": MEAN},
        {"edm_std": STD},
        {"edm_mean": MEAN[:3], "edm_std": STD},
        {"edm_mean": MEAN, "edm_std": (0.0, 1.0, 1.0, 1.0)},
        {"edm_mean": (float("nan"), *MEAN[1:]), "edm_std": STD},
        {"edm_mean": MEAN, "edm_std": (float("inf"), *STD[1:])},
    ],
)
def test_statistics_that_are_damaged_are_refused(markers: dict[str, tuple[float, ...]]) -> None:
    shapes = {FIRST: (320, 4, 3, 3), CROSS: (320, 768)} | dict.fromkeys(markers, (4,))
    with pytest.raises(
        UnsupportedModelError, match="edm_mean and edm_std are not 4 finite numbers"
    ):
        detect(Header(shapes, markers=markers), "x")


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_markers_are_read_with_their_values(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    state = {FIRST: torch.zeros(8, 4, 3, 3, dtype=torch.float16), "v_pred": torch.zeros(0)}
    state |= {name: torch.tensor(v).view(1, 4, 1, 1) for name, v in PLAYGROUND.items()}
    state["edm_vpred.sigma_max"] = torch.tensor(120.0)
    state["edm_vpred.sigma_min"] = torch.zeros(65)  # too large to be what it is called
    if suffix == ".ckpt":
        torch.save({"state_dict": {"state_dict": state}, "global_step": 7}, path)
    else:
        save_file(state, path)
    header = read_header(path)
    assert header.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert header.markers == {
        "edm_mean": pytest.approx(MEAN),
        "edm_std": pytest.approx(STD),
        "edm_vpred.sigma_max": (120.0,),
    }


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_is_read_offline(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny family in place of Stable Diffusion 1: weights, vocabulary, scheduler and all."""
    networks = unet("sd"), vae(), text_encoder(vocabulary=49408)
    tiny = replace(
        SD15,
        unet={k: v for k, v in networks[0].config.items() if k[0] != "_"},
        vae={k: v for k, v in networks[1].config.items() if k[0] != "_"},
        text_encoders=(networks[2].config.to_dict(),),
    )
    kind = CheckpointKind("Tiny", tiny, "a remark")
    monkeypatch.setattr("kdrt_export.sources.single_file.detect", lambda header, name: kind)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": checkpoint(*networks), "global_step": 7}, path)
        assert read_header(path).global_step == 7
    else:
        save_file(checkpoint(*networks), path)
    source = open_source(str(path), allow_pickle=suffix == ".ckpt")
    for ours, theirs in zip(
        (source.unet(), source.vae(), source.text_encoder(0)), networks, strict=True
    ):
        state, expected = ours.state_dict(), theirs.state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[name], expected[name]) for name in state)
    assert source.tokenizer(0)("a cat").input_ids == [49406, 320, 2368, 49407]
    assert source.scheduler == SD15.scheduler
    assert (source.kind, source.remark, source.family) == ("Tiny", "a remark", "sd")


@pytest.mark.parametrize("refiner", [False, True])
def test_sdxl_and_its_refiner_are_read_offline(
    tmp_path: Path, refiner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoder(projection: bool, width: int) -> Any:
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=20,
            num_hidden_layers=11,  # diffusers knows OpenCLIP by its tenth block
            num_attention_heads=3,
            projection_dim=20,
        )
        kind = CLIPTextModelWithProjection if projection else CLIPTextModel
        return randomized(kind(config))

    first, second = encoder(False, 15), encoder(True, 12)  # told apart by their widths
    width = 12 if refiner else 27
    network = unet(
        "sdxl",
        cross_attention_dim=width,
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=(5 if refiner else 6) * 8 + 20,
    )
    autoencoder = vae()
    whole = checkpoint(network, autoencoder, first)
    prefix = "cond_stage_model.transformer.text_model."
    state = {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)}
    if refiner:
        state |= open_clip(second, "conditioner.embedders.0.model")
    else:
        moved = "conditioner.embedders.0.transformer.text_model."
        state |= {moved + n[len(prefix) :]: t for n, t in whole.items() if n.startswith(prefix)}
        state |= open_clip(second, "conditioner.embedders.1.model")
    path = tmp_path / "xl.safetensors"
    save_file(state, path)
    kind = detect(read_header(path), path.name)
    assert kind.label == ("SDXL refiner" if refiner else "SDXL")
    encoders = (second,) if refiner else (first, second)
    tiny = replace(
        kind.architecture,
        unet={k: v for k, v in network.config.items() if k[0] != "_"},
        vae={k: v for k, v in autoencoder.config.items() if k[0] != "_"},
        text_encoders=tuple(each.config.to_dict() for each in encoders),
    )
    monkeypatch.setattr(
        "kdrt_export.sources.single_file.detect", lambda *_: replace(kind, architecture=tiny)
    )
    source = open_source(str(path))
    assert source.encoder_indices == ((1,) if refiner else (0, 1))
    assert source.zeros_for_empty_negative is not refiner  # as their model_index.json say
    loaded = [source.unet(), source.vae(), *map(source.text_encoder, source.encoder_indices)]
    for ours, theirs in zip(loaded, (network, autoencoder, *encoders), strict=True):
        ours_state, expected = ours.state_dict(), theirs.state_dict()
        assert set(ours_state) == set(expected)
        assert not [name for name, tensor in ours_state.items() if tensor.is_meta]
        assert all(torch.equal(ours_state[name], expected[name]) for name in expected)
    assert source.tokenizer(1).pad_token_id == 0


def test_what_it_is_is_told_and_can_be_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Telling:
        def start(self, stage: str) -> None: ...

        def done(self, detail: str = "") -> None:
            told.append(detail)
            if detail.startswith("Stable"):
                raise KeyboardInterrupt

        def note(self, text: str) -> None:
            told.append(text)

    path = sparse_checkpoint(tmp_path / "sd2.safetensors", SD21, "sd2")
    monkeypatch.setattr("kdrt_export.sources.SingleFileSource.check", lambda *_, **__: None)
    for asked, expected in ((None, "v_prediction"), ("epsilon", "epsilon")):
        with pytest.raises(KeyboardInterrupt):
            stage.export(str(path), tmp_path / "out", prediction_type=asked, report=Telling())
        assert told.pop() == f"Stable Diffusion 2, {expected}, fp32"


def test_a_file_of_another_size_names_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    state = checkpoint(unet("sd"), vae(), text_encoder())
    save_file({**state, CROSS: torch.zeros(16, 768)}, path)
    with pytest.raises(SourceError, match=r"odd\.safetensors holds no whole CLIP.*--config"):
        open_source(str(path)).check()
    assert checkpoint_file.detect(read_header(path), path.name).label == "Stable Diffusion 1"
