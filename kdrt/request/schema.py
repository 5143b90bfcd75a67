"""A request as JSON: what a service accepts.

Fields that JSON cannot hold (images, tensors, functions) are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

from kdrt.errors import InvalidRequestError
from kdrt.request.complete import known_word
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS

if TYPE_CHECKING:
    from pydantic import BaseModel


def request_model(fields: Mapping[str, Field] = FIELDS) -> type[BaseModel]:
    """A pydantic model with the fields that JSON can hold; unknown ones are refused."""
    import pydantic

    members: dict[str, Any] = {
        name: (_type_of(field), pydantic.Field(**_constraints(field)))
        for name, field in fields.items()
        if field.json_type is not None
    }
    return pydantic.create_model(
        "Request", __config__=pydantic.ConfigDict(extra="forbid"), **members
    )


def request_schema(fields: Mapping[str, Field] = FIELDS) -> dict[str, Any]:
    """The JSON schema of a request: types, ranges, defaults, descriptions and units."""
    return request_model(fields).model_json_schema()


def _type_of(field: Field) -> Any:
    """Its type in JSON; words are taken in any case, as everywhere."""
    import pydantic

    if get_origin(field.scalar) is not Literal:
        return field.json_type

    def known(value: object) -> object:
        if value is None and field.default is None:
            return None
        try:
            return known_word(field, value)
        except InvalidRequestError as error:
            raise ValueError(str(error)) from None

    return Annotated[field.json_type, pydantic.BeforeValidator(known)]


def _constraints(field: Field) -> dict[str, Any]:
    given: dict[str, Any] = {"default": field.default, "description": field.help}
    if field.scalar in (int, float) and len(field.members) == 1:
        given |= {"ge": field.minimum, "gt": field.above, "le": field.maximum, "lt": field.below}
    if field.unit:
        given["json_schema_extra"] = {"unit": field.unit}
    return given
