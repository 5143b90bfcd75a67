"""What networks need at least while they run, against what they took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdrt.bundle import Bundle, open_bundle
from kdrt.pipeline.activations import least_activations
from tests.support.engine_bundle import engine_bundle

CONFIGS = {
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2},
    "vae": {"block_out_channels": [128, 256, 512, 512]},
}
"""Those of Stable Diffusion 1.5."""

SIDE = 512
"""Pixels of the measured image: its tensors are far larger than what a process needs besides."""

MEASURE = """
import sys
from pathlib import Path
from kdrt.backends.loading import load_engines
from kdrt.bundle import open_bundle

def kilobytes(field):
    line = next(l for l in Path("/proc/self/status").open() if l.startswith(field))
    return int(line.split()[1])

bundle, component, latents = open_bundle(sys.argv[1]), sys.argv[2], int(sys.argv[3])
engine = load_engines(bundle, "onnxruntime", threads=1)[component]
batch = 2 if component == "unet" else 1
dims = {"B": batch, "L": 32, "h": latents, "w": latents}
binding = engine.bind(**{symbol: dims[symbol] for symbol in engine.spec.symbols()})
Path("/proc/self/clear_refs").write_text("5")  # the peak is that of the run
before = kilobytes("VmRSS")
binding.run()
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.fixture
def sd15(tmp_path: Path) -> Bundle:
    """A bundle with the configurations of Stable Diffusion 1.5, at its size."""
    (tmp_path / "configs").mkdir()
    for name, config in CONFIGS.items():
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    bundle = engine_bundle(tmp_path)
    latents = bundle.manifest.latents.model_copy(
        update={"scale": 8, "default_width": 512, "default_height": 512}
    )
    return Bundle(tmp_path, bundle.manifest.model_copy(update={"latents": latents}))


def test_the_tensors_of_stable_diffusion_are_counted(sd15: Bundle) -> None:
    levels = 3 * 320 * 64 * 64 + 320 * 32 * 32  # the first convolution, two layers, one down
    levels += 2 * 640 * 32 * 32 + 640 * 16 * 16
    levels += 2 * 1280 * 16 * 16 + 1280 * 8 * 8
    levels += 2 * 1280 * 8 * 8
    assert least_activations(sd15, "unet", "float16") == 2 * levels * 2
    assert least_activations(sd15, "vae_decoder", "float32") == (256 + 2 * 128) * 512 * 512 * 4
    facts = sd15.manifest.text_encoders[0]
    hidden = (facts.layers + 1) * facts.max_length * facts.hidden_size
    assert least_activations(sd15, facts.component, "float32") == 2 * hidden * 4
    assert least_activations(sd15, "safety_checker", "float32") is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "{}",
        '{"block_out_channels": []}',
        '{"block_out_channels": [1e9], "layers_per_block": 2}',
        '{"block_out_channels": [320, true], "layers_per_block": 2}',
        '{"block_out_channels": [-320], "layers_per_block": 2}',
        "[" * 100_000,
    ],
)
def test_a_configuration_that_says_nothing_is_not_guessed(sd15: Bundle, text: str | None) -> None:
    for name in CONFIGS:
        file = sd15.path / "configs" / f"{name}.json"
        file.unlink()
        if text is not None:
            file.write_text(text)
    assert least_activations(sd15, "unet", "float32") is None
    assert least_activations(sd15, "vae_decoder", "float32") is None


@pytest.mark.parametrize("layers", [None, "2", [2, 2], [2, 2, 2, 0]])
def test_layers_of_another_form_are_not_guessed(sd15: Bundle, layers: object) -> None:
    base: Any = CONFIGS["unet"]
    config = base | {"layers_per_block": layers}
    (sd15.path / "configs" / "unet.json").write_text(json.dumps(config))
    assert least_activations(sd15, "unet", "float32") is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
@pytest.mark.parametrize("component", ["unet", "vae_decoder"])
def test_a_run_takes_at_least_that(demo_bundle: Path, component: str) -> None:
    opened = open_bundle(demo_bundle)
    size = {"default_width": SIDE, "default_height": SIDE}
    latents = opened.manifest.latents.model_copy(update=size)
    large = Bundle(opened.path, opened.manifest.model_copy(update={"latents": latents}))
    least = least_activations(large, component, "float32")
    arguments = [str(demo_bundle), component, str(SIDE // latents.scale)]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{MEASURE}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert least is not None
    assert int(done.stdout) >= least > 10_000_000
