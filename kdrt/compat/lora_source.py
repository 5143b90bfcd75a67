"""Where the LoRA of ``load_lora_weights`` comes from: tensors, a file, a folder or the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdrt.adapters.lora_file import LoraFile, lora_from_tensors, read_lora
from kdrt.adapters.tensor_file import is_there
from kdrt.common.hub import hub_failure
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""The name diffusers gives the file of a LoRA."""

LoraSource = str | os.PathLike[str] | Mapping[str, Tensor]


def open_lora(source: LoraSource, options: Mapping[str, Any]) -> LoraFile:
    """Read a LoRA.

    Args:
        source: tensors by name, a file, a folder, or a hub id.
        options: the other arguments of ``load_lora_weights``.

    Raises:
        InvalidRequestError: there is no such LoRA, or an option is unknown.
    """
    if isinstance(source, Mapping):
        return lora_from_tensors(source)
    known = ("weight_name", "subfolder", "revision", "cache_dir", "token", "local_files_only")
    ignored = (
        *("use_safetensors", "low_cpu_mem_usage", "force_download", "proxies", "torch_dtype"),
        *("dtype", "user_agent"),
    )
    unknown = [name for name in options if name not in known + ignored]
    if unknown:
        raise InvalidRequestError(
            f"load_lora_weights does not take {unknown[0]!r}; it takes {', '.join(known)}"
        )
    for name in ("weight_name", "subfolder", "revision"):
        if not isinstance(options.get(name), str | None):
            raise InvalidRequestError(f"{name} must be a string, not {options[name]!r}")
    allow_pickle = options.get("use_safetensors") is False
    path = user_path(source)
    if not is_there(path):
        path = _download(str(source), options)
    if path.is_dir():
        path = _in_folder(path / (options.get("subfolder") or ""), options.get("weight_name"))
    return read_lora(path, allow_pickle=allow_pickle)


def _in_folder(folder: Path, name: str | None) -> Path:
    if name is not None:
        return folder / name
    if (folder / WEIGHT_NAME).is_file():
        return folder / WEIGHT_NAME
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() == ".safetensors")
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in files) or "no .safetensors file"
    raise InvalidRequestError(f"which LoRA in {folder} is meant? Say weight_name; it holds {found}")


def _download(repo: str, options: Mapping[str, Any]) -> Path:
    name = options.get("weight_name")
    repo, _, revision = repo.partition("@")
    if repo.count("/") != 1 or repo.lower().endswith(".safetensors"):
        raise InvalidRequestError(f"there is no LoRA file or folder {repo}")
    if revision:
        options = {"revision": revision, **options}
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InvalidRequestError(
            f"there is no folder {repo}, and fetching it from the hub needs "
            "`pip install huggingface-hub`"
        ) from error
    subfolder = options.get("subfolder")
    pattern = f"{subfolder}/{name or '*.safetensors'}" if subfolder else name or "*.safetensors"
    kept = {
        k: options[k]
        for k in ("revision", "cache_dir", "token", "local_files_only")
        if k in options
    }
    try:
        return Path(snapshot_download(repo, allow_patterns=[pattern], **kept))
    except Exception as error:  # of the hub's many kinds
        raise InvalidRequestError(hub_failure(error, repo, options.get("revision"))) from error
