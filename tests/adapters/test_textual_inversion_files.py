"""Textual inversion files: every layout and container, their names, and what they never do."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.torch import save, save_file
from torch import Tensor

import kdrt
from tests.support.textual_inversion import FIRST, SECOND, Compat, embeddings, first_tokens
from tests.support.tiny_model import TinyModel


def web_ui(name: str | None, vectors: Tensor = FIRST) -> dict[str, Any]:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": name}


def card(state: object) -> bytes:
    """An image of the web UI with ``state`` in its text."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text = json.dumps(state, default=lambda tensor: {"TORCHTENSOR": tensor.tolist()})
    info.add_text("sd-ti-embedding", base64.b64encode(text.encode()).decode())
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def pickled(state: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


class Old(torch.nn.ParameterDict):
    """As PyTorch wrote them before 1.12: without the list of keys."""

    def __init__(self, name: str, value: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.register_parameter(name, torch.nn.Parameter(value))

    def __reduce__(self) -> Any:
        return torch.nn.ParameterDict, (), {"_parameters": self._parameters, "training": True}


FILES: dict[str, tuple[str, bytes]] = {
    "diffusers": ("cat9.safetensors", save({"<cat>": FIRST})),
    "diffusers, star": ("cat9.safetensors", save({"*": FIRST})),
    "upper case": ("cat9.SAFETENSORS", save({"emb_params": FIRST})),
    "safetensors by another name": ("cat9.pti", save({"clip_l": FIRST})),
    "safetensors as .pt": ("cat9.pt", save({"<cat>": FIRST})),
    "Stable Diffusion 2": ("cat9.safetensors", save({"clip_h": FIRST})),
    "pivotal tuning": ("cat9.safetensors", save({"text_encoders_0": FIRST})),
    "OneTrainer": ("x.safetensors", save({"bundle_emb.cat9.clip_l": FIRST})),
    "bundled": ("x.safetensors", save({"bundle_emb.cat9.string_to_param.*": FIRST})),
    "card": ("cat9.png", card(web_ui("<cat>"))),
    "web UI": ("cat9.pt", pickled(web_ui("<cat>"))),
    "web UI, no name": ("cat9.bin", pickled(web_ui(None))),
    "legacy pickle": ("cat9.PT", pickled(web_ui("*"), _use_new_zipfile_serialization=False)),
    "old ParameterDict": (
        "cat9.pt",
        pickled({**web_ui("<cat>"), "string_to_param": Old("*", FIRST.clone())}),
    ),
    "list of vectors": ("cat9.bin", pickled(list(FIRST))),
    "list of dictionaries": ("cat9.bin", pickled([{"a": FIRST[:1]}, {"b": FIRST[1:]}])),
    "half precision": ("cat9.safetensors", save({"emb_params": FIRST.bfloat16()})),
    "eight bits": ("cat9.safetensors", save({"emb_params": FIRST.to(torch.float8_e5m2)})),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_layout_answers_to_the_name_of_its_file(
    sd: TinyModel, tmp_path: Path, kind: str
) -> None:
    name, content = FILES[kind]
    (tmp_path / name).write_bytes(content)
    is_pickle = content[:2] in (b"PK", b"\x80\x02")
    sd.pipeline.adapters.load_textual_inversion(tmp_path / name, allow_pickle=is_pickle)
    precision = {"half precision": torch.bfloat16, "eight bits": torch.float8_e5m2}
    vectors = FIRST.to(precision.get(kind, torch.float32)).float()
    assert torch.equal(first_tokens(sd, "cat9", 3), vectors)
    if b"<cat>" in content or base64.b64encode(b'"<cat>"')[2:-4] in content:
        assert torch.equal(first_tokens(sd, "<cat>", 3), vectors)
    sd.pipeline.adapters.unload_textual_inversion("cat9")
    assert sd.pipeline.adapters.textual_inversions() == {}


@pytest.mark.parametrize("keys", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
def test_the_encoders_of_a_file_are_no_words(
    sdxl: TinyModel, tmp_path: Path, keys: tuple[str, str]
) -> None:
    path = tmp_path / "toy9.safetensors"
    save_file(dict(zip(keys, (FIRST, SECOND), strict=True)), path)
    pipe = sdxl.pipeline
    assert pipe.adapters.load_textual_inversion(path) == ("toy9",)
    assert torch.equal(first_tokens(sdxl, "toy9", 3, 1), SECOND)
    pipe.adapters.unload_textual_inversion()
    # As pivotal tuning means it: a token for every row.
    assert pipe.adapters.load_textual_inversion(path, ["<s0>", "<s1>", "<s2>"]) == (
        "<s0>",
        "<s1>",
        "<s2>",
    )
    assert torch.equal(first_tokens(sdxl, "<s2><s0>", 2, 1), SECOND[[2, 0]])
    pipe.adapters.unload_textual_inversion()
    pipe.adapters.load_textual_inversion(path, component="text_encoder_2")
    assert pipe.adapters.textual_inversions("text_encoder") == {}
    both = [{"a": FIRST}, {"b": SECOND}]
    pipe.adapters.load_textual_inversion(
        pickled_file(tmp_path / "both9.bin", both), allow_pickle=True
    )
    assert torch.equal(first_tokens(sdxl, "both9", 3, 1), SECOND)


def pickled_file(path: Path, state: object) -> Path:
    path.write_bytes(pickled(state))
    return path


class TestNames:
    def test_a_word_that_there_is_already_is_no_other_name(
        self, sd: TinyModel, tmp_path: Path
    ) -> None:
        save_file({"<cat>": FIRST}, tmp_path / "a.safetensors")
        before = embeddings(sd, "a red circle")
        assert sd.pipeline.adapters.load_textual_inversion(tmp_path / "a.safetensors") == ("<cat>",)
        assert torch.equal(embeddings(sd, "a red circle"), before)
        save_file({"a": FIRST}, tmp_path / "dog9.safetensors")
        assert sd.pipeline.adapters.load_textual_inversion(tmp_path / "dog9.safetensors") == (
            "dog9",
        )

    def test_other_names_give_way_to_the_own_names_of_others(
        self, sd: TinyModel, tmp_path: Path
    ) -> None:
        one = pickled_file(tmp_path / "one9.pt", web_ui("two9"))
        two = pickled_file(tmp_path / "two9.pt", web_ui("run9", FIRST[:1]))
        three = pickled_file(tmp_path / "three9.pt", web_ui("run9", FIRST[1:]))
        sd.pipeline.adapters.load_textual_inversion([one, two, three], allow_pickle=True)
        assert torch.equal(first_tokens(sd, "two9", 1), FIRST[:1])
        assert torch.equal(first_tokens(sd, "run9", 1), FIRST[:1])
        sd.pipeline.adapters.unload_textual_inversion("two9")
        assert torch.equal(first_tokens(sd, "two9", 3), FIRST)
        assert torch.equal(first_tokens(sd, "run9", 2), FIRST[1:])
        sd.pipeline.adapters.unload_textual_inversion("run9")
        assert sd.pipeline.adapters.textual_inversions() == {"one9": 3}

    def test_a_given_token_is_the_only_name(self, sd: TinyModel, tmp_path: Path) -> None:
        file = pickled_file(tmp_path / "one9.pt", web_ui("two9"))
        before = embeddings(sd, "one9 two9")
        sd.pipeline.adapters.load_textual_inversion(file, "mine9", allow_pickle=True)
        assert torch.equal(embeddings(sd, "one9 two9"), before)

    def test_single_vectors_give_way_to_tokens(self, sd: TinyModel) -> None:
        sd.pipeline.adapters.load_textual_inversion(
            [{"bad_hands": FIRST}, {"bad_hands_2": FIRST[:1]}]
        )
        assert torch.equal(first_tokens(sd, "bad_hands_1 bad_hands_2", 2), FIRST[[1, 0]])
        assert torch.equal(first_tokens(sd, "bad_hands", 3), FIRST)
        assert Compat(sd).maybe_convert_prompt("a bad_hands") == "a bad_hands"
        sd.pipeline.adapters.unload_textual_inversion("bad_hands_2")
        assert torch.equal(first_tokens(sd, "bad_hands_2", 1), FIRST[2:])

    @pytest.mark.parametrize("prompt", ["a schulzang", "ulz9 ulz_1", "(schulz:1.2) ulzulz"])
    def test_a_word_is_not_found_inside_of_another(self, sd: TinyModel, prompt: str) -> None:
        options: dict[str, Any] = {"prompt_weighting": "a1111"}
        before = embeddings(sd, prompt, **options)
        sd.pipeline.adapters.load_textual_inversion({"ulz": FIRST[:1]})
        assert torch.equal(embeddings(sd, prompt, **options), before)
        assert Compat(sd).maybe_convert_prompt(prompt) == prompt
        assert torch.equal(embeddings(sd, "(Ulz:1.2),", **options)[1:2], FIRST[:1])

    def test_marks_may_touch_words(self, sd: TinyModel) -> None:
        sd.pipeline.adapters.load_textual_inversion({"<ulz>": FIRST[:1]})
        assert torch.equal(first_tokens(sd, "<ulz>red", 1), FIRST[:1])


class TestRefused:
    def test_what_is_no_file_of_tensors(self, sd: TinyModel, tmp_path: Path) -> None:
        (tmp_path / "folder.pt").mkdir()
        os.mkfifo(tmp_path / "pipe.pt")
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, "WEBP", lossless=True)
        large = io.BytesIO()
        Image.new("1", (5000, 5000)).save(large, "PNG")
        contents = {
            "empty.pt": (b"", "is empty"),
            "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
            "page.pt": (b"<!DOCTYPE html><title>log in</title>", "is a web page"),
            "old.webp": (image.getvalue(), "image without an embedding in its text"),
            "large.png": (large.getvalue(), "it has 5000 x 5000 pixels"),
            "cut.png": (card(web_ui("x9"))[:60], "an image"),
            "wrong.png": (card({"string_to_param": {"*": FIRST[0, 0]}}), "finite vectors [n, D]"),
            "list.png": (card([1]), "the embedding in its text is damaged"),
            "text.pt": (b"hello", "is damaged or no textual inversion"),
            "half.safetensors": (save({"x9": FIRST})[:-9], "is damaged"),
        }
        for name, (content, _) in contents.items():
            (tmp_path / name).write_bytes(content)
        refusals = {name: words for name, (_, words) in contents.items()}
        refusals |= {"folder.pt": "has no learned_embeds", "pipe.pt": "a device, pipe or socket"}
        sources: list[tuple[Any, str]] = [
            *((tmp_path / name, words) for name, words in refusals.items()),
            ("/dev/zero", "a device, pipe or socket"),
            ("a\0b.pt", "zero character"),
            ("~nobody-at-all/x.pt", "no home folder for ~nobody-at-all"),
            ("x" * 5000, "a name of over 255 bytes"),
            ("x/" * 5000, "File name too long"),
        ]
        for path, words in sources:
            with pytest.raises(kdrt.InvalidRequestError) as refused:
                sd.pipeline.adapters.load_textual_inversion(path, allow_pickle=True)
            assert words in str(refused.value), path
        assert sd.pipeline.adapters.textual_inversions() == {}

    def test_compressed_and_expanded_pickles(self, sd: TinyModel, tmp_path: Path) -> None:
        """A kilobyte may unpack to a gigabyte, or point at one number a million times."""
        import zipfile

        content = io.BytesIO(pickled({"x9": torch.zeros(1000, 6)}))
        with zipfile.ZipFile(content) as stored, zipfile.ZipFile(tmp_path / "a.pt", "w") as packed:
            for entry in stored.infolist():
                packed.writestr(entry.filename, stored.read(entry), zipfile.ZIP_DEFLATED)
        pickled_file(tmp_path / "b.pt", {"x9": torch.zeros(1, 1).expand(1000, 1 << 40)})
        pickled_file(tmp_path / "c.pt", {"x9": torch.zeros(1, 1).expand(1000, 6)})
        for name, words in (("a", "is compressed"), ("b", "claims"), ("c", "number by number")):
            with pytest.raises(kdrt.InvalidRequestError, match=words):
                sd.pipeline.adapters.load_textual_inversion(
                    tmp_path / f"{name}.pt", allow_pickle=True
                )


dtypes = st.sampled_from(
    [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool]
)
shapes = st.lists(st.sampled_from([0, 1, 2, 6, 7]), max_size=4)
tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    shapes,
    dtypes,
    st.sampled_from([0.0, 1.0, float("nan"), float("inf"), 1e30]),
)
words = st.sampled_from(["clip_l", "clip_g", "emb_params", "*", "name", "t5xxl", "x9"]) | st.text(
    max_size=8
)
states = st.recursive(
    tensors | st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(words | st.just("string_to_param") | st.just("bundle_emb.a.b"), inner)
        | st.dictionaries(st.integers() | st.none(), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(state=states, token=st.none() | words)
def test_whatever_a_file_holds_it_is_learned_or_refused(
    sd: TinyModel, state: Any, token: str | None
) -> None:
    try:
        learned = sd.pipeline.adapters.load_textual_inversion(state, token)
    except kdrt.KdrtError:
        assert sd.pipeline.adapters.textual_inversions() == {}
    else:
        for word in learned:
            assert embeddings(sd, word).isfinite().all()
        sd.pipeline.adapters.unload_textual_inversion()
