"""A request with every field: names and ranges are checked, defaults filled in.

What holds for one field alone, whatever the model, is checked here by its metadata; what depends
on the model or on other fields is :mod:`kdrt.request.resolve`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, cast, get_args, get_origin

from kdrt.common.validation import (
    MAX_INT,
    check_bool,
    check_int,
    check_mapping,
    check_number,
    did_you_mean,
    excerpt,
    plain_number,
    unknown_word,
)
from kdrt.errors import InvalidRequestError, UnknownFieldError
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS, Request
from kdrt.request.recipes import folded, with_recipe
from kdrt.sampling import find_schedule, is_foreign, split_label


def complete(request: Request, fields: Mapping[str, Field] = FIELDS) -> Request:
    """The same request with all of the ``fields``, and with Python's own numbers.

    Raises:
        UnknownFieldError: there is no such field.
        InvalidRequestError: a value is of a wrong type or out of range.
    """
    check_names(request, fields)
    given = _with_schedule_of_label(request)
    if given.get("recipe") is not None:
        given = with_recipe(given, {name: field.settles for name, field in fields.items()})
    values = {name: given.get(name, field.default) for name, field in fields.items()}
    return cast(Request, {name: _checked(fields[name], value) for name, value in values.items()})


def check_names(request: Mapping[str, Any], fields: Mapping[str, Field] = FIELDS) -> None:
    """Raises UnknownFieldError: there is no such field; InvalidRequestError: it is no request."""
    if not isinstance(request, Mapping):
        raise InvalidRequestError(
            "a kdrt.Request is a mapping from the names of fields to values, such as "
            f'{{"prompt": "a cat"}}; this is {excerpt(request)}'
        )
    for name in request:
        if name not in fields:
            raise UnknownFieldError(f"a request has no field {name!r}{did_you_mean(name, fields)}")


def _checked(field: Field, value: Any) -> Any:
    """``value``, or a sentence on what is allowed. Types that only torch knows are left alone."""
    if value is None and field.default is None:
        return None
    if field.is_mapping:
        options = check_mapping(field.name, value)
        return {name: plain_number(each) for name, each in options.items()}
    if len(field.members) == 1:
        if field.scalar is int:
            minimum, maximum = field.minimum or 0, field.maximum or MAX_INT
            return check_int(field.name, value, int(minimum), int(maximum))
        if field.scalar is float and field.minimum is not None and field.maximum is not None:
            return check_number(field.name, value, field.maximum, minimum=field.minimum)
        if field.scalar is bool:
            return check_bool(field.name, value)
        if get_origin(field.scalar) is Literal:
            return known_word(field, value)
    return plain_number(value) if isinstance(value, Real) else value


def known_word(field: Field, value: object) -> str:
    """One of the words of a ``field`` whose type is a Literal. As in the names of samplers and
    recipes, case and punctuation do not matter.

    Raises:
        InvalidRequestError: it is none of them.
    """
    words: tuple[str, ...] = get_args(field.scalar)
    if isinstance(value, str):
        for word in words:
            if folded(word) == folded(value):
                return word
    raise InvalidRequestError(unknown_word(field.name, value, words))


def _with_schedule_of_label(request: Request) -> Request:
    """A web UI's label such as "DPM++ 2M Karras", taken apart."""
    label = request.get("sampler")
    if not isinstance(label, str) or is_foreign(label):
        return request
    sampler, implied, schedule = split_label(label)
    if schedule is None:
        return request
    asked = request.get("schedule")
    if asked is not None and find_schedule(asked).name != schedule:
        raise InvalidRequestError(
            f"the sampler {label!r} names the schedule {schedule!r}, and schedule is {asked!r}: "
            "give one of them"
        )
    options = check_mapping("sampler_options", request.get("sampler_options"))
    return {
        **request,
        "sampler": sampler,
        "schedule": schedule,
        "sampler_options": {**implied, **options},
    }
