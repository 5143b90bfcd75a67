"""Keys, and who needs none."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt.errors import InvalidRequestError
from kdrt.serve.auth import Keys, given_key, is_loopback
from kdrt.serve.settings import ServerSettings

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_a_key_opens_and_nothing_else_does() -> None:
    keys = Keys(KEY, OTHER)
    assert keys.open(KEY)
    assert keys.open(OTHER)
    for wrong in ("", KEY[:-1], KEY + "x", KEY.upper(), "\udcff"):
        assert not keys.open(wrong)


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (f"Bearer {KEY}", KEY),
        (f"bearer   {KEY} ", KEY),
        ("Basic bmFtZTprZXk6eA==", "key:x"),
        ("Basic bmFtZTo=", None),
        ("Basic bmFtZQ==", None),
        ("Basic /w==", None),
        ("Basic nonsense", None),
        ("Basic \udcff", None),
        ("Digest username=x", None),
        ("Bearer", None),
        ("", None),
    ],
)
def test_the_key_of_a_header(header: str, key: str | None) -> None:
    assert given_key(header) == key


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(ServerSettings(keys=Keys(KEY)))
    assert KEY not in repr(vars(Keys(KEY)))


def test_keys_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the web front\n{KEY}\n\n  {OTHER}  \n")
    keys = Keys.read(file)
    assert keys.open(KEY)
    assert keys.open(OTHER)
    assert not keys.open("# of the web front")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no key"),
        (b"# nothing\n", "there is no key"),
        (b"short\n", "at least 16"),
        (b"with blanks in between it\n", "without blanks"),
        ("ключключключключ\n".encode(), "ASCII"),
        (b"\xff\xfe\n", "not text in UTF-8"),
    ],
)
def test_a_file_without_good_keys(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=said) as error:
        Keys.read(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidRequestError, match="cannot read keys from"):
            Keys.read(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"])
def test_the_machine_itself_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    ServerSettings(host=host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "127.0.0.1.nip.io"]
)
def test_others_need_one(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(InvalidRequestError, match="--api-key-file"):
        ServerSettings(host=host)
    ServerSettings(host=host, keys=Keys(KEY))
