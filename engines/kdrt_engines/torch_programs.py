"""What the file of an exported PyTorch program contains, read without PyTorch.

Loading one can run any code: it calls functions of ``torch`` by name, and PyTorch unpickles what
the file declares as a pickle. So only programs that the user made or trusts are loaded, and none
with a pickle in it.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from kdrt_engines.errors import EngineError

_PLAIN = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/\w+|models/\w+\.json|extra/[\w.]+"
    r"|data/(weights|constants)/(weight|tensor)_\d+)"
)
_CONFIG = re.compile(r"data/(weights|constants)/\w+_config\.json")
_EXAMPLES = re.compile(r"data/sample_inputs/\w+\.pt")


def refuse_pickles(path: Path) -> None:
    """Make sure that nothing in an exported program will be unpickled.

    Raises:
        EngineError: something may be, or the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            suspect = [
                entry.filename for entry in archive.infolist() if not _harmless(archive, entry)
            ]
    except Exception as error:  # a damaged archive or config raises many kinds
        raise EngineError(f"PyTorch cannot load {path}: it is damaged ({error})") from error
    if suspect:
        raise EngineError(
            f"{path} is not loaded: {suspect[0]!r} in it may be a pickle, which runs code; export "
            "it again"
        )


def _harmless(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    name = entry.filename.partition("/")[2]
    if _EXAMPLES.fullmatch(name):
        return entry.file_size == 0
    if _CONFIG.fullmatch(name):
        config = json.loads(archive.read(entry))["config"]
        return not any(tensor["use_pickle"] for tensor in config.values())
    return _PLAIN.fullmatch(name) is not None
