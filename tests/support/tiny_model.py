"""Tiny models behind real engines: enough structure to see what the runtime feeds them.

Every network works on each image of its batch by itself and element by element, so that two
batches with an image in common agree on it bit by bit. ``Recorder`` keeps what went in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from kdrt.bundle import (
    Baked,
    Bundle,
    Component,
    Dtype,
    EdmFacts,
    LatentFacts,
    Manifest,
    PredictionType,
    SchedulerFacts,
    TensorInfo,
    TextEncoderFacts,
)
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import EngineSpec
from kdrt_engines.torch_eager import TorchEngine

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 12
LAYERS = 3
SCALE = 8
CHANNELS = 4
WIDTHS = (6, 10)
POOLED = 5
GUIDANCE_WIDTH = 7

Shape = tuple[int | str, ...]
FREEU: Shape = ("B", 4)
FREEU_OF_BATCH: Shape = (4,)
"""What bundles had before every image had strengths of its own."""

Family = Literal["sd", "sdxl"]
TensorRow = tuple[str, Dtype, Shape]
"""Name, dtype and shape of an input or output."""


class Recorder(nn.Module):
    """Runs ``network`` on inputs by name, and keeps a copy of them all in ``calls``."""

    def __init__(self, network: Callable[..., Any], names: list[str]) -> None:
        super().__init__()
        self.network = network
        self.names = names
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        named = {name: tensor.clone() for name, tensor in zip(self.names, inputs, strict=True)}
        self.calls.append(named)
        return self.network(**named)


def tiny_unet(sample: Tensor, timestep: Tensor, **rest: Tensor) -> Tensor:
    """A prediction that depends on every input, in the dtype of ``sample``."""
    # Double precision keeps the order of a sum from showing: see the module's docstring.
    told = rest["encoder_hidden_states"].double().mean((1, 2)) + timestep.double() / 1000
    for name, weight in (("text_embeds", 0.3), ("time_ids", 0.001), ("timestep_cond", 0.2)):
        if name in rest:
            told = told + weight * rest[name].double().mean(1)
    if "freeu" in rest:
        told = told + rest["freeu"].double().prod(-1) - 1
    if "pag_rows" in rest:
        told = told + 0.7 * rest["pag_rows"].double()
    return (sample.double() * 0.4 + told.sin()[:, None, None, None]).to(sample.dtype)


def tiny_deep_unet(sample: Tensor, timestep: Tensor, **rest: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a deep feature, from which and the sample the prediction follows."""
    deep = tiny_unet(sample, timestep, **rest)
    return tiny_shallow_unet(sample, timestep, deep_feature=deep), deep


def tiny_shallow_unet(sample: Tensor, timestep: Tensor, **rest: Tensor) -> Tensor:
    own = sample.double() * 0.2 + (timestep.double() / 500).cos()[:, None, None, None]
    return (rest["deep_feature"].double() + own).to(sample.dtype)


def tiny_text_encoder(inputs_embeds: Tensor, eos_index: Tensor) -> tuple[Tensor, Tensor]:
    hidden = torch.stack([inputs_embeds * (n + 1) + 0.1 * n for n in range(LAYERS + 1)], dim=1)
    rows = torch.arange(len(inputs_embeds))
    return hidden, hidden[rows, -1, eos_index][:, :POOLED]


def tiny_vae_decoder(latents: Tensor) -> Tensor:
    pixels = latents[:, :3].tanh()
    return pixels.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)


@dataclass
class TinyModel:
    """A pipeline on tiny networks, and their recorders."""

    pipeline: Pipeline
    unet: Recorder
    text_encoders: list[Recorder]
    vae_decoder: Recorder
    shallow: Recorder | None = None
    manifest: Manifest = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = self.pipeline.bundle.manifest


def tiny_model(
    folder: Path,
    family: Family = "sdxl",
    *,
    prediction_type: PredictionType = "epsilon",
    edm: EdmFacts | None = None,
    dtype: Dtype = "float32",
    freeu: Shape | None = FREEU,
    distilled: bool = False,
    zeros_for_empty_negative: bool = True,
    deep: bool = False,
    perturbed: bool = False,
) -> TinyModel:
    """Write tokenizers and embeddings into ``folder``, and make a pipeline around them; ``freeu``
    is the shape of that input, None for a UNet without it, ``deep`` with a shallow UNet, and
    ``perturbed`` with a UNet for perturbed attention."""
    widths = WIDTHS if family == "sdxl" else WIDTHS[:1]
    facts = tuple(_text_encoder(folder, i, width, family) for i, width in enumerate(widths))
    components = {
        "unet": _unet_component(sum(widths), family, dtype, freeu, distilled, perturbed),
        "vae_decoder": _component(
            [("latents", dtype, ("B", CHANNELS, "h", "w"))],
            [("image", dtype, ("B", 3, f"{SCALE}*h", f"{SCALE}*w"))],
        ),
    }
    if deep:
        feature = TensorInfo(name="deep_feature", dtype=dtype, shape=("B", CHANNELS, "h", "w"))
        whole = components["unet"]
        unused = ("encoder_hidden_states", "freeu")
        taken = [tensor for tensor in whole.inputs if tensor.name not in unused]
        components["unet_shallow"] = whole.model_copy(update={"inputs": (*taken, feature)})
        components["unet"] = whole.model_copy(update={"outputs": (*whole.outputs, feature)})
    for each in facts:
        components[each.component] = _component(
            [
                ("inputs_embeds", dtype, ("B", "L", each.hidden_size)),
                ("eos_index", "int64", ("B",)),
            ],
            [
                ("hidden_states", dtype, ("B", LAYERS + 1, "L", each.hidden_size)),
                ("pooled", dtype, ("B", POOLED)),
            ],
        )
    manifest = Manifest(
        family=family,
        name="tiny",
        source="tests",
        precision="fp32",
        components=components,
        scheduler=SchedulerFacts(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            num_train_timesteps=1000,
            prediction_type=prediction_type,
            timestep_spacing="leading",
            steps_offset=1,
            edm=edm,
        ),
        text_encoders=facts,
        latents=LatentFacts(channels=CHANNELS, scale=SCALE, default_height=64, default_width=48),
        zeros_for_empty_negative=family == "sdxl" and zeros_for_empty_negative,
        default_guidance_scale=5.0,
        baked=Baked(fused_qkv=True, freeu=freeu is not None),
        tools={},
    )
    networks = {
        "unet": tiny_deep_unet if deep else tiny_unet,
        "unet_shallow": tiny_shallow_unet,
        "vae_decoder": tiny_vae_decoder,
    }
    recorders = {
        name: Recorder(networks.get(name, tiny_text_encoder), [t.name for t in component.inputs])
        for name, component in components.items()
    }
    engines = {
        name: TorchEngine(recorder, components[name].spec()) for name, recorder in recorders.items()
    }
    return TinyModel(
        Pipeline(Bundle(folder, manifest), engines),
        recorders["unet"],
        [recorders[each.component] for each in facts],
        recorders["vae_decoder"],
        recorders.get("unet_shallow"),
    )


def unet_spec(
    dtype: Dtype = "float32",
    *,
    family: Family = "sdxl",
    distilled: bool = False,
    perturbed: bool = False,
) -> EngineSpec:
    """The inputs and outputs of a tiny UNet, with ``perturbed`` those of perturbed attention."""
    width = sum(WIDTHS if family == "sdxl" else WIDTHS[:1])
    return _unet_component(width, family, dtype, FREEU, distilled, perturbed).spec()


def _unet_component(
    width: int,
    family: Family,
    dtype: Dtype,
    freeu: Shape | None,
    distilled: bool,
    perturbed: bool = False,
) -> Component:
    inputs: list[TensorRow] = [
        ("sample", dtype, ("B", CHANNELS, "h", "w")),
        ("timestep", "float32", ("B",)),
        ("encoder_hidden_states", dtype, ("B", "L", width)),
    ]
    if family == "sdxl":
        inputs += [("text_embeds", dtype, ("B", POOLED)), ("time_ids", "float32", ("B", 6))]
    if distilled:
        inputs += [("timestep_cond", dtype, ("B", GUIDANCE_WIDTH))]
    if freeu is not None:
        inputs += [("freeu", "float32", freeu)]
    if perturbed:
        inputs += [("pag_rows", "float32", ("B",))]
    return _component(inputs, [("noise_pred", dtype, ("B", CHANNELS, "h", "w"))])


def _component(
    inputs: list[TensorRow],
    outputs: list[TensorRow],
) -> Component:
    return Component(
        onnx="onnx/none/model.onnx",
        inputs=tuple(TensorInfo(name=n, dtype=d, shape=s) for n, d, s in inputs),
        outputs=tuple(TensorInfo(name=n, dtype=d, shape=s) for n, d, s in outputs),
        parameters=0,
    )


def _text_encoder(folder: Path, index: int, width: int, family: Family) -> TextEncoderFacts:
    suffix = "" if index == 0 else f"_{index + 1}"
    tokenizer = clip_like_tokenizer()
    ids = tokenizer.get_vocab()
    (folder / f"tokenizer{suffix}").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / f"tokenizer{suffix}" / "tokenizer.json"))
    generator = torch.Generator().manual_seed(index)
    table = torch.randn(tokenizer.get_vocab_size(), width, generator=generator)
    embedding = f"tokenizer{suffix}/token_embedding.safetensors"
    save_file({"weight": table}, folder / embedding)
    return TextEncoderFacts(
        component=f"text_encoder{suffix}",
        tokenizer=f"tokenizer{suffix}",
        token_embedding=embedding,
        max_length=MAX_LENGTH,
        hidden_size=width,
        layers=LAYERS,
        bos=ids[BOS],
        eos=ids[EOS],
        pooled_token=ids[EOS],
        # SDXL's second tokenizer pads with an ordinary token.
        pad=ids["!</w>" if index else EOS],
        layer=-2 if family == "sdxl" else -1,
        normalized=family == "sd",
    )


def clip_like_tokenizer() -> Tokenizer:
    """A byte-pair tokenizer built like CLIP's, in which a few words are tokens."""
    text = "a small red circle on a blue background , a large green square ! and 2 yellow stars ."
    vocabulary, merges = byte_pairs(text.split())
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=EOS))
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def byte_pairs(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and the merges that make each of these words one token.

    A trained one would differ from run to run: the trainer breaks ties by the order of a hash.
    """
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in dict.fromkeys(words)]
    ends = dict.fromkeys(pieces[-1] for pieces in split)
    tokens = [BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *ends]
    merges: list[tuple[str, str]] = []
    for pieces in split:
        # What earlier words merge is merged first, here as when tokenizing.
        for pair in merges:
            for i in reversed(range(len(pieces) - 1)):
                if (*pieces[i : i + 2],) == pair:
                    pieces[i : i + 2] = ["".join(pair)]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            tokens.append(pieces[0])
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges
