"""Opening, sharing and saving: from_pretrained, from_single_file, from_pipe, save_pretrained."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import Any, Self

import torch

from kdrt.backends.choice import torch_program
from kdrt.bundle import MANIFEST, Bundle
from kdrt.common.atomic_io import new_folder
from kdrt.common.paths import user_path
from kdrt.compat.arguments import check_arguments, dtypes, hub_options, inside, path_like
from kdrt.compat.device_arguments import device_type
from kdrt.compat.sources import Wanted, bundle_folder, downloaded_file, facts_of, find_bundle
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.loading import load
from kdrt.pipeline.pipeline import Pipeline

Source = str | os.PathLike[str]

_LINK = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/"
    r"(?P<repo>[^/\s]+/[^/\s]+)/(?:blob|resolve)/(?P<revision>[^/\s]+)/(?P<file>[^?\s]+)"
)


class LoadingMixin:
    """For a class whose constructor takes a :class:`kdrt.Pipeline`."""

    pipeline: Pipeline
    exact: bool
    exported_from: str | None
    _engine: str | None
    _name_or_path: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Source,
        *,
        engine: str | None = None,
        exact: bool = False,
        torch_dtype: torch.dtype | str | Mapping[str, Any] | None = None,
        threads: int | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        **options: Any,
    ) -> Self:
        """Open a model. On first use it is exported into ``$KDRT_HOME``.

        Args:
            pretrained_model_name_or_path: a bundle's folder or name, a diffusers folder, or a hub
                id. An earlier export is used again; a folder whose content has changed is
                exported again.
            engine: the engine that runs it; None takes the best one here, and PyTorch for
                ``exact``.
            exact: sample with k-diffusion's own functions. With the ``torch`` engine in float32,
                the latents are then those of the original pipeline, bit by bit.
            torch_dtype: dtype of the networks; None and ``"auto"`` are float32, or whatever a
                bundle has. A dictionary may give ``vae`` another dtype.
            threads: CPU threads; None is one per core.
            revision: branch, tag or commit of a hub id.
            use_safetensors: False accepts pickled weights.
            options: diffusers' other arguments, see :data:`kdrt.compat.arguments.ARGUMENTS`. These
                have an effect: ``scheduler`` (a scheduler object of diffusers),
                ``force_zeros_for_empty_prompt``, ``subfolder``, ``safety_checker=None``, and the
                arguments of the download.

        Raises:
            InvalidRequestError: an option is unknown or refused, or the model is of the other
                family.
            BundleError: the bundle is damaged, or the source cannot be found.
            ExportError: the source cannot be exported.
            EngineUnavailableError: the engine is not on this machine, or not in the bundle.
        """
        check_arguments("from_pretrained", options)
        source = path_like("pretrained_model_name_or_path", pretrained_model_name_or_path)
        if not isinstance(revision, str | None):
            raise InvalidRequestError(f"revision must be a string, not {revision!r}")
        dtype, vae_dtype = dtypes(torch_dtype)
        wanted = Wanted(
            dtype=dtype,
            vae_dtype=vae_dtype,
            engine="torch" if exact and engine is None else engine,
            revision=revision,
            allow_pickle=use_safetensors is False,
            prediction_type=options.get("prediction_type"),
            hub=hub_options(options),
        )
        place = inside(source, options.get("subfolder"))
        return cls._open(place, wanted, engine, exact, threads, options)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: Source,
        *,
        engine: str | None = None,
        exact: bool = False,
        torch_dtype: torch.dtype | str | Mapping[str, Any] | None = None,
        threads: int | None = None,
        config: Source | None = None,
        use_safetensors: bool | None = None,
        **options: Any,
    ) -> Self:
        """Open a checkpoint file. Other arguments and errors are those of :meth:`from_pretrained`.

        Args:
            pretrained_model_link_or_path: a ``.safetensors`` file, or a ``.ckpt`` file if
                ``use_safetensors=False`` allows pickled weights; on this machine, or a link to a
                file on the hub.
            config: a diffusers folder that describes the file, if the file alone does not say what
                it is.
            options: as for :meth:`from_pretrained`, and ``prediction_type`` (``"epsilon"`` or
                ``"v_prediction"``).
        """
        check_arguments("from_single_file", options)
        source = path_like("pretrained_model_link_or_path", pretrained_model_link_or_path)
        link = _LINK.fullmatch(str(source))
        hub = hub_options(options)
        if link is not None:
            path = downloaded_file(link["repo"], link["file"], link["revision"], dict(hub))
        else:
            path = user_path(source)
        if not path.is_file():
            raise InvalidRequestError(
                f"there is no file {source}; from_single_file reads a checkpoint on this machine, "
                "or https://huggingface.co/OWNER/NAME/blob/REVISION/FILE"
            )
        folder = None if config is None else user_path(path_like("config", config))
        if folder is not None and not folder.is_dir():
            raise InvalidRequestError(
                f"config must be a diffusers folder on this machine, and {folder} is none; its "
                "JSON files and tokenizers are enough"
            )
        dtype, vae_dtype = dtypes(torch_dtype)
        wanted = Wanted(
            dtype=dtype,
            vae_dtype=vae_dtype,
            engine="torch" if exact and engine is None else engine,
            allow_pickle=use_safetensors is False,
            config=folder,
            prediction_type=options.get("prediction_type"),
        )
        return cls._open(path, wanted, engine, exact, threads, options)

    @classmethod
    def _open(
        cls,
        source: Source,
        wanted: Wanted,
        engine: str | None,
        exact: bool,
        threads: int | None,
        options: Mapping[str, Any],
    ) -> Self:
        bundle = find_bundle(source, wanted)
        is_export = bundle_folder(source) is None
        facts: dict[str, Any] = {}
        if options.get("scheduler") is not None:
            facts["scheduler"] = facts_of(options["scheduler"])
        if options.get("force_zeros_for_empty_prompt") is not None:
            facts["zeros_for_empty_negative"] = options["force_zeros_for_empty_prompt"]
        if facts:
            bundle = Bundle(bundle.path, bundle.manifest.model_copy(update=facts))
        if exact and engine is None and torch_program(bundle, "unet").is_file():
            engine = "torch"
        place = options.get("device_map")
        if engine is None and isinstance(place, (str, torch.device)):
            engine = _engine_on(place)
        pipeline = load(bundle, engine=engine, threads=threads)
        if "safety_checker" in options or options.get("load_safety_checker") is False:
            pipeline.safety_checker = None
        made = cls(pipeline, engine=engine, exact=exact)  # type: ignore[call-arg]
        made._name_or_path = os.fspath(source)
        if is_export:
            made.exported_from = os.fspath(source)
        return made

    @property
    def name_or_path(self) -> str:
        """What the model was opened from."""
        return self._name_or_path or self.pipeline.bundle.manifest.source

    @classmethod
    def from_pipe(cls, pipeline: object, **options: Any) -> Self:
        """Another pipeline on the same networks. Adapters and switches are shared; the sampler and
        the scheduler are not.

        Args:
            pipeline: a pipeline of these classes, or a :class:`kdrt.Pipeline`.
            options: ``safety_checker=None``; ``torch_dtype``, which must be that of the networks.

        Raises:
            InvalidRequestError: ``pipeline`` is of another kind, or an option is refused.
        """
        dtype, _ = dtypes(options.pop("torch_dtype", None))
        check_arguments("from_pipe", options)
        if isinstance(pipeline, Pipeline):
            made = cls(pipeline)  # type: ignore[call-arg]
        elif isinstance(pipeline, LoadingMixin):
            made = cls(  # type: ignore[call-arg]
                pipeline.pipeline, engine=pipeline._engine, exact=pipeline.exact
            )
            made._share(pipeline)
        else:
            raise InvalidRequestError(
                f"from_pipe takes a pipeline of kdrt, not {type(pipeline).__name__}: save that one "
                "with save_pretrained, and open the folder with from_pretrained"
            )
        if dtype is not None:
            made.to(dtype)
        if "safety_checker" in options:
            made.pipeline.safety_checker = None
        return made

    def _share(self, other: Any) -> None:
        """Take over what diffusers keeps in the networks."""

    def to(self, *arguments: Any, **options: Any) -> Self:
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: Source,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **_: Any,
    ) -> None:
        """Save the model as a bundle, which :meth:`from_pretrained` can open. Adapters are not
        saved with it; use ``save_lora_weights`` for them.

        Args:
            save_directory: a new folder, or an empty one.
            safe_serialization: has no effect, because a bundle has only one form.
            variant: likewise.
            max_shard_size: likewise.
            push_to_hub: must be False.

        Raises:
            InvalidRequestError: the folder is not empty, or ``push_to_hub`` is set.
            OutputError: the folder cannot be written.
        """
        if push_to_hub:
            raise InvalidRequestError(
                "push_to_hub cannot be done here; upload the folder with `hf upload`"
            )
        target = user_path(path_like("save_directory", save_directory))
        if target.is_symlink() or target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise InvalidRequestError(
                f"{target} exists already; give a new folder, or an empty one"
            )
        bundle = self.pipeline.bundle
        programs = [
            torch_program(bundle, name).relative_to(bundle.path).as_posix()
            for name in bundle.manifest.components
            if torch_program(bundle, name).is_file()
        ]
        with new_folder(target) as partial:
            for name in dict.fromkeys((*bundle.manifest.files, *programs)):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.file(name), partial / name)
            text = bundle.manifest.model_dump_json(indent=2) + "\n"
            (partial / MANIFEST).write_text(text, encoding="utf-8")


def _engine_on(place: str | torch.device) -> str | None:
    """The engine for the device of a ``device_map``; None for a placement strategy such as
    ``"auto"``, which concerns diffusers' modules only."""
    if isinstance(place, str) and place in ("auto", "balanced", "balanced_low_0", "sequential"):
        return None
    return "onnxruntime" if device_type(place) == "cpu" else "onnxruntime-cuda"
