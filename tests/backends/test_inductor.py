"""What Inductor compiles of a bundle is kept, and used only where it fits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdrt.backends import inductor_cache, torch_programs
from kdrt.backends.choice import torch_program
from kdrt.backends.fallback import FallbackWarning
from kdrt.backends.inductor_cache import INDUCTOR, keep_compiled
from kdrt.backends.loading import make_loader
from kdrt.backends.torch_programs import trust_program
from kdrt.backends.trust import trust_bundle
from kdrt.bundle import Bundle, remove_bundle
from kdrt.cli import run
from kdrt.errors import EngineError, EngineUnavailableError
from kdrt_engines.comparison import random_inputs, results
from kdrt_engines.inductor.engine import InductorBinding
from kdrt_export.report import Silent
from tests.support.fake_inductor import FakeInductor, fake_inductor
from tests.support.linked_bundle import linked_bundle

DIMS = {"B": 1, "h": 3, "w": 5}
DECODER = [("vae_decoder", DIMS)]


class Decoder(torch.nn.Module):
    """Stands in for a VAE's decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        image = torch.nn.functional.silu(self.conv(latents))
        return image.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of one's own, with a torch program of one small network."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bundle = linked_bundle(demo_bundle, tmp_path / "demo")
    with_program(bundle, Decoder())
    return bundle


def with_program(bundle: Bundle, module: torch.nn.Module) -> None:
    dims = {0: torch.export.Dim("B"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(module, (torch.zeros(2, 4, 4, 6),), dynamic_shapes=(dims,))
    program._example_inputs = None
    path = torch_program(bundle, "vae_decoder")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    trust_program(bundle, "vae_decoder")


@pytest.fixture
def fake() -> Iterator[FakeInductor]:
    with fake_inductor() as inductor:
        yield inductor


def kept(bundle: Bundle, dims: dict[str, int] = DIMS) -> Path | None:
    return INDUCTOR.find(bundle, "vae_decoder", "inductor", dims)


def test_what_is_kept_runs_at_its_sizes(bundle: Bundle, fake: FakeInductor) -> None:
    (made,) = keep_compiled(bundle, DECODER, Silent())
    assert made.record.relative_error == 0
    assert kept(bundle) == made.folder / "network.pt2"
    assert keep_compiled(bundle, DECODER, Silent()) == []
    engine = make_loader(bundle, "inductor", 1).load("vae_decoder")
    binding = engine.bind(**DIMS)
    assert isinstance(binding, InductorBinding)
    given = random_inputs(engine.spec, DIMS)
    expected = make_loader(bundle, "torch", 1).load("vae_decoder").bind(**DIMS)
    assert torch.equal(results(binding, given)["image"], results(expected, given)["image"])


def test_other_sizes_run_as_with_torch_and_a_warning_says_so(
    bundle: Bundle, fake: FakeInductor
) -> None:
    keep_compiled(bundle, DECODER, Silent())
    engine = make_loader(bundle, "inductor", 1).load("vae_decoder")
    message = r"vae_decoder runs on torch: it is not compiled for B=2 h=3 w=5; `kdrt build .* induc"
    with pytest.warns(FallbackWarning, match=message):
        binding = engine.bind(B=2, h=3, w=5)
    assert results(binding, random_inputs(engine.spec, DIMS | {"B": 2}))["image"].isfinite().all()


def test_what_was_not_compiled_is_one_sentence(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(bundle, "inductor", 1)
    monkeypatch.setattr(torch_programs, "load_program", None)  # it would be loaded in vain
    with pytest.raises(
        EngineUnavailableError, match=r"vae_decoder is not compiled.*run `kdrt build"
    ):
        loader.load("vae_decoder")
    with pytest.raises(EngineUnavailableError, match=r"no torch engine .*--target torch"):
        loader.load("unet")


def test_what_no_longer_fits_is_not_used_and_cleared_away(
    bundle: Bundle, fake: FakeInductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = keep_compiled(bundle, DECODER, Silent())
    with monkeypatch.context() as patch:
        patch.setattr(inductor_cache, "processor", lambda: "another")
        assert kept(bundle) is None
    assert kept(bundle) is not None
    with_program(bundle, Decoder())  # exported anew
    assert kept(bundle) is None
    keep_compiled(bundle, DECODER, Silent())
    assert not made.folder.exists()
    assert len(INDUCTOR.all(bundle)) == 1


def test_what_another_version_made_for_an_engine_of_its_own_stays(
    bundle: Bundle, fake: FakeInductor
) -> None:
    (made,) = keep_compiled(bundle, DECODER, Silent())
    newer = made.record.model_copy(update={"engine": "inductor:autotuned"})
    (made.folder / "record.json").write_text(newer.model_dump_json())
    another = made.folder.with_name("vae_decoder-0123456789abcdef")
    made.folder.rename(another)
    keep_compiled(bundle, DECODER, Silent())
    assert another.is_dir()
    assert [each.folder for each in INDUCTOR.all(bundle)] == [made.folder]


def test_what_somebody_else_made_is_not_used_until_it_is_trusted(
    bundle: Bundle, fake: FakeInductor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = keep_compiled(bundle, DECODER, Silent())
    monkeypatch.setenv("KDRT_HOME", str(tmp_path / "another"))
    assert kept(bundle) is None
    assert made.folder in trust_bundle(bundle)
    assert kept(bundle) is not None
    (made.folder / "network.pt2").write_bytes(b"something else")
    assert kept(bundle) is None


def test_what_was_compiled_wrong_is_not_kept(bundle: Bundle) -> None:
    wrong = Decoder()
    with (
        fake_inductor(lambda module: Renamed(wrong, module)),
        pytest.raises(EngineError, match=r"is off by .* where 5e-03 is allowed; it is not kept"),
    ):
        keep_compiled(bundle, DECODER, Silent())
    assert INDUCTOR.all(bundle) == []
    assert [path.name for path in (bundle.path / INDUCTOR.folder).iterdir()] == [".lock"]


class Renamed(torch.nn.Module):
    """What one module computes, with the parameters of another."""

    def __init__(self, computes: torch.nn.Module, has: torch.nn.Module) -> None:
        super().__init__()
        self._computes = [computes]
        for name, module in has.named_children():
            self.add_module(name, module)

    def forward(self, *inputs: torch.Tensor) -> object:
        return self._computes[0](*inputs)


def test_the_command(
    bundle: Bundle,
    fake: FakeInductor,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(bundle.path)
    arguments = ["build", folder, "--engine", "inductor", "--component", "vae_decoder"]
    assert run([*arguments, "--profile", "static:12x20x1"]) == 0
    assert "B=1 h=3 w=5, relative error 0.0e+00 against eager" in capsys.readouterr().out
    assert run([*arguments, "--profile", "static:12x20x1"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(["inspect", folder]) == 0
    assert "Inductor, compiled for this machine" in capsys.readouterr().out
    with monkeypatch.context() as small:
        small.setattr("kdrt.backends.machine.free_memory", lambda device: 10)
        assert run([*arguments, "--profile", "static:16x20x1"]) == 0
    err = capsys.readouterr().err
    assert "left out, for want of memory or disk: vae_decoder (B=1 h=4 w=5)" in err
    assert "nothing to do" not in err
    assert run([*arguments, "--strict"]) == 2
    assert "--strict is for TensorRT" in capsys.readouterr().err
    assert run(["build", folder, "--engine", "inductor", "--component", "unet"]) == 2
    assert "--target torch" in capsys.readouterr().err
    remove_bundle(bundle.path)
    assert not bundle.path.exists()


@pytest.mark.slow
def test_the_compiler_itself(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """About 20 seconds."""
    (made,) = keep_compiled(bundle, DECODER, Silent())
    assert made.record.relative_error is not None
    assert made.record.relative_error < 1e-6
    engine = make_loader(bundle, "inductor", 1).load("vae_decoder")
    given = random_inputs(engine.spec, DIMS)
    expected = make_loader(bundle, "torch", 1).load("vae_decoder").bind(**DIMS)
    found = results(engine.bind(**DIMS), given)["image"]
    torch.testing.assert_close(found, results(expected, given)["image"])
