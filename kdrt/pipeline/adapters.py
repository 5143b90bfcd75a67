"""What is added to a model while it runs: LoRAs, textual inversions, variants, image prompts.

What reads and applies them is imported when it is first needed: most images are made without.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from kdrt.adapters.unet_features import Features, features_of, unet_with
from kdrt.adapters.variants import ComponentLoader, Variants
from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.calls import Calls
from kdrt.pipeline.metadata import Settings, lora_settings_of
from kdrt.prompt import PromptEncoder
from kdrt_engines import Engine, EngineSpec

if TYPE_CHECKING:
    from kdrt.adapters import textual_inversion
    from kdrt.adapters.ip_adapter import ImagePrompts
    from kdrt.adapters.lora import Changed, Lora, LoraStack, LoraSwap
    from kdrt.adapters.lora_file import LoraFile
    from kdrt.adapters.lora_merge import Scale

ReplaceEngines = Callable[[Mapping[str, Engine]], None]
"""Makes a pipeline run these engines, by component, from now on."""


class Adapters:
    """The adapters of one pipeline, at ``pipe.adapters``.

    A change takes effect with the next image. Like every call, it waits for the running call. A
    change that is refused leaves everything as it was.

    Attributes:
        lora_settings: what the infotext says about the LoRAs in use.

    Args:
        bundle: holds the base weights and names the variants.
        engines: the engines in use, by component; only read here.
        prompt_encoder: learns the tokens of textual inversions.
        calls: of the pipeline.
        load_component: loads a further component; without it there are no variants.
        replace_engines: called with the engines that replace others.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        prompt_encoder: PromptEncoder,
        calls: Calls,
        load_component: ComponentLoader | None,
        replace_engines: ReplaceEngines,
    ) -> None:
        self._bundle = bundle
        self._engines = engines
        self._prompt_encoder = prompt_encoder
        self._calls = calls
        self._replace_engines = replace_engines
        self._load_component = load_component
        self._making = Lock()
        self._lora_stack: LoraStack | None = None
        self._image_prompts: ImagePrompts | None = None
        self.lora_settings: Settings = ()
        self._variants = Variants(bundle.manifest, load_component)
        self._own_unet = "unet"

    @property
    def _loras(self) -> LoraStack:
        from kdrt.adapters.lora import LoraStack

        with self._making:
            if self._lora_stack is None:
                self._lora_stack = LoraStack(self._bundle)
            return self._lora_stack

    @property
    def image_prompts(self) -> ImagePrompts:
        """Makes the tokens of an IP-Adapter."""
        from kdrt.adapters.ip_adapter import ImagePrompts

        with self._making:
            if self._image_prompts is None:
                self._image_prompts = ImagePrompts(self._bundle.manifest, self._load_component)
            return self._image_prompts

    @property
    def loras(self) -> dict[str, Lora]:
        """Every loaded LoRA by name, including those at scale 0."""
        return self._loras.loras

    def lora_modules(self, network: str) -> frozenset[str]:
        """The modules of a network that a LoRA can change, by their dotted paths."""
        return self._loras.modules(network)

    def load_lora(
        self,
        path: str | os.PathLike[str] | LoraFile,
        name: str | None = None,
        scale: Scale = 1.0,
        *,
        strict: bool = False,
        allow_pickle: bool = False,
    ) -> LoraSwap:
        """Add a LoRA to the weights of the engines in use, and load the textual inversions that
        its file contains.

        Args:
            path: a file in kohya's, diffusers', peft's or ComfyUI's format, or a file that was
                read before.
            name: its name for :meth:`set_loras`. None takes the file's name without the suffix,
                preceded by as many folders as make it unique: ``style``, then ``b/style``.
            scale: the strength, which may be below 0 or above 1. A mapping gives ``unet``,
                ``text_encoder`` and ``text_encoder_2`` a scale each, and each of them may be a
                mapping by block: ``{"unet": {"mid_block": 0.5, "down_blocks.1": 0}}``.
            strict: refuse the LoRA if any of its layers has no effect.
            allow_pickle: read PyTorch's files too; only tensors are loaded from them.

        Returns:
            What was changed, and how long it took.

        Raises:
            InvalidRequestError: the file is no LoRA or is for another model, or the name is taken.
            EngineError: the weights of this engine are fixed; the message says what to export.

        Warns:
            AdapterWarning: some of its layers have no effect, and ``strict`` is off.
        """
        from kdrt.adapters import textual_inversion
        from kdrt.adapters.lora_file import LoraFile, read_lora

        self._loras.check_base()
        file = path if isinstance(path, LoraFile) else read_lora(path, allow_pickle=allow_pickle)
        with self._calls.exclusive():
            words: tuple[str, ...] = ()
            if file.embeddings:
                words = textual_inversion.load(
                    self._prompt_encoder, list(file.embeddings.values()), list(file.embeddings)
                )
            try:
                with self._nothing_stale():
                    return self._swap(
                        self._loras.load(self._engines, file, name, scale, strict=strict)
                    )
            except BaseException:
                self._forget_words(words)
                raise

    def set_loras(self, scales: Mapping[str, Scale]) -> LoraSwap:
        """Use exactly these of the loaded LoRAs, at these scales. The others stay loaded but have
        no effect.

        Raises:
            InvalidRequestError: a name is not loaded, or a scale is no finite number.
        """
        with self._calls.exclusive(), self._nothing_stale():
            return self._swap(self._loras.set(self._engines, scales))

    def checked_loras(self, scales: object) -> dict[str, Scale]:
        """The scales that :meth:`set_loras` would use, without changing or waiting for anything.

        Raises:
            InvalidRequestError: a name is not loaded, or a scale is no finite number.
        """
        return self._loras.checked(scales)

    def unload_loras(self, *names: str) -> LoraSwap:
        """Remove these LoRAs, or all of them if no name is given. Once no LoRA is loaded, the
        weights are those of the bundle, bit for bit.

        Raises:
            InvalidRequestError: a name is not loaded.
        """
        with self._calls.exclusive():
            before = self.loras
            with self._nothing_stale():
                swap = self._swap(self._loras.unload(self._engines, names or tuple(before)))
            gone = before.keys() - self.loras.keys()
            self._forget_words(word for name in gone for word in before[name].file.embeddings)
            return swap

    def _forget_words(self, words: Iterable[str]) -> None:
        """Forget the tokens that LoRAs brought, as far as they are still loaded."""
        if known := [word for word in words if word in self.textual_inversions()]:
            self.unload_textual_inversion(known)

    def use_variant(self, name: str | None, parts: Sequence[str] | None = None) -> None:
        """Use other networks from now on, such as those with unfused projections. LoRAs stay
        loaded and are applied to the new networks.

        Args:
            name: one of ``bundle.manifest.variants``; None returns to the plain networks.
            parts: the components to replace (``unet``, ``vae_decoder``, …); None is all of them.

        Raises:
            InvalidRequestError: the bundle has no such variant; the message says what to export.
        """
        with self._calls.exclusive():
            wanted = self._variants.named(name, parts)
            self._play(wanted)
            self._own_unet = wanted.get("unet", self._own_unet)

    def use_unet(self, features: Features) -> None:
        """Use the UNet with these features from now on; :meth:`unet_spec` says which one it is.

        Raises:
            InvalidRequestError: the bundle has none, or this pipeline cannot load it.
        """
        with self._calls.exclusive():
            component, leaving = self._unet_for(features), self._variants.playing("unet")
            if component == leaving:
                return
            engine = self._engines["unet"]
            is_untouched = not any(lora.scale_of("unet") for lora in self.loras.values())
            self._play({"unet": component})
            if is_untouched:  # requests with and without a feature may alternate
                self._variants.put_aside(leaving, engine)

    def unet_spec(self, features: Features) -> EngineSpec:
        """The UNet for requests that need these features: the one chosen by :meth:`use_variant` if
        it has them, otherwise the one with the fewest other features.

        Raises:
            InvalidRequestError: the bundle has none; the message says what to export.
        """
        component = self._unet_for(features)
        if component == self._variants.playing("unet"):
            return self._engines["unet"].spec
        return self._bundle.manifest.components[component].spec()

    def release(self) -> None:
        """Free everything that can be loaded again."""
        self._variants.release()

    def _unet_for(self, features: Features) -> str:
        manifest, own = self._bundle.manifest, self._own_unet
        if not features or set(features) <= set(features_of(manifest.components[own].spec())):
            return own
        return unet_with(manifest, features)

    def _play(self, wanted: Mapping[str, str]) -> None:
        components = self._variants.changes(wanted)
        engines = self._variants.load(components, self._engines)
        # Not a dict of both: that would load every component that is loaded on demand.
        present = ChainMap[str, Engine](engines, self._engines)  # type: ignore[arg-type]
        with_loras, _ = self._loras.move(components, present)
        self._variants.chosen(components)
        self._replace_engines(engines | with_loras)

    @property
    def variants_in_use(self) -> dict[str, str]:
        """The variant components in use, by the component that each replaces."""
        return self._variants.in_use

    @contextmanager
    def _nothing_stale(self) -> Iterator[None]:
        """Drop buffers and captured CUDA graphs if a change of weights fails half-way.

        The weights are back to what they were by then, but TensorRT does not promise that graphs
        captured before a refit are still valid."""
        self._bundle.check_unchanged()  # the base weights are read from it again
        try:
            yield
        except InvalidRequestError:
            raise  # no engine was touched
        except BaseException:
            from kdrt.adapters.lora_names import NETWORKS

            self._replace_engines(
                {name: self._engines[name] for name in NETWORKS if name in self._engines}
            )
            raise

    def _swap(self, change: Changed) -> LoraSwap:
        engines, swap = change
        self.lora_settings = lora_settings_of(self.loras.values())
        self._replace_engines(engines)
        return swap

    def load_textual_inversion(
        self,
        source: textual_inversion.Source | Sequence[textual_inversion.Source],
        token: str | Sequence[str] | None = None,
        *,
        component: str | None = None,
        weight_name: str | None = None,
        allow_pickle: bool = False,
        pool_at_learned: bool = False,
        hub_options: Mapping[str, object] | None = None,
    ) -> tuple[str, ...]:
        """Add learned tokens to the text encoders; see
        :func:`kdrt.adapters.textual_inversion.load` for arguments and errors.

        Returns:
            The tokens, as they are written in prompts.
        """
        from kdrt.adapters import textual_inversion

        with self._calls.exclusive():
            return textual_inversion.load(
                self._prompt_encoder,
                source,
                token,
                component=component,
                weight_name=weight_name,
                allow_pickle=allow_pickle,
                pool_at_learned=pool_at_learned,
                hub_options=hub_options,
            )

    def unload_textual_inversion(
        self, token: str | Sequence[str] | None = None, *, component: str | None = None
    ) -> None:
        """Remove these learned tokens; None removes all of them. Prompts are then encoded as before
        the tokens were loaded, bit for bit.

        Raises:
            InvalidRequestError: a token is not loaded.
        """
        from kdrt.adapters import textual_inversion

        with self._calls.exclusive():
            textual_inversion.unload(self._prompt_encoder, token, component=component)

    def textual_inversions(self, component: str | None = None) -> dict[str, int]:
        """The learned tokens of one text encoder, or of all, with the number of vectors of each."""
        return {
            token: len(ids)
            for encoder in self._prompt_encoder.encoders
            if component in (None, encoder.facts.component)
            for token, ids in encoder.learned.tokens.items()
        }
