"""What the host calls on CUDA for one run: launches of kernels and of graphs, and waits.

Kernels that an engine launches itself are seen where its library goes through CUDA's runtime.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

CALLS = {
    "launches": (
        "cudaLaunchKernel",
        "cuLaunchKernel",
        "cudaLaunchKernelExC",
        "cuLaunchKernelEx",
    ),
    "graph launches": ("cudaGraphLaunch", "cuGraphLaunch"),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}
"""By what they are, the calls as the profiler names them."""


def count_calls(work: Callable[[], object]) -> dict[str, int]:
    """Run once under PyTorch's profiler, and count; keys are those of ``CALLS``."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    counts = {event.key: event.count for event in seen.key_averages()}
    return {kind: sum(counts.get(name, 0) for name in names) for kind, names in CALLS.items()}
