"""Docstrings as the site shows them.

Sphinx roles, which editors understand, become code. The fields of a request say what they mean
beside their types, in ``Annotated[type, Field(…)]``: here that becomes their docstring, and a
docstring with ``{fields}``, which kdrt fills in when it is imported, refers to them.
"""

from __future__ import annotations

import re

from griffe import Attribute, Docstring, ExprSubscript, ExprTuple, Extension, Module, Object

from kdrt.request.field import fields_of
from kdrt.request.fields import Request
from kdrt.request.signature import described

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")
_FIELDS = fields_of(Request)


class Docstrings(Extension):
    """Rewrites the docstring of every object that the site shows."""

    def on_package(self, *, pkg: Module, **_: object) -> None:
        """The package itself; what is in it comes one by one."""
        _rewrite(pkg)

    def on_object(self, *, obj: Object, **_: object) -> None:
        if isinstance(obj, Attribute) and obj.name in _FIELDS:
            _describe(obj)
        _rewrite(obj)


def _rewrite(obj: Object) -> None:
    if obj.docstring is not None:
        text = obj.docstring.value.replace("{fields}", _by_position_and_others())
        obj.docstring.value = _ROLE.sub(r"`\1`", text)


def _by_position_and_others() -> str:
    """Entries of ``Args:``: the two fields that may be given by position, and where others are."""
    entries = [described({name: _FIELDS[name]}) for name in ("prompt", "negative_prompt")]
    entries.append("**fields: other fields; see `kdrt.Request`.")
    return "\n    ".join(" ".join(entry.split()) for entry in entries)


def _describe(field: Attribute) -> None:
    """``Annotated[type, Field(…)]`` becomes the type, and a docstring."""
    annotated = field.annotation
    if isinstance(annotated, ExprSubscript) and isinstance(annotated.slice, ExprTuple):
        field.annotation = annotated.slice.elements[0]
        text = described({field.name: _FIELDS[field.name]}).partition(": ")[2]
        field.docstring = Docstring(" ".join(text.split()), parent=field)
