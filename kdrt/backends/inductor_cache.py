"""What Inductor compiled of a bundle's torch programs for this machine, kept in the bundle; see
:mod:`kdrt.backends.kept`. It depends on the program, its sizes, the version of PyTorch, and the
processor or GPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kdrt.backends.choice import device_type, torch_program
from kdrt.backends.kept import Kept, Sizes, Store
from kdrt.backends.machine import processor
from kdrt.bundle import Bundle
from kdrt.common.home import Digests
from kdrt.common.progress import Progress
from kdrt.errors import EngineError
from kdrt_engines.cuda_devices import cuda_devices
from kdrt_engines.installed import installed_version

if TYPE_CHECKING:
    from kdrt.backends.torch_programs import TorchLoader

ENGINE = "inductor"


def _needs(bundle: Bundle, component: str, engine: str) -> tuple[str, ...]:
    if engine != ENGINE:
        raise ValueError(f"'{engine}' is not Inductor")
    return (
        _program_digest(bundle, component),
        f"torch {installed_version('torch')}",
        _hardware(),
    )


def _program_digest(bundle: Bundle, component: str) -> str:
    path = torch_program(bundle, component)
    digests = Digests(path.parent)
    try:
        found = digests.of(path.name)
    except OSError:
        return "no program"
    digests.save()
    return found


def _hardware() -> str:
    if device_type(ENGINE) == "cpu":
        return processor()
    return f"{cuda_devices()[0].name} {cuda_devices()[0].capability}"


INDUCTOR = Store(
    folder="engines/inductor",
    file="network.pt2",
    needs=_needs,
    # A UNet of 3.4 GB took 4.5: the weights once, what it computes, and the compiler.
    memory=1.5,
    disk=0.1,
    otherwise="the engine torch can run it",
)


def keep_compiled(
    bundle: Bundle,
    wanted: Iterable[tuple[str, Sizes]],
    report: Progress,
    *,
    force: bool = False,
) -> list[Kept]:
    """Compile torch programs for this machine and keep that; see
    :meth:`kdrt.backends.kept.Store.keep`. ``relative_error`` is against the program as PyTorch runs
    it without compiling.

    Args:
        bundle: an opened bundle.
        wanted: components, each with the sizes to compile it for.
        report: receives the progress.
        force: make again what is there and good.

    Returns:
        What was compiled now.

    Raises:
        EngineUnavailableError: there is no C++ compiler, or the bundle has no torch programs that
            this user trusts.
        EngineError: Inductor cannot compile a network, or compiled it wrong.
        OutputError: the bundle or the list of trusted files cannot be written.
    """
    # Only builds need these, and the store is imported to look for what was built.
    import torch

    from kdrt.backends.torch_programs import TorchLoader
    from kdrt_engines.inductor.compiling import check_compiler, own_cache
    from kdrt_engines.processors import cores

    check_compiler()
    # How the work of a kernel is divided among threads is decided for as many as there are now.
    programs = TorchLoader(bundle, torch.device(device_type(ENGINE)), cores())

    def write(component: str, dims: Sizes, target: Path) -> float:
        return _write(programs, component, dims, target)

    with own_cache():
        return INDUCTOR.keep(bundle, ENGINE, wanted, write, report, force=force)


def _write(programs: TorchLoader, component: str, dims: Sizes, target: Path) -> float:
    """Write compiled code; how far its results are from the program's."""
    from kdrt_engines.comparison import bound_of, greatest_error, random_inputs, results
    from kdrt_engines.inductor.compiling import compile_module
    from kdrt_engines.inductor.engine import InductorEngine

    program = programs.load(component)
    spec, device = program.spec, program.device
    engine = InductorEngine(program.module, spec, device, kept=lambda _: target)
    inputs = random_inputs(spec, dims)
    expected = results(program.bind(**dims), inputs)
    compile_module(engine.module, tuple(each.to(device) for each in inputs.values()), target)
    error = greatest_error(results(engine.bind(**dims), inputs), expected)
    if not error <= bound_of(spec):
        raise EngineError(
            f"what Inductor compiled of {component} is off by {error:.1e} relative, where "
            f"{bound_of(spec):.0e} is allowed; it is not kept, use another engine"
        )
    return error
