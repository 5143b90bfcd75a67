"""A small ESRGAN: residual-in-residual dense blocks (Wang et al. 2018), with random weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, GROWTH = 8, 32
SCALE = 4


class _Dense(nn.Module):
    """Five convolutions, each of which sees what those before it made."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(4):
            self.add_module(
                f"conv{index + 1}", nn.Conv2d(WIDTH + index * GROWTH, GROWTH, 3, padding=1)
            )
        self.conv5 = nn.Conv2d(WIDTH + 4 * GROWTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for index in range(4):
            made = self.get_submodule(f"conv{index + 1}")(seen)
            seen = torch.cat([seen, F.leaky_relu(made, 0.2)], dim=1)
        changed: Tensor = self.conv5(seen)
        return x + 0.2 * changed


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = _Dense(), _Dense(), _Dense()

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + 0.2 * changed


class Rrdb(nn.Module):
    """Enlarges ``[B, 3, H, W]`` four times; its tensors have the names that Real-ESRGAN's files
    have. It sees ``REACH`` pixels around one."""

    REACH = 1 + 15 + 1 + 2

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.body = nn.Sequential(_Block())
        self.conv_body = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_up1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_up2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_hr = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.conv_last = nn.Conv2d(WIDTH, 3, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in self.parameters():
                spread = 1.5 * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
                weight.copy_(spread * torch.randn(weight.shape, generator=generator))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        features = self.conv_first(image)
        features = features + self.conv_body(self.body(features))
        for convolution in (self.conv_up1, self.conv_up2):
            enlarged = F.interpolate(features, scale_factor=2, mode="nearest")
            features = F.leaky_relu(convolution(enlarged), 0.2)
        made: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(features), 0.2))
        return made
