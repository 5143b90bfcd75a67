"""A bundle may come from a stranger: whatever it holds, opening it gives a bundle or one sentence,
runs nothing, touches nothing outside and ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdrt.bundle import Bundle, bundle_path, folder_name, new_bundle, open_bundle, sha256
from kdrt.cli import run
from kdrt.common import atomic_io
from kdrt.errors import BundleError, InvalidRequestError, KdrtError, OutputError
from kdrt.prompt.tokens import PromptTokenizer

# -- a bundle to change ------------------------------------------------------------------------


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, without engines. Its files are links: unlink before writing."""
    ignored = shutil.ignore_patterns("engines")
    shutil.copytree(demo_bundle, tmp_path / "demo", ignore=ignored, copy_function=os.link)
    return tmp_path / "demo"


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.unlink()
    file.write_text(json.dumps(manifest))


def replace(bundle: Path, relative: str, content: bytes) -> None:
    """Other content, with the hash to it."""
    (bundle / relative).unlink(missing_ok=True)
    (bundle / relative).write_bytes(content)
    edit(bundle, lambda m: m["files"].update({relative: sha256(bundle / relative)}))


def change_graph(bundle: Path, relative: str, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(bundle / relative, load_external_data=False)
    change(model)
    replace(bundle, relative, model.SerializeToString())


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    said = str(caught.value)
    assert len(said) < 1000
    assert said.replace("\n", "").isprintable()
    return said


# -- the manifest ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"schema_version": 1, "schema_version": 1}', "a key is given twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"\xff\xfe{\x00}\x00", "can't decode"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "digits"),
        (b"null", "no JSON object"),
        (b" " * 2**24 + b"{}", "File too large"),
        (b'{"schema_version": 1, "name": "\\ud800"}', "is damaged"),
        (b'{"schema_version": "1"}', "is damaged"),
        (b'{"schema_version": true}', "is damaged"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda p: p.symlink_to("/dev/zero")])
def test_a_manifest_that_is_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "manifest.json")
    assert "no readable manifest.json" in refusal(tmp_path)


@pytest.mark.parametrize("path", ["/etc/hostname", "../x", "onnx/../../x", "a//b", ".", "", "a\\b"])
@pytest.mark.parametrize("where", ["onnx", "tokenizer", "files"])
def test_paths_lie_inside(bundle: Path, path: str, where: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if where == "onnx":
            manifest["components"]["unet"]["onnx"] = path
        elif where == "tokenizer":
            manifest["text_encoders"][0]["tokenizer"] = path
        else:
            manifest["files"][path] = "0" * 64

    edit(bundle, change)
    assert "is no path inside the bundle" in refusal(bundle)


@pytest.mark.parametrize("name", ["../../x", "/x", ".", "..", "", "a/b", "-x", "a\0b", "x" * 200])
def test_names_of_components_are_no_paths(bundle: Path, name: str) -> None:
    edit(bundle, lambda m: m["components"].update({name: m["components"]["unet"]}))
    refusal(bundle)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: m["latents"].update(channels=10**9), "latents.channels"),
        (lambda m: m["latents"].update(scale=0), "latents.scale"),
        (lambda m: m["latents"].update(default_width=10**30), "latents.default_width"),
        (lambda m: m["latents"].update(vae_tile=-1), "latents.vae_tile"),
        (lambda m: m["latents"]["preview"].pop(), "latents"),
        (lambda m: m["text_encoders"].clear(), "text_encoders"),
        (lambda m: m["text_encoders"][0].update(max_length=2), "text_encoders.0.max_length"),
        (lambda m: m["text_encoders"][0].update(layer=0), "text_encoders.0.layer"),
        (lambda m: m["text_encoders"][0].update(bos="672"), "text_encoders.0.bos"),
        (lambda m: m["components"]["unet"]["inputs"][0].update(shape=[2**40]), "inputs.0.shape"),
        (lambda m: m["components"]["unet"]["inputs"][0].update(shape=["h+1"]), "inputs.0.shape"),
        (lambda m: m["components"]["unet"]["inputs"][0].update(dtype="object"), "inputs.0.dtype"),
        (lambda m: m.update(default_guidance_scale=1e300), "default_guidance_scale"),
        (lambda m: m.update(zeros_for_empty_negative=1), "zeros_for_empty_negative"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["variants"].update(x={"unet": "nothing"}), "the variant 'x'"),
        (lambda m: m["files"].update({f"f{i}": "0" * 64 for i in range(5000)}), "files"),
    ],
)
def test_every_number_and_type_has_bounds(
    bundle: Path, change: Callable[[dict[str, Any]], object], place: str
) -> None:
    edit(bundle, change)
    assert place in refusal(bundle)


@pytest.mark.parametrize(
    ("component", "tensor", "shape"),
    [
        ("unet", "sample", ["B", 4, "w", "h"]),
        ("unet", "sample", []),
        ("unet", "timestep", ["B", 1]),
        ("unet", "encoder_hidden_states", ["B", "L", 64]),
        ("unet", "text_embeds", ["B", 65]),
        ("unet", "time_ids", ["B", 1]),
        ("unet", "freeu", [5]),
        ("unet", "freeu", ["B", 5]),
        ("unet", "freeu", ["h", 4]),
        ("unet", "noise_pred", ["B", 8, "h", "w"]),
        ("text_encoder", "inputs_embeds", ["B", 64]),
        ("text_encoder", "hidden_states", ["B", 3, "L", 64]),
        ("vae_decoder", "image", ["B", 3, "8*h", "8*w"]),
        ("vae_encoder", "moments", ["B", 4, "h", "w"]),
    ],
)
def test_networks_have_to_fit_each_other(
    bundle: Path, component: str, tensor: str, shape: list[Any]
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        network = manifest["components"][component]
        (found,) = (t for t in network["inputs"] + network["outputs"] if t["name"] == tensor)
        found["shape"] = shape

    edit(bundle, change)
    said = refusal(bundle)
    assert f"'{tensor}' of {component} is float32" in said or "text_embeds" in said
    assert "does not fit the rest of the model" in said


@pytest.mark.parametrize("shape", [["B", 4], [4]])
def test_freeu_is_of_each_image_or_as_earlier_of_a_batch(bundle: Path, shape: list[Any]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        (found,) = (t for t in manifest["components"]["unet"]["inputs"] if t["name"] == "freeu")
        found["shape"] = shape

    edit(bundle, change)
    assert Bundle.open(bundle).manifest.components["unet"].spec().input("freeu").shape == (*shape,)


@pytest.mark.parametrize(
    "neutral", [{"freeu": [1, 1, 1]}, {"freeu": []}, {"unheard": [1]}, {"timestep": [0]}]
)
def test_neutral_values_are_those_of_inputs(bundle: Path, neutral: dict[str, list[int]]) -> None:
    edit(bundle, lambda m: m["components"]["unet"]["onnxruntime"].update(neutral=neutral))
    ((name, values),) = neutral.items()
    assert f"unet has {len(values)} neutral values for '{name}'" in refusal(bundle)


def test_networks_need_their_inputs(bundle: Path) -> None:
    edit(bundle, lambda m: m["components"]["unet"]["inputs"].pop(2))
    assert "unet has no 'encoder_hidden_states'" in refusal(bundle)


def test_what_a_bundle_says_of_itself_does_not_reach_the_terminal(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(bundle, lambda m: m.update(source="\x1b]0;owned\x07", name="a\nb"))
    opened = Bundle.open(bundle)
    assert opened.manifest.source == "\N{REPLACEMENT CHARACTER}]0;owned\N{REPLACEMENT CHARACTER}"
    assert run(["inspect", str(bundle)]) == 0
    assert "\x1b]0" not in capsys.readouterr().out


ODD: list[Any] = [None, True, -1, 0, 1, 2**31, 10**25, 1.5, -1e308, "", "..", "/", "../../x", "1"]
ODD += ["\0", "\x1b[2J", "\u202e", "x" * 5000, [], {}, [[[[]]]], {"a": {"b": []}}, ["B", 4], "2*h"]


@pytest.fixture(scope="module")
def opened(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("property") / "demo"
    shutil.copytree(demo_bundle, folder, copy_function=os.link)
    Bundle.open(folder)
    return folder


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with every key of it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(pairs):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from places(inner)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_manifest_is_a_bundle_or_a_sentence(
    opened: Path, demo_bundle: Path, data: st.DataObject
) -> None:
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        found = list(places(manifest))
        parent, key = found[data.draw(st.integers(0, len(found) - 1), "place")]
        kind = data.draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if kind == "replace":
            parent[key] = data.draw(st.sampled_from(ODD) | st.integers() | st.text())
        elif kind == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.append(data.draw(st.sampled_from(ODD)))
        else:
            value = parent.pop(key) if kind == "rename" else data.draw(st.sampled_from(ODD))
            parent[data.draw(st.sampled_from([o for o in ODD if isinstance(o, str)]))] = value
    (opened / "manifest.json").unlink()
    (opened / "manifest.json").write_text(json.dumps(manifest))
    assert run(["inspect", str(opened)]) in (0, 2)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_bundle_or_a_sentence(
    opened: Path, demo_bundle: Path, data: st.DataObject
) -> None:
    content = bytearray((demo_bundle / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(start + 40, len(content))))
        content[start:end] = data.draw(st.binary(max_size=8))
    (opened / "manifest.json").unlink()
    (opened / "manifest.json").write_bytes(content)
    with contextlib.suppress(KdrtError):
        Bundle.open(opened)


# -- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", ["onnx/unet/weights.bin", "onnx/unet", "tokenizer"])
def test_links_are_not_followed(bundle: Path, tmp_path: Path, relative: str) -> None:
    (bundle / relative).rename(tmp_path / "elsewhere")
    (bundle / relative).symlink_to(tmp_path / "elsewhere")
    assert f"{relative}" in refusal(bundle)
    assert "is a link" in refusal(bundle)


@pytest.mark.parametrize("relative", ["onnx/unet/model.onnx", "tokenizer/tokenizer.json"])
def test_what_is_no_file_does_not_hang(bundle: Path, relative: str) -> None:
    (bundle / relative).unlink()
    os.mkfifo(bundle / relative)
    assert f"{relative} cannot be read (not a regular file)" in refusal(bundle)


@pytest.mark.parametrize(
    "relative",
    [
        "onnx/unet/model.onnx",
        "onnx/unet/onnxruntime-plain.onnx",
        "tokenizer/tokenizer.json",
        "tokenizer_2/token_embedding.safetensors",
    ],
)
def test_what_is_not_listed_is_not_used(bundle: Path, relative: str) -> None:
    edit(bundle, lambda m: m["files"].pop(relative))
    assert f"{relative} is not among its files" in refusal(bundle)


def test_weights_that_are_not_listed_are_not_used(bundle: Path) -> None:
    edit(bundle, lambda m: m["files"].pop("onnx/unet/weights.bin"))
    assert "weights in 'weights.bin', which is not among the files" in refusal(bundle)


def test_files_that_changed_are_read_again(bundle: Path) -> None:
    Bundle.open(bundle)
    weights = bundle / "onnx" / "unet" / "weights.bin"
    before, content = weights.stat(), bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "onnx/unet/weights.bin is not what was exported" in refusal(bundle)


def test_a_bundle_brings_no_record_of_what_was_checked(bundle: Path, home: Path) -> None:
    Bundle.open(bundle)
    assert not (bundle / "engines").exists()
    assert len(list((home / "checked").iterdir())) == 1


def test_a_file_that_never_ends_is_not_read(bundle: Path) -> None:
    weights = bundle / "onnx" / "unet" / "weights.bin"
    weights.unlink()
    with weights.open("wb") as file:
        file.truncate(2**42)
    assert "seems to hold more than 137 GB" in refusal(bundle)


# -- the graphs --------------------------------------------------------------------------------

UNET = "onnx/unet/model.onnx"


def stored(model: onnx.ModelProto) -> onnx.TensorProto:
    """A weight that is in a file beside the model."""
    return next(t for t in model.graph.initializer if t.external_data)


def place(weight: onnx.TensorProto, key: str, value: str) -> None:
    next(e for e in weight.external_data if e.key == key).value = value


def with_weights_in(location: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: place(stored(model), "location", location)


def hidden_weights(model: onnx.ModelProto) -> None:
    """In an attribute of a node of a graph of a node."""
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="/dev/zero")
    inner = onnx.helper.make_node("Constant", [], ["c"])
    inner.attribute.append(onnx.helper.make_attribute("value", onnx.TensorProto()))
    inner.attribute[0].t.CopyFrom(tensor)
    graph = onnx.GraphProto(name="inner", node=[inner])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph))


def endless(model: onnx.ModelProto) -> None:
    body = onnx.GraphProto(name="body")
    model.graph.node.append(onnx.helper.make_node("Loop", ["", ""], ["z"], body=body))


def spliced(model: onnx.ModelProto, *fields: bytes) -> bytes:
    """The model, and to the fields of where a weight is these, as bytes: protocol buffers merge a
    message that is given in parts."""
    weight = stored(model)
    entry = b"".join(fields)
    whole = message(7, message(5, weight.SerializeToString() + message(13, entry)))
    model.graph.initializer.remove(weight)
    return model.SerializeToString() + whole


def message(field: int, content: bytes, *, more: int = 0) -> bytes:
    """A field of a protocol buffer; ``more`` is added to its number."""
    return varint(more + (field << 3 | 2)) + varint(len(content)) + content


def varint(number: int) -> bytes:
    rest = b"" if number < 128 else varint(number >> 7)
    return bytes([number & 127 | (128 if rest else 0)]) + rest


def test_a_weight_that_is_in_two_places_at_once(bundle: Path) -> None:
    here, there = message(2, b"weights.bin"), message(2, b"/dev/zero")
    entries = {
        "says twice": (message(1, b"location"), there),
        "'/dev/zero', which is not beside it": (message(1, b"lo") + message(1, b"location"), there),
        "which is not beside it": (message(1, b"location"), here, there),
        "damaged": (message(1, b"location"), here, message(2, b"/dev/zero", more=2**32)),
    }
    whole = onnx.load(bundle / UNET, load_external_data=False)
    for words, fields in entries.items():
        model = onnx.ModelProto()
        model.CopyFrom(whole)
        if words != "says twice":
            places = stored(model).external_data
            places.remove(next(e for e in places if e.key == "location"))
        replace(bundle, UNET, spliced(model, *fields))
        assert words in refusal(bundle)


def with_function(model: onnx.ModelProto) -> None:
    call = onnx.helper.make_node("F", ["x"], ["y"], domain="local")
    operators = [onnx.helper.make_opsetid("local", 1)]
    model.functions.append(onnx.helper.make_function("local", "F", ["x"], ["y"], [call], operators))


def with_context(model: onnx.ModelProto) -> None:
    node = onnx.helper.make_node("EPContext", [], ["z"], domain="com.microsoft", embed_mode=0)
    model.graph.node.append(node)


def nested(model: onnx.ModelProto) -> None:
    graph = onnx.GraphProto(name="g")
    for _ in range(30):
        node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph)
        graph = onnx.GraphProto(name="g", node=[node])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=graph))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((with_weights_in(p), "which is not beside it") for p in ("/dev/zero", "../x", "")),
        (with_weights_in("*/_ORT_MEM_ADDR_/*"), "which is not beside it"),
        (with_weights_in("x/weights.bin"), "not among the files"),
        (with_function, "it holds a function"),
        (with_context, "EPContext, which is code"),
        (hidden_weights, "/dev/zero"),
        (endless, "the operator Loop, which may never end"),
        (nested, "nested too deeply"),
        (lambda m: stored(m).dims.append(-1), "is too short for"),
        (lambda m: stored(m).dims.extend([2**31] * 3), "is too short for"),
        (lambda m: place(stored(m), "offset", "9" * 19), "is too short for"),
        (lambda m: place(stored(m), "offset", "-1"), "'-1' is no place in a file"),
        (lambda m: place(stored(m), "length", "9" * 5000), "is no place in a file"),
        (lambda m: setattr(m.graph.output[0], "name", "other"), "has the outputs other"),
        (lambda m: m.graph.output.append(m.graph.input[0]), "has the outputs noise_pred, sample"),
        (lambda m: m.graph.ClearField("output"), "has no outputs"),
        (lambda m: setattr(m.graph.input[0], "name", "more"), "has the inputs more"),
        (lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 7), "outputs"),
    ],
)
def test_graphs_that_are_not_those_of_the_manifest(
    bundle: Path, change: Callable[[onnx.ModelProto], object], words: str
) -> None:
    change_graph(bundle, UNET, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(bundle)


@pytest.mark.parametrize("part", [0, 1, 2, 100, -1, -1000])
def test_a_graph_that_is_cut_off(bundle: Path, part: int) -> None:
    replace(bundle, UNET, (bundle / UNET).read_bytes()[:part])
    assert "is no ONNX model" in refusal(bundle)


def test_weights_that_are_cut_off(bundle: Path) -> None:
    weights = "onnx/vae_decoder/weights.bin"
    replace(bundle, weights, (bundle / weights).read_bytes()[:-100])
    assert f"{weights} is too short for" in refusal(bundle)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_are_a_graph_or_a_sentence(
    demo_bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    from kdrt_engines.onnx_model import graph_facts
    from kdrt_engines.onnx_weights import stored_weights

    content = bytearray((demo_bundle / "onnx/text_encoder/model.onnx").read_bytes())
    start = data.draw(st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
    (tmp_path / "model.onnx").write_bytes(content)
    for read in (graph_facts, stored_weights):
        with contextlib.suppress(KdrtError):
            read(tmp_path / "model.onnx")


# -- the tokenizers ----------------------------------------------------------------------------

TOKENIZER = "tokenizer/tokenizer.json"


def test_tokenizers_as_they_are_trained_are_read(bundle: Path) -> None:
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = gpt2
    replace(bundle, TOKENIZER, json.dumps(tokenizer).encode())
    Bundle.open(bundle)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*b", r"(a*)\1", "a*a*a*a*b", "(a{1,}){2,}", "(?x)(a+) +c"]
)
def test_patterns_that_may_never_end_are_refused(bundle: Path, pattern: str) -> None:
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    replace(bundle, TOKENIZER, json.dumps(tokenizer).encode())
    assert "may never end" in refusal(bundle)


@pytest.mark.parametrize(
    "normalizers",
    [
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40,
        [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}],
        [{"type": "Prepend", "prepend": "a" * 10**6}],
        [{"type": "ByteLevel"}] * 40,
    ],
)
def test_text_does_not_become_ever_more(bundle: Path, normalizers: list[Any]) -> None:
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": normalizers}
    replace(bundle, TOKENIZER, json.dumps(tokenizer).encode())
    assert "more than a tokenizer needs" in refusal(bundle)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="},
        {"type": "Replace", "pattern": {"String": ""}, "content": "aa"},
    ],
)
def test_a_tokenizer_that_panics_is_one_sentence(bundle: Path, normalizer: Any) -> None:
    tokenizer = json.loads((bundle / TOKENIZER).read_text())
    tokenizer["normalizer"] = normalizer
    replace(bundle, TOKENIZER, json.dumps(tokenizer).encode())
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match="a tokenizer that cannot read 'a cat'"):
        PromptTokenizer(opened, opened.manifest.text_encoders[0])("a cat")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff", b'{"a": 1, "a": 2}'])
def test_what_is_no_tokenizer(bundle: Path, content: bytes) -> None:
    replace(bundle, TOKENIZER, content)
    assert "no JSON that a tokenizer could have" in refusal(bundle)


def test_a_source_is_one_word_of_the_commands_that_name_it(bundle: Path) -> None:
    edit(bundle, lambda m: m.update(source="my model; rm -rf ~"))
    manifest = Bundle.open(bundle).manifest
    assert manifest.export_command == "kdrt export 'my model; rm -rf ~'"


# -- names, and what a new bundle may replace --------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "owner/name", "Ünï cödé", "v1.5", "a" * 200, "a b,c(1)"])
def test_names(name: str, home: Path) -> None:
    assert bundle_path(name).parent == home / "bundles"


NO_NAMES = ["", ".", "..", "a/../b", "/", "a/", "/a", "a\0b", "a\nb", ".a", "-a", "~a", "a\\b"]
NO_NAMES += ["\ud800", "é" * 101, "a" * 201, "\x1b[2J"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_names(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="a bundle cannot be called"):
        folder_name(name)


@pytest.mark.parametrize("name", [*NO_NAMES, "~nouser/x", "x" * 5000, "a\0/b", f"{'x' * 300}/b"])
@pytest.mark.usefixtures("home")
def test_opening_by_a_name_that_is_none(name: str) -> None:
    with pytest.raises(KdrtError):
        open_bundle(name)


def held(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


LOOKALIKE = {"schema_version": 1, "components": [], "files": {}}
EXTENSION = {"manifest_version": 3, "name": "An extension", "version": "1.0"}


def become(other: dict[str, Any], manifest: dict[str, Any]) -> None:
    manifest.clear()
    manifest.update(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda bundle: edit(bundle, partial(become, EXTENSION)),
        lambda bundle: edit(bundle, partial(become, LOOKALIKE)),
        lambda bundle: edit(bundle, lambda m: m["files"].update({"manifest.json": "1.0"})),
        lambda bundle: edit(bundle, dict.clear),
        lambda bundle: (bundle / "manifest.json").unlink(),
        lambda bundle: (bundle / "notes.txt").write_text("mine"),
        lambda bundle: (bundle / "onnx" / "unet" / "notes.txt").write_text("mine"),
        lambda bundle: (bundle / "engines").mkdir() or (bundle / "engines" / "x").write_text("x"),
        lambda bundle: (bundle / "engines").symlink_to(bundle.parent),
    ],
    ids=[
        "extension",
        "lookalike",
        "no digests",
        "empty",
        "no manifest",
        "more",
        "more inside",
        "more engines",
        "link",
    ],
)
def test_only_a_whole_bundle_and_nothing_else_is_replaced(
    bundle: Path, make: Callable[[Path], object]
) -> None:
    make(bundle)
    before = held(bundle)
    with pytest.raises(OutputError, match="choose another place with -o"), new_bundle(bundle):
        pytest.fail("the work has begun")
    assert held(bundle) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda bundle: (bundle / "onnx" / "unet" / "model.onnx").unlink(),
        lambda bundle: edit(bundle, lambda m: m.update(schema_version=0)),
        lambda bundle: edit(bundle, lambda m: m.update(latents="damaged")),
        lambda bundle: shutil.copytree(bundle / "onnx", bundle / "engines" / "onnxruntime"),
    ],
    ids=["incomplete", "old", "damaged", "engines"],
)
def test_bundles_that_no_longer_open_can_be_exported_again(
    bundle: Path, make: Callable[[Path], object]
) -> None:
    make(bundle)
    if (bundle / "engines").exists():
        for path in (bundle / "engines").rglob("onnxruntime*.onnx"):
            path.unlink()
    with new_bundle(bundle) as partial:
        (partial / "manifest.json").write_text("{}")
    assert held(bundle) == {"manifest.json": b"{}"}


def test_a_bundle_that_a_killed_export_moved_away_is_opened(bundle: Path, home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = int(psutil.Process(process.pid).create_time())
    process.communicate()
    left = f"{atomic_io.UNFINISHED}{atomic_io._host()}-{process.pid}-{started}-{'0' * 8}"
    (home / "bundles" / left / "old").mkdir(parents=True)
    bundle.rename(home / "bundles" / left / "old" / "mine")
    assert open_bundle("mine").path == home / "bundles" / "mine"
    assert [path.name for path in (home / "bundles").iterdir()] == ["mine"]


@pytest.mark.parametrize("value", [None, 0, b"demo", ["demo"]])
def test_what_is_no_path_and_no_name(value: Any) -> None:
    with pytest.raises(BundleError, match="a bundle's path or name must be a string, not"):
        open_bundle(value)
