"""``config.pbtxt``: what Triton is told of a model, and what the model is told in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdrt._version import __version__
from kdrt.common.validation import check_choice, excerpt
from kdrt.errors import InvalidRequestError
from kdrt.serve.limits import RequestLimits
from kdrt.serve.settings import ServiceSettings
from kdrt.serve.triton.tensors import INPUTS, OUTPUTS, TensorInfo

MARK = "kdrt deploy triton"
"""What the files say of who wrote them."""


@dataclass(frozen=True)
class Parameter:
    """A setting that an operator may change in the file.

    Attributes:
        default: as text; empty is kdrt's own choice.
        read: from text.
        help: what it is.
    """

    default: str
    read: Callable[[str], Any]
    help: str


_LIMITS = RequestLimits()
_SERVICE = ServiceSettings()

PARAMETERS = {
    "engine": Parameter("", str, "Which engine runs it; empty takes the best there is."),
    "fallback": Parameter("", str, "Another one, for what the first cannot run."),
    "cuda_graph": Parameter("", str, "off, step or loop; empty is step on CUDA."),
    "threads": Parameter("", int, "CPU threads; empty is one a core."),
    "max_rows": Parameter("", int, "Rows of an evaluation that requests share."),
    "max_waiting": Parameter(
        str(_SERVICE.max_waiting), int, "While so many images wait, further requests are refused."
    ),
    "deadline": Parameter(
        f"{_SERVICE.deadline:g}", float, "Seconds that a request may take, waiting included."
    ),
    "max_pixels": Parameter(str(_LIMITS.pixels), int, "Most pixels of an image."),
    "max_steps": Parameter(str(_LIMITS.steps), int, "Most steps of an image."),
    "max_images": Parameter(str(_LIMITS.images), int, "Most images of a request."),
    "max_prompt": Parameter(str(_LIMITS.prompt), int, "Most characters of a prompt."),
}
"""By their names in the file."""


def config_text(name: str, parameters: Mapping[str, str]) -> str:
    """The text of ``config.pbtxt``.

    Args:
        name: of the model.
        parameters: those that differ from :data:`PARAMETERS`.

    Raises:
        InvalidRequestError: a parameter is unknown or not what it should be.
    """
    for key in parameters:
        check_choice("parameter", key, PARAMETERS)
    settings_of(parameters)
    lines = [
        f"# Written by `{MARK}`, kdrt {__version__}; the same command writes it anew.",
        "",
        f"name: {_quoted(name)}",
        'backend: "python"',
        "",
        "# Requests share evaluations inside the model, whenever they come: Triton need not gather",
        "# them, and answers leave when they are made. Such a model is called decoupled: each",
        "# request has one answer, over gRPC streams or the generate extension of HTTP.",
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        "",
        "# One process, which finds the GPU itself. For several GPUs start a server for each, with",
        "# CUDA_VISIBLE_DEVICES.",
        "instance_group [ { count: 1 kind: KIND_MODEL } ]",
        "",
    ]
    for key, parameter in PARAMETERS.items():
        value = _quoted(parameters.get(key, parameter.default))
        lines += [
            f"# {parameter.help}",
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {value} }} }}",
        ]
    for tensor in INPUTS:
        optional = "" if tensor.name == "prompt" else " optional: true"
        lines += ["", *_tensor("input", tensor, optional)]
    for tensor in OUTPUTS:
        lines += ["", *_tensor("output", tensor)]
    return "\n".join(lines) + "\n"


def settings_of(parameters: Mapping[str, str]) -> ServiceSettings:
    """What the parameters of a model mean; those of others are not looked at.

    Raises:
        InvalidRequestError: a value is not what it should be.
    """
    values: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        text = parameters.get(name, parameter.default)
        try:
            values[name] = parameter.read(text) if text else None
        except ValueError:
            raise InvalidRequestError(
                f"the parameter {name} must be a number, not {excerpt(text)}"
            ) from None
    limits = {
        name: values.pop(f"max_{name}", None) for name in ("pixels", "steps", "images", "prompt")
    }
    return ServiceSettings(
        limits=RequestLimits(**_given(limits)),
        **_given(values),
    )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _tensor(role: str, tensor: TensorInfo, more: str = "") -> Iterator[str]:
    dims = ", ".join(map(str, tensor.dims))
    yield f"# {tensor.help}"
    yield (
        f"{role} [ {{ name: {_quoted(tensor.name)} data_type: {tensor.datatype} "
        f"dims: [ {dims} ]{more} }} ]"
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
