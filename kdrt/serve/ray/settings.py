"""How many replicas there are, what each has, and all of that from the file of a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from kdrt.batching.batcher import default_rows
from kdrt.common.validation import (
    check_bool,
    check_choice,
    check_finite,
    check_int,
    check_mapping,
    excerpt,
    unknown_word,
)
from kdrt.errors import InvalidRequestError
from kdrt.request.text_forms import SIZE
from kdrt.serve.auth import Keys
from kdrt.serve.limits import RequestLimits
from kdrt.serve.log import LogFormat
from kdrt.serve.settings import (
    RELOAD_SECONDS,
    ModelSettings,
    ServerSettings,
    ServiceSettings,
)

_MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """What Ray is asked for.

    Attributes:
        min_replicas, max_replicas: as many as the requests need, within these; 0 lets them go when
            nobody asks for anything.
        num_gpus, num_cpus: of a replica. With less than one GPU several share it; more than one
            are whole ones.
        models_per_replica: that a replica holds at a time, of those used last; None is all.

    Raises:
        InvalidRequestError: a number is out of range.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    num_gpus: float = 0.0
    num_cpus: float = 1.0
    models_per_replica: int | None = None

    def __post_init__(self) -> None:
        check_int("min_replicas", self.min_replicas, 0)
        check_int("max_replicas", self.max_replicas, max(1, self.min_replicas))
        for name in ("num_gpus", "num_cpus"):
            if check_finite(name, getattr(self, name)) < 0:
                raise InvalidRequestError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if self.num_gpus > 1 and not float(self.num_gpus).is_integer():
            raise InvalidRequestError(
                f"num_gpus must be a whole number if it is above 1, not {self.num_gpus:g}"
            )
        if self.models_per_replica is not None:
            check_int("models_per_replica", self.models_per_replica, 1)

    def threads(self, asked: int | None) -> int | None:
        """CPU threads of a replica: those it reserves, so that replicas of a machine share it; on
        a GPU as many as kdrt takes."""
        if asked is not None or self.num_gpus:
            return asked
        return max(1, math.floor(self.num_cpus))

    def rows(self, asked: int | None) -> int:
        """Rows of an evaluation, which is what a replica makes at a time."""
        return default_rows("cuda" if self.num_gpus else "cpu") if asked is None else asked


@dataclass(frozen=True, kw_only=True)
class Application:
    """All that an application is made from. It can be pickled.

    Attributes:
        models: the bundles, which every node has under the same path.
        service: how images are made.
        server: for whom. The address is that of Ray's proxies, and says who needs keys.
        ray: what Ray is asked for.
        log: form of the lines in Ray's logs.
    """

    models: Sequence[ModelSettings]
    service: ServiceSettings = field(default_factory=ServiceSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    ray: RaySettings = field(default_factory=RaySettings)
    log: LogFormat = "text"


_LIMITS = {f"max_{name}": name for name in ("pixels", "steps", "images", "prompt")}
_SERVICE = (
    *("max_waiting", "deadline", "warmup", "max_rows"),
    *("engine", "threads", "cuda_graph", "fallback"),
)
_SERVER = ("host", "api_key_file", "max_body", "stall", "grace")
_HOST = "0.0.0.0"
"""Where the proxies listen is a setting of the cluster, not of the application: others than the
machine may connect, and need keys, unless the arguments say that they cannot."""

_RAY = tuple(RaySettings.__dataclass_fields__)


def application_of(given: Mapping[str, Any]) -> Application:
    """An application from a mapping of words and numbers, as a cluster's file holds it.

    The names are those of the options of ``kdrt serve`` with ``_`` in place of ``-``. ``bundles``
    is a list of names or folders, or of mappings with ``bundle`` and ``loras``, files by name.
    ``host`` is that of the cluster's ``http_options``; without it keys are needed.
    ``warmup`` is a list of sizes as in ``1024x768``; empty is no warm-up. ``max_body`` is MiB.

    Raises:
        InvalidRequestError: a name is unknown, or a value is not what it should be.
    """
    known = ("bundles", "log_format", "reload", *_LIMITS, *_SERVICE, *_SERVER, *_RAY)
    values = dict(check_mapping("args", given))
    for name in values:
        if name not in known:
            raise InvalidRequestError(unknown_word("argument", name, known))
    bundles = values.get("bundles")
    if not isinstance(bundles, list) or not bundles:
        raise InvalidRequestError("bundles must be a list of names or folders of bundles")
    service: dict[str, Any] = {name: values[name] for name in _SERVICE if name in values}
    if service.get("warmup") is not None:
        service["warmup"] = _sizes(service["warmup"])
    if check_bool("reload", values.get("reload", True)):
        service["reload"] = RELOAD_SECONDS
    limits = {to: values[name] for name, to in _LIMITS.items() if name in values}
    server: dict[str, Any] = {name: values[name] for name in _SERVER if name in values}
    server["host"] = _text("host", server.get("host", _HOST))
    keys = server.pop("api_key_file", None)
    if keys is not None:
        server["keys"] = Keys.read(Path(_text("api_key_file", keys)))
    if "max_body" in server:
        server["max_body"] = check_int("max_body", server["max_body"], 1, 4096) * _MEBIBYTE
    return Application(
        models=[_model(bundle) for bundle in bundles],
        service=ServiceSettings(limits=RequestLimits(**limits), **service),
        server=ServerSettings(**server),
        ray=RaySettings(**{name: values[name] for name in _RAY if name in values}),
        log=_log(values.get("log_format", "text")),
    )


def _model(given: object) -> ModelSettings:
    if isinstance(given, str):
        return ModelSettings(bundle=given)
    held = dict(check_mapping("bundles", given))
    loras = check_mapping("loras", held.pop("loras", None))
    bundle = held.pop("bundle", None)
    if held or not isinstance(bundle, str):
        raise InvalidRequestError(
            "each of bundles is a name or a folder, or a mapping with bundle and loras, not "
            f"{excerpt(given)}"
        )
    return ModelSettings(
        bundle=bundle, loras={name: Path(_text("loras", file)) for name, file in loras.items()}
    )


def _log(form: object) -> LogFormat:
    check_choice("log_format", form, ("text", "json"))
    return cast(LogFormat, form)


def _sizes(given: object) -> tuple[tuple[int, int], ...]:
    try:
        return tuple(SIZE.read(text) for text in given)  # type: ignore[attr-defined]
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(
            f"warmup must be a list of sizes, as in [{SIZE.example}], not {excerpt(given)}"
        ) from error


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be text, not {excerpt(value)}")
    return value
