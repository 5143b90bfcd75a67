"""What a client sent, checked against a model, with one sentence on what is wrong."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import pydantic
import pydantic_core
from fastapi import Request
from starlette.datastructures import FormData

from kdrt.common.validation import MAX_STEPS, did_you_mean, excerpt
from kdrt.errors import KdrtError
from kdrt.serve.errors import LimitError, MediaTypeError, RequestError, UnknownNameError

Body = TypeVar("Body", bound=pydantic.BaseModel)

_MAX_FIELDS = 100
_MAX_FIELD_BYTES = 2**20
_MOST_VALUES = MAX_STEPS + 1_000
"""In one JSON body, lists and objects within it included: noise levels of one's own are the most
that anybody needs."""

_MOST_MARKS = 200_000
"""Commas and brackets of a JSON body, those in texts included. A body with more is not parsed: each
value takes many times the bytes that it has there."""

_SHOWN = 80
"""Characters of a name that a client gave, in an answer."""


async def read_json(request: Request, model: type[Body]) -> Body:
    """The JSON body of a request.

    Raises:
        MediaTypeError: it says to be something else.
        LimitError: it holds too many values.
        RequestError: it is no JSON, or not of this form.
    """
    _check_type(request, "application/json")
    return await asyncio.to_thread(_parsed, await request.body(), model)


def _parsed(body: bytes, model: type[Body]) -> Body:
    _check_values(body)
    try:
        return model.model_validate_json(body, strict=True)
    except pydantic.ValidationError as error:
        raise _sentence(error, model) from None


def _check_values(body: bytes) -> None:
    """Refuse a body of very many values before it is validated: pydantic describes every one that
    is wrong, which takes a kilobyte for each."""
    marks = body.count(b",") + body.count(b"[") + body.count(b"{")
    if marks < _MOST_VALUES:  # as many values have at least as many marks, but for one
        return
    if marks <= _MOST_MARKS:
        try:
            left = [pydantic_core.from_json(body)]
        except ValueError:
            return  # it is no JSON, which validation tells
        count = 0
        while left and count <= _MOST_VALUES:
            value = left.pop()
            inner = value.values() if isinstance(value, dict) else value
            if isinstance(value, dict | list):
                count += len(value)
                left.extend(inner)
        if count <= _MOST_VALUES:
            return
    raise LimitError(f"the body holds too many values: this server reads {_MOST_VALUES} of one")


async def read_form(request: Request, files: int) -> FormData:
    """A multipart body. Large files in it lie on the disk until the form is closed.

    Args:
        request: with the body.
        files: how many there may be.

    Raises:
        MediaTypeError: it says to be something else.
        RequestError: it cannot be read.
    """
    _check_type(request, "multipart/form-data")
    try:
        return await request.form(
            max_files=files, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
        )
    except KdrtError:
        raise
    except Exception as error:  # starlette raises its own HTTP errors, and the parser others
        detail = getattr(error, "detail", None) or "it is damaged"
        raise RequestError(f"the form cannot be read: {detail}") from None


def checked_fields(fields: dict[str, Any], model: type[Body]) -> Body:
    """Texts of a form as the types that they stand for.

    Raises:
        RequestError: they are not of this form.
    """
    try:
        return model.model_validate(fields)
    except pydantic.ValidationError as error:
        raise _sentence(error, model) from None


def _check_type(request: Request, wanted: str) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != wanted:
        raise MediaTypeError(f"the body must be {wanted}, not {given or 'without a content-type'}")


def _sentence(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> RequestError:
    """The first thing that is wrong."""
    first, *others = error.errors(include_url=False, include_context=False)
    place = [str(part) for part in first["loc"]]
    if not place:
        return RequestError(f"the body cannot be read: {first['msg']}")
    name = place[0]
    nested = ".".join(place)
    if first["type"] == "extra_forbidden" and len(place) > 1:
        return UnknownNameError(f"there is no field {excerpt(nested)}", nested[:_SHOWN])
    if first["type"] == "extra_forbidden":
        known = [each.alias or key for key, each in model.model_fields.items()]
        return UnknownNameError(
            f"there is no field {excerpt(name)}{did_you_mean(name, known)}", name[:_SHOWN]
        )
    if first["type"] == "missing":
        return RequestError(f"the field {nested!r} is missing", name)
    # Where several types are allowed there is an error for each of them.
    same = [first, *(other for other in others if other["loc"][:1] == first["loc"][:1])]
    reasons = " or ".join(dict.fromkeys(each["msg"].removeprefix("Input ") for each in same))
    if first["type"] == "value_error":
        return RequestError(first["msg"].removeprefix("Value error, "), name)
    return RequestError(f"{name} {reasons}, not {excerpt(first['input'])}", name)
