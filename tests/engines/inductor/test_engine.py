"""Inductor: sizes, weights, what it says where it cannot; and the compiler itself, marked slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kdrt_bench.memory import resident
from kdrt_engines import EngineError, EngineSpec, EngineUnavailableError, TensorSpec
from kdrt_engines.comparison import greatest_error, random_inputs, relative_error, results
from kdrt_engines.inductor import compiling
from kdrt_engines.inductor.compiling import check_compiler, compile_module, own_cache
from kdrt_engines.inductor.engine import InductorBinding, InductorEngine
from kdrt_engines.torch_eager import load_program
from kdrt_export.programs import program_from_component
from kdrt_export.verify import make_cases
from tests.support.components import COMPONENTS
from tests.support.fake_inductor import FakeInductor, fake_inductor

WIDTH = 4096

SPEC = EngineSpec((TensorSpec("x", "float32", ("B", 4)),), (TensorSpec("y", "float32", ("B", 4)),))


class Scaled(torch.nn.Module):
    """Has a weight, and a tensor as tracing leaves it behind: neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.lifted = torch.arange(4.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.linear(x)) * self.lifted


@pytest.fixture
def fake() -> Iterator[FakeInductor]:
    with fake_inductor() as inductor:
        yield inductor


def compiled(
    folder: Path, batch: int = 3, missing: Callable[[object], object] = lambda dims: None
) -> InductorEngine:
    """An engine that is compiled for this batch and no other."""
    package = folder / "package.pt2"
    engine = InductorEngine(
        Scaled(),
        SPEC,
        "cpu",
        kept=lambda dims: package if dims == {"B": batch} else None,
        missing=missing,
    )
    compiling.compile_module(
        engine.module, tuple(random_inputs(SPEC, {"B": batch}).values()), package
    )
    return engine


def test_weights_stay_while_a_binding_needs_them_and_no_longer(
    tmp_path: Path, fake: FakeInductor
) -> None:
    engine = compiled(tmp_path)
    bindings = [engine.bind(B=3), engine.bind(B=3)]
    given = random_inputs(SPEC, {"B": 3})
    expected = results(bindings[0], given)["y"]
    bindings.pop()
    assert torch.equal(results(bindings[0], given)["y"], expected)
    module = engine.module
    del engine
    assert torch.equal(results(bindings[0], given)["y"], expected)
    bindings.clear()
    assert len(fake.given) == 6
    assert all(each.untyped_storage().nbytes() == 0 for each in fake.given)
    assert torch.equal(module(given["x"]), expected), "who has the module keeps its weights"


def test_sizes_without_a_package_run_the_module_and_are_told(
    tmp_path: Path, fake: FakeInductor
) -> None:
    told: list[object] = []
    engine = compiled(tmp_path, missing=told.append)
    for batch in (3, 2):
        binding = engine.bind(B=batch)
        given = random_inputs(SPEC, {"B": batch})
        assert torch.equal(results(binding, given)["y"], engine.module(given["x"]))
        assert isinstance(binding, InductorBinding) == (batch == 3)
    assert told == [{"B": 2}]


def test_new_weights_reach_bindings_that_are_there(tmp_path: Path, fake: FakeInductor) -> None:
    engine = compiled(tmp_path)
    binding, given = engine.bind(B=3), random_inputs(SPEC, {"B": 3})
    before = results(binding, given)
    engine.with_weights({"linear.weight": torch.zeros(4, 4), "linear.bias": torch.ones(4)})
    after = results(binding, given)["y"]
    assert torch.equal(after[0], torch.nn.functional.silu(torch.ones(4)) * torch.arange(4.0))
    engine.with_weights({})
    assert greatest_error(results(binding, given), before) == 0


def test_a_package_of_another_network_is_refused(tmp_path: Path, fake: FakeInductor) -> None:
    compiled(tmp_path)
    other = InductorEngine(
        torch.nn.Linear(4, 4), SPEC, "cpu", kept=lambda _: tmp_path / "package.pt2"
    )
    with pytest.raises(EngineError, match=r"compiled from another network: it has no 'linear"):
        other.bind(B=3)


def test_a_file_that_is_no_package(tmp_path: Path) -> None:
    """With PyTorch's own loader."""
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"no package")
    engine = InductorEngine(Scaled(), SPEC, "cpu", kept=lambda _: path)
    with pytest.raises(EngineError, match=r"PyTorch cannot load .*bad\.pt2"):
        engine.bind(B=3)


def test_without_a_compiler_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(EngineUnavailableError, match=r"finds none here; install g\+\+ or clang"):
        check_compiler()


def test_what_cannot_be_compiled_is_one_sentence(tmp_path: Path) -> None:
    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(EngineError, match=r"^Inductor cannot compile this network: [^\n]+$"):
        compile_module(Branches(), (torch.ones(2),), tmp_path / "it.pt2")
    assert not (tmp_path / "it.pt2").exists()


def test_a_cache_of_its_own_vanishes() -> None:
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with own_cache():
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == before


COMPILED = (
    "unet sd",
    "unet sdxl",
    "unet with control sd",
    "controlnet sd",
    "vae decoder",
    "vae encoder",
    "text encoder",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_it_equals_the_untouched_network(name: str, tmp_path: Path) -> None:
    """From 20 seconds to two minutes each: ``pytest tests/engines/inductor -m slow``."""
    component = COMPONENTS[name]()
    dims = {"B": 1, "h": 9, "w": 13, "L": 11}
    dims = {symbol: size for symbol, size in dims.items() if symbol in component.spec.symbols()}
    (case,) = make_cases(component, [dims])
    component.rewrite()
    program_from_component(component, {"B": 2, "h": 16, "w": 16, "L": 20}, tmp_path / "program.pt2")
    package = tmp_path / "package.pt2"
    program = load_program(tmp_path / "program.pt2")
    engine = InductorEngine(Plain(program), component.spec, "cpu", kept=lambda _: package)
    with own_cache():
        compile_module(engine.module, case.inputs, package)
    named = zip(component.spec.inputs, case.inputs, strict=True)
    given = {spec.name: value for spec, value in named}
    bindings = [engine.bind(**case.dims) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda binding: results(binding, given), bindings))
    for outputs in both:
        for output, wanted in zip(outputs.values(), case.expected, strict=True):
            assert relative_error(output, wanted) < 5e-6
    weights = {n.removeprefix("program."): p for n, p in engine.module.named_parameters()}
    changed = next(n for n, p in weights.items() if p.dim() > 1)
    engine.with_weights({changed.removeprefix("component."): 2 * weights[changed].detach()})
    expected = results(super(InductorEngine, engine).bind(**case.dims), given)
    assert greatest_error(results(bindings[0], given), expected) < 5e-6
    assert greatest_error(both[0], expected) > 1e-4


class Wide(torch.nn.Module):
    """67 MB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.layer(x))


@pytest.mark.slow
@pytest.mark.skipif(resident() is None, reason="this system does not say what is held")
def test_engines_that_are_gone_leave_no_weights_behind(tmp_path: Path) -> None:
    """About 20 seconds."""
    x, y = (TensorSpec(name, "float32", ("B", WIDTH)) for name in "xy")
    package = tmp_path / "package.pt2"

    def engine() -> InductorEngine:
        return InductorEngine(Wide(), EngineSpec((x,), (y,)), "cpu", kept=lambda _: package)

    with own_cache():
        compile_module(engine().module, (torch.zeros(3, WIDTH),), package)
    held = []
    for _ in range(5):
        engine().bind(B=3).run()
        held.append(resident() or 0)
    assert held[-1] - held[1] < WIDTH * WIDTH * 4, "of three more engines, not even one's"


class Plain(torch.nn.Module):
    """A program as kdrt loads it: its mode cannot be set."""

    def __init__(self, program: torch.nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> Plain:
        return self

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.program(*inputs)
        return result
