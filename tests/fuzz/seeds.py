"""Small valid inputs for the fuzzer to begin with: ``python tests/fuzz/seeds.py CORPUS``.

Each file is one input of ``parsers.py``, its first byte the number of its target.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, PngImagePlugin
from safetensors.torch import save

TARGETS = (
    *("settings", "emphasis", "metadata", "image", "lora"),
    *("embedding", "manifest", "checkpoint", "network"),
)
"""As in ``parsers.py``, which cannot be imported without atheris."""

LAYER = "unet.down_blocks.0.attentions.0.proj_in"
ENCODER = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
UNET = "model.diffusion_model."
WORKFLOW = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"seed": 5, "steps": 20, "sampler_name": "euler", "positive": ["6", 0]},
    },
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
}


def _png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text, zip=key == "workflow")
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _image(kind: str, mode: str) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a\nSteps: 3".encode("utf-16-be")
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, kind, **({"exif": exif} if kind != "BMP" else {}))
    return file.getvalue()


def _images() -> Iterator[bytes]:
    yield _png(parameters="a\nSteps: 4, Seed: 1")
    yield _png(prompt=json.dumps(WORKFLOW), workflow="{}")
    yield _png(Comment='{"prompt":"a","steps":28,"seed":1,"sampler":"k_euler"}', Software="NovelAI")
    yield _png(invokeai_metadata='{"positive_prompt":"a","seed":1}')
    for kind, mode in (("JPEG", "RGB"), ("WEBP", "RGBA"), ("TIFF", "I;16"), ("BMP", "L")):
        yield _image(kind, mode)


def _loras() -> Iterator[bytes]:
    down, up = torch.ones(2, 4), torch.ones(4, 2)
    alphas = json.dumps({"unet.lora_alpha": 4, "unet.alpha_pattern": {"a": 3}})
    peft = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    yield save(peft, {"lora_adapter_metadata": alphas})
    kohya = {f"{ENCODER}.lora_down.weight": down, f"{ENCODER}.lora_up.weight": up}
    yield save(kohya | {"bundle_emb.x.string_to_param.*": down.clone()})


def _checkpoints() -> Iterator[bytes]:
    state = {
        f"{UNET}input_blocks.0.0.weight": torch.zeros(1, 4, 1, 1),
        f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(1, 768),
    }
    yield save(state)
    yield save(state | {"v_pred": torch.zeros(0), "edm_vpred.sigma_max": torch.ones(1)})


def _network() -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B"]) for name in "xy"]
    weight = numpy_helper.from_array(np.ones(1, np.float32), "w")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", value[:1], value[1:], [weight])
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


def seeds() -> Iterator[tuple[str, bytes]]:
    """Targets and inputs."""
    yield (
        "settings",
        b'a\nNegative prompt: b\nSteps: 2, Size: 8x8, Lora hashes: "a: b, c: d"\nTemplate: x',
    )
    yield "emphasis", b"a (red:1.3) [cat] BREAK ((dog)) \\( a:b :0.5)"
    for content in _images():
        yield "metadata", content
        yield "image", content
    for content in _loras():
        yield "lora", content
    yield "embedding", save({"clip_l": torch.ones(2, 4), "clip_g": torch.ones(2, 8)})
    yield "embedding", save({"<cat>": torch.ones(4)})
    yield "manifest", b'{"schema_version": 1, "family": "sd", "components": {}, "files": {}}'
    for content in _checkpoints():
        yield "checkpoint", content
    yield "network", _network()


def main() -> None:
    """Write them into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for index, (target, content) in enumerate(seeds()):
        (folder / f"{index:02}-{target}").write_bytes(bytes([TARGETS.index(target)]) + content)


if __name__ == "__main__":
    main()
