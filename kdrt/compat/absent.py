"""Attributes and methods of diffusers' objects that these lack: each says so, and what to use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

from kdrt.errors import InvalidRequestError


class AbsentAttributeError(InvalidRequestError, AttributeError):
    """There is no such attribute. ``hasattr`` and ``getattr`` with a default work as usual."""


class UnknownArgumentError(InvalidRequestError, TypeError):
    """There is no such argument."""


class SaysWhatThereIs:
    """Reads attributes from ``config`` as diffusers does, and raises one clear sentence for those
    that are absent.

    Attributes:
        instead: what to use, the end of that sentence.
    """

    instead: ClassVar[str]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("config", "pipeline"):
            config = getattr(self, "config", None)
            if isinstance(config, Mapping) and name in config:
                return config[name]
        raise AbsentAttributeError(f"{type(self).__name__} has no {name!r} here; {self.instead}")


_ARGUMENTS = {
    "callback_on_step_end": "callback=f is called as f(step, timestep, latents) after every step",
    "callback_on_step_end_tensor_inputs": "callback=f is given the latents",
    "cross_attention_kwargs": "how strong LoRAs are is said with set_adapters",
    "seed": "give generator=torch.Generator().manual_seed(seed)",
    **dict.fromkeys(
        (
            *("image", "mask_image", "strength", "denoising_start", "denoising_end"),
            *("sigmas", "timesteps", "guidance_rescale"),
        ),
        "the native interface has it, pipe.pipeline(…, {name}=…)",
    ),
}


def refuse_arguments(given: Mapping[str, object]) -> None:
    """Raise UnknownArgumentError for the first argument of a call that the originals did not have.

    An argument of diffusers' other pipelines may be given where it changes nothing: as None, or as
    a dictionary without entries.
    """
    for name, value in given.items():
        if name not in _ARGUMENTS:
            raise UnknownArgumentError(
                f"a call has no argument {name!r}; its arguments are those of the removed pipeline"
            )
        if value is not None and not (isinstance(value, Mapping) and not value):
            instead = _ARGUMENTS[name].format(name=name)
            raise UnknownArgumentError(f"a call has no argument {name!r}: {instead}")


def refused(reason: str) -> Callable[..., NoReturn]:
    """A method that raises InvalidRequestError for this reason."""

    def method(*_: object, **__: object) -> NoReturn:
        """Raises InvalidRequestError."""
        raise InvalidRequestError(reason)

    return staticmethod(method)


_PARTS = (
    "the parts of this pipeline are engines of an exported bundle, and cannot be put together anew:"
    " save the pipeline you want with diffusers' save_pretrained, and open the folder with "
    "from_pretrained"
)
_CONFIG = (
    "what a bundle was exported with is in pipe.config; it is not written or read by itself: use "
    "save_pretrained and from_pretrained"
)
_LORA = "LoRAs go through load_lora_weights, which reads, names and places their layers by itself"


class AbsentMethods(SaysWhatThereIs):
    """Methods of diffusers' pipelines that raise InvalidRequestError with what to do instead."""

    instead = (
        "it has what the removed pipeline had, and to() for devices; what kdrt does besides is in "
        "pipe.pipeline"
    )

    register_modules = refused(_PARTS)
    register_to_config = refused(_PARTS)
    register_for_auto_class = refused(_PARTS)
    from_ckpt = refused("checkpoint files are opened with from_single_file")
    from_config = refused(_CONFIG)
    load_config = refused(_CONFIG)
    get_config_dict = refused(_CONFIG)
    extract_init_dict = refused(_CONFIG)
    save_config = refused(_CONFIG)
    to_json_string = refused(_CONFIG)
    to_json_file = refused(_CONFIG)
    download = refused(
        "from_pretrained downloads what it needs; to download alone use `hf download`"
    )
    push_to_hub = refused("upload the folder of save_pretrained with `hf upload`")
    lora_state_dict = refused(_LORA)
    load_lora_into_unet = refused(_LORA)
    load_lora_into_text_encoder = refused(_LORA)
    pack_weights = refused(_LORA)
    write_lora_layers = refused("save_lora_weights writes LoRAs")
