"""Whether a bundle is what its manifest says, before anything of it is used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from kdrt._version import __version__
from kdrt.bundle.components import DEEP_FEATURE, PAG_INPUT, SHALLOW_UNET, UPSCALER_COMPONENT
from kdrt.bundle.control_checks import control_faults
from kdrt.bundle.manifest import Component, Manifest, TensorInfo
from kdrt.common.home import Digests
from kdrt.common.validation import printable
from kdrt.errors import BundleError, EngineError
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.onnx_model import GraphFacts, graph_facts
from kdrt_engines.regular_files import read_regular

Shape = tuple[int | str | range, ...]
"""What the shape of a tensor must be."""

ANY = range(1, 2**31)

_MAX_BYTES = 2**37
"""Of a whole bundle: ten times the largest, which is SDXL in float32 with a variant of its UNet."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no key may be given twice: other readers take another of the two."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def damaged(file: Path, reason: str) -> BundleError:
    return BundleError(f"{file} is damaged ({printable(reason[:200])}); export the model again")


def check_bundle(path: Path, manifest: Manifest) -> None:
    """Check every file that a manifest names, and every network that it describes.

    Raises:
        BundleError: something is not as the manifest says, or must not be used.
    """
    missing = sorted({*_used(manifest)} - manifest.files.keys())
    if missing:
        raise damaged(path / "manifest.json", f"{missing[0]} is not among its files")
    _check_shapes(path, manifest)
    digests, root, size = Digests(path), path.resolve(), 0
    try:
        for relative, digest in manifest.files.items():
            if os.path.realpath(root / relative) != str(root / relative):
                raise BundleError(
                    f"{path} must not be used: {relative} is a link, and a bundle holds its files "
                    "itself; copy it with the files that its links point to"
                )
            # A file with holes can seem so large that reading it takes for ever.
            size += (root / relative).stat().st_size
            if size > _MAX_BYTES:
                raise BundleError(
                    f"{path} must not be used: it seems to hold more than {_MAX_BYTES / 1e9:.0f} "
                    "GB, and no model that kdrt exports does"
                )
            if digests.of(relative) != digest:
                raise BundleError(
                    f"{path} is damaged: {relative} is not what was exported; {manifest.again}"
                )
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} is incomplete: {relative} is missing; {manifest.again}"
        ) from error
    except OSError as error:
        raise BundleError(
            f"{path} is damaged: {relative} cannot be read ({error.strerror}); export it again"
        ) from error
    # What follows depends on the manifest and on files that have not changed since.
    described = f"{__version__} {manifest.model_dump_json()}"
    if digests.changed or not digests.was_good(described):
        for name, component in manifest.components.items():
            _check_graphs(path, manifest, name, component)
        for facts in manifest.text_encoders:
            _check_tokenizer(path / facts.tokenizer / "tokenizer.json")
        digests.save(described)


def _used(manifest: Manifest) -> Iterator[str]:
    """The files that a bundle names."""
    for component in manifest.components.values():
        yield from component.graphs
    for facts in manifest.text_encoders:
        yield f"{facts.tokenizer}/tokenizer.json"
        yield facts.token_embedding


def _check_shapes(path: Path, manifest: Manifest) -> None:
    """Whether the networks can be fed by each other and by the runtime."""
    expected = _expected(manifest)
    for parts in manifest.variants.values():
        expected |= {component: expected.get(part, {}) for part, component in parts.items()}
    for name, tensors in expected.items():
        if name not in manifest.components:
            continue
        component = manifest.components[name]
        found = {tensor.name: tensor for tensor in (*component.inputs, *component.outputs)}
        for tensor, shape in tensors.items():
            required = tensor not in _OPTIONAL
            allowed = (shape, *_EARLIER.get(tensor, ()))
            if tensor in found and not any(_fits(found[tensor], each) for each in allowed):
                raise damaged(
                    path / "manifest.json",
                    f"'{tensor}' of {name} is {found[tensor].dtype} {[*found[tensor].shape]}, "
                    f"which does not fit the rest of the model",
                )
            if required and tensor not in found:
                raise damaged(path / "manifest.json", f"{name} has no '{tensor}'")
    for name, component in manifest.components.items():
        _check_neutral(path, name, component)
    for fault in control_faults(manifest):
        raise damaged(path / "manifest.json", f"{fault}, which does not fit the rest of the model")


def _check_neutral(path: Path, name: str, component: Component) -> None:
    """Whether a component's neutral values belong to inputs, and fill their rows."""
    if component.onnxruntime is None:
        return
    widths = {tensor.name: tensor.shape[-1:] for tensor in component.inputs}
    for tensor, values in component.onnxruntime.neutral.items():
        if widths.get(tensor) != (len(values),):
            raise damaged(
                path / "manifest.json",
                f"{name} has {len(values)} neutral values for '{tensor}', which does not fit its "
                "inputs",
            )


_OPTIONAL = {"text_embeds", "time_ids", "timestep_cond", "freeu", "ip_scale", "ip_hidden_states"}
_OPTIONAL |= {DEEP_FEATURE, PAG_INPUT, "ip_mask", "image_embeds", "hidden_states"}

_EARLIER: Mapping[str, tuple[Shape, ...]] = {"freeu": ((4,),)}
"""Shapes that tensors had in earlier exports, which stay allowed: FreeU's strengths were those of a
whole batch."""


def _expected(manifest: Manifest) -> dict[str, dict[str, Shape]]:
    """The tensors of the networks that kdrt knows, with the shapes that follow from the facts."""
    channels, scale = manifest.latents.channels, manifest.latents.scale
    latents: Shape = ("B", channels, "h", "w")
    image: Shape = ("B", 3, f"{scale}*h", f"{scale}*w")
    deep: Shape = ("B", ANY, "h", "w")
    shallow: dict[str, Shape] = {
        "sample": ("B", ANY, "h", "w"),
        "timestep": ("B",),
        "noise_pred": latents,
        "text_embeds": ("B", _pooled_width(manifest)),
        "time_ids": ("B", range(5, 7)),
        "timestep_cond": ("B", ANY),
        "freeu": ("B", 4),
        DEEP_FEATURE: deep,
    }
    width = sum(facts.hidden_size for facts in manifest.text_encoders)
    whole: dict[str, Shape] = {
        **shallow,
        "encoder_hidden_states": ("B", "L", width),
        **_image_inputs(manifest, width),
        PAG_INPUT: ("B",),
    }
    expected: dict[str, dict[str, Shape]] = {
        "unet": whole,
        SHALLOW_UNET: shallow,
        "vae_decoder": {"latents": latents, "image": image},
        "vae_encoder": {"image": image, "moments": ("B", 2 * channels, "h", "w")},
        "preview_decoder": {"latents": latents, "image": image},
    }
    for adapter in manifest.ip_adapters.values():
        expected[adapter.projection] = {
            "image_embeds": ("B", adapter.embedding or ANY),
            "hidden_states": ("B", *(adapter.states or (ANY, ANY))),
            "ip_hidden_states": ("B", adapter.tokens, width),
        }
        if adapter.image_encoder is not None:
            side = adapter.image_encoder.size
            expected[adapter.image_encoder.component] = {
                "pixels": ("B", 3, side, side),
                "image_embeds": ("B", ANY),
                "hidden_states": ("B", ANY, ANY),
            }
    for name, upscaler in manifest.upscalers.items():
        expected[UPSCALER_COMPONENT + name] = {
            "image": ("B", 3, "H", "W"),
            "enlarged": ("B", 3, f"{upscaler.scale}*H", f"{upscaler.scale}*W"),
        }
    for facts in manifest.text_encoders:
        expected[facts.component] = {
            "inputs_embeds": ("B", "L", facts.hidden_size),
            "eos_index": ("B",),
            "hidden_states": ("B", facts.layers + 1, "L", facts.hidden_size),
            "pooled": ("B", ANY),
        }
    return expected


def _image_inputs(manifest: Manifest, width: int) -> dict[str, Shape]:
    """What a UNet is told by IP-Adapters; earlier exports have one number as the scale."""
    adapters = manifest.ip_adapters.values()
    tokens = sum(facts.images * facts.tokens for facts in adapters)
    images = sum(facts.images for facts in adapters)
    columns = len(manifest.ip_attentions)
    levels = len(set(manifest.ip_attentions.values()))
    return {
        "ip_hidden_states": ("B", tokens, width),
        "ip_scale": ("B", images, columns) if columns else (1,),
        "ip_mask": ("B", images * levels, "h", "w"),
    }


def _pooled_width(manifest: Manifest) -> int | str | range:
    """That of the last text encoder, which is the one an SDXL takes."""
    component = manifest.components.get(manifest.text_encoders[-1].component)
    outputs = () if component is None else component.outputs
    return next((t.shape[-1] for t in outputs if t.name == "pooled" and t.shape), ANY)


def _fits(tensor: TensorInfo, shape: Shape) -> bool:
    if (tensor.dtype == "int64") != (tensor.name == "eos_index") or tensor.dtype == "int32":
        return False
    return len(tensor.shape) == len(shape) and all(
        size in wanted if isinstance(wanted, range) else _plain(size) == _plain(wanted)
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )


def _plain(size: int | str) -> int | str:
    return size.removeprefix("1*") if isinstance(size, str) else size


def _check_graphs(path: Path, manifest: Manifest, name: str, component: Component) -> None:
    """Whether the graphs of a component have its inputs and outputs, and weights of the bundle."""
    inputs = {t.name: DTYPES[t.dtype].onnx for t in component.inputs}
    outputs = {t.name: DTYPES[t.dtype].onnx for t in component.outputs}
    graphs = component.onnxruntime
    given: Mapping[str, int] = {}
    if graphs is not None and graphs.invariants is not None:
        given = _graph(path, manifest, graphs.invariants, inputs).outputs
    found = {component.onnx: inputs}
    if graphs is not None:
        both = {**inputs, **given}
        found |= {graph: both for graph in (graphs.plain, graphs.cpu) if graph is not None}
        found[graphs.fused] = inputs if graphs.cpu or graphs.plain else both
    for relative, taken in found.items():
        made = _graph(path, manifest, relative, taken).outputs
        if made != outputs:
            raise BundleError(
                f"{path} is damaged: {relative} has the outputs {_listed(made)}, and {name} those "
                f"of the manifest, {_listed(outputs)}; export it again"
            )


def _graph(path: Path, manifest: Manifest, relative: str, inputs: Mapping[str, int]) -> GraphFacts:
    """The facts of a graph, whose inputs must be among these."""
    try:
        facts = graph_facts(path / relative)
    except EngineError as error:
        raise BundleError(f"{error}; export it again") from error
    if not facts.inputs.items() <= inputs.items():
        raise BundleError(
            f"{path} is damaged: {relative} has the inputs {_listed(facts.inputs)}, and may have "
            f"{_listed(inputs)}; export it again"
        )
    for location, size in facts.files.items():
        file = (PurePosixPath(relative).parent / location).as_posix()
        if file not in manifest.files:
            raise BundleError(
                f"{path} must not be used: {relative} keeps weights in '{printable(location)}', "
                "which is not among the files of the manifest"
            )
        if (path / file).stat().st_size < size:
            raise BundleError(
                f"{path} is damaged: {file} is too short for {relative}; export it again"
            )
    return facts


_TOKENIZER_BYTES = 64 * 2**20
_REPLACEMENTS, _REPLACEMENT_LENGTH = 4, 8
_SLOW_PATTERN = re.compile(r"\)[*+{]|\\[1-9kg]|\(\?[a-z-]*x")
_REPEATED = re.compile(r"[*+]|,\}")
_REPEATS = 3


def _check_tokenizer(file: Path) -> None:
    """Whether a tokenizer takes time and memory in proportion to a prompt, as CLIP's does: neither
    has a pattern that backtracks without end, nor replaces text by ever more text."""
    try:
        content = json.loads(read_regular(file, _TOKENIZER_BYTES), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(file, "it is no JSON that a tokenizer could have") from error
    replaced = 0
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += [each for each in value if isinstance(each, dict | list)]
        if not isinstance(value, dict):
            continue
        waiting += [each for each in value.values() if isinstance(each, dict | list)]
        # Each of the latter may double the text: it writes its bytes as characters.
        replaced += value.get("type") in ("Replace", "ByteLevel")
        longer = value.get("type") in ("Replace", "Prepend") and max(
            len(str(value.get(key, ""))) for key in ("content", "prepend")
        )
        if replaced > _REPLACEMENTS or longer > _REPLACEMENT_LENGTH:
            raise damaged(file, "it replaces text by more than a tokenizer needs")
        if "Regex" in value and _is_slow(str(value["Regex"])):
            raise damaged(file, f"its pattern {value['Regex']!r} may never end")


def _is_slow(pattern: str) -> bool:
    """Whether matching may take more than a small power of the length of the text."""
    return bool(_SLOW_PATTERN.search(pattern)) or any(
        len(_REPEATED.findall(part)) > _REPEATS for part in pattern.split("|")
    )


def _listed(tensors: Mapping[str, int]) -> str:
    return str(printable(", ".join([*tensors][:8]))) or "none"
