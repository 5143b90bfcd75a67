"""The bundle: one folder that holds all a generation needs.

    manifest.json     what the bundle is, described by :class:`Manifest`
    onnx/             one folder a component: ``weights.bin``, and the graphs that read it:
                      ``model.onnx`` for everybody, ``onnxruntime*.onnx`` for ONNX Runtime
    configs/          the configurations of the model's networks
    tokenizer*/       ``tokenizer.json`` and ``token_embedding.safetensors`` of a text encoder
    engines/          everything derived for one machine; may be deleted at any time

Bundles appear by a rename, so a killed export leaves the old bundle or none. A bundle may come from
a stranger. Opening one bounds all that the manifest says, checks every file it names against its
SHA-256, and finds whether the networks are those described; see SECURITY.md. What was checked is
noted on the user's side (:mod:`kdrt.home`), which spares unchanged files the second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from kdrt.bundle_checks import check_bundle, damaged, unique
from kdrt.checks import printable, shown
from kdrt.errors import BundleError, InvalidRequest, OutputError
from kdrt.home import home
from kdrt.outputs import check_folder, clear_leftovers, new_folder, other_files
from kdrt_engines.regular_files import read_regular
from kdrt_engines.spec import EngineSpec, TensorSpec

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Bundle",
    "Manifest",
    "bundle_names",
    "bundle_path",
    "home",
    "new_bundle",
    "open_bundle",
    "sha256",
    "write_manifest",
]

Precision = Literal["fp32", "fp16", "bf16"]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ENGINES = "engines"
_MANIFEST_BYTES = 16 * 2**20
_NAME_BYTES = 200

_DERIVED = re.compile(
    r"engines/(checked\.json"
    r"|[a-z-]+/\.lock"
    r"|torch/[^/]+\.pt2"
    r"|onnxruntime/[^/]+/(model\.onnx|weights\.bin|invariants\.(onnx|bin)|record\.json)"
    r"|onnxruntime-tensorrt/.+"
    r"|tensorrt(-rtx)?/[^/]+/(engine\.plan|record\.json|kernels-sm\d+\.cache|\.cache\.[^/]+)"
    r"|[a-z-]+/\.unfinished-.+)"
)
"""What kdrt writes below ``engines/``, or did once."""


def _inside(path: str) -> str:
    parts = path.split("/")
    if {"", ".", ".."} & {*parts} or re.search(r"[\\:]", path) or not path.isprintable():
        raise ValueError("is no path inside the bundle")
    return path


Text = Annotated[str, BeforeValidator(printable), Field(max_length=4096)]
Inside = Annotated[str, Field(max_length=1024), AfterValidator(_inside)]
GraphFile = Annotated[Inside, Field(pattern=r"\.onnx$")]
"""ONNX Runtime goes by the end of the name: there are other formats, which kdrt cannot check."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ComponentName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,256}$")]
Dtype = Literal["float32", "float16", "bfloat16", "int64", "int32"]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Dim = Size | Annotated[str, Field(pattern=r"^([1-9]\d{0,5}\*)?[A-Za-z]\w{0,31}$")]
TokenId = Annotated[int, Field(ge=0, le=100_000_000)]
Bounded = Annotated[float, Field(ge=-1e6, le=1e6)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TensorInfo(_Strict):
    """One input or output of a component; shapes are numbers, symbols, or ``"8*h"``."""

    name: TensorName
    dtype: Dtype
    shape: Annotated[tuple[Dim, ...], Field(max_length=8)]

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)


GraphName = Literal["standard", "fused", "cpu", "plain"]
"""The graphs of a component: in ONNX's own operators, and those of :class:`OrtGraphs`."""


class Verification(_Strict):
    """One comparison with eager PyTorch in float32: ``‖out − ref‖ / ‖ref‖`` of the worst output,
    the graph that was exported, and the engine that ran it."""

    graph: GraphName = "standard"
    dims: dict[TensorName, Size]
    relative_error: Annotated[float, Field(ge=0)]
    engine: Literal["onnxruntime", "torch"]


class OrtGraphs(_Strict):
    """A network in ONNX Runtime's own operators: ``fused`` is the whole of it, and so is ``cpu`` in
    the order that suits a CPU; ``plain`` is for a CPU too, computes the same while the ``neutral``
    inputs hold these values, and does without what they turn off. It is for sizes that can be
    divided by the ``multiples``, of those symbols. Both take besides the component's inputs what
    ``invariants`` computes from those that rarely change."""

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
        """The whole network for a CPU."""
        return self.cpu or self.fused


class Component(_Strict):
    """One network: its files, its inputs and outputs, and how well it was verified. ``onnx`` is in
    standard operators."""

    onnx: GraphFile
    onnxruntime: OrtGraphs | None = None
    inputs: Annotated[tuple[TensorInfo, ...], Field(max_length=64)]
    outputs: Annotated[tuple[TensorInfo, ...], Field(max_length=64)]
    parameters: Annotated[int, Field(ge=0, le=10**13)]
    verification: Annotated[tuple[Verification, ...], Field(max_length=1000)] = ()

    def spec(self) -> EngineSpec:
        return EngineSpec(
            tuple(t.spec() for t in self.inputs), tuple(t.spec() for t in self.outputs)
        )


_Sigma = Annotated[float, Field(ge=1e-6, le=1e6)]
_Beta = Annotated[float, Field(gt=0, lt=1)]

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class EdmFacts(_Strict):
    """The EDM formulation (Karras et al. 2022) of a model trained on a continuous range of σ.

    Attributes:
        sigma_min, sigma_max: the range.
        sigma_data: standard deviation of the latents that the model was trained on.
        sigma_schedule: the model's own spacing of noise levels.
        rho: its exponent, for ``karras``.
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


class SchedulerFacts(_Strict):
    """The resolved noise schedule of the checkpoint. ``explicit`` names the keys its scheduler
    file really held; the rest are the defaults of diffusers' LMSDiscreteScheduler, as the removed
    pipelines applied them. With ``edm`` the betas are of no meaning."""

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


class TextEncoderFacts(_Strict):
    """How prompts become embeddings with one text encoder.

    ``layer`` is the hidden state used without clip_skip, counted from the end (-1 the last).
    ``normalized`` says that the component applies its final layer norm to every hidden state.
    ``pooled_token`` is the id at whose first occurrence the encoder pools (at the first token where
    it does not occur); None is the highest id of the prompt, as CLIP's first configurations had it.
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


class LatentFacts(_Strict):
    """``scale`` pixels of the picture for one latent; default sizes in pixels; ``vae_tile`` the
    side of the pictures the VAE was trained at, in latents (None: the model's own default).

    ``preview`` makes a small RGB picture in [-1, 1] of latents: a row of factors for each channel,
    then the constant.
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


class ImageEncoderFacts(_Strict):
    """How a picture becomes the input of the image encoder: the side of the square in pixels, and
    the statistics its colours are normalised with."""

    size: Annotated[int, Field(ge=1, le=8192)]
    mean: tuple[Bounded, Bounded, Bounded]
    std: tuple[_Positive, _Positive, _Positive]


class IpAdapterFacts(_Strict):
    """The IP-Adapter of the variant ``ip-adapter``: ``tokens`` it makes of the ``embedding``
    numbers that stand for a picture. Without an image encoder those must be given."""

    file: Text
    sha256: Sha256
    tokens: Annotated[int, Field(ge=1, le=65_536)]
    embedding: Annotated[int, Field(ge=1, le=65_536)]
    image_encoder: ImageEncoderFacts | None = None


class BakedLora(_Strict):
    """A LoRA that is part of the weights: its file's name and SHA-256, and its scale."""

    file: Text
    scale: float
    sha256: Sha256


class Baked(_Strict):
    """What the export put into the graphs; ``vae`` and ``preview_decoder`` are the sources of
    networks that are not the model's own. ``weights`` says how those of the UNets and text encoders
    are stored: in the precision they are computed in, or as int8 with a scale for each channel."""

    fused_qkv: bool
    freeu: bool
    loras: tuple[BakedLora, ...] = ()
    vae: Text | None = None
    preview_decoder: Text | None = None
    weights: Literal["float", "int8"] = "float"


class Manifest(_Strict):
    """All that the runtime knows of a model. Unknown keys are an error, so an older kdrt never
    half-understands a newer bundle."""

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
    """Other ways to compute: for each, the component that plays the part of another."""
    ip_adapter: IpAdapterFacts | None = None
    tools: dict[Text, Text]
    files: Annotated[dict[Inside, Sha256], Field(max_length=4096)] = Field(default_factory=dict)
    """SHA-256 of every file, by path inside the bundle; ``engines/`` is not listed."""

    @property
    def export_command(self) -> str:
        """How the command begins that exports the model again; the source may be any text."""
        return f"kdrt export {shlex.quote(self.source)}"

    @model_validator(mode="after")
    def _variants_exist(self) -> Manifest:
        for name, parts in self.variants.items():
            if not {*parts, *parts.values()} <= self.components.keys():
                raise ValueError(f"the variant '{name}' is of components that there are not")
        return self


class Bundle:
    """An opened bundle: a folder, wherever the process may go, and its validated manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path.absolute()
        self.manifest = manifest
        self._opened: _Identity = None

    def file(self, relative: str) -> Path:
        """A file of the bundle.

        Raises:
            BundleError: see :meth:`check_unchanged`.
        """
        self.check_unchanged()
        return self.path / relative

    def place(self, relative: str) -> Path:
        """Where to write a file or folder inside of the bundle.

        Raises:
            OutputError: a link leads elsewhere.
        """
        place = self.path / relative
        if os.path.realpath(place) != str(self.path.resolve() / relative):
            raise OutputError(
                f"{place} is a link or behind one; kdrt writes what it makes of a bundle only into "
                "the bundle itself: delete the link"
            )
        return place

    def check_unchanged(self) -> None:
        """Raises BundleError: the folder is not what was opened, so that what is read from it now
        does not belong to what was read then."""
        if self._opened is not None and self._opened != _identity(self.path, self.manifest):
            raise BundleError(
                f"{self.path} has changed since it was opened: it was exported again, moved, "
                "written to or deleted; load it again"
            )

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read and validate a bundle.

        Raises:
            BundleError: there is none, it is damaged, or its schema is unknown.
        """
        manifest = _read_manifest(path)
        opened = _identity(path, manifest)
        check_bundle(path, manifest)
        bundle = cls(path, manifest)
        bundle._opened = opened
        return bundle


_Identity = tuple[tuple[int, ...], ...] | None


def _identity(path: Path, manifest: Manifest) -> _Identity:
    """What tells a bundle from what is there later; None where something is missing."""
    try:
        stats = [(path / name).stat() for name in (MANIFEST, *manifest.files)]
    except OSError:
        return None
    return tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def config_file(network: str) -> str:
    """Where a bundle keeps the configuration of a network of the model, for those who ask for it:
    nothing that is computed depends on it."""
    return f"configs/{network}.json"


def bundle_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder a name or path means: an existing folder, else the bundle of that name in
    :func:`home`. What can be neither comes back as it is."""
    path = Path(name_or_path)
    # No such user, a null byte, a name too long or of another encoding: there is no such folder.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = path.expanduser()
        if path.is_dir():
            return path.absolute()
        return home().absolute() / "bundles" / folder_name(os.fspath(name_or_path))
    return path


def folder_name(name: str) -> str:
    """The name of the folder of a bundle with this name.

    Raises:
        InvalidRequest: a bundle cannot have this name.
    """
    folder = name.replace("/", "--")
    if (
        {"", ".", ".."} & {*name.split("/")}
        or name[0] in "-.~"
        or "\\" in name
        or not name.isprintable()
        or len(folder.encode(errors="replace")) > _NAME_BYTES
    ):
        raise InvalidRequest(
            f"a bundle cannot be called {name[:_NAME_BYTES]!r}: a name is letters, digits and "
            f"marks, at most {_NAME_BYTES} bytes, and begins with none of '-', '.' and '~'; choose "
            "one with --name"
        )
    return folder


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by folder or by name, as ``kdrt.load`` does.

    Raises:
        BundleError: see :meth:`Bundle.open`.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise BundleError(f"a bundle's path or name must be a string, not {shown(name_or_path)}")
    path = bundle_path(name_or_path)
    clear_leftovers(path.parent)  # a killed export may have moved the bundle away
    if not _is_folder(path):
        known = ", ".join(bundle_names()) or "none yet"
        raise BundleError(
            f"there is no bundle '{_shown(name_or_path)}' (bundles in {home() / 'bundles'}: "
            f"{known}); make it with `kdrt export {_shown(name_or_path)}`"
        )
    return Bundle.open(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _shown(name_or_path: str | os.PathLike[str]) -> object:
    return printable(os.fspath(name_or_path)[:_NAME_BYTES])


def bundle_names() -> list[str]:
    """The names of the bundles in :func:`home`."""
    folder = home() / "bundles"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file() and p.name[0] != ".")


def check_new_bundle(path: Path) -> Path:
    """Where a new bundle at ``path`` will be; for the time before the work of making one.

    Raises:
        OutputError: see :func:`kdrt.outputs.check_folder`.
    """
    return check_folder(path, _foreign)


@contextlib.contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes the bundle ``path`` when the block ends without an
    exception, and vanishes otherwise. ``manifest.json`` must have been written by then.

    Raises:
        OutputError: ``path`` holds something else, or :func:`kdrt.outputs.new_folder` raises it.
    """
    with new_folder(path, _foreign) as partial:
        yield partial


def _foreign(folder: Path) -> str | None:
    """That a folder is no bundle, or holds more than one; None if all in it can be replaced."""
    if not any(folder.iterdir()):
        return None
    try:
        manifest = _read_json(folder / MANIFEST)
    except BundleError:
        return "exists and is not a bundle"
    # Not the whole schema: a bundle that is damaged, or of another version, is exported again.
    needed = {name for name, field in Manifest.model_fields.items() if field.is_required()}
    files = manifest.get("files")
    if (
        not manifest.keys() >= needed
        or not isinstance(files, dict)
        or not all(re.fullmatch(r"[0-9a-f]{64}", str(digest)) for digest in files.values())
    ):
        return "exists and is not a bundle"
    return other_files(
        folder, lambda path: path == MANIFEST or path in files or bool(_DERIVED.fullmatch(path))
    )


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Add the SHA-256 of every file in ``folder`` and write ``manifest.json``."""
    files = {
        file.relative_to(folder).as_posix(): sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name != MANIFEST
        and file.relative_to(folder).parts[0] != "engines"
    }
    manifest = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object in which no key is given twice."""
    try:
        content = read_regular(file, _MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(
            f"{file.parent} is not a bundle: it has no readable {file.name} ({error.strerror})"
        ) from error
    try:
        found = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=_no_number)
    except RecursionError:
        raise damaged(file, "it is nested too deeply") from None
    except ValueError as error:
        raise damaged(file, str(error)) from error
    if not isinstance(found, dict):
        raise damaged(file, "it holds no JSON object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    found = _read_json(file)
    version = found.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version}, this kdrt reads {SCHEMA_VERSION}; "
            "export the model again with this version"
        )
    try:
        # As JSON, in which a tuple is an array; strictly, so that "1" is no number.
        return Manifest.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(file, f"{place}: {first['msg']}") from error
