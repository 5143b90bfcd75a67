"""A request as a JSON object: the fields of :mod:`kdrt.request.schema`, and files for what JSON
cannot hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kdrt.cli.control_option import json_controls, paths_of, with_images
from kdrt.cli.image_input import read_image
from kdrt.cli.ip_adapter_image import json_images, paths_in, with_pictures
from kdrt.cli.region_option import json_regions, mask_files, with_masks
from kdrt.common.paths import user_path
from kdrt.common.validation import check_texts, excerpt
from kdrt.errors import InvalidRequestError
from kdrt.images.files import open_image
from kdrt.request.complete import check_names, complete, known_word
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS, Request
from kdrt.request.schema import request_model
from kdrt.request.text_forms import IMAGE_FILE, IMAGE_FILES, LATENTS_FILE

FILE_FIELDS = tuple(
    name for name, field in FIELDS.items() if field.form in (IMAGE_FILE, LATENTS_FILE)
)
"""Fields whose values are files here; :func:`with_files` reads them."""

CONTROL, REGIONS = "control", "regions"
PROMPT_IMAGES = tuple(name for name, field in FIELDS.items() if field.form is IMAGE_FILES)
"""Fields whose values hold files."""

_TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
_SINGLE = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "strings"}


def json_object(text: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InvalidRequestError: the text is no JSON, or something else than an object.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise InvalidRequestError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"it is no JSON: {error.msg}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise InvalidRequestError("it is not UTF-8: save it as UTF-8 text") from None
    except ValueError:  # an integer of thousands of digits
        raise InvalidRequestError("it holds a number of more digits than any field takes") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f'it must be a JSON object such as {{"prompt": "a cat"}}, not {excerpt(value)}'
        )
    return value


def json_request(fields: Mapping[str, Any], folder: Path) -> Request:
    """The fields of a JSON object as those of a request, with a path where one is a file.

    Args:
        fields: of the object.
        folder: where names of files begin.

    Raises:
        UnknownFieldError: there is no such field.
        InvalidRequestError: a value is of a wrong type or out of range, or a file is missing or
            no image.
    """
    check_names(fields)
    files = {
        name: _file(name, fields[name], folder)
        for name in FILE_FIELDS
        if fields.get(name) is not None
    }
    nested: dict[str, Any] = {}
    if fields.get(CONTROL) is not None:
        nested[CONTROL] = json_controls(fields[CONTROL], folder)
        for path in chain.from_iterable(map(paths_of, nested[CONTROL])):
            _check_file(path, True)
    if fields.get(REGIONS) is not None:
        nested[REGIONS] = json_regions(fields[REGIONS], folder)
        for path in mask_files(nested[REGIONS]):
            _check_file(path, True)
    for name in PROMPT_IMAGES:
        if fields.get(name) is not None:
            nested[name] = json_images(name, fields[name], folder)
            for path in paths_in(nested[name]):
                _check_file(path, True)
    others = (*FILE_FIELDS, *PROMPT_IMAGES, CONTROL, REGIONS)
    plain = {name: value for name, value in fields.items() if name not in others}
    for name in _TEXTS:
        if plain.get(name) is not None:
            check_texts(name, plain[name])
    for name, value in plain.items():
        if get_origin(FIELDS[name].scalar) is Literal:
            plain[name] = known_word(FIELDS[name], value)
    _check_types(plain)
    complete(cast(Request, plain))
    return cast(Request, {**plain, **files, **nested})


def with_files(request: Request) -> Request:
    """The same request with images and latents in place of their paths.

    Raises:
        InvalidRequestError: a file is missing or damaged.
    """
    given: dict[str, Any] = dict(request)
    read = {
        name: _read(name, path)
        for name, path in given.items()
        if isinstance(path, Path) and name not in PROMPT_IMAGES
    }
    if given.get(CONTROL) is not None:
        read[CONTROL] = with_images(given[CONTROL], read_image)
    for name in PROMPT_IMAGES:
        if given.get(name) is not None:
            read[name] = with_pictures(given[name], read_image)
    if given.get(REGIONS) is not None:
        read[REGIONS] = with_masks(given[REGIONS], read_image)
    return cast(Request, {**given, **read})


def _read(name: str, path: Path) -> Any:
    if FIELDS[name].form is IMAGE_FILE:
        return read_image(path)
    from kdrt.cli.latents_file import read_latents

    return read_latents(path)


def _file(name: str, value: object, folder: Path) -> Path:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be the name of a file, not {excerpt(value)}")
    path = folder / user_path(value)
    _check_file(path, FIELDS[name].form is IMAGE_FILE)
    return path


@cache
def _check_file(path: Path, is_image: bool) -> None:
    # Many lines may name one file.
    if is_image:
        open_image(path).close()
    elif not path.is_file():
        raise InvalidRequestError(f"there is no file {path}")


def _check_types(fields: Mapping[str, Any]) -> None:
    for name in fields:
        if FIELDS[name].json_type is None:
            raise InvalidRequestError(f"{name} cannot be given as JSON")
    try:
        _model().model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        complete(cast(Request, {name: fields[name]}))  # has a sentence of its own for most
        raise InvalidRequestError(
            f"{name} must be {_meaning(FIELDS[name])}, not {excerpt(fields[name])}"
        ) from None


@cache
def _model() -> type[BaseModel]:
    return request_model()


def _meaning(field: Field) -> str:
    """What JSON may hold there, in words."""
    kind = field.json_type
    members = get_args(kind) if get_origin(kind) is Union else (kind,)
    words = " or ".join(_words(member) for member in members if member is not NoneType)
    limits = {
        "above": field.above,
        "at least": field.minimum,
        "below": field.below,
        "at most": field.maximum,
    }
    told = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    return f"{words} {told}".rstrip()


def _words(kind: Any) -> str:
    if kind in _SINGLE:
        return _SINGLE[kind]
    parts = get_args(kind)
    if get_origin(kind) is Mapping:
        return "an object of names and values"
    if get_origin(kind) is Sequence:
        return f"a list of {_SEVERAL[parts[0]]}"
    return f"a list of {len(parts)} {_SEVERAL[parts[0]]}"
