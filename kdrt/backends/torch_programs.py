"""The exported PyTorch programs of a bundle, which ``--target torch`` makes: loading and trust."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from kdrt.backends.choice import torch_program
from kdrt.backends.commands import bundle_argument
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle
from kdrt.common.home import Digests, is_trusted, trust
from kdrt.errors import EngineError, EngineUnavailableError
from kdrt_engines.torch_eager import TorchEngine, load_program
from kdrt_engines.torch_programs import refuse_pickles


class TorchLoader:
    """See :class:`kdrt.backends.loader.Loader`.

    Args:
        bundle: an opened bundle.
        device: where the programs run.
        threads: CPU threads of this whole process; None leaves them as they are.
    """

    def __init__(self, bundle: Bundle, device: torch.device, threads: int | None = None) -> None:
        self._bundle, self.device = bundle, device
        if threads is not None:
            torch.set_num_threads(threads)

    def load(self, component: str) -> TorchEngine:
        path = self.check(component)
        refuse_pickles(path)
        try:
            module = _ProgramModule(load_program(path, self.device))
        except Exception as error:  # a damaged archive raises anything from zip to pickle errors
            raise EngineError(f"PyTorch cannot load {path}: {error}") from error
        spec = self._bundle.manifest.components[component].spec()
        return TorchEngine(module, spec, self.device)

    def check(self, component: str) -> Path:
        """The file of a component's program, which is not loaded.

        Raises:
            EngineUnavailableError: there is none, or none that this user trusts.
        """
        bundle = self._bundle
        path = torch_program(bundle, component)
        quantized = bundle.manifest.quantization
        if quantized is not None and component in quantized.components:
            raise EngineUnavailableError(
                f"'{bundle.manifest.name}' is quantised, which PyTorch does not run; choose "
                f"another engine, or '{quantized.made_from}', which it was made from"
            )
        if not path.is_file():
            raise EngineUnavailableError(
                f"the bundle has no torch engine ({path} is missing); "
                f"export it with `{bundle.manifest.export_command} --target torch`"
            )
        if not is_trusted(*_description(bundle, component)):
            raise EngineUnavailableError(
                f"{path} was not exported by you, or not with these networks, and a torch program "
                f"can run any code: run `kdrt trust {shlex.quote(bundle_argument(bundle))}` if you "
                "trust whoever exported it, or choose another engine"
            )
        return path


def trust_program(bundle: Bundle, component: str) -> Path | None:
    """Trust the torch program of a component, whoever exported it.

    Returns:
        Where it is; None if there is none.

    Raises:
        EngineError: it is damaged, or holds a pickle.
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    path = torch_program(bundle, component)
    if not path.is_file():
        return None
    refuse_pickles(path)
    trust(*_description(bundle, component))
    return path


def _description(bundle: Bundle, component: str) -> tuple[str, ...]:
    path = torch_program(bundle, component)
    digests = Digests(path.parent)
    try:
        digest = digests.of(path.name)
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror}") from error
    digests.save()
    return "torch program", component, network_hash(bundle.manifest, component), digest


class _ProgramModule(torch.nn.Module):
    """An exported program as a plain module. PyTorch forbids ``train()`` and ``eval()`` on one,
    since its mode is fixed in the graph, so they do nothing here."""

    def __init__(self, program: torch.nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _ProgramModule:
        return self

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.program(*inputs)
