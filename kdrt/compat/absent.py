"""Methods of diffusers' pipelines that have no meaning here: they say so, and what there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from kdrt.errors import InvalidRequest


def _refused(reason: str) -> Callable[..., NoReturn]:
    def method(*_: object, **__: object) -> NoReturn:
        """Raises InvalidRequest."""
        raise InvalidRequest(reason)

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


class AbsentMethods:
    """Raise InvalidRequest, all of them."""

    register_modules = _refused(_PARTS)
    register_to_config = _refused(_PARTS)
    register_for_auto_class = _refused(_PARTS)
    from_config = _refused(_CONFIG)
    load_config = _refused(_CONFIG)
    get_config_dict = _refused(_CONFIG)
    extract_init_dict = _refused(_CONFIG)
    save_config = _refused(_CONFIG)
    to_json_string = _refused(_CONFIG)
    to_json_file = _refused(_CONFIG)
    download = _refused(
        "from_pretrained downloads what it needs; to download alone use `hf download`"
    )
    push_to_hub = _refused("upload the folder of save_pretrained with `hf upload`")
    lora_state_dict = _refused(_LORA)
    load_lora_into_unet = _refused(_LORA)
    load_lora_into_text_encoder = _refused(_LORA)
    pack_weights = _refused(_LORA)
    write_lora_layers = _refused("save_lora_weights writes LoRAs")
