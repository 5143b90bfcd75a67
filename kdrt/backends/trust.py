"""Trusting engines and programs that somebody else derived from a bundle; see SECURITY.md."""

from __future__ import annotations

from pathlib import Path

from kdrt.backends.engine_files import engine_folders, trust_engine
from kdrt.backends.inductor_cache import INDUCTOR
from kdrt.backends.openvino_cache import OPENVINO
from kdrt.backends.ort_cache import trust_optimized
from kdrt.backends.torch_programs import trust_program
from kdrt.backends.tuned import trust_tuned
from kdrt.bundle import Bundle
from kdrt.common.home import check_home
from kdrt_engines.tensorrt.flavour import FLAVOURS


def trust_bundle(bundle: Bundle) -> list[Path]:
    """Trust what is in the ``engines`` folder of a bundle now. What is changed or added later is
    not trusted.

    Returns:
        The files and folders that are trusted now.

    Raises:
        EngineRejectedError, EngineError: one of them is damaged.
        OutputError: that cannot be recorded; see :func:`kdrt.common.home.check_home`.
    """
    check_home()
    found = [
        trusted
        for name in bundle.manifest.components
        for trusted in (trust_program(bundle, name), trust_optimized(bundle, name))
        if trusted is not None
    ]
    found += OPENVINO.trust(bundle) + INDUCTOR.trust(bundle)
    found += [path for path in (trust_tuned(bundle),) if path is not None]
    for flavour in FLAVOURS.values():
        for folder in engine_folders(bundle, flavour):
            trust_engine(bundle, folder)
            found.append(folder)
    return found
