"""What peers make of the untouched networks once, and keep in the model's cache."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdrt.bundle import Bundle, open_bundle
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import Model
from kdrt_engines.spec import EngineSpec

if TYPE_CHECKING:
    from kdrt_bench.peers.base import Peer

_TRACED = {"B": 2, "L": 8, "h": 16, "w": 16}
_OPSET = 20


def plain_onnx(peer: Peer, component: str) -> Path:
    """The network as ``torch.onnx.export`` makes it, every size dynamic."""

    def make(folder: Path) -> None:
        network, names, inputs = _untouched(peer, component)
        spec = peer.spec(component)
        tensors = [*(spec.input(name) for name in names), *spec.outputs]
        with warnings.catch_warnings(), torch.no_grad():
            # The tracer warns of every size it sees as a Python number: here they are meant.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                inputs,
                str(folder / "model.onnx"),
                input_names=list(names),
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_axes={
                    t.name: {i: str(d) for i, d in enumerate(t.shape) if isinstance(d, str)}
                    for t in tensors
                },
                opset_version=_OPSET,
                dynamo=False,
            )

    return kept(peer.kept("onnx", component), make) / "model.onnx"


def openvino_model(peer: Peer, component: str) -> Path:
    """The network as OpenVINO's converter makes it, in float32."""

    def make(folder: Path) -> None:
        from kdrt_engines.openvino.quiet import ov

        network, _, inputs = _untouched(peer, component)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = ov.convert_model(network, example_input=inputs)
        ov.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)

    return kept(peer.kept("openvino", component), make) / "model.xml"


def unfused_bundle(model: Model, measured: Bundle) -> Bundle:
    """A bundle of the same networks whose projections are not fused.

    Args:
        model: exported again for it, and kept.
        measured: the bundle being measured; its inputs must be those of the export.

    Raises:
        PeerUnavailableError: ``measured`` is of an earlier version, with other inputs.
    """
    folder = model.cache / "unfused"
    if not (folder / "manifest.json").is_file():
        from kdrt_export.stage import export

        export(
            model.source,
            folder,
            precision="fp32",
            random_weights=model.random_weights,
            fuse_qkv=False,
            safety_checker=False,
        )
    found = open_bundle(str(folder))
    for name, component in found.manifest.components.items():
        if name in measured.manifest.components:
            own = measured.manifest.components[name].spec()
            if _inputs(own) != _inputs(component.spec()):
                raise PeerUnavailableError(
                    f"{name} of {measured.path} has other inputs than this version of kdrt "
                    "exports; export it again, or delete it if the benchmark made it"
                )
    return found


def _inputs(spec: EngineSpec) -> set[tuple[str, tuple[int | str, ...]]]:
    return {(each.name, tuple(each.shape)) for each in spec.inputs}


def _untouched(
    peer: Peer, component: str
) -> tuple[torch.nn.Module, tuple[str, ...], tuple[torch.Tensor, ...]]:
    """The network, the names of its inputs, and inputs to trace it with."""
    from kdrt_bench.inputs import example_inputs, read_by_peers
    from kdrt_bench.networks import plain_network, source_of

    spec = peer.spec(component)
    names = read_by_peers(spec)
    network = plain_network(source_of(peer.model), component, names)
    examples = example_inputs(spec, _TRACED, seed=0)
    return network, names, tuple(examples[name] for name in names)


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made unless it is there; never half."""
    if not folder.is_dir():
        with _whole(folder) as partial:
            make(partial)
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
