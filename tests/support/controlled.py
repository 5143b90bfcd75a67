"""A tiny UNet with controls, each of which works on every image of its batch by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from kdrt.denoise.controls import HINT, ControlComponent
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.scaling import Scaling
from kdrt.sampling import NoiseSchedule
from kdrt_engines import Engine, EngineSpec
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.support.static_engine import StaticEngine
from tests.support.tiny_model import CHANNELS, Recorder, tiny_unet, unet_spec

SCALING = Scaling("epsilon", NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear"))
EDGES, SKETCH = (
    ControlComponent("controlnet-edges", True),
    ControlComponent("t2i-adapter-sketch", False),
)
RESIDUALS = tuple(
    TensorSpec(name, "float32", ("B", CHANNELS, "h", "w"))
    for name in ("down_residual_0", "mid_residual")
)
FEATURES = (TensorSpec("adapter_residual_0", "float32", ("B", CHANNELS, "h", "w")),)
LAYERS = [tensor.name for tensor in (*RESIDUALS, *FEATURES)]


def unet_network(**inputs: Tensor) -> Tensor:
    """Depends on every residual in a way of its own, and on each image of its batch alone."""
    added = [inputs.pop(name).double() * (index + 1) for index, name in enumerate(LAYERS)]
    prediction = tiny_unet(**inputs)
    return (prediction.double() + 0.1 * torch.stack(added).sum(0).sin()).to(prediction.dtype)


def edges_network(**inputs: Tensor) -> tuple[Tensor, ...]:
    told = inputs["encoder_hidden_states"].double().mean((1, 2)) + inputs["timestep"] / 1000
    seen = inputs["sample"].double() + inputs[HINT] + told[:, None, None, None]
    scales = inputs["scales"].double()[:, :, None, None, None]
    return (seen.sin() * scales[:, 0]).float(), (seen.cos() * scales[:, 1]).float()


class Networks:
    """A UNet that takes controls, a ControlNet and a T2I-Adapter; ``unet`` keeps what it is
    told."""

    def __init__(self) -> None:
        spec = unet_spec(family="sd")
        spec = EngineSpec((*spec.inputs, *RESIDUALS, *FEATURES), spec.outputs)
        self.unet = Recorder(unet_network, [tensor.name for tensor in spec.inputs])
        told = [t for t in spec.inputs if t.name in ("sample", "timestep", "encoder_hidden_states")]
        hint = TensorSpec(HINT, "float32", ("B", CHANNELS, "h", "w"))
        edges = EngineSpec((*told, hint, TensorSpec("scales", "float32", ("B", 2))), RESIDUALS)
        self.edges = Recorder(edges_network, [tensor.name for tensor in edges.inputs])
        image = TensorSpec("image", "float32", ("B", 3, "8*h", "8*w"))
        self.engine: Engine = TorchEngine(self.unet, spec)
        self.engines: dict[str, Engine] = {
            EDGES.name: TorchEngine(self.edges, edges),
            SKETCH.name: TorchEngine(torch.nn.Identity(), EngineSpec((image,), FEATURES)),
        }

    def denoising(self) -> Denoising:
        return Denoising(
            self.engine,
            SCALING,
            shallow=lambda: self.engine,
            control=self.engines.__getitem__,
            cuda_graph="off",
            stream=None,
        )


class EmptyNetworks(Networks):
    """The same without arithmetic, for what is around it."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = StaticEngine(self.engine.spec)
        self.engines = {name: StaticEngine(each.spec) for name, each in self.engines.items()}
