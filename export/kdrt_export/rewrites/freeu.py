"""FreeU (Si et al. 2023, arXiv:2309.11497) without an FFT, with its strengths as inputs.

FreeU scales half of the backbone channels by b and the lowest frequencies of the skip by s.
With the published threshold of 1 those are the four modes {-1, 0} × {-1, 0}; scaling them and
keeping the real part is a linear map of rank 7, which needs a few small matrix products:

    F_N = [1, cos(2πn/N), sin(2πn/N)]  (N × 3),   M = F_Hᵀ x F_W,
    G = [[m00, m01, m02], [m10, m11 − m22, m12 + m21], [m20, m12 + m21, m22 − m11]],
    y = x + (s − 1)/(HW) · F_H G F_Wᵀ.

Exact for every H and W, odd ones too; for N = 1 cosine and sine are dropped. It exports with
dynamic sizes and runs where no FFT exists, and s = b = 1 is exactly off. The products are written
as multiplications and sums: TensorRT has no float32 matrix product on Turing.
"""

from __future__ import annotations

import math

import torch


def scale_backbone(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply the first half of the channels of x [B, C, H, W] by b, float32 [B, 1]: a factor for
    each image."""
    channels = int(x.shape[1])  # int: a constant of the traced graph, never a dynamic size
    first_half = (torch.arange(channels, device=x.device) < channels // 2).float()
    gain = first_half * b + (1 - first_half)
    return x * gain.to(x.dtype)[:, :, None, None]


def scale_low_frequencies(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Scale the four lowest modes of x [B, C, H, W] by s, float32 [B, 1]: a factor for each image.

    Computed in float32, returned in the dtype of x.
    """
    full = x.float()
    rows, columns = _fourier_basis(full[0, 0, :, 0]), _fourier_basis(full[0, 0, 0, :])
    # 1/H and 1/W go onto the analysis side each: the sums stay of the size of x.
    modes = _project(_project(full, columns), rows)
    # s here, where there are nine numbers a channel.
    mixed = _mix(modes) * (s - 1)[:, :, None, None]
    lines = _synthesize(mixed, rows)
    return (full + _synthesize(lines, columns)).to(x.dtype)


def _fourier_basis(line: torch.Tensor) -> torch.Tensor:
    """[3, N]: one, cosine and sine of one period over the N points of ``line``."""
    n = torch.arange(line.shape[0], device=line.device, dtype=torch.float32)
    angle = n * (2 * math.pi / line.shape[0])
    # 0 for a single point, whose only mode is its mean; 1 for all others.
    several = n.sum().clamp(max=1)
    return torch.stack([torch.ones_like(n), angle.cos() * several, angle.sin() * several])


def _project(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The last axis of x [B, C, M, N] on the basis [3, N], which becomes the one before the last:
    [B, C, 3, M]. Twice, over rows and columns, it leaves M of the module docstring."""
    mean = basis / basis.shape[1]
    return (x[:, :, None] * mean[:, None]).sum(dim=-1)


def _synthesize(modes: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The second axis but one of ``modes`` [B, C, 3, M] as coefficients of the basis [3, N]:
    [B, C, M, N]."""
    first, second, third = (modes[:, :, k, :, None] * basis[k] for k in range(3))
    return first + second + third


def _mix(m: torch.Tensor) -> torch.Tensor:
    """G of the module docstring, [B, C, 3, 3]: the real part of the four complex modes."""
    return (m.flatten(2)[:, :, None] * _MIXING.to(m.device).t()).sum(dim=-1).reshape_as(m)


def _mixing() -> torch.Tensor:
    """The 9 × 9 matrix that takes M to G, both flattened by rows."""
    terms = {
        (0, 0): {(0, 0): 1}, (0, 1): {(0, 1): 1}, (0, 2): {(0, 2): 1},
        (1, 0): {(1, 0): 1}, (1, 1): {(1, 1): 1, (2, 2): -1}, (1, 2): {(1, 2): 1, (2, 1): 1},
        (2, 0): {(2, 0): 1}, (2, 1): {(1, 2): 1, (2, 1): 1}, (2, 2): {(2, 2): 1, (1, 1): -1},
    }  # fmt: skip
    matrix = torch.zeros(9, 9)
    for (row, column), sources in terms.items():
        for (i, j), sign in sources.items():
            matrix[3 * i + j, 3 * row + column] = sign
    return matrix


_MIXING = _mixing()
