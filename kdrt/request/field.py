"""What is known of one field of a request, besides its type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from kdrt.request.text_forms import TextForm

IMAGE, BEGINNING, SAMPLING, SDXL = "Image", "From an image", "Sampling", "SDXL"
"""Panels of the command line's help."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a request: written beside its type, in ``Annotated``.

    Attributes:
        help: one or two sentences, for the command line, the JSON schema and the API.
        details: what only concerns callers from Python.
        default: what a request means without it.
        default_text: what the default None stands for.
        minimum, maximum: of a number; both are allowed themselves.
        above, below: likewise, and are not.
        unit: of a number.
        form: how the value is written as text; None where its type says it.
        metavar: what stands for the value in the command's help.
        panel: of the command's help.
        flags: the command's options; None is the name itself, empty is none at all.
        record: the key under which an image tells it; empty where it shapes no image, or does so
            through other fields.
        requires: the field without which this one means nothing.
        settles: fields that are void where this one is given anew.
        name: set by :func:`fields_of`.
        type: likewise.
    """

    help: str
    details: str = ""
    default: Any = None
    default_text: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    unit: str = ""
    form: TextForm | None = None
    metavar: str = ""
    panel: str = SAMPLING
    flags: tuple[str, ...] | None = None
    record: str = ""
    requires: str = ""
    settles: tuple[str, ...] = ()
    name: str = ""
    type: Any = None

    @cached_property
    def members(self) -> tuple[Any, ...]:
        """The types of its values, None left out."""
        return tuple(each for each in _members(self.type) if each is not NoneType)

    @cached_property
    def scalar(self) -> Any:
        """The type of a single value that text can hold: int, float, bool, str or a Literal; None
        where it is none of these."""
        for member in self.members:
            if member in (int, float, bool, str) or get_origin(member) is Literal:
                return member
        return None

    @cached_property
    def is_mapping(self) -> bool:
        """Whether it is always names and values; a scale may also be a number."""
        return all(get_origin(member) is Mapping for member in self.members)

    @property
    def json_type(self) -> Any:
        """Its type as far as JSON can hold it; None if nothing is left."""
        kept = tuple(member for member in self.members if _fits_json(member))
        if not kept:
            return None
        return Union[kept if self.default is not None else (*kept, None)]  # noqa: UP007


@cache
def fields_of(request: type) -> Mapping[str, Field]:
    """The fields of a typed dictionary whose types are annotated with a :class:`Field`, by name."""
    found: dict[str, Field] = {}
    for name, hint in get_type_hints(request, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, field = get_args(hint)[:2]
            found[name] = replace(field, name=name, type=kind)
    return MappingProxyType(found)


def _members(kind: Any) -> tuple[Any, ...]:
    is_union = get_origin(kind) in (Union, UnionType)
    return get_args(kind) if is_union else (kind,)


def _fits_json(kind: Any) -> bool:
    if kind in (int, float, bool, str, NoneType) or get_origin(kind) is Literal:
        return True
    if get_origin(kind) in (tuple, Sequence, Mapping):
        parts = [member for part in get_args(kind) for member in _members(part)]
        return all(part is Any or _fits_json(part) for part in parts)
    return False
