"""Inductor without its compiler: packages that run the module they were made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

Made = Callable[[torch.nn.Module], torch.nn.Module]


@dataclass
class FakeInductor:
    """As Inductor, a package has sizes, no weights of its own, and reads those it is given where
    they are.

    Attributes:
        made: what becomes of a module that is compiled; a wrong compiler makes another of it.
        modules: what was compiled, by what is in the package.
        sizes: of the inputs, by the same.
        given: the weights that packages were given: as PyTorch, it never lets go of them.
    """

    made: Made = lambda module: module
    modules: dict[bytes, torch.nn.Module] = field(default_factory=dict)
    sizes: dict[bytes, list[torch.Size]] = field(default_factory=dict)
    given: list[Tensor] = field(default_factory=list)

    def compile_module(
        self, module: torch.nn.Module, inputs: tuple[Tensor, ...], path: Path
    ) -> None:
        content = f"package {len(self.modules)}".encode()
        path.write_bytes(content)
        self.modules[content] = self.made(module)
        self.sizes[content] = [each.shape for each in inputs]

    def load(self, path: str, *, run_single_threaded: bool) -> _Package:
        assert run_single_threaded, "it would wait, and a CUDA graph could not capture it"
        content = Path(path).read_bytes()
        if content not in self.modules:
            raise RuntimeError("not a ZIP archive")
        return _Package(self.modules[content], self.sizes[content], self.given)


class _Package:
    """Stands in for ``AOTICompiledModel``."""

    def __init__(
        self, module: torch.nn.Module, sizes: list[torch.Size], given: list[Tensor]
    ) -> None:
        self._module, self._sizes, self._given = module, sizes, given
        self._weights: Mapping[str, Tensor] = {}
        self.loader = SimpleNamespace(boxed_run=self._run)

    def get_constant_fqns(self) -> list[str]:
        return [
            name for name, _ in (*self._module.named_parameters(), *self._module.named_buffers())
        ]

    def load_constants(
        self, weights: Mapping[str, Tensor], *, check_full_update: bool, user_managed: bool
    ) -> None:
        assert check_full_update
        assert user_managed, "it would copy them"
        self._weights = weights
        self._given += weights.values()

    def _run(self, inputs: list[Tensor]) -> list[Tensor]:
        assert [each.shape for each in inputs] == self._sizes
        result = torch.func.functional_call(self._module, dict(self._weights), tuple(inputs))
        return [result]


@contextmanager
def fake_inductor(made: Made = lambda module: module) -> Iterator[FakeInductor]:
    """The fake in place of PyTorch's."""
    import torch._inductor

    fake = FakeInductor(made)
    with (
        patch("kdrt_engines.inductor.compiling.compile_module", fake.compile_module),
        patch("kdrt_engines.inductor.compiling.check_compiler", lambda: None),
        patch.object(torch._inductor, "aoti_load_package", fake.load),
    ):
        yield fake
