"""Why the Hugging Face hub did not give what it was asked for, in one sentence.

The package ``huggingface_hub`` is optional, and is imported only where one of its errors is read.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def hub_failure(error: BaseException, repo: str, revision: str | None = None) -> str:
    """What went wrong and what to do, for an error that ``huggingface_hub`` raised.

    Args:
        error: the exception; what it was raised from counts too, since a refusal by the hub is
            reported as a file that is not in the cache.
        repo: the hub id that was asked for.
        revision: the branch, tag or commit.
    """
    chain = list(_chain(error))
    for each in chain:
        if (said := _refusal(each, repo, revision)) or (said := _disk(each, repo)):
            return said
    from huggingface_hub import errors

    if any(isinstance(each, errors.HFValidationError) for each in chain):
        return f"'{repo}' is no hub id: those have the form owner/name"
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return (
            f"'{repo}' is not in the local hub cache and the hub cannot be reached, since "
            "HF_HUB_OFFLINE is set; unset it, or give a local file or folder"
        )
    if any(_is_connection(each) for each in chain):
        return (
            f"there is no folder '{repo}', and a model of that name is not in the local hub cache "
            "and the hub cannot be reached; connect to the network, or check the name"
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the hub gives no '{repo}': {lines[0]}"


def _refusal(error: BaseException, repo: str, revision: str | None) -> str | None:
    """What the hub answered."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"'{repo}' is gated: accept its licence on https://huggingface.co/{repo} and log in "
            "with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"'{repo}' has no revision '{revision or 'main'}'; its page lists branches and tags"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no folder '{repo}', and the hub has no model of that name, or a private "
            "one; check the name, or log in with `hf auth login`"
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return f"'{repo}' lacks a file that was asked for; its page lists what it has"
    if not isinstance(error, errors.HfHubHTTPError):
        return None
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 429:
        return (
            f"the hub refuses '{repo}' for now (429, too many requests); wait some minutes, or "
            "log in with `hf auth login`, which allows more"
        )
    if code in (401, 403):
        return f"the hub refuses access to '{repo}' ({code}); log in with `hf auth login`"
    if code is not None and code >= 500:
        return f"the hub has a fault of its own ({code}) and gives no '{repo}'; try again later"
    return f"the hub gives no '{repo}' (it answers {code or str(error).splitlines()[0]})"


def _disk(error: BaseException, repo: str) -> str | None:
    """What the disk with the hub's cache refused."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in _FULL | _NOT_WRITABLE:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    if number in _FULL:
        return (
            f"the disk of the hub cache {HF_HUB_CACHE} is too full for '{repo}'; free some space, "
            "or set HF_HOME to a folder on another disk"
        )
    return (
        f"the hub cache {HF_HUB_CACHE} cannot be written, where '{repo}' would be kept; set "
        "HF_HOME to a folder of your own"
    )


def _is_connection(error: BaseException) -> bool:
    """Its client for HTTP has changed and may again: its errors are told by their names."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ConnectionError", "TransportError", "LocalEntryNotFoundError"})


def _chain(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    seen: set[int] = set()
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
