"""What people read of a diffusers network, where the network itself is an engine."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NoReturn, Self

import torch

from kdrt.compat.absent import AbsentAttributeError, SaysWhatThereIs
from kdrt.compat.config import Config
from kdrt.compat.device_arguments import asked_for
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Engine
from kdrt_engines.dtypes import DTYPES

_OF_THE_PIPELINE = {
    **dict.fromkeys(("load_attn_procs", "load_lora_adapter"), "load_lora_weights"),
    **dict.fromkeys(("save_attn_procs", "save_lora_adapter"), "save_lora_weights"),
    **{
        name: name
        for name in (
            *("fuse_qkv_projections", "unfuse_qkv_projections", "enable_freeu", "disable_freeu"),
            *("set_adapters", "delete_adapters", "fuse_lora", "unfuse_lora"),
            *("enable_lora", "disable_lora"),
        )
    },
}
"""Methods of diffusers' networks, and the pipeline's methods that do the same."""


class NetworkView(SaysWhatThereIs):
    """What can be asked of a network that runs as an engine.

    A view looks its engine up when it is asked for something, so making one loads nothing.

    Attributes:
        name: what diffusers calls the network.

    Args:
        pipeline: that the network is part of.
        name: see above.
        component: the network's name in the bundle.
    """

    instead = (
        "it stands for a network that runs as an engine, which has no modules, parameters or "
        "hooks; what is known of it is in config, dtype and device"
    )

    def __init__(self, pipeline: Pipeline, name: str, component: str) -> None:
        self.pipeline = pipeline
        self.name = name
        self._component = component

    @property
    def engine(self) -> Engine:
        """The engine that runs the network at present."""
        return self.pipeline.engines[self._component]

    @cached_property
    def config(self) -> Config:
        """The network's configuration."""
        return self._config()

    def _config(self) -> Config:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return DTYPES[self.engine.spec.inputs[0].dtype].torch

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.engine.device

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Itself, where that is what is asked for; a memory format has no effect.

        Raises:
            InvalidRequestError: it runs in another dtype or elsewhere.
        """
        device, dtype = asked_for(arguments, options)
        if dtype not in (None, self.dtype) or device not in (None, self.device.type):
            raise InvalidRequestError(
                f"the {self.name} runs as an engine in {self.dtype} on {self.device}: its dtype is "
                "fixed at export, and the whole pipeline moves with pipe.to(device)"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_PIPELINE:
            raise AbsentAttributeError(
                f"{name} is not here but a method of the pipeline: use "
                f"pipe.{_OF_THE_PIPELINE[name]}(…)"
            )
        return super().__getattr__(name)

    def cpu(self) -> Self:
        """``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device = "cuda") -> Self:
        """``to("cuda")``."""
        return self.to(device)

    def half(self) -> Self:
        """``to(torch.float16)``."""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """``to(torch.bfloat16)``."""
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        """``to(torch.float32)``."""
        return self.to(torch.float32)

    def eval(self) -> Self:
        """Itself: engines know nothing else."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Itself, for inference.

        Raises:
            InvalidRequestError: training is asked for, which engines cannot do.
        """
        return self.requires_grad_(mode)

    def requires_grad_(self, requires_grad: bool = False) -> Self:
        """Itself, without gradients.

        Raises:
            InvalidRequestError: gradients are asked for, which engines do not have.
        """
        if requires_grad:
            raise InvalidRequestError(
                "engines are for inference: they have no gradients, and cannot be trained"
            )
        return self

    def _no_effect(self, *_: Any, **__: Any) -> None:
        """No effect: engines have their own attention and memory."""

    enable_attention_slicing = disable_attention_slicing = set_attention_slice = _no_effect
    enable_xformers_memory_efficient_attention = _no_effect
    disable_xformers_memory_efficient_attention = _no_effect
    set_use_memory_efficient_attention_xformers = _no_effect
    enable_forward_chunking = disable_forward_chunking = _no_effect
    set_default_attn_processor = enable_gradient_checkpointing = compile = _no_effect

    def set_attn_processor(self, processor: object) -> None:
        """No effect for processors that only compute attention in another way.

        Raises:
            InvalidRequestError: the processor may compute something else.
        """
        each = processor.values() if isinstance(processor, Mapping) else [processor]
        for name in (type(one).__name__ for one in each):
            if name not in _PLAIN_PROCESSORS:
                raise InvalidRequestError(
                    f"attention is part of the exported {self.name}, and {name} cannot replace it"
                )

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: engines do not give a network back."""
        raise InvalidRequestError(
            f"the {self.name} is an engine, and cannot be saved by itself: copy the model it was "
            "exported from, or save the whole bundle with pipe.save_pretrained(folder)"
        )


_PLAIN_PROCESSORS = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
}
