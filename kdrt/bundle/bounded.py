"""The types of a manifest's values.

A manifest may come from a stranger, so that every text, number and path is bounded.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kdrt.common.validation import printable


def _inside(path: str) -> str:
    parts = path.split("/")
    if {"", ".", ".."} & {*parts} or re.search(r"[\\:]", path) or not path.isprintable():
        raise ValueError("is no path inside the bundle")
    return path


Text = Annotated[str, BeforeValidator(printable), Field(max_length=4096)]


Inside = Annotated[str, Field(max_length=1024), AfterValidator(_inside)]


GraphFile = Annotated[Inside, Field(pattern=r"\.onnx$")]
"""ONNX Runtime goes by the end of the name: there are other formats, which kdrt cannot check."""


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


ComponentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,256}$")]


Dtype = Literal["float32", "float16", "bfloat16", "int64", "int32"]


Size = Annotated[int, Field(ge=1, le=1_000_000)]


_FORMULA = r"^(([1-9]\d{0,5}\*)?[A-Za-z]\w{0,31}|ceil\([A-Za-z]\w{0,31}/[1-9]\d{0,5}\))$"


Dim = Size | Annotated[str, Field(pattern=_FORMULA)]


TokenId = Annotated[int, Field(ge=0, le=100_000_000)]


Bounded = Annotated[float, Field(ge=-1e6, le=1e6)]


Positive = Annotated[float, Field(gt=0, le=1e6)]


class Strict(BaseModel):
    """Unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
