"""LoRA files from anywhere: they work, or are refused in a sentence and then change nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import save, save_file
from torch import Tensor

import kdrt
from kdrt.adapters.lora import AdapterWarning, LoraStack
from kdrt.adapters.lora_file import LoraFile, lora_from_tensors, parse_lora, read_lora
from kdrt.adapters.lora_metadata import peft_configs
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt_engines import Binding, Engine
from tests.support.tiny_bundles import TinyModel, by_kdrt

MODULE = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = torch.ones(2, 32), torch.ones(32, 2)


def pair(down: Tensor = DOWN, up: Tensor = UP, **more: Tensor) -> dict[str, Tensor]:
    tensors = {f"{MODULE}.lora_down.weight": down, f"{MODULE}.lora_up.weight": up}
    names = {"mid": "lora_mid.weight", "alpha": "alpha"}
    return tensors | {f"{MODULE}.{names[key]}": tensor for key, tensor in more.items()}


class Recorder(Engine):
    """Takes any weights, and keeps them."""

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Engine:
        self.weights = weights
        return self

    def bind(self, **dims: int) -> Binding:
        raise NotImplementedError


@pytest.fixture
def sd(tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_models("sd")


@pytest.fixture
def stack(sd: TinyModel) -> LoraStack:
    return LoraStack(kdrt.Bundle.open(sd.bundle))


@pytest.fixture
def engines() -> dict[str, Recorder]:
    return {"unet": Recorder(), "text_encoder": Recorder()}


INF, NAN = float("inf"), float("nan")
DAMAGED: dict[str, tuple[dict[str, Tensor], str]] = {
    "rank 0": (pair(DOWN[:0], UP[:, :0], alpha=torch.tensor(4.0)), "do not belong together"),
    "ranks differ": (pair(up=torch.ones(32, 8)), r"down \[2, 32\], up \[32, 8\]"),
    "0-d": (pair(torch.tensor(1.0)), r"down \[\]"),
    "1-d": (pair(torch.ones(32), torch.ones(32)), r"up must be \[out, rank\]"),
    "3-d": (pair(torch.ones(2, 32, 1)), "do not belong together"),
    "kernel in up": (pair(up=torch.ones(32, 2, 3, 3)), "do not belong together"),
    "mid of another rank": (pair(mid=torch.ones(3, 3, 3, 3)), r"mid \[3, 3, 3, 3\]"),
    "mid of two dimensions": (pair(mid=torch.ones(2, 2)), "do not belong together"),
    "NaN": (pair(DOWN * NAN), "lora_down.weight' has numbers that are not finite"),
    "infinite": (pair(up=UP * INF), "lora_up.weight' has numbers that are not finite"),
    "infinite in float32": (pair(DOWN.double() * 1e300), "not finite"),
    "alpha of two": (pair(alpha=torch.ones(2)), "alpha' must be one number, not torch.float32"),
    "alpha of none": (pair(alpha=torch.ones(0)), "must be one number"),
    "alpha NaN": (pair(alpha=torch.tensor(NAN)), "alpha' has numbers that are not finite"),
    "alpha true": (pair(alpha=torch.tensor(True)), "must be one number, not torch.bool"),
    "int8": (pair(DOWN.to(torch.int8)), "holds int8 numbers; save it as float16 or float32"),
    "bool": (pair(DOWN.bool()), "holds bool numbers"),
    "complex": (pair(up=UP.to(torch.complex64)), "holds complex64 numbers"),
    "half": ({f"{MODULE}.lora_mid.weight": torch.ones(2, 2, 1, 1)}, "only half of a LoRA"),
    "two kinds": (pair() | {f"{MODULE}.diff": torch.ones(32, 32)}, "is of two kinds at once"),
    "twice": (
        pair() | {"unet.mid_block.attentions.0.proj_in.lora_A.weight": DOWN.clone()},
        "two tensors for one part of a layer",
    ),
    "rank beyond reason": (
        pair(torch.ones(9000, 1), torch.ones(1, 9000)),
        "rank 9000; at most 8192",
    ),
    "replaced": ({f"{MODULE}.set_weight": DOWN}, "is a whole weight in place of the model's"),
    "long name": ({"x" * 2000 + ".alpha": DOWN}, "longer than 1000 characters"),
    "word without a name": (pair() | {"bundle_emb.clip_l": DOWN}, "does not name its word"),
    "word of NaN": (pair() | {"bundle_emb.x.clip_l": DOWN * NAN}, "clip_l' has numbers that are"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_tensors_are_named(kind: str, tmp_path: Path) -> None:
    tensors, words = DAMAGED[kind]
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(InvalidRequestError, match=words):
        read_lora(tmp_path / "x.safetensors")
    with pytest.raises(InvalidRequestError, match=words):
        lora_from_tensors(tensors)


def test_tensors_without_numbers_of_their_own() -> None:
    for strange in (DOWN.to_sparse(), DOWN.to("meta"), torch.ones(1, 1).expand(2, 32)):
        with pytest.raises(InvalidRequestError, match="not stored number by number"):
            lora_from_tensors(pair(strange))
    with pytest.raises(InvalidRequestError, match="must hold tensors by their names"):
        lora_from_tensors({**pair(), "x": 1})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_float_is_read(dtype: torch.dtype) -> None:
    layers = parse_lora(pair(DOWN.to(dtype), UP.to(dtype), alpha=torch.tensor(4)))
    (layer,) = layers["unet"].values()
    assert torch.equal(layer.change(torch.zeros(32, 32), 1.0), torch.full((32, 32), 4.0))


def test_a_file_that_is_written_over_is_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(pair(), path)
    (layer,) = read_lora(path).layers["unet"].values()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(layer.change(torch.zeros(32, 32), 1.0), torch.full((32, 32), 2.0))


@pytest.mark.parametrize(
    "key", ["base_model.model.text_model.x", "text_model.x", "clip_l.x", "text_encoders.clip_h.x"]
)
def test_whose_text_encoder_is_meant(key: str) -> None:
    tensors = {f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP}
    assert parse_lora(tensors).keys() == {"text_encoder"}
    assert parse_lora({k.replace("clip_l", "clip_g"): t for k, t in tensors.items()}).keys() == {
        "text_encoder_2" if "clip_l" in key else "text_encoder"
    }


ENCODERS_OWN = (
    "base_model.model.encoder.layers.0.mlp.fc1",
    "base_model.model.text_model.encoder.layers.0.mlp.fc1",
    "lycoris_text_model_encoder_layers_0_mlp_fc1",
    "lycoris_encoder_layers_0_mlp_fc1",
)


def of_encoder(prefix: str, into: int = 24, out: int = 40) -> dict[str, Tensor]:
    return {
        f"{prefix}.lora_A.weight": torch.ones(2, into),
        f"{prefix}.lora_B.weight": torch.ones(out, 2),
    }


@pytest.mark.parametrize("prefix", ENCODERS_OWN)
def test_a_text_encoder_that_is_not_said_is_the_one_that_fits(
    prefix: str, stack: LoraStack, tiny_models: Callable[[str], TinyModel]
) -> None:
    file = lora_from_tensors(of_encoder(prefix))
    stack.check(file, strict=True)  # it has one text encoder
    two = LoraStack(kdrt.Bundle.open(tiny_models("sdxl").bundle))
    with pytest.raises(InvalidRequestError, match="does not say for which of"):
        two.check(file)
    second = of_encoder("base_model.model.text_projection", 24, 20)
    assert two.resolved(lora_from_tensors(of_encoder(prefix) | second)).layers.keys() == {
        "text_encoder_2"
    }


@pytest.mark.parametrize(
    ("said", "network"),
    [
        ({"auto_mapping": {"base_model_class": "CLIPTextModel"}}, "text_encoder"),
        ({"auto_mapping": {"base_model_class": "CLIPTextModelWithProjection"}}, "text_encoder_2"),
        ({"base_model_name_or_path": "/models/xl/text_encoder_2/"}, "text_encoder_2"),
        ({"auto_mapping": [1], "base_model_name_or_path": 5}, None),
    ],
)
def test_peft_says_which_text_encoder_it_adapted(
    said: dict[str, object], network: str | None, tmp_path: Path
) -> None:
    save_file(of_encoder(ENCODERS_OWN[1]), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    file = read_lora(tmp_path / "adapter_model.safetensors")
    assert file.encoder_unsaid == (network is None)
    assert file.layers.keys() == {network or "text_encoder"}


def test_the_names_of_a_whole_checkpoint() -> None:
    name = "diffusion_model.middle_block.1.proj_in"
    for prefix in ("", "model."):
        tensors = {f"{prefix}{name}.lora_A.weight": DOWN, f"{prefix}{name}.lora_B.weight": UP}
        assert [*parse_lora(tensors)["unet"]] == ["middle_block_1_proj_in"]


def test_what_is_no_file_of_a_lora_changes_nothing(sd: TinyModel, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    contents = {
        "empty": (b"", "is empty"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "page": (b"\n<html><body>", "is a web page"),
        "image": (b"\x89PNG\r\n\x1a\n", "is an image"),
        "text": (b"hello", r"a \.safetensors file is needed"),
        "pickle": (b"\x80\x02}.", "is a pickle, which can run code"),
        "half": (save(pair())[:-1], "is damaged"),
        "none": (save({}), "holds no LoRA"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    cases: list[tuple[Any, str]] = [
        *((tmp_path / f"{name}.safetensors", words) for name, (_, words) in contents.items()),
        (tmp_path / "pipe.safetensors", "a device, pipe or socket"),
        (tmp_path / "folder.safetensors", "is a folder"),
        ("/dev/zero", "a device, pipe or socket"),
        ("~nobody-at-all/x", "no home folder for ~nobody-at-all"),
        ("a\0b", "zero character"),
        ("x" * 5000, "a name of over 255 bytes"),
        ("x/" * 5000, "cannot read x/x/.*: File name too long"),
        (5, "a path must be a string, not 5"),
    ]
    pipe = kdrt.load(sd.bundle, engine="onnxruntime")
    engines = dict(pipe.engines)
    for path, words in cases:
        with pytest.raises(InvalidRequestError, match=words):
            pipe.adapters.load_lora(path)
    assert (pipe.adapters.loras, dict(pipe.engines)) == ({}, engines)


class TestSizes:
    """Checked before anything is computed: each of these would not fit in memory."""

    def test_a_product_larger_than_its_layer(self, stack: LoraStack, engines: Any) -> None:
        huge = lora_from_tensors(pair(torch.ones(1, 1 << 20), torch.ones(1 << 20, 1)))
        with pytest.raises(
            InvalidRequestError, match="it has 1048576 x 1048576, the model 32 x 32"
        ):
            stack.load(engines, huge)
        wide = pair(torch.ones(1, 1 << 20), torch.ones(1 << 20, 1), mid=torch.ones(1, 1, 3, 3))
        with pytest.raises(InvalidRequestError, match="1048576 x 1048576 x 3 x 3"):
            stack.load(engines, lora_from_tensors(wide))

    def test_a_header_that_claims_more_than_any_adapter(self, tmp_path: Path) -> None:
        for name, count in (("one", 1 << 30), ("whole", 1 << 40)):
            key = f"{MODULE}.lora_down.weight"
            entry = {"dtype": "F32", "shape": [1, count], "data_offsets": [0, 4 * count]}
            header = json.dumps({key: entry}).encode()
            with (tmp_path / name).open("wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.truncate(8 + len(header) + 4 * count)  # sparse
        with pytest.raises(InvalidRequestError, match="claims 1073741824 numbers"):
            read_lora(tmp_path / "one")
        with pytest.raises(InvalidRequestError, match="larger than any adapter"):
            read_lora(tmp_path / "whole")

    def test_too_many_tensors(self) -> None:
        many = dict.fromkeys((f"{n}.alpha" for n in range(100_001)), torch.tensor(1.0))
        with pytest.raises(InvalidRequestError, match="has 100001 tensors"):
            lora_from_tensors(many)

    @pytest.mark.parametrize("scale", [1e300, -1e38])
    def test_weights_that_overflow_are_blamed_on_the_lora(
        self, stack: LoraStack, engines: Any, scale: float
    ) -> None:
        with pytest.raises(InvalidRequestError, match=r"mine at .* makes numbers beyond float32"):
            stack.load(engines, lora_from_tensors(pair(DOWN * 100, UP)), "mine", scale)
        assert not stack.loras


class TestNames:
    def test_files_of_one_name_are_told_apart(
        self, stack: LoraStack, engines: Any, tmp_path: Path
    ) -> None:
        names = ("a/x/style.safetensors", "b/x/style.safetensors", "c/x/style.SAFETENSORS")
        files = [tmp_path / name for name in names]
        for file in files:
            file.parent.mkdir(parents=True)
            save_file(pair(), file)
            stack.load(engines, read_lora(file))
        assert list(stack.loras) == ["style", "x/style", "c/x/style"]
        with pytest.raises(InvalidRequestError, match="called 'style' is loaded already"):
            stack.load(engines, read_lora(files[0]))
        with pytest.raises(InvalidRequestError, match="called 'x/style' is loaded already"):
            stack.load(engines, read_lora(files[2]), "x/style")

    def test_a_layer_under_two_names_counts_once(self, stack: LoraStack, engines: Any) -> None:
        """As in diffusers: LDM's names give way."""
        ldm = {
            f"diffusion_model.middle_block.1.proj_in.lora_{part}.weight": 3 * tensor
            for part, tensor in (("down", DOWN), ("up", UP))
        }
        stack.load(engines, lora_from_tensors(pair()))
        expected = engines["unet"].weights
        stack.unload(engines, ["LoRA"])
        with pytest.warns(AdapterWarning, match="are there twice.*middle_block_1_proj_in"):
            stack.load(engines, lora_from_tensors(ldm | pair()))
        (name,) = expected
        assert torch.equal(engines["unet"].weights[name], expected[name])

    def test_what_exists_here_has_to_change_a_weight(self, stack: LoraStack) -> None:
        elsewhere = {key.replace(MODULE, "unet.x"): tensor for key, tensor in pair().items()}
        file = lora_from_tensors(pair(up=torch.zeros(32, 2)) | elsewhere)
        with pytest.raises(InvalidRequestError, match=r"its layers that exist .* exist: unet\.x"):
            stack.check(file)

    def test_strict_refuses_what_has_no_effect(self, stack: LoraStack, engines: Any) -> None:
        elsewhere = {f"lora_te2_x.lora_{part}.weight": torch.ones(1, 1) for part in ("down", "up")}
        lora = lora_from_tensors(pair() | elsewhere)
        with pytest.raises(
            InvalidRequestError, match=r"1 of 2 layers .*: text_encoder_2\.x; leave out"
        ):
            stack.load(engines, lora, strict=True)
        assert not stack.loras
        assert not engines["unet"].weights
        stack.load(engines, lora_from_tensors(pair()), strict=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe, lora: pipe.adapters.load_lora(lora, 5), "must be a string, not 5"),
        (lambda pipe, lora: pipe.adapters.load_lora(lora, ["x"]), "must be a string"),
        (lambda pipe, lora: pipe.adapters.load_lora(lora, "x", 10**400), "must be a finite number"),
        (
            lambda pipe, lora: pipe.adapters.load_lora(lora, "x", {1: 2}),
            "names 1; the networks are",
        ),
        (
            lambda pipe, lora: pipe.adapters.set_loras(None),
            "give LoRAs' scales by their names, not None",
        ),
        (lambda pipe, lora: pipe.adapters.set_loras(["x"]), "give LoRAs' scales by their names"),
        (lambda pipe, lora: pipe.adapters.unload_loras(["x"]), "no LoRA called"),
    ],
)
def test_arguments_of_other_types(sd: TinyModel, call: Any, words: str) -> None:
    pipe = kdrt.load(sd.bundle, engine="onnxruntime")
    with pytest.raises(InvalidRequestError, match=words):
        call(pipe, lora_from_tensors(pair()))
    assert pipe.adapters.loras == {}


class TestBlocks:
    @pytest.fixture
    def lora(self) -> LoraFile:
        modules = ("mid_block.attentions.0.proj_in", "down_blocks.1.attentions.0.proj_in")
        tensors = {
            f"unet.{module}.lora_{part}.weight": tensor.clone()
            for module in modules
            for part, tensor in (("A", DOWN), ("B", UP))
        }
        return lora_from_tensors(tensors)

    def test_the_longest_path_counts(self, stack: LoraStack, engines: Any, lora: LoraFile) -> None:
        stack.load(engines, lora, "x", 2.0)
        doubled = dict(engines["unet"].weights)
        stack.set(engines, {"x": 0.0})
        blocks = {"": 5.0, "mid_block": 0, "down_blocks": 9, "down_blocks.1.attentions.0": 2}
        stack.set(engines, {"x": {"unet": blocks}})
        ((name, weight),) = engines["unet"].weights.items()
        assert name == "unet.down_blocks.1.attentions.0.proj_in.weight"
        assert torch.equal(weight, doubled[name])
        assert stack.loras["x"].scale_text() == (
            "unet=(5 mid_block=0 down_blocks=9 down_blocks.1.attentions.0=2)"
        )
        stack.set(engines, {"x": {"unet": {}}})
        assert len(engines["unet"].weights) == 2

    @pytest.mark.parametrize(
        ("blocks", "words"),
        [
            ({"mid": 1}, "names 'mid', which the unet does not have"),
            ({"down_blocks.1.att": 1}, "which the unet does not have"),
            ({5: 1}, "names 5, which"),
            ({".mid_block": 0}, r"names '\.mid_block', .* or a network: unet, text_encoder"),
            ({".": 0}, r"names '\.', which"),
            ({"mid_block": NAN}, "must be a finite number"),
            ({"mid_block": {"x": 1}}, "must be a finite number"),
        ],
    )
    def test_blocks_that_there_are_not(
        self, stack: LoraStack, engines: Any, lora: LoraFile, blocks: Any, words: str
    ) -> None:
        with pytest.raises(InvalidRequestError, match=words):
            stack.load(engines, lora, "x", {"unet": blocks})


class TestWordsOfALora:
    WIDTH = 24

    def lora(self, path: Path, width: int = WIDTH, **tensors: Tensor) -> Path:
        words = {"bundle_emb.sparkle9.clip_l": torch.ones(2, width)}
        save_file(pair() | words | tensors, path)
        return path

    def test_they_come_and_go_with_it(self, sd: TinyModel, tmp_path: Path) -> None:
        pipe = kdrt.load(sd.bundle, engine="onnxruntime")
        base = by_kdrt(pipe)
        pipe.adapters.load_lora(self.lora(tmp_path / "x.safetensors"), scale=0)
        assert pipe.adapters.textual_inversions() == {"sparkle9": 2}
        pipe.adapters.set_loras({"x": 1.0})
        pipe.adapters.unload_loras("x")
        assert pipe.adapters.textual_inversions() == {}
        pipe.adapters.load_lora(tmp_path / "x.safetensors")
        pipe.adapters.unload_textual_inversion()
        pipe.adapters.unload_loras()
        assert torch.equal(by_kdrt(pipe), base)

    def test_a_lora_that_is_refused_brings_none(self, sd: TinyModel, tmp_path: Path) -> None:
        pipe = kdrt.load(sd.bundle, engine="onnxruntime")
        with pytest.raises(InvalidRequestError, match="must be a finite number"):
            pipe.adapters.load_lora(self.lora(tmp_path / "x.safetensors"), scale=NAN)
        assert pipe.adapters.textual_inversions() == {}
        with pytest.raises(InvalidRequestError, match="'sparkle9' has vectors of 7 numbers"):
            pipe.adapters.load_lora(self.lora(tmp_path / "y.safetensors", 7))
        assert (pipe.adapters.loras, pipe.adapters.textual_inversions()) == ({}, {})


class TestAlphas:
    """Names of modules and ends of them are matched as peft does; never as a pattern of a
    stranger's."""

    @staticmethod
    def alphas(pattern: object, **more: Any) -> Any:
        values = {"unet.lora_alpha": 1.0, "unet.alpha_pattern": pattern, **more}
        return peft_configs({"lora_adapter_metadata": json.dumps(values)}, "x")["unet"]

    names = st.lists(st.sampled_from(["to_q", "to_k", "attn1", "0"]), min_size=1, max_size=3)

    @given(st.lists(names.map(".".join), unique=True, max_size=4), names.map(".".join))
    @example(["^attn1.to_q", "to_q"], "attn1.to_q")
    @example(["^attn1.to_q"], "0.attn1.to_q")
    def test_the_first_name_that_fits_counts(self, keys: list[str], module: str) -> None:
        patterns = {key: float(index + 2) for index, key in enumerate(keys)}
        key = get_pattern_key(keys, module)
        # Paths have no dots any more: a name must not end within another's underscores.
        found = self.alphas(patterns).scale(module.replace(".", "_"), 1)
        assert found == patterns.get(key, 1.0)

    @pytest.mark.parametrize(
        "pattern", ["(a+)+$", ".*", "attn[12]", "(?=x)", "x|y", "", "a" * 50 + "{1,9}" * 9]
    )
    def test_a_regular_expression_is_refused(self, pattern: str) -> None:
        with pytest.raises(InvalidRequestError, match="kdrt takes names of modules"):
            self.alphas({pattern: 1.0})

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            "{",
            "5",
            "[1]",
            '[["unet.r", 1], [2, 3]]',
            '{"unet.lora_alpha": ' + "9" * 5000 + "}",
        ],
    )
    def test_damaged_metadata(self, text: str) -> None:
        with pytest.raises(InvalidRequestError, match="x: its metadata are damaged"):
            peft_configs({"lora_adapter_metadata": text}, "x")


def numbers() -> st.SearchStrategy[Tensor]:
    sizes = st.lists(st.sampled_from([0, 1, 2, 3, 32]), max_size=4)
    dtypes = [torch.float32, torch.float16, torch.float8_e5m2, torch.int8, torch.bool]
    return st.builds(
        lambda size, dtype, value: torch.full(size, value).to(dtype),
        sizes,
        st.sampled_from(dtypes),
        st.sampled_from([0.0, 1.0, -1e30, NAN, INF]),
    )


PARTS = [
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_A.default.weight", "alpha",
    "diff", "diff_b", "w_norm", "hada_w1_a", "dora_scale", "x",
]  # fmt: skip
PLACES = [
    MODULE, "unet.conv_in", "lora_te_text_model_encoder_layers_0_mlp_fc1", "clip_g.x", "",
    "unet.mid_block.resnets.0.norm1", "bundle_emb.a", "bundle_emb",
]  # fmt: skip


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tensors=st.dictionaries(
        st.tuples(st.sampled_from(PLACES), st.sampled_from(PARTS)).map(".".join), numbers()
    ),
    scale=st.sampled_from([1.0, 0.0, -1e30]),
)
@pytest.mark.filterwarnings("ignore::kdrt.adapters.lora.AdapterWarning")
def test_whatever_a_file_holds_it_is_merged_or_refused(
    stack: LoraStack, engines: Any, tensors: dict[str, Tensor], scale: float
) -> None:
    try:
        stack.load(engines, lora_from_tensors(tensors), "x", scale)
    except KdrtError:
        assert not stack.loras
        return
    for engine in engines.values():
        assert all(tensor.isfinite().all() for tensor in engine.weights.values())
    stack.unload(engines, ["x"])
