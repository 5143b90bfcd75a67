"""The folder that OpenVINO GenAI reads, as optimum-intel writes it, from a model's own modules."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdrt.bundle import SchedulerFacts
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.networks import resident, source_of
from kdrt_bench.networks_kept import kept
from kdrt_engines.openvino.quiet import ov
from kdrt_export.sources import Source

if TYPE_CHECKING:
    from kdrt_bench.peers.base import Peer

TIMESTEP_SPACING = "trailing"
"""What gives the noise levels of kdrt's schedule of that name."""

_SIDE, _BATCH = 16, 2
"""Latents to trace with; every size but that of the tokens stays dynamic."""


def genai_folder(peer: Peer) -> Path:
    """The model as OpenVINO GenAI's text-to-image pipeline reads it, in float32."""

    def make(folder: Path) -> None:
        import openvino_tokenizers

        source = source_of(peer.model)
        sdxl = source.family == "sdxl"
        parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
        for index in range(source.text_encoders):
            suffix = "_2" if index else ""
            parts[f"text_encoder{suffix}"] = (
                "CLIPTextModelWithProjection" if index else "CLIPTextModel"
            )
            _write_text_encoder(folder, source, index)
            tokenizer = openvino_tokenizers.convert_tokenizer(
                source.tokenizer(index), with_detokenizer=False
            )
            ov.save_model(tokenizer, str(_part(folder, f"tokenizer{suffix}", "tokenizer")))
        _write_unet(folder, source)
        _write_vae(folder, source)
        scheduler = {
            **source.scheduler,
            "_class_name": "EulerDiscreteScheduler",
            "timestep_spacing": TIMESTEP_SPACING,
        }
        _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        index_file: dict[str, object] = {
            "_class_name": "StableDiffusionXLPipeline" if sdxl else "StableDiffusionPipeline",
            **{part: ["", kind] for part, kind in parts.items()},
        }
        if sdxl:
            index_file["force_zeros_for_empty_prompt"] = source.zeros_for_empty_negative
        _write_json(folder / "model_index.json", index_file)

    return kept(peer.model.cache / "openvino-genai", make)


def check_scheduler(facts: SchedulerFacts) -> None:
    """See that its EulerDiscreteScheduler can sample a model.

    Raises:
        PeerUnavailableError: it cannot.
    """
    if facts.edm is not None:
        raise PeerUnavailableError(
            "OpenVINO GenAI has no scheduler for models of continuous noise levels; leave "
            "'openvino-genai' out of --vs"
        )


def check_steps(steps: int, trained: int) -> None:
    """See that it samples on the same noise levels as the others: it rounds timesteps.

    Raises:
        PeerUnavailableError: it does not.
    """
    if trained % steps:
        raise PeerUnavailableError(
            f"OpenVINO GenAI rounds timesteps, so {steps} steps of {trained} are not those of the "
            "others; choose --steps that divide them, or leave 'openvino-genai' out of --vs"
        )


class TextEncoder(nn.Module):
    """Tokens to what each pipeline reads: the last states of Stable Diffusion's, every state of
    SDXL's, at their places among the outputs."""

    def __init__(self, model: Any, *, every_state: bool) -> None:
        super().__init__()
        self.model, self.every_state = model, every_state

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        results = self.model(input_ids, output_hidden_states=self.every_state, return_dict=True)
        second = getattr(results, "text_embeds", None)
        if second is not None:
            first = (second, results.last_hidden_state)
        else:
            first = (results.last_hidden_state, results.pooler_output)
        return (*first, *results.hidden_states) if self.every_state else first


class UNet(nn.Module):
    """A UNet with SDXL's further inputs by place."""

    def __init__(self, unet: Any, *, sdxl: bool) -> None:
        super().__init__()
        self.unet, self.sdxl = unet, sdxl

    def forward(self, sample: Tensor, timestep: Tensor, states: Tensor, *added: Tensor) -> Tensor:
        more = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if self.sdxl else None
        result: Tensor = self.unet(
            sample, timestep, states, added_cond_kwargs=more, return_dict=False
        )[0]
        return result


class VaeDecoder(nn.Module):
    """Latents, scaled back, to an image; the scaling itself is the pipeline's."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return image


def _write_text_encoder(folder: Path, source: Source, index: int) -> None:
    model = source.text_encoder(index)
    tokens = model.config.max_position_embeddings
    network = TextEncoder(model, every_state=source.family == "sdxl")
    example = torch.zeros(_BATCH, tokens, dtype=torch.int64)
    part = f"text_encoder{'_2' if index else ''}"
    _write_network(folder, part, network, (example,), ("input_ids",))
    facts = ("max_position_embeddings", "num_hidden_layers")
    _write_json(
        folder / part / "config.json", {name: getattr(model.config, name) for name in facts}
    )


def _write_unet(folder: Path, source: Source) -> None:
    unet = source.unet()
    sdxl = source.family == "sdxl"
    config = unet.config
    tokens = source.tokenizer(0).model_max_length
    inputs = [
        torch.zeros(_BATCH, config.in_channels, _SIDE, _SIDE),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(_BATCH, tokens, _width(config.cross_attention_dim)),
    ]
    names = ["sample", "timestep", "encoder_hidden_states"]
    if sdxl:
        sizes = 6
        pooled = config.projection_class_embeddings_input_dim
        pooled -= sizes * config.addition_time_embed_dim
        inputs += [torch.zeros(_BATCH, pooled), torch.zeros(_BATCH, sizes)]
        names += ["text_embeds", "time_ids"]
    _write_network(folder, "unet", UNet(unet, sdxl=sdxl), tuple(inputs), names)
    facts = {name: config[name] for name in ("in_channels", "sample_size", "time_cond_proj_dim")}
    # It takes a key with null for a number.
    _write_json(
        folder / "unet" / "config.json",
        {name: value for name, value in facts.items() if value is not None},
    )


def _write_vae(folder: Path, source: Source) -> None:
    vae = source.vae()
    config = vae.config
    example = torch.zeros(1, config.latent_channels, _SIDE, _SIDE)
    _write_network(folder, "vae_decoder", VaeDecoder(vae), (example,), ("latent_sample",))
    facts = ("in_channels", "latent_channels", "out_channels", "scaling_factor")
    _write_json(
        folder / "vae_decoder" / "config.json",
        {
            **{name: config[name] for name in facts},
            "block_out_channels": list(config.block_out_channels),
        },
    )


def _write_network(
    folder: Path, part: str, network: nn.Module, inputs: tuple[Tensor, ...], names: Sequence[str]
) -> None:
    resident(network.float().eval().requires_grad_(False))
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of every size it sees as a Python number: here they are meant.
        warnings.simplefilter("ignore")
        model = ov.convert_model(network, example_input=inputs)
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    ov.save_model(model, str(_part(folder, part, "model")), compress_to_fp16=False)


def _part(folder: Path, part: str, kind: str) -> Path:
    (folder / part).mkdir(exist_ok=True)
    return folder / part / f"openvino_{kind}.xml"


def _width(cross_attention_dim: int | Sequence[int]) -> int:
    """Of what a UNet attends to: one number for all of its blocks."""
    if isinstance(cross_attention_dim, int):
        return cross_attention_dim
    return cross_attention_dim[0]


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
