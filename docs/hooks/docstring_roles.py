"""Sphinx roles in docstrings, which editors understand, as code on the site."""

from __future__ import annotations

import re

from griffe import Extension, Module, Object

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")


class DocstringRoles(Extension):
    """``:func:`kdrt.load` `` becomes `` `kdrt.load` ``."""

    def on_package(self, *, pkg: Module, **_: object) -> None:
        """The package itself; what is in it comes one by one."""
        _without_roles(pkg)

    def on_object(self, *, obj: Object, **_: object) -> None:
        _without_roles(obj)


def _without_roles(obj: Object) -> None:
    if obj.docstring is not None:
        obj.docstring.value = _ROLE.sub(r"`\1`", obj.docstring.value)
