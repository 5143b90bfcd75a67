"""As much of ComfyUI as ``integrations/comfyui`` touches, made for these tests.

ComfyUI is an application, not a package, and is not installed beside the tests. What its modules do
here is what they do there, as read in version 0.3.64:

    comfy.model_base        `BaseModel` scales the latents, chooses the timestep, calls
                            ``diffusion_model`` in its dtype with everything else as it came, and
                            reads the prediction; `SDXL` makes ``y`` of the pooled embedding and of
                            six sizes
    comfy.model_sampling    how latents are scaled and predictions read; the nearest timestep
    comfy.model_patcher     a MODEL: weights it does not find are passed over without a word, and
                            patches of layers wait in ``model_options``
    comfy.supported_models  configurations: the format of the latents
    comfy.utils             a progress bar that tells a hook
    comfy.model_management  whether the user has interrupted
    comfy.cli_args          whether previews are wanted
    comfy_api.latest        nodes, their inputs and outputs: each keeps what it was told

`load_nodes` imports the folder as ComfyUI does.
"""

from __future__ import annotations

import copy
import enum
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
_PACKAGE = "comfyui_custom_node"


class InterruptProcessingException(Exception):
    """What ends a workflow when the user presses "Cancel"."""


class ModelType(enum.Enum):
    EPS = 1
    V_PREDICTION = 2


def _column(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1)


class EPS:
    def calculate_input(self, sigma: Tensor, noisy: Tensor) -> Tensor:
        return noisy / (_column(sigma) ** 2 + 1).sqrt()

    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, noisy: Tensor) -> Tensor:
        return noisy - _column(sigma) * prediction


class VPrediction(EPS):
    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, noisy: Tensor) -> Tensor:
        levels = _column(sigma)
        scale = levels**2 + 1
        return noisy / scale - prediction * levels / scale.sqrt()


class X0(EPS):
    def calculate_denoised(self, sigma: Tensor, prediction: Tensor, noisy: Tensor) -> Tensor:
        return prediction


class ModelSamplingDiscrete(nn.Module):
    """The table of noise levels; a schedule of its own until it is told another."""

    sigmas: Tensor
    log_sigmas: Tensor

    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.set_sigmas(torch.linspace(0.03, 14.0, 1000, dtype=torch.float64))

    def set_sigmas(self, sigmas: Tensor) -> None:
        self.register_buffer("sigmas", sigmas.float())
        self.register_buffer("log_sigmas", sigmas.log().float())

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log()[:, None] - self.log_sigmas).abs().argmin(dim=1)


class _Config:
    scale_factor = 1.0

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = unet_config
        self.latent_format = SimpleNamespace(scale_factor=self.scale_factor)


class _SD15(_Config):
    scale_factor = 0.18215


class _SDXL(_Config):
    scale_factor = 0.13025


class BaseModel(nn.Module):
    """Calls ``diffusion_model``, which whoever turned its creation off must set."""

    diffusion_model: Any
    model_sampling: Any

    def __init__(self, config: _Config, model_type: ModelType = ModelType.EPS) -> None:
        super().__init__()
        assert config.unet_config["disable_unet_model_creation"]
        self.latent_format = config.latent_format
        self.model_type = model_type
        self.concat_keys: tuple[str, ...] = ()

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: Any = None,
        **conditions: Any,
    ) -> Tensor:
        """Denoised latents: of ``x [R, C, h, w]`` at the noise levels ``t [R]``."""
        dtype = self.diffusion_model.dtype
        scaled = self.model_sampling.calculate_input(t, x)
        if c_concat is not None:
            scaled = torch.cat([scaled, c_concat], dim=1)
        prediction = self.diffusion_model(
            scaled.to(dtype),
            self.model_sampling.timestep(t).float(),
            context=None if c_crossattn is None else c_crossattn.to(dtype),
            control=control,
            transformer_options=transformer_options or {},
            **{name: value.to(dtype) for name, value in conditions.items()},
        )
        denoised: Tensor = self.model_sampling.calculate_denoised(t, prediction.float(), x)
        return denoised

    def set_inpaint(self) -> None:
        """Offer the mask and the masked image as ``c_concat``."""
        self.concat_keys = ("mask", "masked_image")

    def state_dict_for_saving(self) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = self.diffusion_model.state_dict()
        return weights


def waves(number: float) -> Tensor:
    """A number as 128 cosines and 128 sines, ``[256]``."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
    return torch.cat([(number * frequencies).cos(), (number * frequencies).sin()])


class SDXL(BaseModel):
    sizes: tuple[str, ...] = (
        "height",
        "width",
        "crop_h",
        "crop_w",
        "target_height",
        "target_width",
    )

    def encode_adm(self, pooled_output: Tensor, **sizes: float) -> Tensor:
        """``y``, ``[1, P + n·256]``."""
        embedded = torch.cat([waves(sizes[name]) for name in self.sizes])
        return torch.cat([pooled_output, embedded[None]], dim=1)


class SDXLRefiner(SDXL):
    sizes = ("height", "width", "crop_h", "crop_w", "aesthetic_score")


class ModelPatcher:
    """A MODEL: what nodes hand on, clone and patch."""

    def __init__(
        self,
        model: BaseModel,
        load_device: torch.device,
        offload_device: torch.device,
        size: int = 0,
        weight_inplace_update: bool = False,
    ) -> None:
        self.model = model
        self.load_device, self.offload_device = load_device, offload_device
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.object_patches: dict[str, object] = {}

    def clone(self) -> ModelPatcher:
        other = self.__class__(self.model, self.load_device, self.offload_device)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def set_model_patch(self, patch: Callable[..., Any], name: str) -> None:
        self.model_options["transformer_options"].setdefault("patches", {})[name] = [patch]

    def add_object_patch(self, name: str, obj: object) -> None:
        self.object_patches[name] = obj

    def add_patches(self, patches: Any, strength_patch: float = 1.0) -> list[str]:
        return []

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, Any]:
        return {}


class ProgressBar:
    """Tells a hook of the application's, which these tests find in a subclass."""

    hook: Callable[[int, int, Any], object]

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.hook(value, total or self.total, preview)


class LatentPreviewMethod(enum.Enum):
    NoPreviews = "none"
    Auto = "auto"


class Told:
    """An input, an output, a schema or a result: the arguments it was made with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.args, self.options = args, options


def _type(name: str) -> SimpleNamespace:
    """A type of ComfyUI's, with classes for its inputs and outputs."""
    return SimpleNamespace(
        Input=type(f"{name}Input", (Told,), {}), Output=type(f"{name}Output", (Told,), {})
    )


class ComfyNode:
    """The base of nodes: only class methods are called."""


class ComfyExtension:
    """The base of what `comfy_entrypoint` returns."""


class FakeComfyUI:
    """The nodes, and the parts of ComfyUI that tests look at or set.

    Attributes:
        nodes: the imported folder.
        progress: (value, total, preview) of each call of the progress hook.
        interrupted: whether the user has pressed "Cancel".
        args: the options of ComfyUI's command line.
    """

    nodes: ModuleType

    def __init__(self) -> None:
        self.progress: list[tuple[int, int, Any]] = []
        self.interrupted = False
        self.args = SimpleNamespace(preview_method=LatentPreviewMethod.NoPreviews, preview_size=512)

    def module(self, name: str) -> Any:
        """A module of the folder."""
        return sys.modules[f"{_PACKAGE}.{name}"]

    def check_interrupted(self) -> None:
        if self.interrupted:
            self.interrupted = False
            raise InterruptProcessingException

    def modules(self) -> dict[str, ModuleType]:
        types = {
            name: _type(name)
            for name in ("Boolean", "Combo", "Float", "Image", "Int", "Model", "String")
        }
        hook = staticmethod(lambda *told: self.progress.append(told))
        bar = type("ProgressBar", (ProgressBar,), {"hook": hook})
        io = SimpleNamespace(ComfyNode=ComfyNode, Schema=Told, NodeOutput=Told, **types)
        contents: dict[str, dict[str, Any]] = {
            "comfy": {"__path__": []},
            "comfy.cli_args": {"args": self.args, "LatentPreviewMethod": LatentPreviewMethod},
            "comfy.model_base": {
                "BaseModel": BaseModel,
                "ModelType": ModelType,
                "SDXL": SDXL,
                "SDXLRefiner": SDXLRefiner,
            },
            "comfy.model_management": {
                "throw_exception_if_processing_interrupted": self.check_interrupted
            },
            "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
            "comfy.model_sampling": {
                "EPS": EPS,
                "ModelSamplingDiscrete": ModelSamplingDiscrete,
                "V_PREDICTION": VPrediction,
                "X0": X0,
            },
            "comfy.supported_models": {"SD15": _SD15, "SDXL": _SDXL, "SDXLRefiner": _SDXL},
            "comfy.utils": {"ProgressBar": bar},
            "comfy_api": {"__path__": []},
            "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": io},
        }
        modules = {name: ModuleType(name) for name in contents}
        for name, content in contents.items():
            vars(modules[name]).update(content)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(modules[parent], child, modules[name])
        return modules


@contextmanager
def load_nodes() -> Iterator[FakeComfyUI]:
    """Import the folder as ComfyUI does: from its path, under a name of its own."""
    comfyui = FakeComfyUI()
    with pytest.MonkeyPatch.context() as patch:
        for name, module in comfyui.modules().items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(_PACKAGE, FOLDER / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        comfyui.nodes = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, _PACKAGE, comfyui.nodes)
        spec.loader.exec_module(comfyui.nodes)
        yield comfyui
    for name in [each for each in sys.modules if each.startswith(f"{_PACKAGE}.")]:
        del sys.modules[name]
