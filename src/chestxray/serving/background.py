"""The service beside the caller's own work: in a thread of a script or a notebook."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from chestxray.errors import ChestXrayError
from chestxray.inference.bundle import DEFAULT
from chestxray.serving.server import ServeOptions, prepared

if TYPE_CHECKING:
    from chestxray.serving.engine import FilmServer


class BackgroundService:
    """A service that answers until ``stop``, or until the end of its ``with`` block.

    Attributes:
        address: of the page and the API.
    """

    def __init__(self, bundle: Path | str, options: ServeOptions) -> None:
        self._server: FilmServer | None = None
        started: Future[str] = Future()
        # A daemon: a script that forgets to stop the service ends all the same.
        self._thread = threading.Thread(target=self._run, args=(bundle, options, started), daemon=True)
        self._thread.start()
        self.address = started.result()

    def _run(self, bundle: Path | str, options: ServeOptions, started: Future[str]) -> None:
        try:
            with prepared(bundle, options) as (server, listener):
                self._server = server
                server.on_start = started.set_result
                server.run([listener])
        except BaseException as error:  # SystemExit as well, by which uvicorn gives up  # noqa: BLE001
            if not started.done():
                started.set_exception(error if isinstance(error, ChestXrayError) else _not_started(error))
        else:
            if not started.done():
                started.set_exception(_not_started(None))

    def stop(self) -> None:
        """Finish the films at hand, free the port, and return. Does nothing the second time."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _not_started(cause: BaseException | None) -> ChestXrayError:
    error = ChestXrayError('the service did not start. "chestxray serve" tells more')
    error.__cause__ = cause
    return error


def serve_in_background(bundle: Path | str = DEFAULT, options: ServeOptions | None = None) -> BackgroundService:
    """Serve the page and the API from a thread of this process, and return as soon as films can be judged.

        with chestxray.serve_in_background() as service:
            print(service.address)

    Args:
        bundle: a folder, or the name of a bundle that comes with this package.
        options: where and to whom; by default on a free port of this machine alone.

    Raises: as ``serve``.
    """
    return BackgroundService(bundle, options or ServeOptions(port=0))
