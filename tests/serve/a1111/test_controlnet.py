"""Units of the ControlNet extension, as control images."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import webuiapi
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from kdrt.bundle import open_bundle
from kdrt.images.control import ControlImage
from kdrt.request.controls import MAX_CONTROLS
from kdrt.serve.a1111 import controlnet_lists
from kdrt.serve.a1111.bodies import ImageBody, TextBody
from kdrt.serve.a1111.requests import request_of
from kdrt.serve.errors import LimitError, RequestError, UnsupportedError
from kdrt.serve.limits import RequestLimits
from tests.support.serving import png


def encoded(colour: str, size: tuple[int, int] = (64, 32)) -> str:
    image = Image.new("RGB", size, colour)
    image.paste("black", (0, 0, 16, size[1]))
    return base64.b64encode(png(image)).decode()


UNIT: dict[str, Any] = {"model": "canny [d14c016b]", "image": encoded("red")}


@pytest.fixture
def controls_of(demo_bundle: Path) -> Any:
    manifest = open_bundle(str(demo_bundle)).manifest

    def controls_of(*units: Any, kind: Any = TextBody, **fields: Any) -> list[ControlImage]:
        body = kind(alwayson_scripts={"ControlNet": {"args": list(units)}}, **fields)
        request: Any = request_of(body, manifest, RequestLimits())
        return list(request.get("control", []))

    return controls_of


def test_a_unit_is_a_control_image(controls_of: Any) -> None:
    settings = {"weight": 0.7, "guidance_start": 0.1, "guidance_end": 0.8, "pixel_perfect": True}
    one, other = controls_of(
        {**UNIT, **settings, "module": "canny", "threshold_a": 100, "control_mode": "Balanced"},
        {**UNIT, "module": "invert (from white bg & black line)", "resize_mode": "Just Resize"},
    )
    assert (one.name, one.scale, one.start, one.end) == ("canny", 0.7, 0.1, 0.8)
    assert (one.process, other.process) == ("canny", "invert")
    # Cropped as the web UI does unless it is told to stretch: the black edge is gone.
    assert one.image.size == (64, 64)
    assert one.image.getpixel((8, 0)) == (255, 0, 0)
    assert other.image.size == (64, 32)
    assert other.image.getpixel((0, 0)) == (0, 0, 0)


def test_what_is_off(controls_of: Any) -> None:
    assert controls_of() == []
    assert controls_of({**UNIT, "enabled": False, "module": "openpose"}) == []


def test_a_unit_without_an_image_takes_the_one_to_begin_with(controls_of: Any) -> None:
    (control,) = controls_of(
        {"model": "canny"}, kind=ImageBody, init_images=[encoded("blue")], width=64, height=32
    )
    assert control.image.size == (64, 32)
    assert control.image.getpixel((40, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": "openpose_full"}, "the module 'openpose_full' of controlnet is not supported"),
        ({"module": "canny", "threshold_a": 50}, "threshold_a 50 of the module 'canny'"),
        ({"control_mode": "ControlNet is more important"}, "control_mode 'ControlNet is more"),
        ({"resize_mode": 2}, "resize_mode 2 of a unit"),
        ({"mask": "abc"}, "mask 'abc' of a unit"),
        ({"model": "None"}, "needs a model"),
        ({"image": None}, "needs an image"),
        ({"weigth": 0.5}, "the field 'weigth' of a unit .* did you mean 'weight'"),
        ({"guessmode": True}, "guessmode True of a unit"),
        ({"resize_mode": "Resize and Fill"}, "for an image of other proportions than the result"),
        ({"weight": "strong"}, "weight of a unit of controlnet must be a number"),
    ],
)
def test_what_is_refused(controls_of: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((RequestError, UnsupportedError), match=message):
        controls_of({**UNIT, **changes})


def test_what_clients_send_of_their_own_accord(controls_of: Any) -> None:
    """webuiapi's defaults, and more that a unit of the web UI itself holds."""
    defaults = webuiapi.ControlNetUnit(Image.new("RGB", (32, 32)), model="canny").to_dict()
    others = {"input_mode": "simple", "pulid_mode": "Fidelity", "output_dir": "", "is_ui": True}
    (control,) = controls_of({**defaults, **others})
    assert (control.name, control.scale, control.process) == ("canny", 1, None)


def test_deep_and_transparent_images_are_cropped_too(controls_of: Any) -> None:
    deep = Image.fromarray(np.full((32, 64), 0x8080, np.uint16))
    clear = Image.new("RGBA", (64, 32), (255, 0, 0, 0))
    units = [{**UNIT, "image": base64.b64encode(png(each)).decode()} for each in (deep, clear)]
    images = [control.image for control in controls_of(*units)]
    assert [image.size for image in images] == [(64, 64)] * 2
    assert [image.getpixel((0, 0)) for image in images] == [(128,) * 3, (255,) * 3]


def test_what_is_no_unit(controls_of: Any) -> None:
    with pytest.raises(RequestError, match="must be an object, not 3"):
        controls_of(3)
    with pytest.raises(LimitError, match=f"{MAX_CONTROLS + 1} units"):
        controls_of(*[UNIT] * (MAX_CONTROLS + 1))


def test_the_controls_of_all_models_are_listed_once() -> None:
    def served(*names: str) -> Any:
        manifest = SimpleNamespace(controls=dict.fromkeys(names))
        return SimpleNamespace(bundle=SimpleNamespace(manifest=manifest))

    service: Any = SimpleNamespace(models={"a": served("depth", "canny"), "b": served("canny")})
    app = FastAPI()
    app.include_router(controlnet_lists.router(service))
    listed = TestClient(app).get("/controlnet/model_list").json()
    assert listed == {"model_list": ["canny", "depth"]}
