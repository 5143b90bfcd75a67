"""The requests in a file, a JSON object on each line, all of them checked before a model is
loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from kdrt.cli.image_files import MAX_FILES, named_path
from kdrt.cli.prompts_file import STDIN, name_of, read_file
from kdrt.cli.request_json import json_object, json_request
from kdrt.common.paths import user_path
from kdrt.common.validation import excerpt
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt.request.complete import complete
from kdrt.request.fields import FIELDS, Request
from kdrt.request.recorded import RecordedRequest

OUTPUT = "output"
"""The key of a line, besides the fields of a request, that names its image."""

_TOLD = 10
"""Bad lines that are told: whoever has more has made the same mistake in all of them."""


@dataclass(frozen=True)
class RequestLine:
    """One line of a file of requests.

    Attributes:
        number: from 1 on, empty lines counted.
        request: its fields, and those that all lines have in common; paths where a value is a
            file, see :func:`kdrt.cli.request_json.with_files`.
        output: the file for its image, inside of the folder of all images; None if it names none.
    """

    number: int
    request: Request
    output: str | None

    @property
    def images(self) -> int:
        """How many images it asks for."""
        return len(self._distinct) * self.request.get("images_per_prompt", 1)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt of each of its images, in order."""
        count = self.request.get("images_per_prompt", 1)
        return tuple(prompt for prompt in self._distinct for _ in range(count))

    @property
    def _distinct(self) -> Sequence[str]:
        prompt = self.request["prompt"]
        return [prompt] if isinstance(prompt, str) else cast(Sequence[str], prompt)

    @property
    def names(self) -> tuple[str, ...]:
        """The file for each of its images: ``0007.png``, or of several ``0007-1.png`` and so on;
        likewise with an ``output``."""
        name = PurePosixPath(self.output or f"{self.number:04d}.png")
        if self.images == 1:
            return (str(name),)
        numbers = range(1, self.images + 1)
        return tuple(str(name.with_stem(f"{name.stem}-{number}")) for number in numbers)


@dataclass(frozen=True)
class BadLine:
    """A line that is no request, and why."""

    number: int
    reason: str


class BadLinesError(KdrtError):
    """Lines of a file are no requests.

    No :class:`InvalidRequestError`: that one's message is about options where a command raises it.

    Attributes:
        bad: the first ten of them.

    Args:
        name: of the file.
        bad: all of them.
    """

    def __init__(self, name: str, bad: Sequence[BadLine]) -> None:
        self.bad = tuple(bad[:_TOLD])
        if len(bad) == 1:
            said = f"line {bad[0].number} of {name}: {bad[0].reason}"
        else:
            said = f"{len(bad)} lines of {name} are wrong, so nothing was made; put them right"
        super().__init__(said)


def read_requests(file: Path, common: Request) -> list[RequestLine]:
    """The requests of a file. Empty lines are skipped.

    What a line says counts before what is ``common`` to all, and makes void what was meant for
    the common value, such as the options of another sampler.

    Args:
        file: in UTF-8; ``-`` is standard input. Files that a line names are looked for from the
            folder of this one, or from the working folder.
        common: fields of all requests, without a prompt.

    Raises:
        InvalidRequestError: the file cannot be read, or holds no request; or ``common`` is wrong.
        BadLinesError: lines are no requests.
    """
    complete(common)
    name = name_of(file)
    folder = Path() if file == STDIN else user_path(file).parent
    lines: list[RequestLine] = []
    bad: list[BadLine] = []
    for number, text in enumerate(read_file(file).split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            lines.append(_line(number, text, common, folder))
        except InvalidRequestError as error:
            bad.append(BadLine(number, str(error)))
    images = sum(line.images for line in lines)
    if images > MAX_FILES:
        raise InvalidRequestError(
            f"{images} images are more than {MAX_FILES}; make them in several runs"
        )
    if not bad:
        bad.extend(_same_names(lines))
    if not bad:
        bad.extend(_impossible(lines, common))
    if bad:
        raise BadLinesError(name, bad)
    if not lines:
        raise InvalidRequestError(
            f'there is no request in {name}: write a JSON object such as {{"prompt": "a cat"}} on '
            "each line"
        )
    return lines


def _line(number: int, text: bytes, common: Request, folder: Path) -> RequestLine:
    fields = json_object(text)
    output = _output(fields.pop(OUTPUT, None))
    own = json_request(fields, folder)
    if own.get("prompt") is None:
        raise InvalidRequestError('there is no prompt; add one, as "prompt": "a cat"')
    if own["prompt"] == []:
        raise InvalidRequestError("prompt is an empty list; give at least one string")
    return RequestLine(number, _merged(common, own), output)


def _merged(common: Request, own: Request) -> Request:
    """Fields of a line, and those common ones that they leave a meaning."""
    fields: dict[str, Any] = dict(RecordedRequest(common, {}, None).changed(own).fields)
    for name in common.keys() - own.keys():
        needed = FIELDS[name].requires
        if needed and fields.get(needed) is None:
            fields.pop(name, None)
    return cast(Request, fields)


def _output(value: object) -> str | None:
    """The name of a file inside of a folder: a file of requests may come from a stranger."""
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{OUTPUT} must be the name of a file, not {excerpt(value)}")
    path = PurePosixPath(value.replace(os.sep, "/"))
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InvalidRequestError(
            f"{OUTPUT} must stay in the folder of all images, and {excerpt(value)} does not; give "
            "a name such as 'cat.png' or 'cats/1.png'"
        )
    return str(path)


def _same_names(lines: Sequence[RequestLine]) -> Iterator[BadLine]:
    """Lines whose images would have the names of others'."""
    taken: dict[str, int] = {}
    for line in lines:
        for name in line.names:
            first = taken.setdefault(name, line.number)
            if first != line.number:
                reason = f"its image would be {name}, and so would line {first}'s; name one of them"
                yield BadLine(line.number, reason)
                break


def _impossible(lines: Sequence[RequestLine], common: Request) -> Iterator[BadLine]:
    """Lines that every model would refuse."""
    # Needs torch, which takes a second: what is wrong with the text is said before.
    from kdrt.cli.request_checks import check_without_model
    from kdrt.images.output import SUFFIXES

    check_without_model(RecordedRequest(common, {}, None).usable().fields)
    for line in lines:
        try:
            check_without_model(line.request)
            for name in line.names:
                named_path(Path(name), SUFFIXES)
        except KdrtError as error:
            yield BadLine(line.number, str(error))
