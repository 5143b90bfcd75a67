"""Weights in files: which are read, and that a network is whole or refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
)

from kdrt_export import stage
from kdrt_export.errors import ExportError, SourceError, UnsupportedModelError
from kdrt_export.ip_adapter import IpAdapter, attach
from kdrt_export.sources import open_source
from kdrt_export.sources.replacement_vae import replacement_vae
from kdrt_export.sources.weight_files import choose_weights, read_tensors
from kdrt_export.sources.weights import Weights
from tests.support.single_file import checkpoint
from tests.support.tiny_networks import randomized, text_encoder, unet, vae

State = dict[str, torch.Tensor]

VISION = {
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "projection_dim": 6,
}


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    state, expected = ours.state_dict(), theirs.state_dict()
    return set(state) == set(expected) and all(torch.equal(state[k], expected[k]) for k in state)


def without(end: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        changed = {name: t for name, t in state.items() if not name.endswith(end)}
        assert len(changed) == len(state) - 1
        return changed

    return change


def misshaped(end: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        (name,) = (name for name in state if name.endswith(end))
        return state | {name: torch.zeros(3)}

    return change


def with_other(state: State) -> State:
    return state | {"another.weight": torch.zeros(1)}


def prefixed(state: State) -> State:
    return {f"module.{name}": t for name, t in state.items()}


def quantised(end: str) -> Callable[[State], State]:
    def change(state: State) -> State:
        (name,) = (name for name in state if name.endswith(end))
        return state | {name: state[name].to(torch.int8)}

    return change


LACKING = [
    ("text_encoder", without("layers.1.self_attn.k_proj.bias"), r"lacks .*layers\.1\.self_attn"),
    ("text_encoder", without("position_embedding.weight"), "lacks .*position_embedding.weight"),
    ("text_encoder", misshaped("final_layer_norm.bias"), r"norm\.bias .3 instead of 24."),
    ("text_encoder", prefixed, r"lacks .* and 49 more, and holds besides module\."),
    ("text_encoder", with_other, r"holds besides another\.weight"),
    ("unet", without("conv_in.bias"), r"it lacks conv_in\.bias"),
    ("unet", misshaped("conv_out.bias"), r"has other shapes: conv_out\.bias .3 instead of 4."),
    ("unet", with_other, r"holds besides another\.weight"),
    ("unet", quantised("conv_out.weight"), r"quantised weights: conv_out\.weight .int8."),
    ("vae", without("decoder.conv_in.bias"), r"it lacks decoder\.conv_in\.bias"),
    ("vae", with_other, r"holds besides another\.weight"),
]


@pytest.mark.parametrize(
    ("part", "change", "words", "shards"),
    [(*each, 1) for each in LACKING] + [(*each, 3) for each in LACKING if each[1] == with_other],
)
def test_a_folder_that_is_not_whole_is_refused(
    part: str,
    change: Callable[[State], State],
    words: str,
    shards: int,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    state = list(change(load_file(file)).items())
    file.unlink()
    for shard in range(shards):
        number = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        save_file(dict(state[shard::shards]), file.with_stem(f"{file.stem}{number}"))
    source = open_source(str(folder))
    with pytest.raises(SourceError, match=words):
        source.check()
    with pytest.raises(SourceError, match=words):
        source.make(part)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("model.diffusion_model.out.2.bias", r"lacks conv_out\.bias.*--config"),
        ("model.diffusion_model.input_blocks.1.0.in_layers.2.bias", r"lacks down_blocks\.0\.resn"),
        ("first_stage_model.encoder.conv_in.bias", r"lacks encoder\.conv_in\.bias"),
        (
            "cond_stage_model.transformer.text_model.final_layer_norm.bias",
            r"final_layer_norm\.bias",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_that_is_not_whole_is_refused(
    key: str,
    words: str,
    suffix: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    state = checkpoint(unet("sd"), vae(), text_encoder(vocabulary=674))
    del state[key]
    with pytest.raises(SourceError, match=words):
        single_file(state, tmp_path / f"model{suffix}", sd_folder).check()


@pytest.mark.parametrize("part", ["model.diffusion_model", "first_stage_model"])
def test_a_single_file_that_holds_more_is_refused(
    part: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    """diffusers' converters leave out what they do not know."""
    state = checkpoint(unet("sd"), vae(), text_encoder(vocabulary=674))
    state[f"{part}.adapter.weight"] = torch.zeros(2)
    with pytest.raises(SourceError, match=r"holds besides .*adapter\.weight"):
        single_file(state, tmp_path / "model.safetensors", sd_folder).check()


def single_file(state: State, path: Path, config: Path) -> Any:
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    return open_source(str(path), config=config, allow_pickle=True)


def test_nothing_is_written_of_a_model_that_is_not_whole(
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    (file,) = (folder / "unet").glob("*.safetensors")
    save_file(without("conv_in.bias")(load_file(file)), file)
    with pytest.raises(SourceError, match=r"it lacks conv_in\.bias; it is incomplete"):
        stage.export(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_projection_of_a_second_text_encoder_is_not_invented(tmp_path: Path) -> None:
    model = text_encoder(projection=True)
    state = without("text_projection.weight")(model.state_dict())
    with pytest.raises(SourceError, match=r"it lacks text_projection\.weight"):
        Weights(type(model), model.config, state, "it").check()


def test_another_kind_of_text_encoder_is_named(sd_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    shutil.rmtree(folder / "text_encoder")
    sizes = {"vocab_size": 674, "num_hidden_layers": 1, "intermediate_size": 8}
    BertModel(BertConfig(hidden_size=24, num_attention_heads=3, **sizes)).save_pretrained(
        folder / "text_encoder"
    )
    with pytest.raises(
        UnsupportedModelError, match="is of a model of type 'bert'; kdrt exports CLIP"
    ):
        open_source(str(folder)).check()
    index = json.loads((folder / "model_index.json").read_text())
    for part, named in (("text_encoder", "BertModel"), ("vae", "AsymmetricAutoencoderKL")):
        changed = index | {part: ["transformers", named]}
        (folder / "model_index.json").write_text(json.dumps(changed))
        with pytest.raises(
            UnsupportedModelError, match=f"the {part} of .* is a {named}, by its model_"
        ):
            open_source(str(folder)).make(part)


def test_a_network_of_another_class_is_named(sd_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "VQModel"}))
    with pytest.raises(UnsupportedModelError, match=r"vae is a VQModel, by its config\.json"):
        open_source(str(folder)).vae()
    with pytest.raises(UnsupportedModelError, match="is a VQModel"):
        replacement_vae(str(folder), {}).check()


def checker(folder: Path) -> tuple[StableDiffusionSafetyChecker, Path]:
    """A safety checker, and its file in ``folder``."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = CLIPConfig(vision_config=VISION, text_config=text, projection_dim=6)
    model = randomized(StableDiffusionSafetyChecker(config))
    model.save_pretrained(folder / "safety_checker")
    return model, folder / "safety_checker" / "model.safetensors"


@pytest.mark.parametrize("twice", [False, True])
def test_a_safety_checker_is_whole(
    twice: bool,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    """Published ones have ``vision_model.`` twice, which the installed transformers may not."""
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    model, file = checker(folder)
    plain = {
        re.sub(r"^(vision_model\.)+", "vision_model.", n): t for n, t in load_file(file).items()
    }
    state = {
        re.sub("^vision_model", "vision_model." * twice + "vision_model", n): t
        for n, t in plain.items()
    }
    save_file(state, file)
    loaded = open_source(str(folder)).safety_checker()
    assert loaded is not None
    assert same(loaded, model)
    save_file(
        without("concept_embeds_weights")(without("special_care_embeds_weights")(state)), file
    )
    with pytest.raises(SourceError, match="lacks concept_embeds_weights, special_care_embeds_w"):
        open_source(str(folder)).check()
    open_source(str(folder)).check(safety_checker=False)


def test_an_image_encoder_is_whole(tmp_path: Path) -> None:
    """It may lie in the file of a whole CLIP."""
    (tmp_path / "image_encoder").mkdir()
    adapter = {
        "image_proj.proj.weight": torch.ones(2, 2),
        "ip_adapter.1.to_k_ip.weight": torch.ones(1),
    }
    save_file(adapter, tmp_path / "ip.safetensors")
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    whole = randomized(
        CLIPModel(CLIPConfig(vision_config=VISION, text_config=text, projection_dim=6))
    )
    whole.save_pretrained(tmp_path / "image_encoder")
    loaded = IpAdapter(str(tmp_path / "ip.safetensors")).encoder()
    assert isinstance(loaded, CLIPVisionModelWithProjection)
    pixels = torch.randn(1, 3, 8, 8)
    expected = whole.get_image_features(pixels)
    expected = getattr(expected, "pooler_output", expected)
    torch.testing.assert_close(loaded(pixels).image_embeds, expected)
    file = tmp_path / "image_encoder" / "model.safetensors"
    save_file(without("visual_projection.weight")(load_file(file)), file)
    with pytest.raises(SourceError, match=r"lacks visual_projection\.weight"):
        IpAdapter(str(tmp_path / "ip.safetensors")).encoder()


def adapter_state(model: Any) -> State:
    """An IP-Adapter of four tokens for the cross-attentions of a UNet."""
    state = {"proj.weight": torch.randn(4 * 24, 6), "proj.bias": torch.zeros(4 * 24)}
    state |= {"norm.weight": torch.ones(24), "norm.bias": torch.zeros(24)}
    state = {f"image_proj.{name}": tensor for name, tensor in state.items()}
    names = [name for name in model.attn_processors if ".attn2." in name]
    for place, name in enumerate(names):
        width = model.get_submodule(name.removesuffix(".processor")).to_k.weight.shape
        for each in "kv":
            state[f"ip_adapter.{2 * place + 1}.to_{each}_ip.weight"] = torch.randn(width)
    return state


def test_an_adapter_has_a_key_and_a_value_for_every_attention(tmp_path: Path) -> None:
    file = tmp_path / "ip.safetensors"
    state = adapter_state(unet("sd"))
    save_file(state, file)
    assert attach(unet("sd"), [IpAdapter(str(file))])[0].tokens == 4
    cut = state.copy()
    del cut["ip_adapter.3.to_v_ip.weight"]
    for changed, words in (
        (cut, r"7 cross-attentions.*6\.5; 3\.to_v_ip\.weight is in one of them alone"),
        (state | {"ip_adapter.15.to_k_ip.weight": torch.ones(1)}, r"15\.to_k_ip\.weight is in one"),
        (state | {"ip_adapter.1.to_k_ip.weight": torch.ones(3, 3)}, "size mismatch"),
        (without("norm.bias")(state), "Missing key"),
    ):
        save_file(changed, file)
        with pytest.raises(SourceError, match=f"does not fit this model .*{words}"):
            attach(unet("sd"), [IpAdapter(str(file))])


@pytest.mark.parametrize("prefix", ["", "text_model.", "text_model.text_model."])
@pytest.mark.parametrize("projection", [False, True])
def test_text_encoders_of_every_version(prefix: str, projection: bool) -> None:
    """Files of other versions of transformers: other prefixes, position ids, the other half of
    CLIP; a projection where none is used."""
    model = text_encoder(projection)
    plain = {n.replace("text_model.", ""): t for n, t in model.state_dict().items()}
    moved = {n if "projection" in n else prefix + n: t for n, t in plain.items()}
    extra = {
        f"{prefix}embeddings.position_ids": torch.arange(20)[None],
        "logit_scale": torch.zeros(()),
        "vision_model.post_layernorm.weight": torch.zeros(4),
        "visual_projection.weight": torch.zeros(4, 4),
    }
    if not projection:
        extra["text_projection.weight"] = torch.zeros(20, 24)
    loaded = Weights(type(model), model.config, moved | extra, "it").network()
    assert same(loaded, model)
    ids = torch.tensor([[998, 5, 7, 999]])
    assert torch.equal(loaded(ids)[0], model(ids)[0])


def test_attention_of_old_vaes_has_other_names() -> None:
    model = vae()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in old.items():
            name = name.replace(f"attentions.0.{ours}.", f"attentions.0.{theirs}.")
        state[name] = tensor
    assert set(state) != set(model.state_dict())
    assert same(Weights(AutoencoderKL, model.config, state, "it").network(), model)


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "sharded": [{"max_shard_size": "100KB"}],
    "fp16 alone": [{"variant": "fp16"}],
    "fp16 sharded": [{"variant": "fp16", "max_shard_size": "100KB"}],
    "fp16 beside non_ema": [{"variant": "non_ema"}, {"variant": "fp16"}],
    "bf16 alone": [{"variant": "bf16"}],
    "another variant alone": [{"variant": "ema"}],
    "bin": [{"safe_serialization": False}],
    "bin sharded": [{"safe_serialization": False, "max_shard_size": "100KB"}],
    "bin fp16": [{"safe_serialization": False, "variant": "fp16"}],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_every_layout_that_is_saved_is_read(
    part: str,
    layout: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    if part == "text_encoder" and "bin" in layout:
        pytest.skip("transformers 5 saves none")
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    shutil.rmtree(folder / part)
    model = unet("sd") if part == "unet" else text_encoder(vocabulary=674)
    for options in LAYOUTS[layout]:
        model.save_pretrained(folder / part, **options)
    pickles = "bin" in layout
    source = open_source(str(folder), allow_pickle=pickles)
    assert same(source.unet() if part == "unet" else source.text_encoder(0), model)
    if pickles:
        with pytest.raises(SourceError, match=r"no \.safetensors weights.*--allow-pickle"):
            open_source(str(folder)).unet()


@given(st.permutations(["fp16", "bf16", "", "non_ema"]), st.booleans(), st.integers(1, 3))
def test_which_weights_are_chosen(variants: list[str], old: bool, shards: int) -> None:
    """float32, else fp16, else bf16, however the shards are numbered and the files listed."""

    def files(variant: str, suffix: str) -> list[str]:
        said = f".{variant}" if variant else ""
        return [
            f"diffusion_pytorch_model{'' if old else said}"
            + (f"-{n:05}-of-{shards:05}" if shards > 1 else "")
            + f"{said if old else ''}{suffix}"
            for n in range(1, shards + 1)
        ]

    listed = [name for v in variants for name in files(v, ".bin") + files(v, ".SafeTensors")]
    listed += ["config.json", "diffusion_pytorch_model.safetensors.index.json", "model.onnx"]
    for best in ("", "fp16", "bf16", "non_ema"):
        chosen = choose_weights(reversed(listed), "it", allow_pickle=True)
        assert list(chosen) == files(best, ".SafeTensors")
        listed = [name for name in listed if name not in chosen]
    with pytest.raises(SourceError, match="pickled weights can run code"):
        choose_weights(listed, "it", allow_pickle=False)
    assert list(choose_weights(listed, "it", allow_pickle=True)) == files("", ".bin")


def test_weights_that_are_not_all_there_or_not_the_only_ones() -> None:
    with pytest.raises(
        SourceError, match="1 of the 3 files of its weights; number 1, 3 is missing"
    ):
        choose_weights(["model-00002-of-00003.safetensors"], "it", allow_pickle=False)
    with pytest.raises(SourceError, match="in the variants ema, non_ema, and none of fp32"):
        choose_weights(
            ["model.ema.safetensors", "model.non_ema.safetensors"], "it", allow_pickle=False
        )
    with pytest.raises(SourceError, match=r"it has no \.safetensors or \.bin weights"):
        choose_weights(["weights.safetensors"], "it", allow_pickle=True)


DAMAGE = {
    "pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
    "cut short": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "a web page": lambda whole: b"<html>404</html>" * 9,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_damaged_weights_are_one_sentence(
    part: str,
    damage: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    stand_ins = {"pointer": "is a Git LFS pointer", "a web page": "is a web page"}
    words = stand_ins.get(damage, "is damaged or holds more")
    with pytest.raises(SourceError, match=words):
        open_source(str(folder)).check()


CONFIGS: dict[str, list[tuple[str, Any]]] = {
    "text_encoder": [
        ("hidden_size", "24"),
        ("hidden_size", -1),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 0),
        ("hidden_act", "nonsense"),
        ("vocab_size", 10**12),
        ("max_position_embeddings", []),
        ("text_config", {"hidden_size": "x"}),
    ],
    "unet": [
        ("block_out_channels", "16"),
        ("block_out_channels", [10**9, 32, 32]),
        ("layers_per_block", 10**9),
        ("layers_per_block", None),
        ("down_block_types", ["NoBlock2D"]),
        ("cross_attention_dim", {}),
        ("norm_num_groups", 0),
        ("transformer_layers_per_block", [10**9, 1, 1]),
        ("act_fn", "nonsense"),
    ],
    "vae": [
        ("block_out_channels", [8]),
        ("latent_channels", "four"),
        ("layers_per_block", 10**9),
        ("up_block_types", None),
    ],
}


@pytest.mark.parametrize(
    ("part", "key", "value"), [(p, k, v) for p, pairs in CONFIGS.items() for k, v in pairs]
)
def test_configurations_of_wrong_types_or_sizes_are_one_sentence(
    part: str,
    key: str,
    value: Any,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    file = folder / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(SourceError, match=part):
        open_source(str(folder)).check()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe{\x00}\x00", b"{" * 99999, b'{"a":', b"null"]
)
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "text_encoder/config.json",
    ],
)
def test_json_of_other_forms_is_one_sentence(
    file: str,
    content: bytes,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    (folder / file).write_bytes(content)
    with pytest.raises(
        SourceError, match=rf"{Path(file).name} (is not JSON|holds a \w+, not an obj)"
    ):
        open_source(str(folder)).check()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_numbers_that_are_none_are_named_before_the_work(
    part: str,
    value: float,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    state = load_file(file)
    name = next(name for name in state if state[name].is_floating_point())
    state[name].view(-1)[-1] = value
    save_file(state, file)
    with pytest.raises(SourceError, match=rf"{part} has numbers in \S+ that are not finite"):
        open_source(str(folder)).make(part)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("norm_num_groups", -1, "vae cannot be run as its configuration describes it"),
        ("norm_num_groups", True, "vae cannot be run as its configuration describes it"),
        ("scaling_factor", 10**400, "scaling_factor must be a number above 0"),
    ],
)
def test_a_vae_that_cannot_run_is_one_sentence(
    key: str,
    value: object,
    words: str,
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(sd_folder, folder := tmp_path / "model")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(ExportError, match=words):
        stage.export(str(folder), tmp_path / "out")


def test_weights_that_hold_themselves_end(tmp_path: Path) -> None:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    torch.save(state, tmp_path / "model.bin")
    assert read_tensors(tmp_path / "model.bin") == {}
