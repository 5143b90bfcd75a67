"""Built engines for people to read: what they are for, and the evidence of what came of it."""

from __future__ import annotations

from kdrt.backends.engine_files import engine_folders
from kdrt.backends.records import EngineRecord, check_record, read_record
from kdrt.bundle import Bundle
from kdrt.common.units import duration, size
from kdrt.errors import EngineRejectedError
from kdrt_engines.tensorrt.flavour import FLAVOURS


def row(record: EngineRecord) -> tuple[str, str]:
    """The name of the component, and three lines on its engine; a fourth if it is refittable."""
    key, built = record.key, record.built
    targets = ", ".join(f"sm{number}" for number in key.compute_capabilities)
    profiles = "; ".join(map(str, key.profiles))
    cost = f"built in {duration(built.seconds)} with {size(built.peak_memory)}"
    refit = f"\nrefittable: {record.refit}" if key.refittable else ""
    return key.component, f"{targets}, {key.dtype}, {cost}\n{record.summary()}\n{profiles}{refit}"


def rows(bundle: Bundle) -> dict[str, list[tuple[str, str]]]:
    """Every engine of a bundle by flavour and version; those that will not be used with the
    reason. The engine files are not read: that happens when they are opened."""
    found: dict[str, list[tuple[str, str]]] = {}
    for flavour in FLAVOURS.values():
        for folder in engine_folders(bundle, flavour):
            try:
                record = read_record(bundle, folder)
                key = record.key
                check_record(bundle, record, key.component, key.backend_version)
            except EngineRejectedError as error:
                found.setdefault("not used", []).append((folder.name, str(error)))
            else:
                title = f"{flavour.title} {key.backend_version} engines"
                found.setdefault(title, []).append(row(record))
    return found
