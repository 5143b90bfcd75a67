"""The techniques of kdrt, added one at a time: each row keeps those above it.

A technique is a line: options of the peer ``kdrt`` (:class:`kdrt_bench.peers.own.Kdrt`), or what
the workload does differently.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Technique:
    """One more technique, with all the options that hold from here on."""

    label: str
    options: dict[str, str] = field(default_factory=dict)
    changes: dict[str, object] = field(default_factory=dict)


_FOR_CPUS = Technique("+ convolutions and group norms for CPUs", {"network": "cpu"})

TECHNIQUES = (
    Technique("ONNX Runtime, diffusers' own graph", {"network": "plain", "io": "arrays"}),
    Technique("+ kdrt's graph", {"network": "unfused", "io": "arrays"}),
    Technique("+ fused query, key, value", {"network": "fused", "io": "arrays"}),
    Technique("+ inputs and outputs at fixed addresses", {"network": "fused", "io": "bound"}),
    Technique("+ ONNX Runtime's own operators", {"network": "dialect"}),
    _FOR_CPUS,
    Technique("+ no FreeU while it is off", {"network": "reduced"}),
    Technique("+ what follows from the prompt, once", {"network": "invariants"}),
    Technique("+ an image a thread", {"network": "shipped"}),
    Technique("+ prompts remembered", {"network": "shipped"}, changes={"remember_prompt": True}),
)

AT_REAL_SIZE = (
    Technique("ONNX Runtime's own operators", {"network": "dialect"}),
    _FOR_CPUS,
    Technique(
        "+ no FreeU while it is off, the prompt once, an image a thread", {"network": "shipped"}
    ),
)
"""For networks large enough to gain most from the second, one by one."""
