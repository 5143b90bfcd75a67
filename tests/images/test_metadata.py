"""What image files say of how they were made: every place, every encoding, other programs."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import kdrt
from kdrt.errors import InvalidRequestError
from kdrt.images.infotext import json_object, parse_infotext
from kdrt.images.metadata import check_metadata, decoded_comment, read_metadata

SETTINGS = "Steps: 4, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"
TEXT = f"日本, é\nNegative prompt: blurry\n{SETTINGS}, Version: v1.10.1"


def png(path: Path, texts: dict[str, str], *, compressed: bool = False, itxt: bool = False) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        (info.add_itxt if itxt else info.add_text)(key, text, zip=compressed)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def exif(path: Path, comment: bytes | str, *, beside: bool = False) -> Path:
    tags = Image.Exif()
    (tags if beside else tags.get_ifd(0x8769))[0x9286] = comment
    Image.new("RGB", (8, 8)).save(path, exif=tags)
    return path


# the web UI's format


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (
            'Hashes: {"vae": "1", "model": "2"}, Model: x',
            {"Hashes": '{"vae": "1", "model": "2"}', "Model": "x"},
        ),
        ('Lora hashes: "a: 1, b: 2", Model: x', {"Lora hashes": "a: 1, b: 2", "Model": "x"}),
        (
            'Civitai resources: [{"id":1,"w":[0.5, 1]},{"id":2}], Civitai metadata: {}',
            {"Civitai resources": '[{"id":1,"w":[0.5, 1]},{"id":2}]', "Civitai metadata": "{}"},
        ),
        ('AD: "a \\"red\\" hat,\\nwarm", B: 1', {"AD": 'a "red" hat,\nwarm', "B": "1"}),
        ("TI: {not json, B: 1", {"TI": "{not json", "B": "1"}),
        ('TI: "open, B: 1', {"TI": '"open', "B": "1"}),
        ('TI: "a" b, C: 1', {"TI": '"a" b', "C": "1"}),
        ("Empty: , no key, C: 1", {"Empty": "", "C": "1"}),
    ],
)  # fmt: skip
def test_values_of_every_form(rest: str, expected: dict[str, str]) -> None:
    found = parse_infotext(f"a\n{SETTINGS}, {rest}")
    assert found.pop("Prompt") == "a"
    assert {key: found[key] for key in expected} == expected
    assert found["Seed"] == "1"
    assert len(found) == 5 + len(expected)


def test_templates_stand_below_the_settings() -> None:
    found = parse_infotext(
        f"a red hat\nNegative prompt: dull\n{SETTINGS}\n"
        "Template: a {red|blue} hat,\nSteps: many\nNegative Template: {dull|dark}"
    )
    assert found["Prompt"] == "a red hat"
    assert found["Negative prompt"] == "dull"
    assert found["Size"] == "64x64"
    assert found["Template"] == "a {red|blue} hat,\nSteps: many"
    assert found["Negative Template"] == "{dull|dark}"


def test_lines_of_windows() -> None:
    text = f"a\nb\nNegative prompt: c\n{SETTINGS}"
    assert parse_infotext(text.replace("\n", "\r\n")) == parse_infotext(text)


@pytest.mark.parametrize("prompt", ["{red|blue} hat", "[1, 2]", '{"a"', "{}x"])
def test_what_only_begins_like_json_is_a_prompt(prompt: str) -> None:
    assert parse_infotext(f"{prompt}\n{SETTINGS}")["Prompt"] == prompt
    assert parse_infotext(prompt) == {"Prompt": prompt}


def test_json_is_no_prompt() -> None:
    found = parse_infotext('{"prompt": "a", "seed": 1, "nested": {"b": [2]}, "half": "\\ud800"}')
    assert found == {"prompt": "a", "seed": "1", "nested": '{"b": [2]}', "half": "?"}


@pytest.mark.parametrize(
    "text",
    ['[{"prompt": "a"}]', '{"prompt": "a", "se', '\ufeff{"prompt": {"3": {"inputs": {}}}}', '{"":'],
)
def test_other_json_and_what_is_left_of_some_is_no_prompt(text: str, tmp_path: Path) -> None:
    assert parse_infotext(text) == {}
    assert parse_infotext(f"{text}\n{SETTINGS}")["Prompt"] == text
    with pytest.raises(
        InvalidRequestError, match="carries metadata under parameters, of a program"
    ):
        check_metadata(png(tmp_path / "a.png", {"parameters": text}))


def test_a_comment_of_an_editor_hides_nothing(tmp_path: Path) -> None:
    whole = png(tmp_path / "a.png", {"parameters": TEXT}).read_bytes()
    path = png(tmp_path / "b.png", {"Comment": "Created with GIMP"})
    start = whole.index(b"iTXt") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4], "big")]
    edited = path.read_bytes()
    path.write_bytes(edited[:-12] + chunk + edited[-12:])
    assert check_metadata(path).settings["Negative prompt"] == "blurry"


@pytest.mark.parametrize(
    "part",
    [
        *(" ", ",", ":", '"', "\\", "{", "[", "a", "1", "\n", "a:", "a:{,", 'a:"b,', 'a:["b,'),
        *(", a: [1", "Steps: ", "Template:\n", "Negative prompt:\n", '"a":[', "\r", "\t"),
    ],
)
def test_long_texts_are_read_at_once(part: str) -> None:
    """A step more than linear would take hours here."""
    long = part * (2**20 // len(part))
    for text in (
        long,
        f"a\nSteps: 1, {long}",
        f"{SETTINGS}\nTemplate: {long}",
        f'a\nSteps: "{long}',
    ):
        assert parse_infotext(text)  # fmt: skip


keys = st.sampled_from(["Seed", "Hashes", "A b", "Template"])
words = [*'{}[]",:\\', "\n", " ", "a", "1", "Steps: 2", "Negative prompt:", "Template:"]
texts = st.lists(st.sampled_from(words) | st.text(max_size=3)).map("".join)


@given(texts)
def test_whatever_is_read_is_text(text: str) -> None:
    assert all(isinstance(value, str) for value in parse_infotext(text).values())


@given(st.dictionaries(keys, texts.filter(lambda t: t == t.strip()), max_size=4))
def test_what_is_quoted_is_read_back(values: dict[str, str]) -> None:
    line = ", ".join(f"{key}: {json.dumps(value)}" for key, value in values.items())
    found = parse_infotext(f"a\nSteps: 1, {line}")
    halves = {key: value.encode(errors="replace").decode() for key, value in values.items()}
    assert found == {"Prompt": "a", "Steps": "1"} | halves


# places and encodings


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("itxt", [False, True])
def test_every_kind_of_png_text(tmp_path: Path, compressed: bool, itxt: bool) -> None:
    path = png(tmp_path / "a.png", {"parameters": TEXT}, compressed=compressed, itxt=itxt)
    assert kdrt.read_infotext(path) == TEXT


def test_png_text_behind_the_pixels(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", {"Software": "x"})
    content, end = path.read_bytes()[:-12], path.read_bytes()[-12:]
    data = b"tEXtparameters\0" + SETTINGS.encode()
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(content + chunk + end)
    assert check_metadata(path).settings["Steps"] == "4"


COMMENTS = {
    "UNICODE, big-endian": b"UNICODE\0" + TEXT.encode("utf-16-be"),
    "UNICODE, little-endian": b"UNICODE\0" + TEXT.encode("utf-16-le"),
    "UNICODE, with a mark, big-endian": b"UNICODE\0\xfe\xff" + TEXT.encode("utf-16-be"),
    "UNICODE, with a mark, little-endian": b"UNICODE\0\xff\xfe" + TEXT.encode("utf-16-le"),
    "UNICODE, in fact UTF-8": b"UNICODE\0" + TEXT.encode(),
    "UNICODE, and zeros": b"UNICODE\0" + TEXT.encode("utf-16-be") + bytes(4),
    "ASCII, in fact UTF-8": b"ASCII\0\0\0" + TEXT.encode(),
    "ASCII, in fact UTF-16": b"ASCII\0\0\0" + TEXT.encode("utf-16-le"),
    "undefined": bytes(8) + TEXT.encode(),
    "no code": TEXT.encode(),
}


@pytest.mark.parametrize("kind", COMMENTS)
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_every_encoding_of_a_user_comment(tmp_path: Path, kind: str, suffix: str) -> None:
    assert kdrt.read_infotext(exif(tmp_path / f"a{suffix}", COMMENTS[kind])) == TEXT


@pytest.mark.parametrize("encoding", ["iso2022_jp", "euc_jp", "cp932"])
def test_japanese_user_comments(tmp_path: Path, encoding: str) -> None:
    text = f"日本の猫\n{SETTINGS}"
    comment = b"JIS\0\0\0\0\0" + text.encode(encoding)
    assert kdrt.read_infotext(exif(tmp_path / "a.jpg", comment)) == text


def test_latin_1_and_broken_text_lose_no_setting() -> None:
    assert decoded_comment(b"ASCII\0\0\0caf\xe9") == "café"
    assert decoded_comment(b"UNICODE\0" + "aé".encode("utf-16-be") + b"\xd8") == "aé\ufffd"
    assert decoded_comment(b"UNICODE\0") == decoded_comment(b"") == ""
    assert decoded_comment(b"UNICODE\0\x65\xe5\x67\x2c", big_endian=True) == "日本"
    assert decoded_comment(b"UNICODE\0\xe5\x65\x2c\x67", big_endian=False) == "日本"


@given(st.binary(max_size=30), st.booleans())
def test_any_user_comment_is_text(comment: bytes, big_endian: bool) -> None:
    for code in (b"", b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", bytes(8)):
        assert isinstance(decoded_comment(code + comment, big_endian=big_endian), str)


# other programs

GRAPH: dict[str, Any] = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **{"seed": 5, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal"},
            **{"denoise": 1, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0]},
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red hat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "dull", "clip": ["4", 1]}},
}
LINKS = [
    *([1, 4, 0, 3, 0, "MODEL"], [2, 6, 0, 3, 1, "CONDITIONING"], [3, 7, 0, 3, 2, "CONDITIONING"]),
    *([4, 4, 1, 6, 0, "CLIP"], [5, 4, 1, 7, 0, "CLIP"]),
]
INVOKE = {
    **{"positive_prompt": "a red hat", "negative_prompt": "dull", "seed": 5, "steps": 20},
    **{"cfg_scale": 8, "scheduler": "euler", "model": {"model_name": "sd15", "base": "sd-1"}},
}
FOOOCUS = {
    **{"prompt": "a red hat", "negative_prompt": "dull", "seed": "5", "steps": 20},
    **{"guidance_scale": 8, "sampler": "euler", "scheduler": "normal", "sharpness": 2},
    **{"base_model": "sd15", "base_model_hash": "1234", "version": "Fooocus v2.5.5"},
}
NOVEL = {"sampler": "euler", "seed": 5, "steps": 20, "scale": 8, "uc": "dull"}
FOREIGN: dict[str, tuple[str, dict[str, str]]] = {
    "ComfyUI": (
        "ComfyUI",
        {"prompt": json.dumps(GRAPH), "workflow": json.dumps({"links": LINKS})},
    ),
    "ComfyUI's API": ("ComfyUI", {"prompt": json.dumps(GRAPH)}),
    "InvokeAI": ("InvokeAI", {"invokeai_metadata": json.dumps(INVOKE)}),
    "InvokeAI, older": (
        "InvokeAI",
        {"Dream": '"a red hat [dull]" -s 20 -S 5 -W 512 -H 512 -C 8 -A euler'},
    ),
    "Fooocus": ("Fooocus", {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"}),
    "NovelAI": (
        "NovelAI",
        {
            **{"Title": "AI", "Software": "NovelAI", "Description": "a red hat"},
            **{"Source": "Stable Diffusion 1D44365E", "Comment": json.dumps(NOVEL)},
        },
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_programs(tmp_path: Path, kind: str) -> None:
    program, texts = FOREIGN[kind]
    found = check_metadata(png(tmp_path / "a.png", texts))
    assert found.program == program
    assert found.settings["Prompt"] == "a red hat"
    assert found.settings["Negative prompt"] == "dull"
    assert found.settings["Sampler"] == "euler"
    assert found.settings["Seed"] == "5"
    assert found.settings["Steps"] == "20"
    assert float(found.settings["CFG scale"]) == 8


def test_fooocus_in_a_jpeg(tmp_path: Path) -> None:
    found = check_metadata(exif(tmp_path / "a.jpg", json.dumps(FOOOCUS), beside=True))
    assert (found.program, found.settings["Prompt"]) == ("Fooocus", "a red hat")


def test_comfyui_in_a_webp(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0110] = f"prompt:{json.dumps(GRAPH)}"
    tags[0x010F] = f"workflow:{json.dumps({'links': LINKS})}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=tags)
    found = check_metadata(tmp_path / "a.webp")
    assert (found.program, found.settings["Prompt"]) == ("ComfyUI", "a red hat")


@pytest.mark.parametrize(
    ("version", "program"),
    [
        (f"kdrt {kdrt.__version__}", f"kdrt {kdrt.__version__}"),
        ("v1.10.1", "AUTOMATIC1111 web UI v1.10.1"),
        ("f2.0.1v1.10.1-previous-1", "Forge f2.0.1v1.10.1-previous-1"),
        ("ComfyUI", "ComfyUI"),
        ("", "unknown, in the AUTOMATIC1111 web UI's format"),
    ],
)
def test_programs_with_the_web_uis_format(tmp_path: Path, version: str, program: str) -> None:
    texts = {"parameters": f"a\n{SETTINGS}, Version: {version}", "prompt": json.dumps(GRAPH)}
    assert check_metadata(png(tmp_path / "a.png", texts)).program == program


def test_unknown_json_is_told_by_its_keys(tmp_path: Path) -> None:
    found = check_metadata(png(tmp_path / "a.png", {"parameters": '{"c": "a hat", "z": 1}'}))
    assert found.program == "unknown"
    assert found.settings == {"c": "a hat", "z": "1"}


LARGE = {str(i): {"class_type": "x", "inputs": GRAPH["3"]["inputs"]} for i in range(200)}


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": "no JSON", "workflow": "{}"},
        {"prompt": json.dumps(LARGE)},
        {"prompt": '{"a":' * 10_000 + "1" + "}" * 10_000},
        {"invokeai_metadata": "[1]"},
        {"Dream": " " * 2**20},
        {"Comment": '{"sampler": {"a": 1}, "seed": NaN', "Description": "x", "Source": " " * 2**20},
    ],
    ids=["no JSON", "many samplers", "deep", "a list", "spaces", "cut"],
)
def test_what_cannot_be_read_names_its_keys(tmp_path: Path, texts: dict[str, str]) -> None:
    path = png(tmp_path / "a.png", texts)
    with pytest.raises(
        InvalidRequestError, match=f"carries metadata under {min(texts.keys() & KEYS)}"
    ):
        check_metadata(path)


KEYS = {"prompt", "workflow", "invokeai_metadata", "Dream", "Comment"}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["inputs", "class_type", "text", "3", "image"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["parameters", "prompt", "workflow", "invokeai_metadata", "Comment"]),
        st.sampled_from([GRAPH, INVOKE, FOOOCUS, NOVEL, {"links": LINKS}]).flatmap(
            lambda base: st.dictionaries(st.sampled_from(sorted(base)), values, max_size=3).map(
                lambda changes: json.dumps({**base, **changes})
            )
        )
        | st.text(max_size=10),
    )
)
def test_damaged_metadata_is_read_or_left(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]
) -> None:
    clean = {key: text.encode(errors="replace").decode() for key, text in texts.items()}
    path = png(tmp_path_factory.getbasetemp() / "damaged.png", clean)
    found = read_metadata(path)
    if found is not None:
        assert all(isinstance(value, str) for value in found.settings.values())
        assert json_object(found.settings.get("Prompt", "")) is None
