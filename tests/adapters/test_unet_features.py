"""Which UNet of a bundle runs what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kdrt.adapters.unet_features import FEATURE_INPUTS, features_of, unet_with
from kdrt.bundle import Component, Manifest, TensorInfo
from kdrt.errors import InvalidRequestError
from tests.support.tiny_model import tiny_model


def component(*features: str) -> Component:
    inputs = [TensorInfo(name="sample", dtype="float32", shape=("B", 4, "h", "w"))]
    inputs += [
        TensorInfo(name=FEATURE_INPUTS[name], dtype="float32", shape=("B",)) for name in features
    ]
    return Component(onnx="onnx/a/model.onnx", inputs=tuple(inputs), outputs=(), parameters=1)


def with_unets(folder: Path, **unets: Sequence[str]) -> Manifest:
    base = tiny_model(folder).pipeline.bundle.manifest
    components = {f"unet-{name}": component(*features) for name, features in unets.items()}
    variants = {name: {"unet": f"unet-{name}"} for name in unets}
    return base.model_copy(
        update={
            "components": {**base.components, "unet": component(), **components},
            "variants": {"text": {"text_encoder": "text_encoder"}, **variants},
        }
    )


def test_features_are_known_by_their_inputs() -> None:
    for features in ((), ("pag",), ("ip-adapter", "control")):
        assert features_of(component(*features).spec()) == features


def test_the_unet_with_the_fewest_others_is_taken(tmp_path: Path) -> None:
    manifest = with_unets(tmp_path, both=("ip-adapter", "control"), control=("control",))
    assert unet_with(manifest, ()) == "unet"
    assert unet_with(manifest, ("control",)) == "unet-control"
    assert unet_with(manifest, ("ip-adapter",)) == "unet-both"
    assert unet_with(manifest, ("ip-adapter", "control")) == "unet-both"


def test_what_is_missing_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="--controlnet SOURCE`, or add it with `kdrt add"):
        unet_with(with_unets(tmp_path, pag=("pag",)), ("control",))
    with pytest.raises(
        InvalidRequestError,
        match=r"has no UNet with ip-adapter and control; export it with `kdrt export \S+ "
        r"--ip-adapter FILE --controlnet SOURCE`",
    ):
        unet_with(with_unets(tmp_path, control=("control",)), ("ip-adapter", "control"))


@pytest.mark.parametrize(
    ("other", "word"), [("control", "control"), ("ip-adapter", "an IP-Adapter")]
)
def test_what_no_export_has_is_told_without_one(tmp_path: Path, other: str, word: str) -> None:
    """A bundle with both UNets has no third that does both."""
    manifest = with_unets(tmp_path, pag=("pag",), other=(other,))
    with pytest.raises(InvalidRequestError, match=f"pag_scale and {word} do not go together"):
        unet_with(manifest, ("pag", other))
