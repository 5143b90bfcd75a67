"""``kdrt serve --ray``: the application on a cluster, until a signal comes."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kdrt.errors import KdrtError
from kdrt.serve.ray.settings import Application

NAME = "kdrt"
"""Of the application on the cluster."""

_RAISED = re.compile(r"^[\w.]+(?:Error|Exception): (.+)$", re.MULTILINE)
"""The last line of a traceback."""

_SECONDS_TO_CONNECT = 5

_SECONDS_TO_CANCEL = 10
"""What the front gets beyond the grace time, to cancel what is left."""

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
        KdrtError: the cluster cannot be had, listens elsewhere or serves an application of this
            name already, or the application does not start on it.
    """
    # Nothing is told to anyone, unless the user wants it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray.serve

    from kdrt.serve.ray.app import bound

    host, port = application.server.host, application.server.port
    with _connected(address):
        _start_serve(host, port)
        try:
            with _told_in_a_sentence("Ray does not start the application"):
                ray.serve.run(bound(application), name=NAME, route_prefix="/")
            with _told_to_end() as is_to_end:
                announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
                is_to_end.wait()
                grace = application.server.grace
                _logger.info("ending: what runs has %g s to be finished", grace)
                _drain(grace)
                with _told_in_a_sentence("Ray does not end the application"):
                    ray.serve.delete(NAME)
        finally:
            # Where Ray has gone there is nothing left to delete, and the first error is the one
            # that counts.
            with suppress(*_ray_errors()):
                if NAME in ray.serve.status().applications:
                    ray.serve.delete(NAME)


def _start_serve(host: str, port: int) -> None:
    """Have Ray Serve listen on this address. Where it runs already it keeps its own and only warns:
    whether clients need keys was decided by this one.

    Raises:
        KdrtError: it cannot, it listens elsewhere, or it has an application of this name.
    """
    import ray.serve
    from ray.serve.context import _get_global_client

    with _told_in_a_sentence("Ray Serve does not start"):
        try:
            ray.serve.start(http_options={"host": host, "port": port})
        except RuntimeError as error:
            raise KdrtError(
                f"Ray cannot listen on {host!r}, port {port}; choose others with --host and --port"
            ) from error
        listening = _get_global_client().http_config
        applications = ray.serve.status().applications
    if (listening.host, listening.port) != (host, port):
        raise KdrtError(
            f"Ray Serve runs on this cluster already and listens on {listening.host!r}, port "
            f"{listening.port}: give these as --host and --port, or end it with `serve shutdown`"
        )
    if NAME in applications:
        raise KdrtError(
            f"this cluster serves an application {NAME!r} already, which would be replaced: end it "
            f"with ray.serve.delete({NAME!r}), or choose another cluster"
        )


def _drain(grace: float) -> None:
    """Have the front refuse what is new and finish what runs. One that cannot, as Ray is just
    starting it again, has nothing to finish: the application ends all the same."""
    import ray.serve

    try:
        ray.serve.get_app_handle(NAME).drain.remote().result(timeout_s=grace + _SECONDS_TO_CANCEL)
    except _ray_errors() as error:
        _logger.warning("what runs may be lost: %s", _in_one_line(error))


@contextmanager
def _told_in_a_sentence(what: str) -> Iterator[None]:
    """Within the block what goes wrong with Ray is a `KdrtError` that begins with ``what``."""
    try:
        yield
    except KdrtError:
        raise
    except _ray_errors() as error:
        raise KdrtError(f"{what}: {_reason(error)}") from error


def _ray_errors() -> tuple[type[Exception], ...]:
    """What Ray raises where the cluster fails, or does not do what it is asked for."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException, OSError, RuntimeError, ValueError


def _reason(error: Exception) -> str:
    """Why an application does not start: Ray itself says only which deployment fails. The status of
    that one holds the traceback, whose last line is the sentence."""
    import ray.serve

    texts = [str(error)]
    with suppress(*_ray_errors()):
        application = ray.serve.status().applications.get(NAME)
        if application is not None:
            texts = [each.message for each in application.deployments.values()] + texts
    for text in texts:
        sentences = _RAISED.findall(text)
        if sentences:
            return str(sentences[-1])
    return _in_one_line(error)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
    except _ray_errors() as error:
        raise KdrtError(
            f"cannot connect to the Ray cluster {address or 'of this machine'}: "
            f"{_in_one_line(error)}"
        ) from error
    try:
        yield
    finally:
        if address is None:
            with suppress(*_ray_errors()):
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
