"""The HTTP receiver: STOW-RS, and the addresses for monitoring.

POST /dicom-web/studies          films in (DICOM PS3.18 section 10.5); a key is needed if any are set
GET  /healthz, /readyz           whether the process lives, and whether films are taken
GET  /metrics                    Prometheus' text format
GET  /                           a page for people: depth and age of the queue, last success of each destination
"""

from __future__ import annotations

import asyncio
import html
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from email.message import Message
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from chestxray.dicom.queue import ANSWERED, DEAD, DONE, WAITING
from chestxray.dicom.receive import HANDSHAKE_S, dicom_status_of, log
from chestxray.dicom.settings import server_context
from chestxray.errors import UsageError
from chestxray.files import MEBIBYTE
from chestxray.schema import NOTICE
from chestxray.serving.admission import ConnectionLimits, ServerState
from chestxray.serving.connection import Connection
from chestxray.serving.intake import Part, parts_of
from chestxray.serving.problems import Refusal
from chestxray.serving.security import LOOPBACK_NAMES, ApiKeyMiddleware, Edge, HostRule, KeyRing, is_loopback
from chestxray.serving.server import listening_socket

if TYPE_CHECKING:
    from chestxray.dicom.node import Node

DICOM_JSON: Final = "application/dicom+json"
STOW: Final = "STOW-RS"  # in place of the sender's AE title in rules
PLACES: Final = 64  # connections at the same time; one that brings nothing makes room for the next
LEAVING_S: Final = 10.0  # seconds in which requests that have arrived are answered when the node stops
MAX_PARTS: Final = 200  # films of one request
_OPEN: Final = frozenset({"/healthz", "/readyz"})


class WebReceiver:
    """The HTTP receiver of a node, in a thread of its own; connections are limited as those of ``chestxray serve``."""

    def __init__(self, node: Node) -> None:
        """Make the application. Raises: UsageError, if other machines can reach it without a key."""
        self._node = node
        self._settings = settings = node.settings
        keys = KeyRing.gather(settings.keys_file)
        if not keys and not is_loopback(settings.host):
            raise UsageError(
                f"node.host = {settings.host!r} would let other machines send films by HTTP, and no key limits "
                'who may. Make one with "chestxray key NAME" and name its file as node.keys_file'
            )
        hosts = HostRule(LOOPBACK_NAMES | {settings.host.lower()}, any_address=not is_loopback(settings.host))
        routes = [
            Route("/", self._show_status),
            Route("/healthz", self._answer_alive),
            Route("/readyz", self._answer_ready),
            Route("/metrics", self._show_metrics),
            Route("/dicom-web/studies", self._store, methods=["POST"]),
            Route("/dicom-web/studies/{study}", self._store, methods=["POST"]),
        ]
        app = Starlette(
            routes=routes,
            middleware=[
                Middleware(Edge, hosts=hosts, observe=node.metrics.observe),
                Middleware(ApiKeyMiddleware, keys=keys, open_paths=_OPEN),
            ],
        )
        self._state = ServerState(
            app, ConnectionLimits(places=PLACES), lambda _method, _path: None, node.metrics.observe
        )
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen, and return the port. Raises: UsageError, if the address cannot be used; SettingsInvalid (TLS)."""
        settings = self._settings
        # The key of a request says who calls, so a browser that watches needs no certificate.
        context = server_context(replace(settings.tls, client_authority=None), _refused) if settings.tls else None
        listener = listening_socket(settings.host, settings.http_port)
        self._thread = threading.Thread(target=self._run, args=(listener, context), name="http-door", daemon=True)
        self._thread.start()
        return int(listener.getsockname()[1])

    def stop(self) -> None:
        """Answer the requests that have arrived, then close every connection."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join()
        self._loop.close()

    def _run(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(listener, context))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _serve(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        state, loop = self._state, self._loop
        seconds = None if context is None else HANDSHAKE_S
        server = await loop.create_server(
            lambda: Connection(state), sock=listener, ssl=context, ssl_handshake_timeout=seconds
        )
        await self._stopped.wait()
        state.stopping = True
        server.close()
        await state.drain(LEAVING_S)

    async def _store(self, request: Request) -> Response:
        """Take the films of one request (STOW-RS)."""
        kind = Message()
        kind["content-type"] = request.headers.get("content-type", "")
        boundary = kind.get_param("boundary")
        wanted = str(kind.get_param("type") or "").lower()
        if kind.get_content_type() != "multipart/related" or not isinstance(boundary, str):
            return PlainTextResponse('send multipart/related; type="application/dicom"; boundary=...', 415)
        if wanted and wanted != "application/dicom":
            return PlainTextResponse('only type="application/dicom" is taken: whole DICOM files', 415)
        films, longest = _Films(self._node, request.path_params.get("study")), self._settings.limits.film * MEBIBYTE
        try:
            async for part in parts_of(request.stream(), boundary, longest, MAX_PARTS):
                await run_in_threadpool(films.keep, part)
        except Refusal:
            return PlainTextResponse("the body is no multipart message with that boundary, or has too many parts", 400)
        if not films.stored and not films.failed:
            return PlainTextResponse("the body holds no film", 400)
        status = 200 if not films.failed else 202 if films.stored else 409
        return JSONResponse(films.answer(), status, media_type=DICOM_JSON)

    async def _answer_alive(self, _request: Request) -> Response:
        return PlainTextResponse("alive")

    async def _answer_ready(self, _request: Request) -> Response:
        problem = await run_in_threadpool(self._node.problem)
        return PlainTextResponse(problem or "ready", 503 if problem else 200)

    async def _show_metrics(self, _request: Request) -> Response:
        metrics = self._node.metrics
        return Response(await run_in_threadpool(metrics.text), media_type=metrics.content_type)

    async def _show_status(self, _request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(status_page, self._node))


def _refused(reason: str) -> None:
    log.warning("connection refused", extra={"door": "http", "reason": reason})


class _Films:
    """The films of one request, each kept as soon as it is complete."""

    def __init__(self, node: Node, study: str | None) -> None:
        self.stored: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str, int]] = []
        self._node = node
        self._study = study

    def keep(self, part: Part) -> None:
        """Pass a film to the node, and note its status."""
        from chestxray.dicom.rules import facts_of

        if part.too_long:
            self.failed.append(("", "", 0xA702))
            return
        sop_class = sop_instance = ""
        try:
            facts = facts_of(part.data, STOW)
            sop_class, sop_instance = facts.sop_class, facts.sop_instance
            if self._study is not None and facts.study != self._study:
                self.failed.append((sop_class, sop_instance, 0xA900))
                return
            self._node.take(part.data, STOW)
        except Exception as error:  # noqa: BLE001 - as for C-STORE: after any error the sender must not hear "stored"
            self.failed.append((sop_class, sop_instance, dicom_status_of(error)))
        else:
            self.stored.append((sop_class, sop_instance))

    def answer(self) -> dict[str, Any]:
        """Report what was stored and what was not, as DICOM JSON (PS3.18 section I.2)."""
        document: dict[str, Any] = {}
        if self.stored:
            document["00081199"] = {"vr": "SQ", "Value": [_reference(*one) for one in self.stored]}
        if self.failed:
            document["00081198"] = {
                "vr": "SQ",
                "Value": [
                    _reference(sop_class, sop_instance) | {"00081197": {"vr": "US", "Value": [status]}}
                    for sop_class, sop_instance, status in self.failed
                ],
            }
        return document


def _reference(sop_class: str, sop_instance: str) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [sop_class] if sop_class else []},
        "00081155": {"vr": "UI", "Value": [sop_instance] if sop_instance else []},
    }


def status_page(node: Node) -> str:
    """Write the page: numbers and names of destinations, nothing about any film."""
    counts = node.queue.counts()
    facts: Mapping[str, str] = {
        "model": f"{node.bundle.info.name}, bundle {node.queue.model[:12]}",
        "waiting to be classified": f"{counts[WAITING]:,}",
        "results to be sent": f"{counts[ANSWERED]:,}",
        "done": f"{counts[DONE]:,}",
        "dead letters": f"{counts[DEAD]:,}",
        "age of the oldest film": f"{node.queue.oldest():,.0f} s",
        "open associations": f"{node.receiver.associations}",
        "trouble": node.problem() or "none",
    }
    peers = [
        (sender.destination.name, f"{sender.sent:,}", _when(sender.last_success), f"{sender.failures}")
        for sender in node.senders.values()
    ]
    return _PAGE.format(
        facts=_rows(facts.items()),
        peers=_rows([("destination", "accepted since start", "last success", "failures in a row"), *peers]),
        notice=html.escape(NOTICE),
    )


def _rows(rows: Any) -> str:
    return "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "never"


_PAGE: Final = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10">
<title>chestxray DICOM node</title></head><body><h1>chestxray DICOM node</h1><table>{facts}</table>
<h2>Destinations</h2><table>{peers}</table><p>{notice}</p></body></html>
"""
