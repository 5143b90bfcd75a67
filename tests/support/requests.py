"""Requests of fields that a type checker would refuse, or cannot know."""

from __future__ import annotations

from typing import Any

from kdrt.request.fields import Request


def request_of(fields: dict[str, Any]) -> Request:
    """A request of these fields, whatever they are."""
    make: Any = Request
    request: Request = make(**fields)
    return request
