"""What the drop-in classes return."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kdrt.images.output import Images


@dataclass
class PipelineOutput:
    """Images, which are also available by name (``out["images"]``) and by position (``out[0]``)."""

    images: Images

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(value for value in self._values() if value is not None)

    def keys(self) -> tuple[str, ...]:
        """The names of the values that are not None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))


@dataclass
class StableDiffusionPipelineOutput(PipelineOutput):
    """``images``, and for each whether the safety checker blacked it out; None without a
    checker."""

    nsfw_content_detected: list[bool] | None = None


@dataclass
class StableDiffusionXLPipelineOutput(PipelineOutput):
    """``images``."""
