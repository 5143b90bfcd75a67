"""What a bundle says of itself: the schema of ``manifest.json``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdrt.bundle.bounded import (
    Bounded,
    ComponentName,
    Dim,
    Dtype,
    GraphFile,
    Inside,
    Sha256,
    Size,
    Strict,
    TensorName,
    Text,
    TokenId,
)
from kdrt.bundle.components import UPSCALER_COMPONENT
from kdrt.bundle.ip_adapter_facts import AdapterName, AttentionName, IpAdapterFacts, Level
from kdrt.bundle.quantization_facts import QuantizationFacts
from kdrt_engines.spec import EngineSpec, TensorSpec

Precision = Literal["fp32", "fp16", "bf16"]


SCHEMA_VERSION = 1


class TensorInfo(Strict):
    """One input or output of a component; shapes are numbers, symbols, ``"8*h"`` or
    ``"ceil(h/4)"``."""

    name: TensorName
    dtype: Dtype
    shape: Annotated[tuple[Dim, ...], Field(max_length=8)]

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)


GraphName = Literal["standard", "fused", "cpu", "plain"]
"""The graphs of a component: in ONNX's own operators, and those of :class:`OrtGraphs`."""


class Verification(Strict):
    """One comparison with eager PyTorch in float32: the relative error ``‖out − ref‖ / ‖ref‖`` of
    the worst output, the exported graph, and the engine that ran it."""

    graph: GraphName = "standard"
    dims: dict[TensorName, Size]
    relative_error: Annotated[float, Field(ge=0)]
    engine: Literal["onnxruntime", "torch"]


class OrtGraphs(Strict):
    """A network in ONNX Runtime's own operators. ``fused`` is the whole network, and so is ``cpu``,
    in the order that suits a CPU. ``plain``, also for a CPU, leaves out what the ``neutral`` inputs
    turn off; it computes the same if they have these values in every row. It is for sizes that are
    multiples of ``multiples``, by symbol. In addition to the component's inputs, these graphs take
    what ``invariants`` computes from the inputs that rarely change."""

    fused: GraphFile
    cpu: GraphFile | None = None
    plain: GraphFile | None = None
    invariants: GraphFile | None = None
    neutral: dict[TensorName, Annotated[tuple[Bounded, ...], Field(max_length=64)]] = Field(
        default_factory=dict
    )
    multiples: dict[TensorName, Size] = Field(default_factory=dict)

    @property
    def whole_on_cpu(self) -> str:
        """The graph of the whole network for a CPU."""
        return self.cpu or self.fused


class Component(Strict):
    """One network: its files, its inputs and outputs, and the results of its verification. ``onnx``
    is the graph in standard operators. ``float32`` lists the modules and operators of a network in
    half precision that compute in float32."""

    onnx: GraphFile
    onnxruntime: OrtGraphs | None = None
    inputs: Annotated[tuple[TensorInfo, ...], Field(max_length=64)]
    outputs: Annotated[tuple[TensorInfo, ...], Field(max_length=64)]
    parameters: Annotated[int, Field(ge=0, le=10**13)]
    verification: Annotated[tuple[Verification, ...], Field(max_length=1000)] = ()
    float32: Annotated[tuple[Text, ...], Field(max_length=65_536)] = ()

    @property
    def graphs(self) -> tuple[str, ...]:
        """Every file of the component that is a graph."""
        graphs = self.onnxruntime
        if graphs is None:
            return (self.onnx,)
        others = (graphs.fused, graphs.cpu, graphs.plain, graphs.invariants)
        return (self.onnx, *(graph for graph in others if graph is not None))

    def spec(self) -> EngineSpec:
        return EngineSpec(
            tuple(t.spec() for t in self.inputs), tuple(t.spec() for t in self.outputs)
        )


_Sigma = Annotated[float, Field(ge=1e-6, le=1e6)]


_Beta = Annotated[float, Field(gt=0, lt=1)]


PredictionType = Literal["epsilon", "v_prediction", "sample"]


class EdmFacts(Strict):
    """The EDM formulation (Karras et al. 2022) of a model trained on a continuous range of σ.

    Attributes:
        sigma_min, sigma_max: the range.
        sigma_data: standard deviation of the latents that the model was trained on.
        sigma_schedule: the model's own spacing of noise levels.
        rho: the exponent of that spacing, for ``karras``.
    """

    sigma_min: _Sigma
    sigma_max: _Sigma
    sigma_data: _Sigma
    sigma_schedule: Literal["karras", "exponential"]
    rho: Annotated[float, Field(ge=0.01, le=100)] = 7.0

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.sigma_min < self.sigma_max:
            raise ValueError("sigma_min must be below sigma_max")
        return self


class SchedulerFacts(Strict):
    """The resolved noise schedule of the checkpoint. ``explicit`` names the keys that its scheduler
    file really held; the others have the defaults of diffusers' LMSDiscreteScheduler, as in the
    removed pipelines. With ``edm``, the betas have no meaning."""

    beta_start: _Beta
    beta_end: _Beta
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    trained_betas: tuple[_Beta, ...] | None = None
    num_train_timesteps: int = Field(ge=2, le=100_000)
    prediction_type: PredictionType
    timestep_spacing: Literal["linspace", "leading", "trailing"]
    steps_offset: int = Field(ge=-100_000, le=100_000)
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    rescale_betas_zero_snr: bool = False
    edm: EdmFacts | None = None
    explicit: Annotated[
        tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=200)
    ] = ()

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} numbers for "
                f"{self.num_train_timesteps} num_train_timesteps"
            )
        return self


class TextEncoderFacts(Strict):
    """How one text encoder turns prompts into embeddings.

    ``layer`` is the hidden state used without clip_skip, counted from the end (-1 is the last).
    ``normalized`` says whether the component applies its final layer norm to every hidden state.
    ``pooled_token`` is the id at whose first occurrence the encoder pools; if it does not occur,
    the encoder pools at the first token. None means the highest id of the prompt, as in CLIP's
    first configurations.
    """

    component: ComponentName
    tokenizer: Inside
    token_embedding: Inside
    max_length: Annotated[int, Field(ge=3, le=8192)]
    hidden_size: Annotated[int, Field(ge=1, le=65_536)]
    layers: Annotated[int, Field(ge=1, le=1000)]
    bos: TokenId
    eos: TokenId
    pad: TokenId
    pooled_token: TokenId | None
    layer: Annotated[int, Field(ge=-1001, le=-1)]
    normalized: bool


class LatentFacts(Strict):
    """``scale`` is the number of pixels per latent along each side. Default sizes are in pixels.
    ``vae_tile`` is the side, in latents, of the images that the VAE was trained on (None: the
    model's own default). ``preview`` makes a small RGB image in [-1, 1] from latents: it has a row
    of factors for each channel, then the constant.
    """

    channels: Annotated[int, Field(ge=1, le=256)]
    scale: Annotated[int, Field(ge=1, le=256)]
    default_height: Annotated[int, Field(ge=1, le=8192)]
    default_width: Annotated[int, Field(ge=1, le=8192)]
    vae_tile: Annotated[int, Field(ge=1, le=8192)] | None = None
    preview: tuple[tuple[Bounded, Bounded, Bounded], ...] | None = None

    @model_validator(mode="after")
    def _preview_fits(self) -> LatentFacts:
        if self.preview is not None and len(self.preview) != self.channels + 1:
            raise ValueError("a preview has a row for each channel and one more")
        return self


MOST_CONTROLS = 16
"""The most ControlNets and T2I-Adapters that a bundle can hold."""


ControlName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


class ControlFacts(Strict):
    """A ControlNet or a T2I-Adapter of the variant ``control``.

    Attributes:
        kind: which of the two it is.
        source: where it came from, as the user named it.
        sha256: of its file, if it came from a single file.
        channels: the channels of the image that it takes.
        global_pool: whether it is a ControlNet whose residuals are means over the image. Such a
            ControlNet is always used in guess mode, without the factors that guess mode has for
            others.
    """

    kind: Literal["controlnet", "t2i-adapter"]
    source: Text
    sha256: Sha256 | None = None
    channels: Annotated[int, Field(ge=1, le=64)]
    global_pool: bool = False


MOST_UPSCALERS = 16
"""The most upscalers that a bundle can hold."""


class UpscalerFacts(Strict):
    """A network that enlarges images.

    Attributes:
        scale: the factor by which the height and the width grow.
        architecture: the kind of network.
        source: the file it came from, as the user named it.
        sha256: of that file.
        tile: side, in pixels, of the squares into which larger images are cut.
        margin: pixels at each edge of a square that are discarded because they lack context; over
            as many further pixels, neighbouring squares are blended.
    """

    scale: Annotated[int, Field(ge=1, le=16)]
    architecture: Text
    source: Text
    sha256: Sha256
    tile: Annotated[int, Field(ge=16, le=4096)]
    margin: Annotated[int, Field(ge=0, le=1024)]

    @model_validator(mode="after")
    def _tiles_move_on(self) -> Self:
        if self.tile <= 4 * self.margin:
            raise ValueError("a tile must be wider than four margins")
        return self


class BakedLora(Strict):
    """A LoRA that is merged into the weights: the name and SHA-256 of its file, and its scale."""

    file: Text
    scale: float
    sha256: Sha256


class Baked(Strict):
    """What the export put into the graphs. ``vae`` and ``preview_decoder`` are the sources of
    networks that are not the model's own. ``weights`` says how those of the UNets and text encoders
    are stored: in the precision of the computation, or as int8 with a scale for each channel."""

    fused_qkv: bool
    freeu: bool
    loras: tuple[BakedLora, ...] = ()
    vae: Text | None = None
    preview_decoder: Text | None = None
    weights: Literal["float", "int8"] = "float"


class Manifest(Strict):
    """Everything that the runtime knows about a model. Unknown keys are an error, so an older kdrt
    never misreads a newer bundle."""

    schema_version: int = SCHEMA_VERSION
    family: Literal["sd", "sdxl"]
    name: Text
    source: Text
    revision: Text | None = None
    precision: Precision
    components: Annotated[dict[ComponentName, Component], Field(max_length=64)]
    scheduler: SchedulerFacts
    text_encoders: Annotated[tuple[TextEncoderFacts, ...], Field(min_length=1, max_length=4)]
    latents: LatentFacts
    zeros_for_empty_negative: bool = False
    default_guidance_scale: Bounded
    baked: Baked
    variants: dict[ComponentName, dict[ComponentName, ComponentName]] = Field(default_factory=dict)
    """Other ways to compute: for each variant, the component that replaces each component."""
    ip_adapters: Annotated[dict[AdapterName, IpAdapterFacts], Field(max_length=8)] = Field(
        default_factory=dict
    )
    """The IP-Adapters of the variant ``ip-adapter``, by name, in the order of the UNet's inputs."""
    ip_attentions: Annotated[dict[AttentionName, Level], Field(max_length=256)] = Field(
        default_factory=dict
    )
    """The transformers that attend to images, in the order of the columns of ``ip_scale``, and how
    many times their latents were halved. Bundles of kdrt 0.2 do not have this; there, one number is
    the scale of all transformers."""
    pag_layers: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    """The self-attentions that the variant ``pag`` can perturb, by diffusers' names."""
    controls: Annotated[dict[ControlName, ControlFacts], Field(max_length=MOST_CONTROLS)] = Field(
        default_factory=dict
    )
    """ControlNets and T2I-Adapters by name; their components are named after them."""
    upscalers: Annotated[dict[ControlName, UpscalerFacts], Field(max_length=MOST_UPSCALERS)] = (
        Field(default_factory=dict)
    )
    """Networks that enlarge images, by name; their components are named after them."""
    quantization: QuantizationFacts | None = None
    """How its UNets were quantised by ``kdrt quantize``, and what they lost."""
    tools: dict[Text, Text]
    files: Annotated[dict[Inside, Sha256], Field(max_length=4096)] = Field(default_factory=dict)
    """SHA-256 of every file, by path inside the bundle; ``engines/`` is not listed."""

    @property
    def export_command(self) -> str:
        """The start of the command that exports the model again; the source may be any text."""
        return f"kdrt export {shlex.quote(self.source)}"

    @property
    def again(self) -> str:
        """How to repair a damaged bundle, as part of a sentence."""
        if self.quantization is None:
            return "export it again"
        made_from = shlex.quote(self.quantization.made_from)
        return (
            f"quantise it again with `kdrt quantize {made_from} --format "
            f"{self.quantization.format}`"
        )

    @property
    def image_prompt_components(self) -> frozenset[str]:
        """The components that turn the images for IP-Adapters into tokens."""
        encoders = (facts.image_encoder for facts in self.ip_adapters.values())
        return frozenset(
            [facts.projection for facts in self.ip_adapters.values()]
            + [encoder.component for encoder in encoders if encoder is not None]
        )

    @model_validator(mode="after")
    def _image_prompts_exist(self) -> Manifest:
        missing = self.image_prompt_components - self.components.keys()
        if missing:
            raise ValueError(f"an IP-Adapter has no component '{min(missing)}'")
        return self

    @model_validator(mode="after")
    def _upscalers_exist(self) -> Manifest:
        for name in self.upscalers:
            if UPSCALER_COMPONENT + name not in self.components:
                raise ValueError(f"the upscaler '{name}' has no component")
        return self

    @model_validator(mode="after")
    def _variants_exist(self) -> Manifest:
        for name, parts in self.variants.items():
            if not {*parts, *parts.values()} <= self.components.keys():
                raise ValueError(f"the variant '{name}' is of components that there are not")
        return self


def of_today(content: Mapping[str, object]) -> Mapping[str, object]:
    """A manifest as it is written today: bundles made before there could be several IP-Adapters
    hold one, without a name."""
    if "ip_adapter" not in content:
        return content
    facts = content["ip_adapter"]
    rest = {key: value for key, value in content.items() if key != "ip_adapter"}
    return rest if facts is None else {**rest, "ip_adapters": {"ip-adapter": facts}}
