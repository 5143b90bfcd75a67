"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that its own client
uses to list and download a model's files, over folders on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it serves, and what was asked of it.

    Attributes:
        repositories: a folder for each hub id.
        revisions: names that mean :data:`COMMIT`.
        refusal: status and ``X-Error-Code`` with which everything is answered.
        downloaded: the files that were sent, with their repository.
    """

    repositories: dict[str, Path] = field(default_factory=dict)
    revisions: tuple[str, ...] = ("main", COMMIT)
    refusal: tuple[int, str] | None = None
    downloaded: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, ``X-Error-Code`` and body for a path."""
        if self.refusal is not None:
            return *self.refusal, b""
        is_api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        folder = self.repositories.get(f"{owner}/{name}")
        if folder is None:
            return 404, "RepoNotFound", b""
        if len(rest) > 1 and rest[1] not in self.revisions:
            return 404, "RevisionNotFound", b""
        files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
        if not is_api:
            file = "/".join(rest[2:])
            if file not in files:
                return 404, "EntryNotFound", b""
            return 200, "", files[file].read_bytes()
        if rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": n, "size": f.stat().st_size, "oid": _tag(f.read_bytes())}
                for n, f in files.items()
            ]
            return 200, "", json.dumps(tree).encode()
        siblings = [{"rfilename": name} for name in files]
        info = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
        return 200, "", json.dumps(info).encode()


def _tag(body: bytes) -> str:
    return hashlib.sha1(body, usedforsecurity=False).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve it; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            status, code, body = hub.answer(path)
            if with_body and "/resolve/" in path and status == 200:
                repo, _, file = path.strip("/").partition("/resolve/")
                hub.downloaded.append(f"{repo}:{file.partition('/')[2]}")
            self.send_response(status)
            for header, value in (
                ("X-Error-Code", code),
                ("X-Repo-Commit", COMMIT),
                ("ETag", f'"{_tag(body)}"'),
                ("Content-Length", str(len(body))),
            ):
                self.send_header(header, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
