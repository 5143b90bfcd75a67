"""What ``kdrt export`` looks at before it loads anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.flavour import Flavour

_PACKAGES = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "polygraphy",
    "transformers",
}
"""What the extra ``export`` installs, by import name."""


def quiet_libraries() -> None:
    """Keep bars and remarks of the libraries from running through our own display; before they are
    imported."""
    import os

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


@contextmanager
def exporter() -> Iterator[Callable[..., Path]]:
    """`kdrt_export.stage.export`.

    Raises:
        ExportError: a package is missing that only exports need.
    """
    with needs_export("exporting"):
        from kdrt_export.stage import export

        yield export


@contextmanager
def needs_export(doing: str) -> Iterator[None]:
    """For code that imports what the extra ``export`` installs.

    Args:
        doing: what the user is told it is for.

    Raises:
        ExportError: a package of it is missing.
    """
    from kdrt.errors import ExportError

    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise ExportError(
            f"{doing} needs the package '{package}', which is not installed: "
            "pip install 'kdrt[export]'"
        ) from error


def read_loras(options: Sequence[str], *, allow_pickle: bool) -> list[tuple[Path, float]]:
    """The files and scales of ``--lora``. All are read: what is wrong with them is said before the
    libraries of the exporter and the model are loaded.

    Raises:
        InvalidRequestError: see :func:`kdrt.adapters.lora_file.read_lora`; or a scale is not one
            number.
    """
    if not options:
        return []
    from kdrt.adapters.lora_file import read_lora
    from kdrt.cli.lora_option import lora_option
    from kdrt.errors import InvalidRequestError

    loras: list[tuple[Path, float]] = []
    for path, scale in map(lora_option, options):
        if not isinstance(scale, float):
            raise InvalidRequestError(
                f"a bundle keeps one scale of a LoRA, not several of {path.name}: give one "
                "number, or use it at run time"
            )
        read_lora(path, allow_pickle=allow_pickle)
        loras.append((path, scale))
    return loras


def check_effect(
    source: str,
    revision: str | None,
    config: Path | None,
    ip_adapter: Sequence[str],
    image_encoder: str | None,
) -> None:
    """Raises ExportError: an option would have no effect."""
    from kdrt.common.paths import user_path
    from kdrt.errors import ExportError

    if image_encoder is not None and not ip_adapter:
        raise ExportError("--image-encoder belongs to --ip-adapter; give both or neither")
    path = user_path(source)
    if revision is not None and (source == "demo" or path.exists()):
        raise ExportError(
            f"--revision is for models of the hub, and '{source}' is on this machine; leave it out"
        )
    if config is not None and (source == "demo" or path.is_dir()):
        raise ExportError(
            f"--config describes a checkpoint file, and '{source}' is none; leave it out"
        )


def own_targets(targets: Sequence[str]) -> tuple[str, ...]:
    """The targets the exporter itself prepares."""
    return tuple(t for t in targets if not t.startswith("tensorrt")) or ("onnxruntime",)


def builds_of(
    bundle: str, targets: Sequence[str], gpu: Sequence[str], here: bool, profile: list[str] | None
) -> list[tuple[Flavour, tuple[int, ...]]]:
    """What to build after the export; what is wrong with it is said before."""
    from kdrt.cli.build import targets_of
    from kdrt.errors import InvalidRequestError

    engines = [target for target in dict.fromkeys(targets) if target.startswith("tensorrt")]
    if not engines and (gpu or here or profile):
        raise InvalidRequestError(
            "--gpu, --here and --profile say what to build; add --target tensorrt-rtx or tensorrt"
        )
    return [targets_of(bundle, engine, gpu, here) for engine in engines]
