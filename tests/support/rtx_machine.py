"""A machine with TensorRT, as far as kdrt can tell: installed distributions, the module that loads
engines, and the GPU.

The distributions are real ones without code, found by ``importlib.metadata`` as any other. The
module is the recorder, which loads the engines of one bundle and no other bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kdrt.backends.engine_files import ENGINE_FILE, engine_folders
from kdrt.backends.records import EngineRecord, read_record
from kdrt.bundle import Bundle
from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import TensorSpec
from kdrt_engines.tensorrt import gpu
from kdrt_engines.tensorrt.flavour import FLAVOURS, TENSORRT_RTX
from tests.support import trt_recorder
from tests.support.engine_bundle import VERSION, WEIGHTS


def install_tensorrt(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str = VERSION) -> None:
    """Install both flavours in this version."""
    for flavour in FLAVOURS.values():
        info = folder / f"{flavour.module}-{version}.dist-info"
        info.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {flavour.module}\nVersion: {version}\n"
        (info / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(folder)


def plug_in(monkeypatch: pytest.MonkeyPatch, found: gpu.Gpu | None) -> None:
    """Make this the machine's only GPU; None is a machine without."""
    monkeypatch.setattr(gpu, "find_gpu", lambda: found)


def load_engines_of(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, capability: int
) -> trt_recorder.Calls:
    """Let ``tensorrt_rtx`` load the engines of a bundle on a GPU. Returns what it is asked for."""
    folders = engine_folders(bundle, TENSORRT_RTX)
    module = trt_recorder.module(
        {
            (folder / ENGINE_FILE).read_bytes(): _recorded(bundle, read_record(bundle, folder))
            for folder in folders
        },
        rtx=True,
    )
    monkeypatch.setitem(sys.modules, TENSORRT_RTX.module, module)
    calls: trt_recorder.Calls = module.calls
    plug_in(monkeypatch, trt_recorder.RecordedGpu(calls, capability))
    return calls


def _recorded(bundle: Bundle, record: EngineRecord) -> trt_recorder.EngineFile:
    """What the recorder makes of an engine."""
    spec = bundle.manifest.components[record.key.component].spec()
    return trt_recorder.EngineFile(
        [_tensor(t, is_input=True) for t in spec.inputs]
        + [_tensor(t, is_input=False) for t in spec.outputs],
        [
            {
                t.name: (
                    t.resolve(profile.sizes("min")),
                    t.resolve(profile.sizes("opt")),
                    t.resolve(profile.sizes("max")),
                )
                for t in spec.inputs
            }
            for profile in record.key.profiles
        ],
        refittable=WEIGHTS if record.key.refittable else (),
    )


def _tensor(tensor: TensorSpec, *, is_input: bool) -> trt_recorder.Tensor:
    shape = tuple(-1 if isinstance(size, str) else size for size in tensor.shape)
    return trt_recorder.Tensor(tensor.name, is_input, DTYPES[tensor.dtype].tensorrt, shape)
