"""Keys of clients, and who needs none."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from contextlib import suppress
from pathlib import Path

from kdrt.errors import InvalidRequestError

_SHORTEST = 16
"""Characters of a key: what cannot be guessed over a network."""

_LARGEST_FILE = 2**20


class Keys:
    """The keys that open a server. Only their digests are kept, so that no log can show one.

    Args:
        keys: the keys.

    Raises:
        InvalidRequestError: there is none, or one is too short or holds blanks.
    """

    def __init__(self, *keys: str) -> None:
        if not keys:
            raise InvalidRequestError("there is no key; write at least one, a line each")
        for key in keys:
            if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise InvalidRequestError(
                    f"a key must be at least {_SHORTEST} printable ASCII characters without "
                    "blanks; `openssl rand -hex 24` makes one"
                )
        self._digests = tuple(_digest(key) for key in keys)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Those in a file, one a line; lines that begin with # are skipped.

        Raises:
            InvalidRequestError: it cannot be read, or see above.
        """
        try:
            if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
                raise InvalidRequestError(f"cannot read keys from {path}: it is no file of keys")
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            if isinstance(error, InvalidRequestError):
                raise
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise InvalidRequestError(f"cannot read keys from {path}: {reason}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        try:
            return cls(*keys)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"{path}: {error}") from error

    def open(self, key: str) -> bool:
        """Whether it is one of them. How long that takes tells nothing of the keys."""
        digest = _digest(key)
        return any(hmac.compare_digest(digest, known) for known in self._digests)


def given_key(authorization: str) -> str | None:
    """The key in the header ``Authorization``: as Bearer, or as the password of HTTP's Basic, which
    is all that some clients send. None if it holds none."""
    scheme, _, given = authorization.strip().partition(" ")
    given = given.strip()
    if scheme.lower() == "bearer":
        return given or None
    if scheme.lower() == "basic":
        with suppress(ValueError):
            return base64.b64decode(given, validate=True).decode().partition(":")[2] or None
    return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
