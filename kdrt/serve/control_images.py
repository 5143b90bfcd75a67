"""Control images that clients send, under the limits of initial images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic

from kdrt.images.control import ControlImage
from kdrt.images.processors import PROCESSORS
from kdrt.request.controls import MAX_CONTROLS
from kdrt.serve.errors import LimitError
from kdrt.serve.images import SeveralImages
from kdrt.serve.limits import RequestLimits

FIELD = "control"
"""Of a request."""


class ControlBody(pydantic.BaseModel):
    """A control image, and how it is used."""

    model_config = pydantic.ConfigDict(extra="forbid")

    image: Annotated[
        str | list[str],
        pydantic.Field(description="Base64 or a data URL, or one for each prompt."),
    ]
    name: Annotated[
        str | None,
        pydantic.Field(description="Of the control; null where the model has only one."),
    ] = None
    scale: Annotated[float, pydantic.Field(description="How much it counts; 0 is off.")] = 1.0
    start: Annotated[
        float, pydantic.Field(description="From which part of the steps on it works.", ge=0, le=1)
    ] = 0.0
    end: Annotated[
        float, pydantic.Field(description="Up to which part of the steps.", ge=0, le=1)
    ] = 1.0
    process: Annotated[
        str | None,
        pydantic.Field(description=f"Made of the image first: {', '.join(PROCESSORS)}."),
    ] = None


def _listed(value: object) -> object:
    return [value] if isinstance(value, Mapping) else value


ControlBodies = Annotated[list[ControlBody], pydantic.BeforeValidator(_listed)]
"""Several of them; one alone need not be in a list."""


def read_controls(bodies: Sequence[ControlBody], limits: RequestLimits) -> list[ControlImage]:
    """The control images of a body, decoded.

    Raises:
        LimitError: they are more, or larger, than this server reads.
        RequestError: one is no image.
    """
    most = MAX_CONTROLS * limits.images
    count = sum(1 if isinstance(body.image, str) else len(body.image) for body in bodies)
    if len(bodies) > MAX_CONTROLS or count > most:
        raise LimitError(
            f"these are {len(bodies)} controls with {count} images, and this server reads "
            f"{MAX_CONTROLS} with {most}",
            FIELD,
        )
    images = SeveralImages(FIELD, limits.input_pixels)
    return [_read(body, images) for body in bodies]


def _read(body: ControlBody, images: SeveralImages) -> ControlImage:
    given: dict[str, Any] = body.model_dump()
    image = given.pop("image")
    decoded = [images.read(FIELD, text) for text in ([image] if isinstance(image, str) else image)]
    return ControlImage(decoded[0] if isinstance(image, str) else decoded, **given)
