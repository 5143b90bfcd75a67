"""The removed pipelines themselves, read out of the last release that has them.

Their two files still run against today's diffusers. Nothing of them is kept here: the wheel is
downloaded into a temporary folder by whoever asks.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

RELEASE = "diffusers==0.36.0"
_FOLDER = "diffusers/pipelines/stable_diffusion_k_diffusion"
_FILES = {
    "sd": ("pipeline_stable_diffusion_k_diffusion", "StableDiffusionKDiffusionPipeline"),
    "sdxl": ("pipeline_stable_diffusion_xl_k_diffusion", "StableDiffusionXLKDiffusionPipeline"),
}


def download(folder: Path) -> Path:
    """The release's wheel. Raises CalledProcessError or TimeoutExpired where there is none."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        RELEASE,
        "-d",
        str(folder),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


def load(wheel: Path, kind: str, checkpoint: Path, **options: Any) -> Any:
    """The original pipeline of ``kind`` (``sd`` or ``sdxl``) on a checkpoint folder."""
    import diffusers  # noqa: F401

    module, name = _FILES[kind]
    _stub_k_diffusion()
    _stub_diffusers()
    full = f"diffusers.pipelines.stable_diffusion_k_diffusion.{module}"
    if full not in sys.modules:
        package = full.rpartition(".")[0]
        sys.modules.setdefault(package, _package(package))
        code = zipfile.ZipFile(wheel).read(f"{_FOLDER}/{module}.py")
        spec = importlib.util.spec_from_loader(full, None)
        assert spec is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[full] = loaded
        exec(compile(code, module, "exec"), loaded.__dict__)
    kind_class = getattr(sys.modules[full], name)
    if kind == "sd":
        options = {"safety_checker": None, "feature_extractor": None} | options
    pipeline = kind_class.from_pretrained(checkpoint, **options)
    pipeline.set_progress_bar_config(disable=True)
    # transformers 5 has no text_model in between any more, which clip_skip looks for.
    encoder = pipeline.text_encoder
    if not hasattr(encoder, "text_model"):
        object.__setattr__(encoder, "text_model", encoder)
    return pipeline


def _package(name: str) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = []
    return package


def _stub_diffusers() -> None:
    """What today's diffusers has dropped of what the two files import."""
    import diffusers.pipelines.pipeline_utils as utils

    if not hasattr(utils, "DeprecatedPipelineMixin"):
        utils.DeprecatedPipelineMixin = type("DeprecatedPipelineMixin", (), {})


def _stub_k_diffusion() -> None:
    """``k_diffusion`` without its ``__init__``, which cannot be imported any more."""
    if "k_diffusion" in sys.modules:
        return
    spec = importlib.util.find_spec("k_diffusion")
    assert spec is not None
    assert spec.submodule_search_locations
    package: Any = _package("k_diffusion")
    package.__path__ = [*spec.submodule_search_locations]
    utils: Any = ModuleType("k_diffusion.utils")
    utils.append_dims = _append_dims
    package.utils = utils
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    package.sampling = importlib.import_module("k_diffusion.sampling")
    package.external = importlib.import_module("k_diffusion.external")


def _append_dims(x: torch.Tensor, dims: int) -> torch.Tensor:
    return x.reshape(x.shape + (1,) * (dims - x.ndim))
