"""``kdrt serve --ray``: the application on a cluster, until a signal comes."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kdrt.errors import KdrtError
from kdrt.serve.ray.settings import Application

NAME = "kdrt"
"""Of the application on the cluster."""

_RAISED = re.compile(r"^[\w.]+Error: (.+)$", re.MULTILINE)
"""The last line of a traceback."""

_SECONDS_TO_CONNECT = 5

_logger = logging.getLogger(__name__)


def serve_on_ray(
    application: Application, address: str | None, announce: Callable[[str], object]
) -> None:
    """Serve until SIGTERM or Ctrl-C; then what runs is finished within the grace time.

    Args:
        application: what to serve, and where: the proxies of Ray listen on the server's address.
        address: of a running cluster, as Ray takes it; None starts one on this machine, which ends
            with the call.
        announce: called with the URL when the models are loaded.

    Raises:
        KdrtError: the cluster cannot be had, or the application does not start on it.
    """
    # Nothing is told to anyone, unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.serve

    from kdrt.serve.ray.app import bound

    host, port = application.server.host, application.server.port
    with _connected(address):
        try:
            ray.serve.start(http_options={"host": host, "port": port})
        except RuntimeError as error:
            raise KdrtError(
                f"Ray cannot listen on {host!r}, port {port}; choose others with --host and --port"
            ) from error
        try:
            ray.serve.run(bound(application), name=NAME, route_prefix="/")
            with _told_to_end() as is_to_end:
                announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
                is_to_end.wait()
                grace = application.server.grace
                _logger.info("ending: what runs has %g s to be finished", grace)
                ray.serve.delete(NAME)
        except RuntimeError as error:
            raise KdrtError(f"Ray does not start the application: {_reason(error)}") from error
        finally:
            if NAME in ray.serve.status().applications:
                ray.serve.delete(NAME)


def _reason(error: RuntimeError) -> str:
    """Why it does not start: Ray itself says only which deployment fails. The status of that one
    holds the traceback, whose last line is the sentence."""
    import ray.serve

    application = ray.serve.status().applications.get(NAME)
    for deployment in application.deployments.values() if application else ():
        sentences = _RAISED.findall(deployment.message)
        if sentences:
            return str(sentences[-1])
    return str(error)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within the block this process is connected to a cluster, or to one of its own."""
    import ray

    settings: dict[str, Any] = {"address": address}
    if address is not None:
        _check_reachable(address)
    else:
        # Its processes listen on all addresses of the machine, and ask for a token that only this
        # user's programs have. The dashboard would be one more of them.
        settings = {"address": "local", "include_dashboard": False}
    try:
        ray.init(logging_level=logging.WARNING, log_to_driver=True, **settings)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise KdrtError(
            f"cannot connect to the Ray cluster {address or 'of this machine'}: {error}"
        ) from error
    try:
        yield
    finally:
        if address is None:
            ray.serve.shutdown()
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself tries for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name that Ray knows what to do with
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "it does not answer"
        raise KdrtError(f"there is no Ray cluster at {address!r}: {reason}") from error


@contextmanager
def _told_to_end() -> Iterator[threading.Event]:
    """Within the block the first signal sets the event, and the second ends the process."""
    event = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]

    def end(number: int, _: object) -> None:
        event.set()
        signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield event
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
