"""The configurations of a model's networks, kept in its bundle for those who ask for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kdrt.bundle import config_file


def write_config(folder: Path, name: str, network: Any) -> None:
    """Write the configuration of a network of diffusers or transformers into the bundle that is
    being made in ``folder``."""
    config = network.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    public = {key: value for key, value in values.items() if not key.startswith("_")}
    file = folder / config_file(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(public, indent=2, default=str) + "\n", encoding="utf-8")
