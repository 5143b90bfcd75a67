"""diffusers' LoRA methods: the same calls lead to the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import kdrt
from kdrt.compat.lora import LoraMixin
from kdrt.errors import InvalidRequestError, OutputError
from kdrt_export.verify import relative_error
from tests.support.lora_files import kohya, networks, peft, random_lora
from tests.support.tiny_bundles import TinyModel, by_diffusers, by_kdrt

MODULES = ("to_q", "to_v", "ff.net.2", "conv1", "q_proj", "out_proj", "fc1")


class Compatible(LoraMixin):
    def __init__(self, bundle: Path) -> None:
        self.pipeline = kdrt.load(bundle, engine="onnxruntime")


@pytest.fixture(scope="module")
def sd(tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_models("sd")


@pytest.fixture(scope="module")
def folder(sd: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate("ab"):
        layers = random_lora(networks(sd.diffusers()), MODULES, seed=seed)
        save_file(kohya(layers), folder / f"{name}.safetensors")
    return folder


def same(ours: Compatible, theirs: Any) -> bool:
    return relative_error(by_kdrt(ours.pipeline), by_diffusers(theirs)) < 1e-5


def each(pipes: tuple[Any, Any], method: str, *arguments: Any, **options: Any) -> None:
    for pipe in pipes:
        getattr(pipe, method)(*arguments, **options)


def test_the_same_calls_lead_to_the_same_images(sd: TinyModel, folder: Path) -> None:
    ours, theirs = pipes = Compatible(sd.bundle), sd.diffusers()
    base = by_kdrt(ours.pipeline)
    each(pipes, "load_lora_weights", str(folder), weight_name="a.safetensors", adapter_name="a")
    assert same(ours, theirs)
    each(pipes, "load_lora_weights", str(folder), weight_name="b.safetensors")
    assert ours.get_active_adapters() == theirs.get_active_adapters() == ["default_1"]
    assert same(ours, theirs)
    each(pipes, "set_adapters", ["a", "default_1"], [0.5, -1.25])
    assert same(ours, theirs)
    assert ours.get_list_adapters() == theirs.get_list_adapters()
    each(pipes, "set_adapters", "a", {"text_encoder": 0.5, "unet": 0.25})
    assert same(ours, theirs)
    each(pipes, "disable_lora")
    assert torch.equal(by_kdrt(ours.pipeline), base)
    each(pipes, "enable_lora")
    assert same(ours, theirs)
    each(pipes, "delete_adapters", "a")
    each(pipes, "set_adapters", "default_1", 2.0)
    assert same(ours, theirs)
    each(pipes, "unload_lora_weights")
    assert torch.equal(by_kdrt(ours.pipeline), base)
    assert ours.get_list_adapters() == theirs.get_list_adapters() == {}


@pytest.mark.parametrize(
    "weights",
    [
        {"unet": {"down": 0.25, "mid": -1.0, "up": {"block_1": 0.5, "block_2": [2.0, 0.0]}}},
        {"unet": {"mid": 0.0}, "text_encoder": 0.5},
        {"unet": {"down": {"block_1": 0.0}, "up": [0.5]}, "text_encoder": None},
    ],
)
def test_weights_of_blocks_are_those_of_diffusers(
    sd: TinyModel, folder: Path, weights: dict[str, Any]
) -> None:
    ours, theirs = pipes = Compatible(sd.bundle), sd.diffusers()
    each(pipes, "load_lora_weights", str(folder), weight_name="a.safetensors", adapter_name="a")
    each(pipes, "set_adapters", "a", weights)
    assert same(ours, theirs)
    ours.fuse_lora(lora_scale=0.5)
    halves = by_kdrt(ours.pipeline)
    ours.unfuse_lora()
    each(pipes, "set_adapters", "a", 0.5)
    assert not torch.equal(by_kdrt(ours.pipeline), halves)
    assert same(ours, theirs)


@pytest.mark.parametrize("components", [["unet", "text_encoder"], ["unet"]])
def test_fused_adapters_stay_when_unloaded(
    sd: TinyModel, folder: Path, components: list[str]
) -> None:
    ours, theirs = pipes = Compatible(sd.bundle), sd.diffusers()
    base = by_kdrt(ours.pipeline)
    each(pipes, "load_lora_weights", str(folder), weight_name="a.safetensors")
    each(pipes, "fuse_lora", components, lora_scale=0.7)
    assert ours.num_fused_loras == theirs.num_fused_loras == 1
    if len(components) == 2:  # else diffusers runs the other encoder's adapter at full weight too
        assert same(ours, theirs)
    each(pipes, "unload_lora_weights")
    assert same(ours, theirs)
    each(pipes, "load_lora_weights", str(folder), weight_name="b.safetensors", adapter_name="b")
    assert same(ours, theirs)
    each(pipes, "unload_lora_weights")
    ours.unfuse_lora()
    assert torch.equal(by_kdrt(ours.pipeline), base)
    assert ours.num_fused_loras == 0


def test_unfused_adapters_have_their_own_weight_again(sd: TinyModel, folder: Path) -> None:
    ours = Compatible(sd.bundle)
    ours.load_lora_weights(folder / "a.safetensors")
    before = by_kdrt(ours.pipeline)
    ours.fuse_lora(lora_scale=0.3)
    assert not torch.equal(by_kdrt(ours.pipeline), before)
    ours.unfuse_lora()
    assert torch.equal(by_kdrt(ours.pipeline), before)


def test_text_encoders_scaled_for_one_prompt(sd: TinyModel, folder: Path) -> None:
    ours, theirs = Compatible(sd.bundle), sd.diffusers()
    for pipe in (ours, theirs):
        pipe.load_lora_weights(str(folder), weight_name="a.safetensors")
    before = by_kdrt(ours.pipeline)
    expected = theirs.encode_prompt("a star", "cpu", 1, False, lora_scale=0.4)[0]
    with ours._text_scaled(0.4):
        found, _ = ours.pipeline.prompt_encoder.encode([["a star"]])
    torch.testing.assert_close(found.encoder_hidden_states, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(by_kdrt(ours.pipeline), before)


def test_tensors_and_hotswap(sd: TinyModel, folder: Path) -> None:
    ours = Compatible(sd.bundle)
    ours.load_lora_weights(load_file(folder / "a.safetensors"), adapter_name="mine")
    first = by_kdrt(ours.pipeline)
    ours.load_lora_weights(folder / "b.safetensors", "mine", hotswap=True)
    assert not torch.equal(by_kdrt(ours.pipeline), first)
    ours.load_lora_weights(folder / "a.safetensors", "mine", hotswap=True)
    assert torch.equal(by_kdrt(ours.pipeline), first)


def test_a_lora_that_does_not_load_leaves_the_adapters_as_they_were(
    sd: TinyModel, folder: Path
) -> None:
    ours = Compatible(sd.bundle)
    ours.load_lora_weights(folder / "a.safetensors", "mine")
    before = by_kdrt(ours.pipeline)
    layers = peft(random_lora(networks(sd.diffusers()), MODULES, seed=2))
    elsewhere = {f"unet.no_such_block.{name}": tensor for name, tensor in layers.items()}
    wide = {
        name: torch.cat([tensor, tensor], 1) if "lora_A" in name else tensor
        for name, tensor in layers.items()
    }
    for tensors, words in ((elsewhere, "another kind of model"), (wide, "made for another model")):
        for name, hotswap in (("mine", True), ("new", False)):
            with pytest.raises(InvalidRequestError, match=words):
                ours.load_lora_weights(tensors, name, hotswap=hotswap)
            assert list(ours.pipeline.adapters.loras) == ours.get_active_adapters() == ["mine"]
            assert torch.equal(by_kdrt(ours.pipeline), before)


def config(modules: list[str], alpha: float) -> dict[str, Any]:
    return LoraConfig(r=3, lora_alpha=alpha, target_modules=modules).to_dict()


def test_saved_loras_are_read_by_both(sd: TinyModel, tmp_path: Path) -> None:
    ours, theirs = pipes = Compatible(sd.bundle), sd.diffusers()
    layers = peft(random_lora(networks(theirs), ("to_q", "q_proj", "fc2"), alpha=None))
    parts = {
        network: {
            k.removeprefix(f"{network}."): v for k, v in layers.items() if k.startswith(network)
        }
        for network in ("unet", "text_encoder")
    }
    LoraMixin.save_lora_weights(
        tmp_path / "new",
        unet_lora_layers=parts["unet"],
        text_encoder_lora_layers=parts["text_encoder"],
        unet_lora_adapter_metadata=config(["to_q"], alpha=6),
        text_encoder_lora_adapter_metadata=config(["q_proj", "fc2"], alpha=2),
    )
    each(pipes, "load_lora_weights", str(tmp_path / "new"))
    assert same(ours, theirs)


def test_a_lora_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    layers = {"to_q.lora_A.weight": torch.ones(2, 4)}
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*file.*: File exists"):
        LoraMixin.save_lora_weights(tmp_path / "file", unet_lora_layers=layers)
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*taken.*it is a folder"):
        LoraMixin.save_lora_weights(
            tmp_path, unet_lora_layers=layers, weight_name="taken.safetensors"
        )


def test_wrong_calls_are_refused_and_change_nothing(
    sd: TinyModel, folder: Path, tmp_path: Path
) -> None:
    ours = Compatible(sd.bundle)
    ours.load_lora_weights(folder / "a.safetensors", "a")
    before = by_kdrt(ours.pipeline)
    refusals: list[tuple[Callable[[], object], str]] = [
        (lambda: ours.set_adapters("z"), "not in the list of present adapters"),
        (lambda: ours.set_adapters(["a"], [1, 2]), "not equal to the length of the weights"),
        (lambda: ours.set_adapters("a", {"unet": {"down": "1"}}), "must be a finite number"),
        (lambda: ours.set_adapters("a", {"unet": {"left": 1}}), "scale for layer left. It either"),
        (lambda: ours.set_adapters("a", {"unet": {"up": {"block_0": 1}}}), "layer up.block_0"),
        (lambda: ours.set_adapters("a", {"unet": {"up": [1, 2, 3]}}), "Expected 2 scales for up"),
        (lambda: ours.set_adapters("a", {"text_encoder": {"x": 1}}), "text_encoder does not have"),
        (lambda: ours.set_adapters("a", {"vae": 1}), "'vae' has no LoRA; networks with one"),
        (lambda: ours.delete_adapters("z"), "not in the list of present adapters"),
        (lambda: ours.load_lora_weights(folder / "b.safetensors", "a"), "already in use"),
        (lambda: ours.load_lora_weights(str(folder)), "which LoRA .* it holds a.safetensors, b"),
        (lambda: ours.load_lora_weights(str(tmp_path / "x/y")), "there is no LoRA file or folder"),
        (lambda: ours.load_lora_weights(folder / "b.safetensors", adaptor="b"), "take 'adaptor'"),
        (lambda: ours.fuse_lora(["vae"]), "'vae' has no LoRA"),
        (lambda: ours.fuse_lora(lora_scale=float("inf")), "must be a finite number"),
        (lambda: ours.fuse_lora(lora_scale="x"), "lora_scale must be a finite number"),  # type: ignore[arg-type]
        (lambda: ours.fuse_lora(5), "components must be a string or a list"),  # type: ignore[arg-type]
        (lambda: ours.set_adapters(5), "adapter_names must be a string or a list"),  # type: ignore[arg-type]
        (lambda: ours.set_adapters("a", "1"), "must be a finite number, not '1'"),  # type: ignore[arg-type]
        (lambda: ours.delete_adapters([5]), "adapter_names must be a string or a list"),  # type: ignore[list-item]
        (lambda: ours.load_lora_weights(folder, weight_name=5), "weight_name must be a string"),
        (lambda: ours.save_lora_weights(tmp_path), "at least one of the LoRA layers"),
    ]
    for call, words in refusals:
        with pytest.raises(InvalidRequestError, match=words):
            call()
    assert ours.num_fused_loras == 0
    assert torch.equal(by_kdrt(ours.pipeline), before)
    with pytest.raises(InvalidRequestError, match="no active LoRA"):
        Compatible(sd.bundle).fuse_lora()
