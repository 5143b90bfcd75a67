"""LoRAs merged at export: the bundle's images are those of diffusers after ``fuse_lora``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import kdrt
from kdrt import cli
from kdrt.bundle import Bundle, sha256
from kdrt.errors import InvalidRequestError
from kdrt_export.errors import SourceError
from kdrt_export.lora import LorasToBake
from kdrt_export.report import Silent
from kdrt_export.stage import export
from kdrt_export.verify import relative_error
from tests.support.lora_files import ATTENTION, CONVOLUTIONS, TEXT, kohya, networks, random_lora
from tests.support.tiny_bundles import TinyModel, by_diffusers, by_kdrt


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
    with pytest.raises(InvalidRequestError, match="there is no LoRA file"):
        export(folder, tmp_path / "bundle", loras=[(tmp_path / "no.safetensors", 1.0)])


def test_what_of_a_lora_has_no_effect_is_noted_or_with_strict_refused(tmp_path: Path) -> None:
    down, up = torch.ones(1, 4), torch.ones(4, 1)
    pairs = {"mid_block_x": (down, up), "elsewhere": (down, up)}
    tensors = {
        f"lora_unet_{module}.lora_{part}.weight": tensor.clone()
        for module, pair in pairs.items()
        for part, tensor in zip(("down", "up"), pair, strict=True)
    }
    tensors["bundle_emb.sparkle.clip_l"] = torch.ones(2, 8)
    path = tmp_path / "some.safetensors"
    save_file(tensors, path)
    for strict in (False, True):
        linear = nn.Linear(4, 4)
        network = nn.ModuleDict({"mid_block": nn.ModuleDict({"x": linear})})
        before = linear.weight.detach().clone()
        loras = LorasToBake([(path, 0.5)], strict=strict)
        loras.merge("unet", network)
        assert torch.equal(linear.weight, before + 0.5)
        report = Notes()
        if strict:
            with pytest.raises(SourceError, match=r"1 of 2 layers of some.* effect: unet\.elsewh"):
                loras.baked(report)
        else:
            loras.baked(report)
            assert [note.partition(", ")[0].partition(" of ")[0] for note in report.notes] == [
                "1",
                "some.safetensors brings words for prompts",
            ]


@pytest.mark.parametrize("widths", [(4, 6), (6, 4), (4, 4), (6, 6)])
def test_layers_of_an_encoder_that_is_not_named_go_to_the_one_they_fit(
    widths: tuple[int, int], tmp_path: Path
) -> None:
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors, path)
    loras = LorasToBake([(path, 1.0)])
    encoders = [EncoderLayer(width) for width in widths]

    def merge() -> None:
        for index, encoder in enumerate(encoders):
            loras.merge(f"text_encoder{'_2' * index}", encoder)
        loras.baked(Silent())

    if widths == (4, 4):
        with pytest.raises(InvalidRequestError, match="does not say for which of 'this model'"):
            merge()
    elif widths == (6, 6):
        with pytest.raises(SourceError, match="no layer of adapter_model"):
            merge()
    else:
        merge()
        changed = [bool(encoder.weight().any()) for encoder in encoders]
        assert changed == [width == 4 for width in widths]


def test_a_lora_whose_layers_here_change_nothing_is_refused(tmp_path: Path) -> None:
    tensors = {}
    for module, value in (("mid_block_x", 0.0), ("elsewhere", 1.0)):
        tensors[f"lora_unet_{module}.lora_down.weight"] = torch.ones(1, 4)
        tensors[f"lora_unet_{module}.lora_up.weight"] = torch.full((4, 1), value)
    save_file(tensors, tmp_path / "some.safetensors")
    loras = LorasToBake([(tmp_path / "some.safetensors", 1.0)])
    loras.merge("unet", nn.ModuleDict({"mid_block": nn.ModuleDict({"x": nn.Linear(4, 4)})}))
    with pytest.raises(InvalidRequestError, match=r"some.* would change nothing in this model"):
        loras.baked(Silent())


class EncoderLayer(nn.Module):
    """The names of a text encoder with one projection, whose weight is zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        projection = nn.Linear(width, width)
        nn.init.zeros_(projection.weight)
        layer = nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": projection})})
        encoder = nn.ModuleDict({"layers": nn.ModuleList([layer])})
        self.text_model = nn.ModuleDict({"encoder": encoder})

    def weight(self) -> torch.Tensor:
        return next(p for name, p in self.named_parameters() if name.endswith("weight")).detach()


def test_a_scale_is_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"scale of LoRA none\.x must be a finite number"):
        LorasToBake([(Path("none.x"), float("nan"))])


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
