"""What can go wrong in a benchmark and be put right."""

from __future__ import annotations

from kdrt.errors import KdrtError


class BenchmarkError(KdrtError):
    """A benchmark cannot be run as asked, or a row of it failed."""


class PeerUnavailableError(BenchmarkError):
    """A peer is not installed here, or has nothing for this workload."""
