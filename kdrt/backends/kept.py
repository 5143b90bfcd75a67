"""Networks that an engine compiled for this machine, kept in the bundle.

    engines/ENGINE/unet-0123456789abcdef/
        network.*       compiled for one set of sizes
        record.json     which, by what engine, and how far it is from the network as it was

The digits are a digest of all it depends on. What does not match, or what this user neither made
nor trusts byte for byte (see :mod:`kdrt.common.home`), is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kdrt.backends.machine import missing_resources
from kdrt.bundle import Bundle
from kdrt.common.atomic_io import new_folder, other_files
from kdrt.common.home import Digests, check_home, is_trusted, trust
from kdrt.common.progress import Progress
from kdrt_engines.profiles import sizes
from kdrt_engines.regular_files import read_regular

_logger = logging.getLogger("kdrt.engines")

_RECORD = "record.json"
_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
_RECORD_BYTES = 2**16

Sizes = Mapping[str, int]

Write = Callable[[str, Sizes, Path], float | None]
"""Writes the file of a component compiled for some sizes, and returns the ``relative_error`` of
:class:`KeptRecord`."""


class KeptRecord(BaseModel):
    """What is known of a network that was kept.

    Attributes:
        component: its name in the manifest.
        engine: the name that it was compiled for, with its precision.
        dims: the size of each symbol.
        relative_error: how far it is from the network it was compared with, on random inputs:
            ``‖out − expected‖ / ‖expected‖`` of the worst output. None where there was nothing to
            compare.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    engine: str
    dims: dict[str, int]
    relative_error: float | None

    def summary(self, reference: str) -> str:
        """All but the component, in one line; ``reference`` says what it was compared with."""
        error = self.relative_error
        loss = "" if error is None else f", relative error {error:.1e} against {reference}"
        return f"{self.engine}, {sizes(self.dims)}{loss}"


@dataclass(frozen=True)
class Kept:
    """A network that was kept, and its record."""

    folder: Path
    record: KeptRecord


@dataclass(frozen=True)
class Store:
    """Where the networks of one engine are kept.

    Attributes:
        folder: inside of a bundle.
        file: the name of a compiled network.
        needs: all that the network of a component depends on besides its sizes, for an engine's
            name; raises ValueError if that name is none of this engine's.
        memory: bytes that compiling needs for a byte of weights.
        disk: the same, of disk.
        otherwise: what becomes of a network that is not kept.
    """

    folder: str
    file: str
    needs: Callable[[Bundle, str, str], Sequence[str]]
    memory: float
    disk: float
    otherwise: str

    def find(self, bundle: Bundle, component: str, engine: str, dims: Sizes) -> Path | None:
        """The file of a component compiled for these sizes on this machine, or None if there is
        none that this user can trust."""
        folder = bundle.file(self._folder(bundle, component, engine, dims))
        try:
            made = self._description(folder)
        except OSError:
            return None
        if not is_trusted(*made):
            _logger.info("%s is not used: it is damaged, or somebody else made it", folder)
            return None
        return folder / self.file

    def all(self, bundle: Bundle) -> list[Kept]:
        """Every network that was kept and that this machine uses."""
        return [
            each
            for each in self._recorded(bundle)
            if self._is_current(bundle, each)
            and self.find(bundle, each.record.component, each.record.engine, each.record.dims)
        ]

    def trust(self, bundle: Bundle) -> list[Path]:
        """Trust the networks for this machine, whoever made them, and say where they are.

        Raises:
            OutputError: :func:`kdrt.common.home.trust` raises it.
        """
        found = [each.folder for each in self._recorded(bundle) if self._is_current(bundle, each)]
        for folder in found:
            trust(*self._description(folder))
        return found

    def keep(
        self,
        bundle: Bundle,
        engine: str,
        wanted: Iterable[tuple[str, Sizes]],
        write: Write,
        report: Progress,
        *,
        force: bool = False,
    ) -> list[Kept]:
        """Compile components for this machine and keep them, unless they are; ``force`` does it
        again. One that this machine has no room for is left out, and the report says so.

        Args:
            bundle: an opened bundle.
            engine: the name that they are compiled for.
            wanted: components, each with the sizes to compile it for.
            write: compiles one.
            report: receives the progress.
            force: make again what is there and good.

        Returns:
            The networks made now.

        Raises:
            EngineError: ``write`` raises it.
            OutputError: the bundle or the list of trusted files cannot be written.
        """
        # Only builds need it, and loading imports this module.
        from kdrt.common.lock import only_builder

        check_home()
        made = []
        with only_builder(bundle.place(self.folder), report.note):
            for component, dims in wanted:
                if force or self.find(bundle, component, engine, dims) is None:
                    made.append(self._keep(bundle, engine, component, dims, write, report))
            self._remove_stale(bundle)
        return [each for each in made if each is not None]

    def left_out(
        self, bundle: Bundle, engine: str, wanted: Iterable[tuple[str, Sizes]]
    ) -> list[str]:
        """Which of these networks are not kept after all, with their sizes, for people."""
        return [
            f"{component} ({sizes(dims)})"
            for component, dims in wanted
            if self.find(bundle, component, engine, dims) is None
        ]

    def _keep(
        self,
        bundle: Bundle,
        engine: str,
        component: str,
        dims: Sizes,
        write: Write,
        report: Progress,
    ) -> Kept | None:
        report.start(f"{component}: compile for {sizes(dims)}")
        source = bundle.file(bundle.manifest.components[component].onnx)
        missing = missing_resources(source, self.memory, self.disk)
        if missing is not None:
            report.done("left out")
            report.note(f"{component} is not compiled beforehand: {missing}; {self.otherwise}")
            return None
        target = bundle.place(self._folder(bundle, component, engine, dims))
        with new_folder(target, self._foreign) as partial:
            error = write(component, dims, partial / self.file)
            record = KeptRecord(
                component=component, engine=engine, dims=dict(dims), relative_error=error
            )
            text = record.model_dump_json(indent=2) + "\n"
            (partial / _RECORD).write_text(text, encoding="utf-8")
            total = (partial / self.file).stat().st_size
        trust(*self._description(target))
        loss = "" if error is None else f", relative error {error:.1e}"
        report.done(f"{total / 1e6:,.1f} MB{loss}")
        return Kept(target, record)

    def _recorded(self, bundle: Bundle) -> Iterator[Kept]:
        """What is in the folder and has a record that can be read, for this machine or others."""
        folder = bundle.file(self.folder)
        try:
            found = sorted(folder.iterdir())
        except OSError:
            return
        for each in found:
            if _NAME.fullmatch(each.name) and not each.is_symlink():
                try:
                    content = read_regular(each / _RECORD, _RECORD_BYTES)
                    yield Kept(each, KeptRecord.model_validate_json(content))
                except (OSError, ValueError):
                    continue

    def _is_current(self, bundle: Bundle, kept: Kept) -> bool:
        """Whether that is for this network, machine and version."""
        try:
            return not self._is_stale(bundle, kept)
        except ValueError:
            return False

    def _is_stale(self, bundle: Bundle, kept: Kept) -> bool:
        """Whether that is for another network, machine or version. Raises ValueError where the
        engine is none that this version knows."""
        record = kept.record
        if record.component not in bundle.manifest.components:
            return True
        folder = self._folder(bundle, record.component, record.engine, record.dims)
        return kept.folder != bundle.file(folder)

    def _description(self, folder: Path) -> list[str]:
        """What identifies the files of a network. Raises OSError where one is missing."""
        digests = Digests(folder)
        files = (self.file, _RECORD)
        described = [folder.name, *(f"{name} {digests.of(name)}" for name in files)]
        digests.save()
        return described

    def _foreign(self, folder: Path) -> str | None:
        return other_files(folder, {self.file, _RECORD}.__contains__)

    def _folder(self, bundle: Bundle, component: str, engine: str, dims: Sizes) -> str:
        parts = (*self.needs(bundle, component, engine), sizes(dict(sorted(dims.items()))))
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
        return f"{self.folder}/{component}-{digest}"

    def _remove_stale(self, bundle: Bundle) -> None:
        """Remove what was compiled of other networks, or by other versions and machines: it can be
        large, and one command makes it again. What is for an engine that only another version knows
        stays: nothing is known of it."""
        for each in self._recorded(bundle):
            with contextlib.suppress(ValueError):
                if self._is_stale(bundle, each) and self._foreign(each.folder) is None:
                    shutil.rmtree(each.folder, ignore_errors=True)
