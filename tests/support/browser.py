"""Headless Chromium, for tests that do what a person does on a page."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Error,
    Page,
    Request,
    sync_playwright,
)

OTHER_NAME = "images.test"
"""A name for this machine that browsers do not trust as they trust 127.0.0.1."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine. Skips the test where there is none."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


class Visit:
    """A page that is visited, and all that went wrong on it.

    Attributes:
        page: playwright's.
        refusals: statuses that a test brings about on purpose, and that are no errors therefore.

    Args:
        browser: opens it, in a context of its own.
        url: of the page.
        options: of the context.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.refusals: set[int] = set()
        self._errors: list[str] = []
        self.page: Page = browser.new_context(**options).new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", self._failed)
        self.page.on("request", self._asked)
        self.page.goto(url)

    def ready(self) -> Page:
        """The page, once it can be used."""
        self.page.wait_for_selector("#make:enabled")
        return self.page

    def leave(self) -> None:
        """Close it. Fails for errors in its console, and for requests to other hosts."""
        self.page.context.close()
        assert not self._errors, self._errors

    def _heard(self, message: ConsoleMessage) -> None:
        is_meant = any(f"status of {status}" in message.text for status in self.refusals)
        if message.type in ("error", "warning") and not is_meant:
            self._errors.append(message.text)

    def _failed(self, error: Error) -> None:
        self._errors.append(str(error))

    def _asked(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("blob", "data") and url.netloc != urlsplit(self.url).netloc:
            self._errors.append(f"it asked {request.url}")


def downloaded(page: Page, folder: Path) -> Image.Image:
    """The image that the page offers for download."""
    with page.expect_download() as download:
        page.click("#download")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    image = Image.open(path)
    image.load()
    return image


def drop(page: Page, selector: str, data: bytes, name: str = "image.png") -> None:
    """Drop a file on an element, as from a file manager."""
    transfer = page.evaluate_handle(
        """([base64, name]) => {
            const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    page.dispatch_event(selector, "dragover", {"dataTransfer": transfer})
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def image_of_data_url(url: str) -> Image.Image:
    """The image in a data URL."""
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    image.load()
    return image
