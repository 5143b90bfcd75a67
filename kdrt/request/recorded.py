"""A request again from the text in an image: the other way round from :mod:`kdrt.request.record`.

Of web UIs' images it takes what means the same here. What it cannot take is said, not guessed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Unpack, cast, get_args, get_origin

from kdrt.common.user_warning import warn_user
from kdrt.common.validation import check_mapping
from kdrt.errors import InvalidRequestError
from kdrt.images.metadata import MetadataWarning, check_metadata
from kdrt.request.complete import check_names
from kdrt.request.field import Field
from kdrt.request.fields import FIELDS, Prompts, Request
from kdrt.request.recipes import same_sampler
from kdrt.request.record import (
    CONTROL,
    CUSTOM,
    EMPHASIS,
    EMPTY_NEGATIVE,
    EXACT_NEGATIVE,
    EXACT_PROMPT,
    FREEU,
    OTHER_SCHEDULE,
    OWN_SAMPLER,
    SAMPLER_OPTIONS,
    SCHEDULE_OPTIONS,
)
from kdrt.request.text_forms import read_scalar
from kdrt.request.web_ui import OTHER_PROGRAMS, web_ui_noise, web_ui_schedule
from kdrt.sampling import SCHEDULES, find_sampler, find_schedule, is_foreign, split_label

_OURS = "kdrt "
_NOT_HELD = (
    *("Lora hashes", "Lora weights", "TI hashes", "Variation seed"),
    *("Hires resize", "Hires sampler", "Hires schedule type", "Hires CFG Scale"),
    *("Hires prompt", "Hires negative prompt", "Hires checkpoint"),
)
"""Keys of what shaped an image and is no field of a request."""


@dataclass(frozen=True)
class RecordedRequest:
    """What an image's text tells.

    Attributes:
        fields: of the request that makes the image again.
        left_out: what shaped the image and is not in ``fields``, by its key in the text.
        model: the name of the model; None if it is not snapshot.
    """

    fields: Request
    left_out: Mapping[str, str]
    model: str | None

    def changed(self, changes: Request) -> RecordedRequest:
        """The same with some fields given anew, and without those that these make void.

        Options are added to those that stay, as of the same sampler.

        Raises:
            UnknownFieldError: there is no such field.
            InvalidRequestError: options are no mapping.
        """
        check_names(changes)
        fields: dict[str, Any] = dict(self.fields)
        for name, value in changes.items():
            if name == "sampler" and same_sampler(value, self.fields.get(name)):
                continue
            # Without a prompt its second part is void too; any other None takes no other's place.
            if value is None and name not in Prompts.__annotations__:
                continue
            for settled in FIELDS[name].settles:
                fields.pop(settled, None)
        if "sampler" in changes and _names_schedule(changes["sampler"]):
            fields.pop("schedule", None)
        given = {FIELDS[name].record for name in changes}
        left_out = {
            key: text
            for key, text in self.left_out.items()
            if key not in given and not (key.startswith(CONTROL) and "control" in changes)
        }
        for name, value in changes.items():
            if FIELDS[name].is_mapping and value is not None:
                own = check_mapping(name, value)
                fields[name] = {**check_mapping(name, fields.get(name)), **own}
            else:
                fields[name] = value
        return RecordedRequest(cast(Request, fields), left_out, self.model)

    def usable(self) -> RecordedRequest:
        """The same without fields that mean nothing alone, such as the strength of an image that
        is not there."""
        fields, left_out = dict(self.fields), dict(self.left_out)
        for name in list(fields):
            field = FIELDS[name]
            if field.requires and fields.get(field.requires) is None:
                left_out[field.record] = str(fields.pop(name))
        return RecordedRequest(cast(Request, fields), left_out, self.model)

    def warn_of_left_out(self) -> None:
        """Warns MetadataWarning, once for all."""
        if self.left_out:
            told = ", ".join(f"{key} ({value})" for key, value in self.left_out.items())
            warn_user(MetadataWarning(f"not taken over from the image: {told}"))


def request_from(path: str | os.PathLike[str], **changes: Unpack[Request]) -> Request:
    """The request that made an image, read from the text in its file.

        pipe(**kdrt.request_from("circle.png"))               # the same image
        pipe(**kdrt.request_from("circle.png", steps=50))     # the same with more steps

    Args:
        path: an image from kdrt, the AUTOMATIC1111 web UI or another program whose metadata kdrt
            can read.
        changes: fields that replace those of the image.

    Returns:
        The request.

    Raises:
        InvalidRequestError: there is no such file, or it does not say how it was made.
        UnknownFieldError: a field in ``changes`` does not exist.

    Warns:
        MetadataWarning: the image was shaped by something that is not in the request, such as an
            initial image or LoRAs.
    """
    recorded = read_request(path).changed(changes).usable()
    recorded.warn_of_left_out()
    return recorded.fields


def read_request(path: str | os.PathLike[str]) -> RecordedRequest:
    """All that an image's text tells.

    Raises:
        InvalidRequestError: there is no such file, or it does not say how it was made.
    """
    found = check_metadata(path)
    return request_of_settings(found.settings, found.program)


def request_of_settings(settings: Mapping[str, str], program: str) -> RecordedRequest:
    """The same from settings by key, as :func:`kdrt.images.infotext.parse_infotext` gives them."""
    reader = _Reader(settings, program)
    reader.read()
    return RecordedRequest(
        cast(Request, reader.fields), reader.left_out, settings.get("Model") or None
    )


class _Reader:
    def __init__(self, settings: Mapping[str, str], program: str) -> None:
        self.settings = settings
        self.program = program
        self.ours = settings.get("Version", "").startswith(_OURS)
        self.fields: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}

    def read(self) -> None:
        self._prompts()
        self._size()
        self._sampler()
        self._schedule()
        self._clip_skip()
        self._noise()
        self._freeu()
        self._strength()
        for field in FIELDS.values():
            if field.record and field.name not in _BY_HAND:
                self._field(field)
        for key, text in self.settings.items():
            if key in (*_NOT_HELD, OWN_SAMPLER) or key.startswith(CONTROL):
                self.left_out[key] = text

    def _field(self, field: Field) -> None:
        text = self.settings.get(field.record)
        if text is None:
            return
        try:
            self.fields[field.name] = field_value(field, text)
        except ValueError:
            self.left_out[field.record] = text

    def _prompts(self) -> None:
        settings = self.settings
        exact = EXACT_PROMPT in settings
        self.fields["prompt"] = settings.get(EXACT_PROMPT if exact else "Prompt", "")
        negative = settings.get(EXACT_NEGATIVE if exact else "Negative prompt")
        if negative is None and EMPTY_NEGATIVE in settings:
            negative = ""
        if negative is not None:
            self.fields["negative_prompt"] = negative
        # The web UI leaves out what it does by default.
        default = EMPHASIS["none" if self.ours else "a1111"]
        emphasis = settings.get("Emphasis", default)
        modes = {label: mode for mode, label in EMPHASIS.items()}
        if emphasis not in modes:
            self.left_out["Emphasis"] = emphasis
        elif self.ours or self._is_web_ui():
            self.fields["prompt_weighting"] = modes[emphasis]

    def _size(self) -> None:
        text = self.settings.get("Size", "")
        with suppress(ValueError):
            width, height = (int(side) for side in text.split("x"))
            self.fields |= {"width": width, "height": height}

    def _sampler(self) -> None:
        name = self.settings.get("Sampler")
        if name is None or OWN_SAMPLER in self.settings:
            return
        try:
            known = None if is_foreign(name) else split_label(name)[0]
        except InvalidRequestError:
            self.left_out["Sampler"] = name
            return
        self.fields["sampler"] = name
        accepted = None if known is None else find_sampler(known).options
        self._options("sampler_options", SAMPLER_OPTIONS, "Sampler ", accepted)

    def _schedule(self) -> None:
        name = self.settings.get("Schedule type")
        if name == CUSTOM:
            name = self.settings.get(OTHER_SCHEDULE)
            if name in _BY_LABEL:
                self.fields["schedule"] = _BY_LABEL[name].name
            return
        if not self.ours and self._is_web_ui():
            name = web_ui_schedule(name, self.fields.get("sampler"))
        if name is None:
            return
        try:
            info = _BY_LABEL.get(name) or find_schedule(name)
        except InvalidRequestError:
            self.left_out["Schedule type"] = name
            return
        self.fields["schedule"] = info.name
        self._options("schedule_options", SCHEDULE_OPTIONS, "Schedule ", info.options)

    def _options(
        self,
        name: str,
        labels: Mapping[str, str],
        prefix: str,
        accepted: Mapping[str, Any] | None,
    ) -> None:
        """The options of a sampler, a schedule or a noise; None accepts all."""
        options = {option: key for option, key in labels.items() if key in self.settings}
        for key in self.settings:
            option = key.removeprefix(prefix).replace(" ", "_")
            plain = key.startswith(prefix) and key not in (*labels.values(), "Schedule type")
            if plain and key != OWN_SAMPLER and (accepted is None or option in accepted):
                options[option] = key
        found = {}
        for option, key in options.items():
            if accepted is not None and option not in accepted:
                self.left_out[key] = self.settings[key]
            else:
                found[option] = read_scalar(self.settings[key])
        if found:
            self.fields[name] = found

    def _clip_skip(self) -> None:
        own, theirs = self.settings.get("Skipped layers"), self.settings.get("Clip skip")
        with suppress(ValueError):
            skipped = int(own) if own is not None else int(theirs or 1) - 1
            if skipped > 0:
                self.fields["clip_skip"] = skipped

    def _noise(self) -> None:
        settings = self.settings
        if not self.ours:
            noise, options, lost = web_ui_noise(settings, self.program, self.fields.get("sampler"))
            self.left_out |= lost
        elif "RNG" in settings:
            noise, options = "a1111", {"source": settings["RNG"].lower()}
            if "ENSD" in settings:
                options["eta_noise_seed_delta"] = int(settings["ENSD"])
        else:
            noise, options = settings.get("Noise"), {}
        if noise is not None:
            self.fields["noise"] = noise
        if options:
            self.fields["noise_options"] = options

    def _freeu(self) -> None:
        if all(key in self.settings for key in FREEU):
            with suppress(ValueError):
                self.fields["freeu"] = tuple(float(self.settings[key]) for key in FREEU)

    def _strength(self) -> None:
        """Of a second pass, or of an image to begin with: one key serves both."""
        name = "hires_strength" if FIELDS["hires_scale"].record in self.settings else "strength"
        self._field(FIELDS[name])

    def _is_web_ui(self) -> bool:
        """Whether another program wrote it in the web UI's format."""
        return not self.ours and self.program not in OTHER_PROGRAMS


_BY_LABEL = {info.label: info for info in SCHEDULES.values()}
"""In this format a label is a web UI's, also where another program means another schedule by it."""

_BY_HAND = (
    *("prompt", "negative_prompt", "prompt_weighting", "width", "height", "sampler"),
    *("sampler_options", "schedule", "schedule_options", "clip_skip", "noise", "noise_options"),
    *("freeu", "control", "strength", "hires_strength"),
)


def field_value(field: Field, text: str) -> Any:
    """The value of one field that is told under its own key.

    Raises:
        ValueError: the text is no such value.
    """
    if field.form is not None:
        return field.form.read(text)
    kind = field.scalar
    if kind is bool:
        return {"yes": True, "no": False}[text] if text in ("yes", "no") else _refuse()
    if get_origin(kind) is Literal:
        return text if text in get_args(kind) else _refuse()
    return _refuse() if kind is None else kind(text)


def _refuse() -> Any:
    raise ValueError


def _names_schedule(sampler: object) -> bool:
    with suppress(InvalidRequestError):
        return isinstance(sampler, str) and split_label(sampler)[2] is not None
    return False
