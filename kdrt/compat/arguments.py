"""The loading arguments of diffusers: which count here, which have no effect, which are refused.

``from_pretrained`` and ``from_single_file`` share one table. An argument is refused only with a
value that would change something: None, and False for a switch, are accepted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch

from kdrt.adapters.tensor_file import is_there
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError

Use = Literal["honoured", "inert"]

HUB = ("cache_dir", "force_download", "local_files_only", "token")
"""Arguments of the download."""

_PART = (
    "{name} cannot be given here: components are part of an export. Save the pipeline you want "
    "with diffusers' save_pretrained, and open that folder"
)
_FROM_FILE = "{name} cannot be given here: it is read from the checkpoint file; leave it out"

ARGUMENTS: dict[str, Use | str] = {
    **dict.fromkeys(HUB, "honoured"),
    "use_auth_token": "honoured",
    "torch_dtype": "honoured",
    "subfolder": "honoured",
    "scheduler": "honoured",
    "safety_checker": "honoured",
    "load_safety_checker": "honoured",
    "force_zeros_for_empty_prompt": "honoured",
    "device_map": "honoured",
    "prediction_type": "honoured",
    # How diffusers reads files and keeps weights, which an export does in its own way.
    "disable_mmap": "inert",
    "load_connected_pipeline": "inert",
    "low_cpu_mem_usage": "inert",
    "max_memory": "inert",
    "offload_buffers": "inert",
    "offload_folder": "inert",
    "offload_state_dict": "inert",
    "resume_download": "inert",
    "use_onnx": "inert",
    "variant": "inert",
    # What changes no latents in the originals either.
    "custom_revision": "inert",
    "revision": "inert",
    "requires_safety_checker": "inert",
    "scheduler_type": "inert",
    "trust_remote_code": "inert",
    "upcast_attention": "inert",
    # Refused, and why.
    "vae": (
        "{name} cannot be given here: components are part of an export. Export the model with "
        "that VAE, `kdrt export MODEL --vae VAE`, and open the bundle"
    ),
    **dict.fromkeys(
        (
            "unet",
            "text_encoder",
            "text_encoder_2",
            "tokenizer",
            "tokenizer_2",
            "feature_extractor",
        ),
        _PART,
    ),
    "config": "{name} describes a checkpoint file, and is for from_single_file",
    "image_encoder": (
        "{name} cannot be given here: components are part of an export. Export the model with "
        "`kdrt export MODEL --ip-adapter FILE --image-encoder FOLDER`, and open the bundle"
    ),
    "add_watermarker": (
        "these pipelines have never added a watermark, and kdrt does not; leave {name} out, and "
        "mark the images that you get"
    ),
    "custom_pipeline": (
        "{name} cannot be given here: kdrt runs none of a repository's code; write your own loop "
        "with pipe.pipeline.stream"
    ),
    "dduf_file": "{name} cannot be read; save that model as a folder with diffusers",
    "extract_ema": (
        "{name} cannot be given here: kdrt reads the weights that a checkpoint is used with; "
        "extract the EMA weights into a file of their own"
    ),
    "from_flax": "{name} cannot be given here: kdrt reads PyTorch weights; convert the model",
    "mirror": "{name} has no meaning any more; set the environment variable HF_ENDPOINT",
    "output_loading_info": "{name} cannot be given here: an export has no loading information",
    "proxies": "{name} has no meaning any more; set the environment variable HTTPS_PROXY",
    "quantization_config": (
        "{name} cannot be given here: weights are stored at export; use `kdrt export MODEL "
        "--weights int8`, and open the bundle"
    ),
    "return_cached_folder": "{name} cannot be given here: what is opened is a bundle",
    **dict.fromkeys(
        ("provider", "provider_options", "sess_options"),
        "{name} cannot be given here: choose what runs the networks with engine=…",
    ),
    "original_config": (
        "{name} cannot be read: what a checkpoint file is, its tensors tell; where they do not, "
        "give config=FOLDER, a diffusers folder of the same kind of model"
    ),
    **dict.fromkeys(
        ("image_size", "num_in_channels", "scaling_factor", "pipeline_class", "model_type"),
        _FROM_FILE,
    ),
}
"""For each argument: ``honoured``, ``inert``, or the sentence that it is refused with."""
ARGUMENTS["original_config_file"] = ARGUMENTS["original_config"]

_NOT_OF_A_FILE = {
    "load_safety_checker": (
        "a checkpoint file has no safety checker; leave {name} out and set pipe.safety_checker, or "
        "open a folder that has one"
    ),
    "subfolder": "{name} is for folders; give the whole path of the checkpoint file",
}
_SCHEDULER_TYPES = ("ddim", "dpm", "euler", "euler-ancestral", "heun", "lms", "pndm")
_PREDICTIONS = ("epsilon", "v_prediction")
_DTYPES: dict[str, torch.dtype] = {
    **{name: getattr(torch, name) for name in ("float16", "bfloat16", "float32")},
    "half": torch.float16,
    "float": torch.float32,
}


def check_arguments(method: str, given: Mapping[str, Any]) -> None:
    """Refuse arguments that ``method`` does not have, or does not allow.

    Raises:
        InvalidRequestError: for the first of them.
    """
    for name, value in given.items():
        use = ARGUMENTS.get(name)
        if use is None:
            raise InvalidRequestError(f"{method} has no argument {name!r}")
        if use not in ("honoured", "inert") and value is not None and value is not False:
            raise InvalidRequestError(use.format(name=name))
    checker = given.get("safety_checker")
    if checker is not None:
        raise InvalidRequestError(
            "safety_checker can be None here, which turns it off; set pipe.safety_checker to put "
            "another in its place"
        )
    if method == "from_single_file":
        for name, reason in _NOT_OF_A_FILE.items():
            if given.get(name):
                raise InvalidRequestError(reason.format(name=name))
    if method == "from_pipe":
        for name in given.keys() - {"safety_checker"}:
            if ARGUMENTS[name] == "honoured" and given[name] is not None:
                raise InvalidRequestError(
                    f"from_pipe shares the networks of the other pipeline, and {name} cannot "
                    "differ; open the model again with from_pretrained"
                )
    kind = given.get("scheduler_type")
    if kind is not None and kind not in _SCHEDULER_TYPES:
        raise InvalidRequestError(
            f"unknown scheduler_type {kind!r}; known: {', '.join(_SCHEDULER_TYPES)}. None of them "
            "changes the grid: choose a sampler with set_scheduler"
        )
    predicts = given.get("prediction_type")
    if predicts is not None and predicts not in _PREDICTIONS:
        raise InvalidRequestError(
            f"prediction_type must be one of {', '.join(_PREDICTIONS)}, not {predicts!r}"
        )
    zeros = given.get("force_zeros_for_empty_prompt")
    if zeros is not None and not isinstance(zeros, bool):
        raise InvalidRequestError(
            f"force_zeros_for_empty_prompt must be True or False, not {zeros!r}"
        )


def hub_options(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The arguments that go to the download, under today's names."""
    options = {name: given[name] for name in HUB if name in given}
    if given.get("use_auth_token") is not None:
        options.setdefault("token", given["use_auth_token"])
    return tuple(options.items())


def dtypes(value: object) -> tuple[torch.dtype | None, torch.dtype | None]:
    """The dtype of the networks and, where it differs, that of the VAE; None where it is not given.

    Args:
        value: a dtype, its name, ``"auto"``, or a dictionary of them by component.

    Raises:
        InvalidRequestError: it is no dtype, or other components differ too.
    """
    if not isinstance(value, Mapping):
        return _dtype(value), None
    each = {name: _dtype(one) for name, one in value.items()}
    vae = each.pop("vae", each.get("default"))
    kinds = set(each.values())
    if len(kinds) > 1:
        raise InvalidRequestError(
            "torch_dtype can differ for the VAE only: an export has one dtype for the UNet and "
            "the text encoders"
        )
    main = kinds.pop() if kinds else None
    return main, None if vae == main else vae


def _dtype(value: object) -> torch.dtype | None:
    if value is None or isinstance(value, torch.dtype):
        return value
    if value == "auto":
        return None
    known = _DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else None
    if known is None:
        raise InvalidRequestError(
            f"torch_dtype must be a torch.dtype, as torch.float16, or 'auto', not {value!r}"
        )
    return known


def inside(source: str | os.PathLike[str], subfolder: object) -> str | os.PathLike[str]:
    """``source``, or its subfolder.

    Raises:
        InvalidRequestError: there is no such folder on this machine.
    """
    if subfolder in (None, ""):
        return source
    if not isinstance(subfolder, str):
        raise InvalidRequestError(f"subfolder must be the name of a folder, not {subfolder!r}")
    folder = user_path(source)
    if not folder.is_dir():
        raise InvalidRequestError(
            f"subfolder={subfolder!r} needs a folder on this machine, and '{source}' is none: "
            "download it, and give the folder inside"
        )
    found = folder / subfolder
    if not found.is_dir() or not found.resolve().is_relative_to(folder.resolve()):
        raise InvalidRequestError(f"{folder} has no folder {subfolder!r}")
    return found


def path_like(name: str, value: object) -> str | os.PathLike[str]:
    """``value`` as a name or a path.

    Raises:
        InvalidRequestError: it is neither, or no file system can hold it.
    """
    if isinstance(value, (str, os.PathLike)) and os.fspath(value):
        is_there(user_path(value))
        return value
    raise InvalidRequestError(f"{name} must be a name or a path, not {value!r}")
