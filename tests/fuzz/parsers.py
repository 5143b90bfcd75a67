"""Coverage-guided fuzzing of what reads other people's files and texts.

    pip install atheris
    python tests/fuzz/seeds.py corpus
    python tests/fuzz/parsers.py corpus -max_total_time=3600 -timeout=30 -rss_limit_mb=6000

The first byte of an input chooses one of ``TARGETS``; the arguments go to libFuzzer. Each target
may raise ``KdrtError`` and nothing else, and libFuzzer reports what takes longer than its timeout.
Not part of the test suite: atheris has no wheels for every Python.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kdrt", "kdrt_export", "kdrt_engines"]):
    from kdrt.adapters.embedding_file import read_words
    from kdrt.adapters.lora_file import read_lora
    from kdrt.bundle import Bundle
    from kdrt.errors import KdrtError
    from kdrt.images.files import open_image
    from kdrt.images.infotext import parse_infotext
    from kdrt.images.input import read_images
    from kdrt.images.metadata import read_metadata
    from kdrt.prompt.weighting import escape, has_emphasis, parse
    from kdrt_engines.onnx_model import graph_facts
    from kdrt_engines.onnx_weights import stored_weights
    from kdrt_export.sources.checkpoint_file import detect, read_header

FOLDER = Path(tempfile.mkdtemp(prefix="kdrt-fuzz-"))


def _file(data: bytes, name: str) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def settings(data: bytes) -> None:
    """The text that travels with an image."""
    parse_infotext(data.decode("utf-8", "replace"))


def emphasis(data: bytes) -> None:
    """A prompt: text without emphasis is read as it is."""
    prompt = data.decode("utf-8", "replace")
    sections = parse(prompt)
    if not has_emphasis(prompt):
        assert sections == parse(escape(prompt))


def metadata(data: bytes) -> None:
    """An image's metadata."""
    read_metadata(_file(data, "image.png"))


def image(data: bytes) -> None:
    """An image's pixels."""
    with open_image(_file(data, "image.png")) as opened:
        read_images("image", opened, 8, 16, 16)


def lora(data: bytes) -> None:
    """A LoRA file."""
    read_lora(_file(data, "lora.safetensors"))


def embedding(data: bytes) -> None:
    """A textual inversion file."""
    read_words(_file(data, "word.safetensors"), "word", allow_pickle=False)


def manifest(data: bytes) -> None:
    """A bundle's manifest."""
    Bundle.open(_file(data, "manifest.json").parent)


def checkpoint(data: bytes) -> None:
    """The header of a single-file checkpoint."""
    path = _file(data, "model.safetensors")
    detect(read_header(path), path.name)


def network(data: bytes) -> None:
    """An ONNX file."""
    path = _file(data, "model.onnx")
    for read in (graph_facts, stored_weights):
        with contextlib.suppress(KdrtError):
            read(path)


TARGETS = (settings, emphasis, metadata, image, lora, embedding, manifest, checkpoint, network)


def one(data: bytes) -> None:
    """One input."""
    if data:
        with contextlib.suppress(KdrtError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def main() -> None:
    """Fuzz until libFuzzer's limits, and leave nothing but what it found."""
    os.environ["KDRT_HOME"] = str(FOLDER / "home")
    warnings.simplefilter("ignore")
    logging.disable()
    atheris.Setup(sys.argv, one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
