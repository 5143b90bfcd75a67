"""The options of samplers: what values they take, read off the planners' signatures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from kdrt.common.validation import excerpt, finite_or_none
from kdrt.errors import InvalidRequestError


@cache
def options_of(planner: Callable[..., Any]) -> Mapping[str, Any]:
    """The keyword options of a planner, with their defaults."""
    parameters = inspect.signature(planner).parameters.values()
    return MappingProxyType({p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY})


def check_options(sampler: str, planner: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check options that a user gave.

    An option annotated as a ``Literal`` takes its values, and one annotated with a rule, such as
    `Share`, goes by that; every other has a rule by its name.

    Raises:
        InvalidRequestError: the sampler has no such option, or the value is not allowed.
    """
    accepted = _rules_of(planner)
    for name, value in options.items():
        if name not in accepted:
            known = f"accepts {', '.join(accepted)}" if accepted else "has no options"
            raise InvalidRequestError(f"{sampler} has no option {name!r}: it {known}")
        allowed, is_valid = accepted[name]
        if not is_valid(value):
            raise InvalidRequestError(
                f"{name} of {sampler} must be {allowed}, not {excerpt(value)}"
            )


_Rule = tuple[str, Callable[[Any], bool]]


@cache
def _rules_of(planner: Callable[..., Any]) -> Mapping[str, _Rule]:
    annotations = get_type_hints(planner, include_extras=True)
    return {name: _annotated(annotations[name]) or _RULES[name] for name in options_of(planner)}


def _annotated(annotation: object) -> _Rule | None:
    if get_origin(annotation) is Annotated:
        _, rule = get_args(annotation)
        return cast(_Rule, rule)
    if get_origin(annotation) is not Literal:
        return None
    choices = get_args(annotation)
    *others, last = map(repr, choices)
    # 2.0 and True equal whole numbers, but are not meant where one is asked for.
    return f"{', '.join(others)} or {last}", lambda value: any(
        type(value) is type(choice) and value == choice for choice in choices
    )


def _is_amount(value: object) -> bool:
    number = finite_or_none(value)
    return number is not None and number >= 0


Share = Annotated[float, ("from 0 to 1", lambda v: _is_amount(v) and v <= 1)]
"""The type of an option that is a fraction, both ends allowed."""

_AMOUNT: _Rule = ("a finite number of at least 0", _is_amount)
_POSITIVE: _Rule = ("a finite number above 0", lambda v: _is_amount(v) and v > 0)
_RULES: Mapping[str, _Rule] = {
    "eta": _AMOUNT,
    "s_noise": _AMOUNT,
    "s_churn": _AMOUNT,
    "s_tmin": _AMOUNT,
    "s_tmax": ("a number of at least 0 (or infinity)", lambda v: _is_amount(v) or v == math.inf),
    "r": ("above 0 and at most 1", lambda v: _is_amount(v) and 0 < v <= 1),
    "rtol": _POSITIVE,
    "atol": _POSITIVE,
    # From less, hundreds of tries would go by before the controller has let it grow.
    "h_init": ("a finite number of at least 1e-06", lambda v: _is_amount(v) and v >= 1e-6),
    "pcoeff": _AMOUNT,
    "icoeff": _AMOUNT,
    "dcoeff": _AMOUNT,
    "accept_safety": ("above 0 and below 1", lambda v: _is_amount(v) and 0 < v < 1),
}
