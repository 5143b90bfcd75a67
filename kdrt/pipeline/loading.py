"""Opening a bundle: the pipeline that runs it."""

from __future__ import annotations

import logging
import os

from kdrt.backends.loading import load_engines
from kdrt.backends.offload import Offloader
from kdrt.bundle import Bundle, open_bundle
from kdrt.common.memory import raise_if_out_of_memory
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import check_bool
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.pipeline.pipeline import Pipeline

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
        name_or_path: a bundle's folder, or its name in ``$KDRT_HOME``; or one that is open.
        engine: which engine runs it (``kdrt doctor`` lists them); None takes the best here. Those
            of OpenVINO compute in float32, or in the precision that follows their name, as in
            ``"openvino:bf16"``.
        threads: CPU threads; None is one a core.
        cuda_graph: how much of a run is captured in CUDA graphs, see
            :mod:`kdrt.denoise.cuda_graphs`: ``"off"``, ``"step"`` or ``"loop"``; None is ``"step"``
            on CUDA and ``"off"`` on a CPU, where there is nothing else.
        fallback: another engine, for components that the first has not or may not load.
        low_vram: load the components in turn, each image anew; see :mod:`kdrt.backends.offload`.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        EngineUnavailableError: the engine is not on this machine, or not in the bundle.
        EngineRejectedError: a built engine is missing or must not be used, and there is no
            fallback.
        InvalidRequestError: an unknown engine or CUDA graph level, or one that is not possible
            here.
        OutOfMemoryError: it does not fit.

    Warns:
        FallbackWarning: a component runs on the other engine, and why.
    """
    try:
        bundle = name_or_path if isinstance(name_or_path, Bundle) else open_bundle(name_or_path)
        _logger.info(
            "opened bundle '%s' (%s) in %s",
            bundle.manifest.name,
            bundle.manifest.family,
            bundle.path,
        )
        offloader = Offloader() if check_bool("low_vram", low_vram) else None
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
