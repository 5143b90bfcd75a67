"""A model that is served: what clients know of it, whatever is in memory of it."""

from __future__ import annotations

from kdrt.adapters.lora import LoraStack
from kdrt.adapters.lora_file import LoraFile, read_lora
from kdrt.bundle import Bundle, bundle_path, open_bundle
from kdrt.errors import BundleError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.serve.fingerprint import Fingerprint
from kdrt.serve.metrics import Metrics
from kdrt.serve.queue import WaitingQueue
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.version import ModelVersion


class ServedModel:
    """One model with its queue, and the version of its bundle that new requests get.

    Attributes:
        name: what clients call it.
        settings: which bundle, with which LoRAs.
        version: the bundle, as it was opened last. A bundle that is exported again is another.
        queue: counts the images of all versions.
        metrics: of all versions.

    Args:
        settings: which bundle, with which LoRAs. It is opened and they are read now.
        service: settings of the service.
        metrics: of the service.

    Raises:
        BundleError: the bundle is missing or damaged.
        InvalidRequestError: a LoRA does not fit.
    """

    def __init__(self, settings: ModelSettings, service: ServiceSettings, metrics: Metrics) -> None:
        before = Fingerprint.of(bundle_path(settings.bundle))
        bundle = open_bundle(settings.bundle)
        loras = _read_loras(bundle, settings)
        self.name = bundle.manifest.name
        self.settings = settings
        self.queue = WaitingQueue(service.max_waiting)
        self.metrics = metrics.model(
            self.name, lambda: self.queue.waiting, lambda: self.queue.running
        )
        self._service = service
        self.version = self._version(bundle, loras, before)

    @property
    def bundle(self) -> Bundle:
        """The open bundle that new requests get."""
        return self.version.bundle

    @property
    def loras(self) -> tuple[str, ...]:
        """The names of its registered LoRAs."""
        return tuple(self.settings.loras)

    @property
    def pipe(self) -> Pipeline:
        """The pipeline that new requests get; it must be loaded."""
        return self.version.pipe

    @property
    def places(self) -> set[str]:
        """Where its files are, and what it was exported from, which clients need not know."""
        source = self.bundle.manifest.source
        files = {str(file.path) for file in self.version.loras.values()}
        return {str(self.bundle.path), *files, *([source] if "/" in source else [])}

    @property
    def may_show_unfinished(self) -> bool:
        """Whether unfinished images may be shown: a safety checker looks at finished ones only."""
        return "safety_checker" not in self.bundle.manifest.components

    @property
    def has_previews(self) -> bool:
        """Whether there are small previews of unfinished images, which may be shown."""
        manifest = self.bundle.manifest
        has_decoder = "preview_decoder" in manifest.components
        return self.may_show_unfinished and (manifest.latents.preview is not None or has_decoder)

    def reopen(self) -> ModelVersion:
        """The bundle that is in the place of this one now, with the LoRAs; nothing is loaded.

        Raises:
            BundleError: it is missing or damaged, or is another model by its name.
            InvalidRequestError: a LoRA does not fit it.
        """
        before = Fingerprint.of(self.bundle.path)
        bundle = open_bundle(self.bundle.path)
        if bundle.manifest.name != self.name:
            raise BundleError(
                f"{bundle.path} holds a bundle called {bundle.manifest.name!r} now, and "
                f"{self.name!r} is served from there: export it with --name {self.name}"
            )
        return self._version(bundle, _read_loras(bundle, self.settings), before)

    def _version(
        self, bundle: Bundle, loras: dict[str, LoraFile], fingerprint: Fingerprint | None
    ) -> ModelVersion:
        return ModelVersion(bundle, loras, self._service, self.queue, self.metrics, fingerprint)


def _read_loras(bundle: Bundle, settings: ModelSettings) -> dict[str, LoraFile]:
    """The registered LoRAs of a bundle, which fit it."""
    stack = LoraStack(bundle)
    loras = {name: read_lora(path) for name, path in settings.loras.items()}
    for file in loras.values():
        stack.check(file, 1.0, strict=False)
    return loras
