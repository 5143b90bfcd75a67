"""Opening a bundle: the pipeline that runs it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from kdrt.backends.loading import load_engines
from kdrt.bundle import Bundle, open_bundle
from kdrt.common.memory import raise_if_out_of_memory
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import check_bool
from kdrt.denoise.graph_level import CudaGraphLevel
from kdrt.pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from kdrt.backends.offload import Offloader

_logger = logging.getLogger(__name__)


@in_neutral_modes
def load(
    name_or_path: str | os.PathLike[str] | Bundle,
    *,
    engine: str | None = None,
    threads: int | None = None,
    cuda_graph: CudaGraphLevel | None = None,
    fallback: str | None = None,
    low_vram: bool = False,
) -> Pipeline:
    """Open a bundle and load its engines.

    Args:
        name_or_path: the folder of a bundle, its name in ``$KDRT_HOME``, or an open bundle.
        engine: the engine that runs the networks (``kdrt doctor`` lists them); None takes the best
            one on this machine. OpenVINO computes in float32, or in the precision that follows its
            name, as in ``"openvino:bf16"``.
        threads: CPU threads; None is one per core.
        cuda_graph: how much of a run is captured in CUDA graphs, see
            :mod:`kdrt.denoise.cuda_graphs`: ``"off"``, ``"step"`` or ``"loop"``; None is ``"step"``
            on CUDA and ``"off"`` on a CPU, where it is the only choice.
        fallback: another engine, for components that the first one lacks or must not load.
        low_vram: load the components one after another, again for every image; see
            :mod:`kdrt.backends.offload`.

    Returns:
        The pipeline. Close it, or use it in a ``with`` block, to free its memory.

    Raises:
        BundleError: the bundle does not exist or is damaged.
        EngineUnavailableError: the engine is not on this machine, or not in the bundle.
        EngineRejectedError: a built engine is missing or must not be used, and there is no
            fallback.
        InvalidRequestError: the engine or the CUDA graph level is unknown, or not possible here.
        OutOfMemoryError: the bundle does not fit into memory.

    Warns:
        FallbackWarning: a component runs on the fallback engine; the warning says why.
    """
    try:
        bundle = name_or_path if isinstance(name_or_path, Bundle) else open_bundle(name_or_path)
        _logger.info(
            "opened bundle '%s' (%s) in %s",
            bundle.manifest.name,
            bundle.manifest.family,
            bundle.path,
        )
        offloader = _offloader() if check_bool("low_vram", low_vram) else None
        engines = load_engines(
            bundle,
            engine,
            threads=threads,
            fallback=fallback,
            offloader=offloader,
            own_cuda_graphs=cuda_graph not in ("off", None),
        )
        pipeline = Pipeline(
            bundle, engines, engines.reload, cuda_graph=cuda_graph, offloader=offloader
        )
        bundle.check_unchanged()  # while it was read
        return pipeline
    except Exception as error:
        raise_if_out_of_memory(error)
        raise


def _offloader() -> Offloader:
    from kdrt.backends.offload import Offloader  # only for low_vram

    return Offloader()
