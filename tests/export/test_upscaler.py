"""Networks that enlarge images: added to a bundle, and the files that they come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import kdrt
from kdrt.bundle import open_bundle, sha256
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt_export import upscaler
from kdrt_export.add import add
from kdrt_export.errors import ExportError, SourceError, UnsupportedModelError, VerificationError
from kdrt_export.sources.upscaler import UpscalerNetwork, load_upscaler
from kdrt_export.upscaler import open_upscalers
from tests.support.linked_bundle import linked_bundle
from tests.support.rrdb import SCALE, Rrdb
from tests.support.tiny_bundles import TinyModel


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of an ESRGAN, in the layout that Real-ESRGAN's training writes."""
    path = tmp_path / "4x_Sharp.safetensors"
    save_file(in_files_layout(Rrdb()), path)
    return path


def in_files_layout(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any file holds the network, which it takes spandrel to tell."""
    network = UpscalerNetwork(Rrdb(), SCALE, "ESRGAN")
    monkeypatch.setattr(upscaler, "load_upscaler", lambda path: network)


@pytest.fixture
def bundle(tiny_models: Callable[[str], TinyModel], tmp_path: Path) -> Path:
    linked = linked_bundle(tiny_models("sd").bundle, tmp_path / "it")
    return linked.path


@pytest.mark.usefixtures("known")
def test_it_is_added_and_enlarges(bundle: Path, file: Path) -> None:
    before = open_bundle(bundle).manifest
    assert add(bundle, upscalers=[str(file)]) == bundle
    manifest = open_bundle(bundle).manifest
    assert manifest.components.keys() - before.components.keys() == {"upscaler-4x_sharp"}
    assert before.files.items() <= manifest.files.items()
    facts = manifest.upscalers["4x_sharp"]
    assert (facts.scale, facts.architecture, facts.source) == (4, "ESRGAN", file.name)
    assert facts.sha256 == sha256(file)
    checked = manifest.components["upscaler-4x_sharp"].verification
    assert {(each.dims["H"] % 2, each.dims["W"] % 2) for each in checked} == {(0, 0), (1, 1)}

    pipe = kdrt.load(bundle)
    engine = pipe.engines["upscaler-4x_sharp"]
    image = torch.rand(1, 3, 11, 8)
    binding = engine.bind(B=1, H=11, W=8)
    binding.inputs["image"].copy_(image)
    binding.run()
    torch.testing.assert_close(binding.outputs["enlarged"], Rrdb()(image), rtol=1e-4, atol=1e-4)

    fields: dict[str, Any] = {"width": 32, "height": 32, "steps": 2, "seed": 1, "hires_scale": 1.5}
    made = [pipe("a", hires_upscaler=name, **fields).images[0] for name in ("4x sharp", "lanczos")]
    assert [image.size for image in made] == [(48, 48)] * 2
    assert made[0] != made[1]
    with pytest.raises(InvalidRequestError, match=r"4x_sharp.*did you mean '4x_sharp'"):
        pipe("a", hires_upscaler="4x_shorp", **fields)


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (["{}:lanczos"], ExportError, "'lanczos' is taken by another upscaler; give one with"),
        (["{}"] * 17, ExportError, "at most 16 upscalers, and these would be 17: leave some out"),
        (["{}", "{}"], ExportError, "'4x_sharp' is taken"),
        (["missing.safetensors"], SourceError, "'missing.safetensors' is no upscaler: give a"),
        (["{folder}"], SourceError, "is no upscaler: give a .safetensors file"),
        (["{folder}/it.pth"], SourceError, "it.pth is a pickle.*--allow-pickle"),
    ],
)
def test_what_cannot_be_opened(
    file: Path, asked: list[str], error: type[KdrtError], words: str
) -> None:
    (file.parent / "it.pth").write_bytes(b"")
    texts = [text.format(file, folder=file.parent) for text in asked]
    with pytest.raises(error, match=words):
        open_upscalers(texts)


def test_a_network_that_does_what_it_does_not_say_leaves_the_bundle(
    bundle: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ByChance(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return (image + torch.rand_like(image)).repeat_interleave(2, 2).repeat_interleave(2, 3)

    network = UpscalerNetwork(ByChance(), 2, "by chance")
    monkeypatch.setattr(upscaler, "load_upscaler", lambda path: network)
    before = open_bundle(bundle).manifest
    with pytest.raises((VerificationError, SourceError)):
        add(bundle, upscalers=[str(file)])
    assert open_bundle(bundle).manifest == before


def test_without_spandrel_it_is_said_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    with pytest.raises(ExportError, match=re.escape("pip install 'kdrt[upscalers]'")):
        load_upscaler(file)


class TestWithSpandrel:
    """What only spandrel tells; without it these are skipped."""

    @pytest.fixture(autouse=True)
    def _spandrel(self) -> None:
        pytest.importorskip("spandrel", reason="spandrel is not installed: kdrt[upscalers]")

    def test_a_file_is_the_network_that_it_was_written_of(self, file: Path) -> None:
        found = load_upscaler(file)
        assert (found.scale, found.architecture) == (SCALE, "ESRGAN")
        image = torch.rand(1, 3, 9, 14)
        torch.testing.assert_close(found.network(image), Rrdb()(image), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("key", ["params_ema", "params"])
    def test_what_training_programs_write(self, tmp_path: Path, key: str) -> None:
        path = tmp_path / "it.pth"
        torch.save({key: in_files_layout(Rrdb(seed=2))}, path)
        (opened,) = open_upscalers([str(path)], allow_pickle=True)
        image = torch.rand(1, 3, 8, 8)
        expected = Rrdb(seed=2)(image)
        torch.testing.assert_close(opened.network.network(image), expected, rtol=1e-4, atol=1e-5)

    def test_it_is_exported(self, bundle: Path, file: Path) -> None:
        add(bundle, upscalers=[f"{file}:mine"])
        pipe = kdrt.load(bundle)
        fields: dict[str, Any] = {"width": 32, "height": 32, "steps": 2, "hires_scale": 2}
        image = pipe("a", hires_upscaler="mine", **fields).images[0]
        assert isinstance(image, Image.Image)
        assert image.size == (64, 64)

    def test_one_that_takes_some_sizes_alone_is_refused(self, tmp_path: Path) -> None:
        """As those do that take squares of pixels apart first."""
        state = in_files_layout(Rrdb())
        state["conv_first.weight"] = state["conv_first.weight"].repeat(1, 4, 1, 1)
        save_file(state, tmp_path / "x2.safetensors")
        with pytest.raises(UnsupportedModelError, match="does not take images of any size"):
            load_upscaler(tmp_path / "x2.safetensors")

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            (lambda s: {}, SourceError, "holds no upscaler"),
            (lambda s: {"a": torch.zeros(3)}, SourceError, "no upscaler that spandrel knows"),
            (lambda s: {n: t for n, t in s.items() if "conv_hr" not in n}, SourceError, "upscaler"),
            (
                lambda s: {**s, "conv_last.weight": s["conv_last.weight"][:1]},
                (SourceError, UnsupportedModelError),
                "4x_Sharp.safetensors",
            ),
        ],
    )
    def test_foreign_files_are_refused_in_a_sentence(
        self, file: Path, change: Any, error: Any, words: str
    ) -> None:
        changed = change(in_files_layout(Rrdb()))
        save_file({name: tensor.contiguous() for name, tensor in changed.items()}, file)
        with pytest.raises(error, match=words) as caught:
            load_upscaler(file)
        assert "\n" not in str(caught.value)

    def test_a_file_that_was_cut_off(self, file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(SourceError, match="damaged"):
            load_upscaler(file)
