"""A request as the command that makes it: the other way round from the options of ``generate``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from kdrt.cli.request_options import flags_of
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS, Request
from kdrt.request.text_forms import scalar_text


def command_of(model: str, request: Request) -> str:
    """``kdrt generate …`` with the fields of a request that text can hold."""
    return shlex.join(["kdrt", "generate", model, *arguments_of(request)])


def arguments_of(request: Request) -> list[str]:
    """The same fields as options, one word each."""
    fields: Mapping[str, Any] = request
    return [word for name, value in fields.items() for word in _words(FIELDS[name], value)]


def _words(field: Field, value: Any) -> Iterator[str]:
    if value is None or field.flags == ():
        return
    flag = flags_of(field)[0]
    if field.name == "prompt" and isinstance(value, str) and value[:1] not in ("-", "@", ""):
        yield value
    elif field.scalar is bool:
        yes, no = flag.split("/")
        yield yes if value else no
    elif field.is_mapping:
        assert field.form is not None
        for pair in value.items():
            yield f"{flag}={field.form.write(pair)}"
    elif field.form is not None:
        yield f"{flag}={field.form.write(value)}"
    else:
        yield f"{flag}={scalar_text(value)}"
