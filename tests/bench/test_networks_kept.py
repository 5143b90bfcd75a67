"""What peers keep of networks: the bundle whose projections are not fused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdrt.bundle import Bundle, open_bundle
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.models import model_of
from kdrt_bench.networks_kept import unfused_bundle


@pytest.fixture
def kept(demo_bundle: Path, tmp_path: Path) -> Callable[[Any], Any]:
    """``unfused_bundle`` of the demo model, which is there, measured with another bundle."""
    (tmp_path / "unfused").symlink_to(demo_bundle)
    model = model_of(str(demo_bundle)).model_copy(update={"cache": tmp_path})
    return lambda measured: unfused_bundle(model, measured)


def changed(bundle: Path, components: Callable[[dict[str, Any]], dict[str, Any]]) -> Bundle:
    opened = open_bundle(str(bundle))
    manifest = opened.manifest
    found = manifest.model_copy(update={"components": components(dict(manifest.components))})
    return Bundle(opened.path, found)


def test_components_that_the_export_lacks_do_not_matter(
    demo_bundle: Path, kept: Callable[[Any], Any]
) -> None:
    more = changed(demo_bundle, lambda all_of: all_of | {"safety_checker": all_of["unet"]})
    assert kept(more).manifest == open_bundle(str(demo_bundle)).manifest


def test_a_bundle_of_another_version_says_what_to_do(
    demo_bundle: Path, kept: Callable[[Any], Any]
) -> None:
    other = changed(demo_bundle, lambda all_of: all_of | {"unet": all_of["vae_decoder"]})
    with pytest.raises(PeerUnavailableError, match=r"^unet of .* export it again"):
        kept(other)
