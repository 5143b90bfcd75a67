"""ONNX Runtime for a graph that is in no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from kdrt_engines.onnxruntime.config import CPU
from kdrt_engines.onnxruntime.sessions import session_options

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def session_of(
    model: onnx.ModelProto, folder: Path, *, providers: Sequence[str] = (CPU,), fold: bool = True
) -> ort.InferenceSession:
    """A session of a graph.

    Args:
        model: the graph.
        folder: where its weights are.
        providers: ONNX Runtime's execution providers, the first that can compute an operator does.
        fold: compute beforehand what depends on no input. Without it nothing is held a second
            time.
    """
    options = session_options()
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
    disabled = [] if fold else ["ConstantFolding"]
    return ort.InferenceSession(
        model.SerializeToString(),
        options,
        providers=[*providers],
        disabled_optimizers=disabled,
    )
