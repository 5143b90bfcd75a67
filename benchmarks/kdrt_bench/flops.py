"""How many floating-point operations a workload asks for, counted on shapes alone."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdrt.bundle import Bundle
from kdrt_bench.inputs import example_inputs, read_by_peers
from kdrt_bench.jobs import Forward, ImageWorkload, Model, Workload
from kdrt_bench.networks import plain_network, source_of
from kdrt_bench.runners import guidance_of, latent_shape


class FlopCounter:
    """Counts those of a model's untouched networks, a multiplication and an addition as two.

    Args:
        model: whose networks.
        bundle: its bundle, for the facts.
    """

    def __init__(self, model: Model, bundle: Bundle) -> None:
        self._model, self._bundle = model, bundle
        self._networks: dict[str, torch.nn.Module] = {}

    def of(self, workload: Workload) -> float:
        """In all, for one run."""
        match workload:
            case Forward():
                return self._call(workload.component, workload.dims)
            case ImageWorkload():
                return self._generation(workload)
            case _:
                return self._generation(workload.generation)

    def _generation(self, workload: ImageWorkload) -> float:
        manifest = self._bundle.manifest
        encoders = manifest.text_encoders
        _, height, width = latent_shape(self._bundle, workload)
        sizes = {"h": height, "w": width}
        length = encoders[0].max_length
        halves = 2 if guidance_of(self._bundle, workload) > 1 else 1
        # A prompt is encoded once however many images it makes, the empty negative one too
        # unless the model takes zeros in its place.
        texts = 1 if manifest.zeros_for_empty_negative else halves
        step = self._call("unet", {"B": halves * workload.batch, "L": length, **sizes})
        decode = self._call("vae_decoder", {"B": 1, **sizes}) * workload.batch
        encode = sum(self._call(e.component, {"B": 1, "L": e.max_length}) for e in encoders)
        return step * workload.steps + decode + encode * texts

    def _call(self, component: str, dims: dict[str, int]) -> float:
        spec = self._bundle.manifest.components[component].spec()
        names = read_by_peers(spec)
        if component not in self._networks:
            network = plain_network(source_of(self._model), component, names)
            self._networks[component] = network.to("meta")
        inputs = example_inputs(spec, dims, seed=0)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self._networks[component](*(inputs[name].to("meta") for name in names))
        return float(counter.get_total_flops())
