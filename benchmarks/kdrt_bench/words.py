"""Figures in words, the same in tables and on the page."""

from __future__ import annotations

from kdrt_bench.report import Row


def duration(seconds: float | None) -> str:
    """``7.2 ms``, ``1.48 s``: three digits."""
    if seconds is None:
        return ""
    if seconds < 1:
        milliseconds = seconds * 1000
        return f"{milliseconds:.{_digits(milliseconds)}f} ms"
    return f"{seconds:.{_digits(seconds)}f} s"


def memory(count: float | None) -> str:
    """``524 MB``, ``4.52 GB``."""
    if count is None:
        return ""
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def speedup(row: Row) -> str:
    """``1.48 × (1.43–1.55)``: the median of the ratios, and an interval for it."""
    if row.speedup is None:
        return ""
    text = f"{row.speedup.median:.2f} ×"
    if row.speedup.low is None or row.speedup.high is None:
        return text
    return f"{text} ({row.speedup.low:.2f}–{row.speedup.high:.2f})"


def likeness(row: Row) -> str:
    """``118 dB, SSIM 1.0000``, ``error 1.5e-06`` (relative), ``equal``."""
    alike = row.likeness
    if alike is None:
        return ""
    if alike.equal:
        return "equal bit for bit"
    if alike.psnr is not None and alike.ssim is not None:
        return f"{alike.psnr:.0f} dB, SSIM {alike.ssim:.4f}"
    return f"error {alike.relative_error:.1e}"


def _digits(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0
