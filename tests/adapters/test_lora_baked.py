"""LoRAs merged at export: the bundle's pictures are those of diffusers after ``fuse_lora``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import ATTENTION, CONVOLUTIONS, TEXT, kohya, networks, random_lora
from safetensors.torch import save_file
from tiny_bundles import TinyModel, by_diffusers, by_kdrt

import kdrt
from kdrt import cli
from kdrt.adapters.lora_file import lora_option
from kdrt.bundle import Bundle, sha256
from kdrt.errors import InvalidRequest
from kdrt_export.errors import SourceError
from kdrt_export.stage import export
from kdrt_export.verify import relative_error


def test_baked_loras_are_those_of_fuse_lora(
    model: TinyModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    everything = (*ATTENTION, *CONVOLUTIONS, *TEXT)
    pipe = model.diffusers()
    base = by_diffusers(pipe)
    files = []
    for name, scale, seed in (("a", 0.7, 1), ("b", -1.3, 2)):
        path = tmp_path / f"{name}.safetensors"
        save_file(kohya(random_lora(networks(model.diffusers()), everything, seed=seed)), path)
        files.append((path, scale))
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name=name)
        pipe.fuse_lora(lora_scale=scale, adapter_names=[name])
        pipe.unload_lora_weights()
    bundle = export(str(model.folder), tmp_path / "bundle", loras=files)
    result, expected = by_kdrt(kdrt.load(bundle, engine="onnxruntime")), by_diffusers(pipe)
    assert relative_error(result, base) > 1e-2
    assert relative_error(result, expected) < 1e-5
    manifest = Bundle.open(bundle).manifest
    assert [(lora.file, lora.scale, lora.sha256) for lora in manifest.baked.loras] == [
        (path.name, scale, sha256(path)) for path, scale in files
    ]
    assert cli.run(["inspect", str(bundle)]) == 0
    shown = capfd.readouterr().out
    assert "a.safetensors at 0.7" in shown
    assert "b.safetensors at -1.3" in shown
    # Verification compared with the merged networks: else these would be as far off as the base.
    for component in manifest.components.values():
        assert all(figure.relative_error < 1e-5 for figure in component.verification)


def test_a_lora_with_little_or_nothing_in_common(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    down, up = torch.ones(2, 32), torch.ones(32, 2)
    nowhere = {"lora_te2_x.lora_down.weight": down, "lora_te2_x.lora_up.weight": up}
    save_file(nowhere, tmp_path / "none.safetensors")
    folder = str(tiny_models("sd").folder)
    with pytest.raises(SourceError, match=r"no layer of none\.safetensors exists in this model"):
        export(folder, tmp_path / "bundle", loras=[(tmp_path / "none.safetensors", 1.0)])
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(InvalidRequest, match="there is no LoRA file"):
        export(folder, tmp_path / "bundle", loras=[(tmp_path / "no.safetensors", 1.0)])


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("a/style.safetensors:0.8", "a/style.safetensors", 0.8),
        ("style.safetensors:-2", "style.safetensors", -2.0),
        ("C:/style.safetensors", "C:/style.safetensors", 1.0),
        ("C:/style.safetensors:1e-1", "C:/style.safetensors", 0.1),
    ],
)
def test_file_and_scale_on_the_command_line(text: str, path: str, scale: float) -> None:
    assert lora_option(text) == (Path(path), scale)
