"""Sphinx roles in docstrings, which editors understand, as code on the site."""

from __future__ import annotations

import re

from griffe import Extension, Object

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")


class DocstringRoles(Extension):
    """``:func:`kdrt.load` `` becomes `` `kdrt.load` ``."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
