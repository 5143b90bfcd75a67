"""What a pipeline offers of adapters: LoRAs, variants, learned tokens."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

from kdrt.adapters import textual_inversion
from kdrt.adapters.lora import NETWORKS, Changed, Lora, LoraStack, LoraSwap, Scale
from kdrt.adapters.lora_file import LoraFile, read_lora
from kdrt.adapters.variants import Variants
from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.calls import Calls
from kdrt.prompt import PromptEncoder
from kdrt_engines import Engine


class AdapterSwitches(ABC):
    """LoRAs, variants and learned tokens of a pipeline."""

    bundle: Bundle
    engines: MutableMapping[str, Engine]
    _calls: Calls
    _prompts: PromptEncoder
    _loras: LoraStack
    _variants: Variants

    @abstractmethod
    def _use(self, engines: Mapping[str, Engine]) -> None:
        """Go on with other engines, by component."""

    @property
    def loras(self) -> dict[str, Lora]:
        """Every loaded LoRA by name, those at scale 0 too."""
        return self._loras.loras

    def load_lora(
        self,
        path: str | os.PathLike[str] | LoraFile,
        name: str | None = None,
        scale: Scale = 1.0,
        *,
        strict: bool = False,
        allow_pickle: bool = False,
    ) -> LoraSwap:
        """Add a LoRA to the weights of the running engines, and the textual inversions it brings
        to the prompts.

        Args:
            path: a file in kohya's, diffusers', peft's or ComfyUI's format, or one that was read
                before.
            name: for :meth:`set_loras`; None is the file's name without its suffix, with the
                folders before it that tell it from other files: ``style``, then ``b/style``.
            scale: how strong it is; below 0 and above 1 too. A mapping gives ``unet``,
                ``text_encoder`` and ``text_encoder_2`` each their own, and in place of a number
                one by block: ``{"unet": {"mid_block": 0.5, "down_blocks.1": 0}}``.
            strict: refuse it if any of its layers has no effect.
            allow_pickle: read PyTorch's files too; only tensors are loaded.

        Raises:
            InvalidRequestError: it is no LoRA, or for another model, or the name is taken.
            EngineError: the weights of this engine are fixed; the message says what to export.

        Warns:
            AdapterWarning: some of its layers have no effect, and ``strict`` is off.
        """
        self._loras.check_base()
        file = path if isinstance(path, LoraFile) else read_lora(path, allow_pickle=allow_pickle)
        with self._calls.one():
            words: tuple[str, ...] = ()
            if file.embeddings:
                words = textual_inversion.load(
                    self._prompts, list(file.embeddings.values()), list(file.embeddings)
                )
            try:
                with self._nothing_stale():
                    return self._swap(
                        self._loras.load(self.engines, file, name, scale, strict=strict)
                    )
            except BaseException:
                self._forget_words(words)
                raise

    def set_loras(self, scales: Mapping[str, Scale]) -> LoraSwap:
        """Use exactly these of the loaded LoRAs, at these scales; the others stay loaded, off.

        Raises:
            InvalidRequestError: a name is not loaded, or a scale is no finite number.
        """
        with self._calls.one(), self._nothing_stale():
            return self._swap(self._loras.set(self.engines, scales))

    def unload_loras(self, *names: str) -> LoraSwap:
        """Forget these LoRAs, or all of them: then the weights are the bundle's, bit for bit.

        Raises:
            InvalidRequestError: a name is not loaded.
        """
        with self._calls.one():
            before = self.loras
            with self._nothing_stale():
                swap = self._swap(self._loras.unload(self.engines, names or tuple(before)))
            gone = before.keys() - self.loras.keys()
            self._forget_words(word for name in gone for word in before[name].file.embeddings)
            return swap

    def _forget_words(self, words: Iterable[str]) -> None:
        """Those that LoRAs brought and that were not forgotten since."""
        if known := [word for word in words if word in self.textual_inversions()]:
            self.unload_textual_inversion(known)

    def use_variant(self, name: str | None, parts: Sequence[str] | None = None) -> None:
        """Compute another way from now on; LoRAs stay as they are.

        Args:
            name: one of ``bundle.manifest.variants``; None is what was exported without a name.
            parts: the components to change (``unet``, ``vae_decoder``, …); None is all.

        Raises:
            InvalidRequestError: the bundle has no such variant; the message says what to export.
        """
        with self._calls.one():
            components = self._variants.choose(name, parts)
            engines = self._variants.load(components, self.engines)
            with_loras, _ = self._loras.move(components, ChainMap(engines, self.engines))
            self._variants.chosen(components)
            self._use(engines | with_loras)

    @property
    def variants_in_use(self) -> dict[str, str]:
        """The components that play another's part, by part."""
        return self._variants.in_use

    @contextmanager
    def _nothing_stale(self) -> Iterator[None]:
        """A change that is refused may have been made and undone in the engines. Their weights are
        then what they were, but of what was captured before TensorRT promises nothing."""
        self.bundle.check_unchanged()  # the base weights are read from it again
        try:
            yield
        except InvalidRequestError:
            raise  # before an engine was touched
        except BaseException:
            self._use({name: self.engines[name] for name in NETWORKS if name in self.engines})
            raise

    def _swap(self, change: Changed) -> LoraSwap:
        engines, swap = change
        self._use(engines)
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
        """Teach the text encoders learned tokens, on the engines as they are; see
        :func:`kdrt.adapters.textual_inversion.load` for arguments and errors.

        Returns:
            The tokens, to be written in prompts.
        """
        with self._calls.one():
            return textual_inversion.load(
                self._prompts,
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
        """Forget learned tokens, None all of them; prompts then become, bit by bit, what they were
        before. Raises InvalidRequestError: a token is not loaded."""
        with self._calls.one():
            textual_inversion.unload(self._prompts, token, component=component)

    def textual_inversions(self, component: str | None = None) -> dict[str, int]:
        """The learned tokens of one text encoder or of all, and how many vectors each has."""
        return {
            token: len(ids)
            for encoder in self._prompts.encoders
            if component in (None, encoder.facts.component)
            for token, ids in encoder.learned.tokens.items()
        }
