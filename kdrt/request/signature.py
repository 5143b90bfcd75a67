"""How a function that takes the fields of a request looks to ``help`` and to editors at run time.

Type checkers read ``**fields: Unpack[RequestFields]`` themselves.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping
from functools import cache
from inspect import Parameter, Signature
from typing import Any, TypeVar

from kdrt.request.field import Field, fields_of

Function = TypeVar("Function", bound=Callable[..., Any])


def takes_fields(*groups: type) -> Callable[[Function], Function]:
    """Write out the fields of ``groups`` of them in the signature of a function with ``**fields``,
    and in its docstring at ``{fields}``."""
    fields = {name: field for group in groups for name, field in fields_of(group).items()}

    def decorate(function: Function) -> Function:
        function.__signature__ = signature_of(function, fields)  # type: ignore[attr-defined]
        function.__doc__ = (function.__doc__ or "").replace("{fields}", described(fields))
        return function

    return decorate


def signature_of(function: Callable[..., Any], fields: Mapping[str, Field]) -> Signature:
    """The signature of a function with ``**fields`` written out."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    known = {parameter.name for parameter in own}
    further = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for name, field in fields.items()
        if name not in known
    ]
    return signature.replace(parameters=[*own, *further])


def described(fields: Mapping[str, Field]) -> str:
    """The fields as the ``Args:`` of a docstring."""
    return "\n            ".join(_entry(field) for field in fields.values())


@cache  # several functions take the same fields
def _entry(field: Field) -> str:
    parts = [field.help, field.details]
    if field.unit:
        parts.append(f"In {field.unit}.")
    parts.append(_range(field))
    if field.default_text:
        parts.append(f"None is {field.default_text}.")
    text = f"{field.name}: {' '.join(filter(None, parts))}"
    return "\n                ".join(textwrap.wrap(text, 84, break_long_words=False))


def _range(field: Field) -> str:
    low, high = field.minimum, field.maximum
    words = [
        f"at least {low:g}" if low is not None else "",
        f"above {field.above:g}" if field.above is not None else "",
        f"at most {high:g}" if high is not None else "",
        f"below {field.below:g}" if field.below is not None else "",
    ]
    given = " and ".join(filter(None, words))
    return f"{given.capitalize()}." if given else ""
