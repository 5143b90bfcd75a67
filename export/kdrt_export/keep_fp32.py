"""``--keep-fp32``: what stays in float32 of a network that is exported in float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from kdrt.bundle import Component
from kdrt.common.validation import excerpt
from kdrt_export.compare.layers import operator_name
from kdrt_export.errors import ExportError
from kdrt_export.onnx.mixed_precision import Selects

AUTO = "auto"


@dataclass(frozen=True)
class _Pattern:
    """``[COMPONENT:]GLOB``."""

    text: str

    def matches(self, component: str, module: str, operator: str) -> bool:
        """Whether an operator is meant: by its own name, or that of a module that it is in."""
        own, _, glob = self.text.rpartition(":")
        if own and not fnmatchcase(component, own):
            return False
        parts = module.split(".")
        modules = (".".join(parts[: end + 1]) for end in range(len(parts)))
        return any(fnmatchcase(name, glob) for name in (*modules, operator_name(module, operator)))


@dataclass
class KeepFp32:
    """The patterns of an export, and which of them have matched anything.

    Attributes:
        patterns: as they were given.
        auto: find what has to be kept instead.
        exactly: modules and operators by their whole names, as a manifest lists them.
    """

    patterns: tuple[str, ...] = ()
    auto: bool = False
    exactly: frozenset[str] = frozenset()
    _unmatched: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._unmatched = set(self.patterns)

    @classmethod
    def again(cls, component: Component) -> KeepFp32:
        """What a component keeps, for one that shares its weights."""
        return cls(exactly=frozenset(component.float32))

    def __bool__(self) -> bool:
        return self.auto or bool(self.patterns) or bool(self.exactly)

    def selects(self, component: str) -> Selects:
        """Which operators of a component the patterns mean."""
        patterns = [_Pattern(text) for text in self.patterns]

        def selects(module: str, operator: str) -> bool:
            matching = {p.text for p in patterns if p.matches(component, module, operator)}
            self._unmatched -= matching
            own = {module, operator_name(module, operator)}
            return bool(matching) or not self.exactly.isdisjoint(own)

        return selects

    def check_all_matched(self) -> None:
        """Raises ExportError: a pattern has not matched any operator in half precision."""
        for text in self.patterns:
            if text in self._unmatched:
                raise ExportError(
                    f"--keep-fp32 {excerpt(text)} matches no operator in float16; modules are "
                    "named as in diffusers, like mid_block.resnets.0, and `kdrt compare --layers` "
                    "lists them"
                )


def kept_in_float32(
    options: Sequence[str], precision: str, vae_precision: str, targets: Sequence[str]
) -> KeepFp32:
    """What ``--keep-fp32`` asks for.

    Args:
        options: ``auto``, or patterns.
        precision: of the export.
        vae_precision: of the VAE, or ``auto``.
        targets: of the export.

    Raises:
        ExportError: there is nothing to keep, or not for this.
    """
    if not options:
        return KeepFp32()
    if AUTO in options and len(options) > 1:
        raise ExportError("--keep-fp32 auto finds the operators itself; give it or patterns")
    if any(not text.rpartition(":")[2].strip() for text in options):
        raise ExportError("--keep-fp32 needs a pattern, such as 'mid_block.attentions.*'")
    if "fp16" not in (precision, vae_precision):
        raise ExportError(
            "--keep-fp32 is for exports in float16, which overflows; add --precision fp16"
        )
    if "torch" in targets:
        raise ExportError(
            "--keep-fp32 is for the ONNX files, and a torch program has one precision; leave out "
            "--target torch"
        )
    return KeepFp32(auto=True) if AUTO in options else KeepFp32(tuple(dict.fromkeys(options)))
