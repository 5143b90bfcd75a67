"""The peers, one file each. A peer makes engines of networks; all else is the same for all.

A new peer is a file with a subclass of :class:`~kdrt_bench.peers.base.Peer` and a line here.
``kdrt:ENGINE`` is a peer too: kdrt with that engine instead of the one it would choose.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kdrt.backends.choice import known_engine
from kdrt_bench.errors import PeerUnavailableError
from kdrt_engines.installed import installed_version
from kdrt_engines.openvino.config import config_of, is_openvino

if TYPE_CHECKING:
    from kdrt_bench.peers.base import Peer


@dataclass(frozen=True)
class PeerInfo:
    """What is known of a peer before anything is imported.

    Attributes:
        title: for tables.
        about: what it is, in a sentence.
        home: module and class.
        packages: what it needs besides kdrt, as import names, with what pip calls them.
        lossy: it computes in less than float32, so its row is no equal of the others.
        forward: it runs single networks, not only whole generations.
        ahead: it makes nothing ready in its first call.
        memory: what a process takes at most, at the size that people use, as a multiple of the
            float32 weights.
        options: given to the class.
    """

    title: str
    about: str
    home: str
    packages: dict[str, str] = field(default_factory=dict)
    lossy: bool = False
    forward: bool = True
    ahead: bool = False
    memory: float = 1.4
    options: dict[str, str] = field(default_factory=dict)


_DIFFUSERS = {"diffusers": "diffusers", "transformers": "transformers"}
_OPENVINO = {**_DIFFUSERS, "openvino": "openvino"}
_GENAI = {
    **_OPENVINO,
    "openvino_genai": "openvino-genai",
    "openvino_tokenizers": "openvino-tokenizers",
}
_SD_CPP = {**_DIFFUSERS, "stable_diffusion_cpp": "stable-diffusion-cpp-python"}

PEERS: dict[str, PeerInfo] = {
    "kdrt": PeerInfo(
        "kdrt",
        "kdrt as it is installed, with the engine that `kdrt doctor` chooses",
        "kdrt_bench.peers.own:Kdrt",
    ),
    "eager": PeerInfo(
        "PyTorch eager",
        "the untouched networks of diffusers and transformers, resident float32 weights, "
        "scaled_dot_product_attention",
        "kdrt_bench.peers.eager:Eager",
        _DIFFUSERS,
        ahead=True,
    ),
    "diffusers": PeerInfo(
        "diffusers pipeline",
        "diffusers' own pipeline with EulerDiscreteScheduler, eager float32",
        "kdrt_bench.peers.diffusers_pipeline:DiffusersPipeline",
        _DIFFUSERS,
        forward=False,
    ),
    "compile": PeerInfo(
        "torch.compile",
        "the untouched UNet and VAE through TorchInductor, default mode, weights frozen",
        "kdrt_bench.peers.compiled:Compiled",
        _DIFFUSERS,
        memory=2.5,
    ),
    "compile-max": PeerInfo(
        "torch.compile max-autotune",
        "the same with mode max-autotune-no-cudagraphs",
        "kdrt_bench.peers.compiled:Compiled",
        _DIFFUSERS,
        options={"mode": "max-autotune-no-cudagraphs"},
        memory=2.5,
    ),
    "onnxruntime-plain": PeerInfo(
        "ONNX Runtime, plain",
        "ONNX Runtime as peers use it: torch.onnx.export of the untouched networks, the session's "
        "defaults, NumPy arrays in and out",
        "kdrt_bench.peers.onnxruntime_plain:OnnxRuntimePlain",
        _DIFFUSERS,
        memory=1.8,
    ),
    "openvino": PeerInfo(
        "OpenVINO float32",
        "the untouched networks converted from PyTorch, static shapes, latency hint, float32",
        "kdrt_bench.peers.openvino:OpenVino",
        _OPENVINO,
        options={"precision": "f32"},
        memory=2.2,
    ),
    "openvino-default": PeerInfo(
        "OpenVINO default",
        "the same at OpenVINO's own precision, which is bfloat16 where the processor has it",
        "kdrt_bench.peers.openvino:OpenVino",
        _OPENVINO,
        lossy=True,
        memory=1.7,
    ),
    "openvino-genai": PeerInfo(
        "OpenVINO GenAI float32",
        "OpenVINO GenAI's Text2ImagePipeline, its own loop and scheduler, static shapes, float32",
        "kdrt_bench.peers.openvino_genai:OpenVinoGenAi",
        _GENAI,
        forward=False,
        options={"precision": "f32"},
        memory=2.2,
    ),
    "openvino-genai-default": PeerInfo(
        "OpenVINO GenAI default",
        "the same at OpenVINO's own precision, which is bfloat16 where the processor has it",
        "kdrt_bench.peers.openvino_genai:OpenVinoGenAi",
        _GENAI,
        lossy=True,
        forward=False,
        memory=1.7,
    ),
    **{
        f"sd-cpp-{weights}": PeerInfo(
            f"stable-diffusion.cpp {weights}",
            f"stable-diffusion.cpp, its own loop, weights in {weights}",
            "kdrt_bench.peers.stable_diffusion_cpp:StableDiffusionCpp",
            _SD_CPP,
            lossy=weights != "f32",
            forward=False,
            options={"weights": weights},
            ahead=True,
            memory=memory,
        )
        for weights, memory in (("f32", 1.2), ("f16", 0.8), ("q8_0", 0.7))
    },
    "eager-bf16": PeerInfo(
        "PyTorch eager bfloat16",
        "the untouched networks in bfloat16",
        "kdrt_bench.peers.eager:Eager",
        _DIFFUSERS,
        lossy=True,
        options={"dtype": "bfloat16"},
    ),
}

ALIASES = {"optimum": "onnxruntime-plain"}
"""Optimum's ONNX pipelines require older diffusers and transformers than kdrt's export: what they
do with a network is measured in their place."""


_WITH_ENGINE = "kdrt:"


def info_of(name: str) -> PeerInfo:
    """A peer by name, installed or not.

    Raises:
        PeerUnavailableError: there is none.
        InvalidRequestError: kdrt has no such engine.
    """
    if name.startswith(_WITH_ENGINE):
        return _with_engine(known_engine(name.removeprefix(_WITH_ENGINE)))
    info = PEERS.get(ALIASES.get(name, name))
    if info is None:
        raise PeerUnavailableError(
            f"there is no peer '{name}'; there are {', '.join(PEERS)}, and {_WITH_ENGINE}ENGINE"
        )
    return info


def _with_engine(engine: str) -> PeerInfo:
    return replace(
        PEERS["kdrt"],
        title=f"kdrt, engine {engine}",
        about=f"kdrt with the engine {engine}",
        lossy=is_openvino(engine) and config_of(engine).precision != "f32",
        # What is compiled or traced may be there twice while it is loaded.
        memory=PEERS["kdrt"].memory if engine.startswith("onnxruntime") else 2.2,
        options={"engine": engine},
    )


def find_peer(name: str) -> PeerInfo:
    """A peer by name, whose packages are installed.

    Raises:
        PeerUnavailableError: there is none, or a package of it is not installed.
        InvalidRequestError: kdrt has no such engine.
    """
    info = info_of(name)
    missing = [pip for module, pip in info.packages.items() if find_spec(module) is None]
    if missing:
        raise PeerUnavailableError(
            f"{info.title} needs {', '.join(missing)}; pip install {' '.join(missing)}, or leave "
            f"'{name}' out of --vs"
        )
    return info


def load_peer(name: str) -> type[Peer]:
    """The class of a peer. Raises PeerUnavailableError as :func:`find_peer` does."""
    module, _, kind = find_peer(name).home.partition(":")
    found: type[Peer] = getattr(importlib.import_module(module), kind)
    return found


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of distributions; those that are not installed are left out."""
    return {name: found for name in packages if (found := installed_version(name))}
