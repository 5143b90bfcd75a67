"""The fields of a request are listed once: what else names them is made from that list."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

import kdrt
from kdrt.cli.request_options import flags_of, takes_request
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.signatures import Calling
from kdrt.request.complete import complete
from kdrt.request.field import Field, fields_of
from kdrt.request.fields import FIELDS, Request
from kdrt.request.record import settings_of_field
from kdrt.request.recorded import field_value
from kdrt.request.schema import request_model, request_schema
from kdrt.request.signature import described, signature_of


class OneMore(Request, total=False):
    """A request with a field more: this is all that a new option takes, besides its effect."""

    sharpness: Annotated[
        float,
        Field(
            help="How sharp the image is.",
            default=0.5,
            minimum=0,
            maximum=2,
            unit="lines per pixel",
            metavar="0..2",
            record="Sharpness",
        ),
    ]


MORE = fields_of(OneMore)


def test_a_new_field_is_an_option_of_the_command_line() -> None:
    kept: dict[str, Any] = {}

    def command(*, request: Request) -> None:
        kept.update(request)

    app = typer.Typer()
    app.command()(takes_request(command, MORE))
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "--sharpness" in shown
    assert "How sharp the image is." in shown
    assert CliRunner().invoke(app, ["--sharpness", "1.5"]).exit_code == 0
    assert kept == {"sharpness": 1.5}


def test_a_new_field_is_in_the_schema() -> None:
    schema = request_schema(MORE)["properties"]["sharpness"]
    assert schema["type"] == "number"
    assert (schema["minimum"], schema["maximum"], schema["default"]) == (0, 2, 0.5)
    assert (schema["description"], schema["unit"]) == ("How sharp the image is.", "lines per pixel")


def test_a_new_field_is_in_signature_and_documentation() -> None:
    parameter = signature_of(Calling.__call__, MORE).parameters["sharpness"]
    assert (parameter.default, parameter.annotation) == (0.5, float)
    assert "sharpness: How sharp the image is." in described(MORE)


def test_a_new_field_is_checked_and_has_its_default() -> None:
    assert complete(Request(prompt="a"), MORE)["sharpness"] == 0.5  # type: ignore[typeddict-item]
    with pytest.raises(InvalidRequestError, match="sharpness must be at most 2, not 3"):
        complete({"sharpness": 3.0}, MORE)  # type: ignore[typeddict-unknown-key]


def test_a_new_field_is_told_and_read_back() -> None:
    field = MORE["sharpness"]
    assert list(settings_of_field(field, 0.5)) == []
    ((key, value),) = settings_of_field(field, 1.25)
    assert (key, field_value(field, str(value))) == ("Sharpness", 1.25)


def test_calls_and_help_name_every_field() -> None:
    for function in (kdrt.Pipeline.__call__, kdrt.Pipeline.stream):
        assert FIELDS.keys() <= inspect.signature(function).parameters.keys()
        assert all(f"{name}: " in (function.__doc__ or "") for name in FIELDS)


def test_every_field_has_metadata() -> None:
    assert FIELDS.keys() == get_type_hints(Request).keys()


def test_every_range_is_the_one_that_is_checked() -> None:
    for name, field in FIELDS.items():
        if field.scalar not in (int, float) or len(field.members) > 1 or field.maximum is None:
            continue
        if field.minimum is None:
            continue  # open at one end: the grid refuses it
        for value in (field.minimum, field.maximum):
            complete({name: field.scalar(value)})  # type: ignore[misc]
        with pytest.raises(InvalidRequestError, match=f"{name} must be at most"):
            complete({name: field.scalar(field.maximum + 1)})  # type: ignore[misc]


def test_the_schema_holds_what_json_holds() -> None:
    properties = request_schema()["properties"]
    left_out = {"image", "mask_image", "latents", "generator", "image_filter", "ip_adapter_image"}
    left_out |= {"control", "regions", "ip_adapter_masks"}  # of images
    assert FIELDS.keys() - properties.keys() >= left_out
    assert all(name in left_out or "embeds" in name for name in FIELDS.keys() - properties.keys())
    assert properties["sampler"]["type"] == "string"
    assert all(each["description"] for each in properties.values())


def test_the_model_of_the_schema_refuses_what_is_wrong() -> None:
    model = request_model()
    assert model.model_validate({"prompt": "a", "steps": 3}).model_dump(exclude_unset=True) == {
        "prompt": "a",
        "steps": 3,
    }
    for wrong in ({"steps": 0}, {"stepz": 3}, {"denoising_end": 1.0}, {"width": 10**6}):
        with pytest.raises(ValidationError):
            model.model_validate(wrong)


def test_names_that_people_know() -> None:
    flags = [flag for field in FIELDS.values() if field.flags != () for flag in flags_of(field)]
    known = ["--prompt", "--negative-prompt", "--negative", "--cfg-scale", "--guidance-scale", "-n"]
    assert {*known, "--guidance", "--count"} <= {*flags}
    assert len({*flags}) == len(flags)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(kdrt.UnknownFieldError, match="no field 'step'; did you mean 'steps'"):
        complete({"step": 3})  # type: ignore[typeddict-unknown-key]
    assert issubclass(kdrt.UnknownFieldError, TypeError)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras", None)),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential", {})),
        ("DPM++ 2M SDE Heun Karras", ("dpmpp_2m_sde", "karras", {"solver_type": "heun"})),
        ("Euler a", ("Euler a", "karras", None)),
    ],
)
def test_a_label_names_sampler_and_schedule(label: str, expected: tuple[Any, ...]) -> None:
    found = complete({"sampler": label})
    assert (found["sampler"], found["schedule"]) == expected[:2]
    assert (found["sampler_options"] or {}) == (expected[2] or {})


def test_a_label_does_not_contradict_the_schedule() -> None:
    complete({"sampler": "DPM++ 2M Karras", "schedule": "Karras"})
    with pytest.raises(InvalidRequestError, match="names the schedule 'karras', and schedule is"):
        complete({"sampler": "DPM++ 2M Karras", "schedule": "simple"})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ({"sampler": "eulre"}, "euler"),
        ({"schedule": "Karas"}, "karras"),
        ({"noise": "A111"}, "a1111"),
        ({"prompt_weighting": "a111"}, "a1111"),
    ],
)
def test_near_misses(sd: Any, wrong: dict[str, Any], meant: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"; did you mean '{meant}'\\?$"):
        sd.pipeline("a", **wrong)
