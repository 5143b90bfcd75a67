"""Files that stand for another: what a download leaves where the file itself is missing."""

from __future__ import annotations


def placeholder(start: bytes) -> str | None:
    """What a file is in place of the one that was meant, and what to do; None if it is neither.

    Args:
        start: the first bytes of the file; 64 are enough.
    """
    if start.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, not the file it stands for: run `git lfs pull`, or download "
            "the file itself"
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return (
            "is a web page, not the file that was meant: download it again, logged in where the "
            "site asks for it"
        )
    return None
