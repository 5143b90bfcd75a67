"""The options of ``kdrt generate`` that are fields of a request, made from their metadata."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer

from kdrt.cli.prompts_file import as_text
from kdrt.errors import InvalidRequestError
from kdrt.request.field import BEGINNING, IMAGE, SAMPLING, SDXL, Field
from kdrt.request.fields import FIELDS
from kdrt.request.text_forms import (
    CONTROL_FILE,
    IMAGE_FILE,
    IMAGE_FILES,
    LATENTS_FILE,
    REGION,
    SIZE,
)

_LISTS = ("prompt",)
"""Fields that may be given several times."""

_SEVERAL = (CONTROL_FILE, IMAGE_FILES, REGION)
"""Forms of those that may too."""

_SIZE = typer.Option(
    "--size",
    metavar=SIZE.metavar,
    rich_help_panel=IMAGE,
    show_default=False,
    help="Width and height in one, as [cyan]1024x768[/].",
)


def takes_request(
    command: Callable[..., None], fields: Mapping[str, Field] = FIELDS
) -> Callable[..., None]:
    """Give a command the options of all ``fields``, in place of its parameter ``request``.

    It is called with a dictionary of those that were given, as values of a request.
    """
    shown = {name: field for name, field in fields.items() if field.flags != ()}

    def run(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in (*shown, "size")}
        try:
            command(**arguments, request=_request(given, shown))
        except InvalidRequestError as error:
            error.args = (with_flags(str(error), shown),)
            raise

    panels = (IMAGE, BEGINNING, SAMPLING, SDXL)
    options = [
        _parameter(field)
        for field in sorted(shown.values(), key=lambda field: panels.index(field.panel))
    ]
    size = Parameter(
        "size", Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, _SIZE]
    )
    parameters: list[Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        own = parameter.replace(kind=Parameter.KEYWORD_ONLY)
        parameters += [*options, size] if parameter.name == "request" else [own]
    run.__name__, run.__doc__, run.__module__ = (
        command.__name__,
        command.__doc__,
        command.__module__,
    )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def flags_of(field: Field) -> tuple[str, ...]:
    """The options that give a field its value, the first of which it is called by."""
    flags = field.flags if field.flags is not None else (f"--{field.name.replace('_', '-')}",)
    if field.scalar is bool:
        return tuple(f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags)
    return flags


def with_flags(message: str, fields: Mapping[str, Field]) -> str:
    """A message about fields as one about options. Quoted text stays as it is, and so do names
    that are everyday words too, unless the sentence is about them."""
    words = "|".join(fields)
    compound = "|".join(name for name in fields if "_" in name)
    named = re.compile(
        rf"(?<!\w)'[^']*'(?!\w)|^(?P<subject>{words})(?= must | says | needs? )"
        rf"|(?<![\w.-])(?P<field>{compound})(?![\w.])"
    )

    def flag(match: re.Match[str]) -> str:
        name = match["subject"] or match["field"]
        return flags_of(fields[name])[0].split("/")[0] if name else match[0]

    return named.sub(flag, message)


def _parameter(field: Field) -> Parameter:
    option = typer.Option(
        *flags_of(field),
        metavar=(field.form.metavar if field.form else field.metavar) or None,
        rich_help_panel=field.panel,
        show_default=_default_text(field),  # typer's own is None: that it was not given
        help=_with_markup(field.help),
    )
    return Parameter(
        field.name,
        Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_typer_type(field) | None, option],
    )


def _typer_type(field: Field) -> Any:
    if field.form in (IMAGE_FILE, LATENTS_FILE):
        return Path
    if field.is_mapping or field.name in _LISTS or field.form in _SEVERAL:
        return list[str]
    # Words are checked with the request: in any case, and by a sentence of our own.
    is_text = field.form is not None or get_origin(field.scalar) is Literal
    return str if is_text else field.scalar


def _default_text(field: Field) -> str | bool:
    if field.default_text or field.default is None or field.scalar is bool:
        return field.default_text or False
    return field.form.write(field.default) if field.form else f"{field.default}"


def _with_markup(text: str) -> str:
    """Markdown's code as rich's colour; square brackets mean themselves."""
    return re.sub(r"`([^`]*)`", r"[cyan]\1[/]", text.replace("[", "\\["))


def _request(given: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The fields of a request that were given."""
    request = {
        name: _value(field, given[name])
        for name, field in fields.items()
        if given[name] is not None and given[name] != []
    }
    if given["size"] is not None:
        height, width = _read(SIZE, "--size", given["size"])
        for name, side in (("width", width), ("height", height)):
            if request.setdefault(name, side) != side:
                raise InvalidRequestError(
                    f"--size says the {name} too, and --{name} another: give one of them"
                )
    return request


def _value(field: Field, given: Any) -> Any:
    flag = flags_of(field)[0]
    if field.form is IMAGE_FILE:
        from kdrt.cli.image_input import read_image

        return read_image(given)
    if field.form is LATENTS_FILE:
        from kdrt.cli.latents_file import read_latents

        return read_latents(given)
    if field.form is CONTROL_FILE:
        from kdrt.cli.control_option import control_option, with_images
        from kdrt.cli.image_input import read_image

        return with_images([control_option(text) for text in given], read_image)
    if field.form is IMAGE_FILES:
        from kdrt.cli.image_input import read_image
        from kdrt.cli.ip_adapter_image import image_options, with_pictures

        at_once = field.name == "ip_adapter_image"
        return with_pictures(image_options(flag, given, at_once=at_once), read_image)
    if field.form is REGION:
        from kdrt.cli.image_input import read_image
        from kdrt.cli.region_option import region_option, with_masks

        return with_masks([region_option(text) for text in given], read_image)
    if field.is_mapping:
        assert field.form is not None
        return dict(_read(field.form, flag, pair) for pair in given)
    if field.form is not None:
        return _read(field.form, flag, given)
    if field.name in _LISTS:
        return [as_text(text) for text in given]
    return as_text(given) if isinstance(given, str) else given


def _read(form: Any, flag: str, text: str) -> Any:
    try:
        return form.read(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"{flag} takes {form.meaning}, as in {form.example}, not '{text}'"
        ) from error
