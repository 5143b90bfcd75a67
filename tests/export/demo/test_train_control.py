"""The training script of the demo model's ControlNet, with hardly any steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from kdrt_export.demo import train_control
from kdrt_export.demo.networks import make_controlnet
from kdrt_export.demo.train import Progress
from kdrt_export.demo.train_control import CHECKPOINT, MODEL

SHORT: dict[str, Any] = {"steps": 3, "images": 12, "batch": 2, "checkpoint_every": 2}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_an_interrupted_run_continues_to_the_same_ordinary_controlnet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = SHORT | {"threads": torch.get_num_threads()}
    train_control.main(tmp_path / "through", **short)

    class Interrupted(Progress):
        def add(self, step: int, loss: float) -> None:
            if step == 2:
                raise KeyboardInterrupt
            super().add(step, loss)

    with monkeypatch.context() as patch:
        patch.setattr(train_control, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_control.main(tmp_path / "halved", **short)
    assert (tmp_path / "halved" / CHECKPOINT).exists()
    assert not (tmp_path / "halved" / WEIGHTS).exists()
    train_control.main(tmp_path / "halved", **short)
    through, halved = ((tmp_path / name / WEIGHTS) for name in ("through", "halved"))
    assert through.read_bytes() == halved.read_bytes()

    controlnet = ControlNetModel.from_pretrained(tmp_path / "through", torch_dtype=torch.float32)
    assert controlnet.controlnet_mid_block.weight.abs().max() > 0  # no longer a zero convolution
    summary = json.loads((tmp_path / "through" / "training.json").read_text())
    assert summary["parameters"] == sum(p.numel() for p in controlnet.parameters())
    assert summary["recipe"]["steps"] == 3

    with pytest.raises(Exception, match="of another recipe"):
        train_control.main(tmp_path / "halved", **short, seed=1)


def test_an_untrained_controlnet_is_the_encoder_and_changes_nothing() -> None:
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet", torch_dtype=torch.float32)
    controlnet = make_controlnet(unet)
    own, its = controlnet.state_dict(), unet.state_dict()
    fresh = {name for name in own if name not in its}
    assert all(name.startswith("controlnet_") for name in fresh)
    assert all(torch.equal(own[name], its[name]) for name in own if name in its)
    down, middle = controlnet(
        torch.randn(1, 4, 16, 16),
        torch.tensor([500]),
        torch.randn(1, 3, 128),
        controlnet_cond=torch.rand(1, 3, 64, 64),
        added_cond_kwargs={"text_embeds": torch.randn(1, 64), "time_ids": torch.rand(1, 6)},
        return_dict=False,
    )
    assert all(not residual.any() for residual in (*down, middle))
    assert [tuple(r.shape[1:]) for r in (*down, middle)] == [
        (32, 16, 16),
        (32, 16, 16),
        (32, 8, 8),
        (64, 8, 8),
        (64, 4, 4),
        (128, 4, 4),
        (128, 4, 4),
    ]
