"""The bundle: one folder that holds all a generation needs.

    manifest.json     what the bundle is, described by :class:`Manifest`
    onnx/             one folder a component: ``weights.bin``, and the graphs that read it:
                      ``model.onnx`` for everybody, ``onnxruntime*.onnx`` for ONNX Runtime
    tokenizer*/       ``tokenizer.json`` and ``token_embedding.safetensors`` of a text encoder
    engines/          everything derived for one machine; may be deleted at any time

Bundles appear by a rename, so a killed export leaves the old bundle or none. Opening one checks
every file against the manifest's SHA-256; a record in ``engines/`` spares unchanged files the
second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdrt.errors import BundleError, OutputError
from kdrt.outputs import new_folder
from kdrt_engines.spec import EngineSpec, TensorSpec

Precision = Literal["fp32", "fp16", "bf16"]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_CHECKED = "engines/checked.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Strict):
    """One input or output of a component; shapes are numbers, symbols, or ``"8*h"``."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)


GraphName = Literal["standard", "fused", "cpu", "plain"]
"""The graphs of a component: in ONNX's own operators, and those of :class:`OrtGraphs`."""


class Verification(_Strict):
    """One comparison with eager PyTorch in float32: ``‖out − ref‖ / ‖ref‖`` of the worst output,
    the graph that was exported, and the engine that ran it."""

    graph: GraphName = "standard"
    dims: dict[str, int]
    relative_error: float
    engine: Literal["onnxruntime", "torch"]


class OrtGraphs(_Strict):
    """A network in ONNX Runtime's own operators: ``fused`` is the whole of it, and so is ``cpu`` in
    the order that suits a CPU; ``plain`` is for a CPU too, computes the same while the ``neutral``
    inputs hold these values, and does without what they turn off. It is for sizes that can be
    divided by the ``multiples``, of those symbols. Both take besides the component's inputs what
    ``invariants`` computes from those that rarely change."""

    fused: str
    cpu: str | None = None
    plain: str | None = None
    invariants: str | None = None
    neutral: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    multiples: dict[str, int] = Field(default_factory=dict)

    @property
    def whole_on_cpu(self) -> str:
        """The whole network for a CPU."""
        return self.cpu or self.fused


class Component(_Strict):
    """One network: its files, its inputs and outputs, and how well it was verified. ``onnx`` is in
    standard operators."""

    onnx: str
    onnxruntime: OrtGraphs | None = None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: int
    verification: tuple[Verification, ...] = ()

    def spec(self) -> EngineSpec:
        return EngineSpec(
            tuple(t.spec() for t in self.inputs), tuple(t.spec() for t in self.outputs)
        )


class SchedulerFacts(_Strict):
    """The resolved noise schedule of the checkpoint. ``explicit`` names the keys its scheduler
    file really held; the rest are the defaults of diffusers' LMSDiscreteScheduler, as the removed
    pipelines applied them."""

    beta_start: float
    beta_end: float
    beta_schedule: str
    trained_betas: tuple[float, ...] | None = None
    num_train_timesteps: int
    prediction_type: Literal["epsilon", "v_prediction"]
    timestep_spacing: Literal["linspace", "leading", "trailing"]
    steps_offset: int
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    rescale_betas_zero_snr: bool = False
    explicit: tuple[str, ...] = ()


class TextEncoderFacts(_Strict):
    """How prompts become embeddings with one text encoder.

    ``layer`` is the hidden state used without clip_skip, counted from the end (-1 the last).
    ``normalized`` says that the component applies its final layer norm to every hidden state.
    ``pooled_token`` is the id at whose first occurrence the encoder pools (at the first token where
    it does not occur); None is the highest id of the prompt, as CLIP's first configurations had it.
    """

    component: str
    tokenizer: str
    token_embedding: str
    max_length: int
    hidden_size: int
    layers: int
    bos: int
    eos: int
    pad: int
    pooled_token: int | None
    layer: int
    normalized: bool


class LatentFacts(_Strict):
    """``scale`` pixels of the picture for one latent; default sizes in pixels; ``vae_tile`` the
    side of the pictures the VAE was trained at, in latents (None: the model's own default).

    ``preview`` makes a small RGB picture in [-1, 1] of latents: a row of factors for each channel,
    then the constant.
    """

    channels: int
    scale: int
    default_height: int
    default_width: int
    vae_tile: int | None = None
    preview: tuple[tuple[float, float, float], ...] | None = None


class ImageEncoderFacts(_Strict):
    """How a picture becomes the input of the image encoder: the side of the square in pixels, and
    the statistics its colours are normalised with."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class IpAdapterFacts(_Strict):
    """The IP-Adapter of the variant ``ip-adapter``: ``tokens`` it makes of the ``embedding``
    numbers that stand for a picture. Without an image encoder those must be given."""

    file: str
    sha256: str
    tokens: int
    embedding: int
    image_encoder: ImageEncoderFacts | None = None


class BakedLora(_Strict):
    """A LoRA that is part of the weights: its file's name and SHA-256, and its scale."""

    file: str
    scale: float
    sha256: str


class Baked(_Strict):
    """What the export put into the graphs; ``vae`` and ``preview_decoder`` are the sources of
    networks that are not the model's own. ``weights`` says how those of the UNets and text encoders
    are stored: in the precision they are computed in, or as int8 with a scale for each channel."""

    fused_qkv: bool
    freeu: bool
    loras: tuple[BakedLora, ...] = ()
    vae: str | None = None
    preview_decoder: str | None = None
    weights: Literal["float", "int8"] = "float"


class Manifest(_Strict):
    """All that the runtime knows of a model. Unknown keys are an error, so an older kdrt never
    half-understands a newer bundle."""

    schema_version: int = SCHEMA_VERSION
    family: Literal["sd", "sdxl"]
    name: str
    source: str
    revision: str | None = None
    precision: Precision
    components: dict[str, Component]
    scheduler: SchedulerFacts
    text_encoders: tuple[TextEncoderFacts, ...]
    latents: LatentFacts
    zeros_for_empty_negative: bool = False
    default_guidance_scale: float
    baked: Baked
    variants: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Other ways to compute: for each, the component that plays the part of another."""
    ip_adapter: IpAdapterFacts | None = None
    tools: dict[str, str]
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of every file, by path inside the bundle; ``engines/`` is not listed."""


class Bundle:
    """An opened bundle: a folder and its validated manifest."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def file(self, relative: str) -> Path:
        return self.path / relative

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read and validate a bundle.

        Raises:
            BundleError: there is none, it is damaged, or its schema is unknown.
        """
        manifest = _read_manifest(path)
        _check_files(path, manifest)
        return cls(path, manifest)


def home() -> Path:
    """Where named bundles live: ``$KDRT_HOME``, else the user's cache folder."""
    return Path(os.environ.get("KDRT_HOME") or platformdirs.user_cache_dir("kdrt"))


def bundle_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder a name or path means: an existing folder, else the bundle of that name in
    :func:`home`."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    return home() / "bundles" / str(name_or_path).replace("/", "--")


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by folder or by name, as ``kdrt.load`` does.

    Raises:
        BundleError: see :meth:`Bundle.open`.
    """
    path = bundle_path(name_or_path)
    if not path.is_dir():
        known = ", ".join(bundle_names()) or "none yet"
        raise BundleError(
            f"there is no bundle '{name_or_path}' (bundles in {home() / 'bundles'}: {known}); "
            f"make it with `kdrt export {name_or_path}`"
        )
    return Bundle.open(path)


def bundle_names() -> list[str]:
    """The names of the bundles in :func:`home`."""
    folder = home() / "bundles"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file() and p.name[0] != ".")


@contextlib.contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes the bundle ``path`` when the block ends without an
    exception, and vanishes otherwise. ``manifest.json`` must have been written by then.

    Raises:
        OutputError: ``path`` holds something else, or :func:`kdrt.outputs.new_folder` raises it.
    """
    if (
        path.exists()
        and not (path / MANIFEST).is_file()
        and (path.is_file() or any(path.iterdir()))
    ):
        raise OutputError(f"{path} exists and is not a bundle; choose another place with -o")
    with new_folder(path) as partial:
        yield partial


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


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: it has no readable {MANIFEST}") from error
    try:
        version = json.loads(text)["schema_version"]
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{file} has schema version {version}, this kdrt reads {SCHEMA_VERSION}; "
                "export the model again with this version"
            )
        return Manifest.model_validate_json(text)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise BundleError(f"{file} is damaged; export the model again") from error


def _check_files(path: Path, manifest: Manifest) -> None:
    record_file = path / _CHECKED
    known: dict[str, list[object]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(record_file.read_text())
    seen: dict[str, list[object]] = {}
    for relative, digest in manifest.files.items():
        file = path / relative
        try:
            stat = file.stat()
        except OSError as error:
            raise BundleError(
                f"{path} is incomplete: {relative} is missing; export it again"
            ) from error
        seen[relative] = [stat.st_size, stat.st_mtime_ns, digest]
        if known.get(relative) != seen[relative] and sha256(file) != digest:
            raise BundleError(
                f"{path} is damaged: {relative} is not what was exported; export it again"
            )
    if known != seen:
        with contextlib.suppress(OSError):  # a read-only bundle is checked every time
            record_file.parent.mkdir(exist_ok=True)
            record_file.write_text(json.dumps(seen))
