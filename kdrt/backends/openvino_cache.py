"""The networks that OpenVINO compiled for this machine, kept in the bundle; see
:mod:`kdrt.backends.kept`. They depend on the network, its sizes, the precision, the version of
OpenVINO, and the processor or other device. What is not kept is compiled in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kdrt.backends.kept import Kept, Sizes, Store
from kdrt.backends.machine import processor
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle
from kdrt.common.progress import Progress
from kdrt_engines.installed import installed_version
from kdrt_engines.openvino.config import OpenVinoConfig, check_installed, config_of


def _needs(bundle: Bundle, component: str, engine: str) -> tuple[str, ...]:
    config = config_of(engine)
    return (
        network_hash(bundle.manifest, component),
        f"openvino {installed_version('openvino')}",
        _hardware(config.device),
        config.precision,
    )


def _hardware(device: str) -> str:
    if device == "CPU":
        return processor()
    if installed_version("openvino") is None:
        return device
    from kdrt_engines.openvino.engine import device_name

    return device_name(device) or device


OPENVINO = Store(
    folder="engines/openvino",
    file="network.blob",
    needs=_needs,
    # The weights as the kernels want them, that once more as the file to write, and for a precision
    # that loses something a network in float32 besides.
    memory=4.0,
    disk=1.5,
    otherwise="it will load more slowly",
)


def keep_networks(
    bundle: Bundle,
    engine: str,
    wanted: Iterable[tuple[str, Sizes]],
    report: Progress,
    *,
    force: bool = False,
) -> list[Kept]:
    """Compile components for this machine and keep them; see :meth:`kdrt.backends.kept.Store.keep`.

    Where a precision loses something, ``relative_error`` is against the same network in float32.

    Args:
        bundle: an opened bundle.
        engine: a name of OpenVINO's, with a precision or without.
        wanted: components, each with the sizes to compile it for.
        report: receives the progress.
        force: make again what is there and good.

    Returns:
        The networks made now.

    Raises:
        EngineUnavailableError: OpenVINO is not installed, does not have the device, or the device
            the precision.
        EngineError: OpenVINO cannot compile a network.
        OutputError: the bundle or the list of trusted files cannot be written.
    """
    config = config_of(engine)
    check_installed()
    # Only builds need it, and loading imports this module.
    from kdrt_engines.openvino.engine import check_device

    check_device(config)

    def write(component: str, dims: Sizes, target: Path) -> float | None:
        return _write(bundle, component, config, dims, target)

    return OPENVINO.keep(bundle, engine, wanted, write, report, force=force)


def _write(
    bundle: Bundle, component: str, config: OpenVinoConfig, dims: Mapping[str, int], target: Path
) -> float | None:
    """Write a compiled network; how far it is from float32, unless that is what it is."""
    from kdrt_engines.comparison import greatest_error, random_inputs, results
    from kdrt_engines.openvino.engine import OpenVinoEngine

    described = bundle.manifest.components[component]
    path, spec = bundle.file(described.onnx), described.spec()
    exact = OpenVinoConfig(config.device, "f32", config.threads)
    if config == exact:
        OpenVinoEngine(path, spec, config).export(target, **dims)
        return None
    inputs = random_inputs(spec, dims)
    # One after the other: each holds the weights once more.
    expected = results(OpenVinoEngine(path, spec, exact).bind(**dims), inputs)
    engine = OpenVinoEngine(path, spec, config)
    engine.export(target, **dims)
    kept = OpenVinoEngine(path, spec, config, kept=lambda _: target)
    return greatest_error(results(kept.bind(**dims), inputs), expected)
