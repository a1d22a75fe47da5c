"""How one service accepts and classifies films: its limits, the queue, the batches.

A film is admitted or refused at once, decoded in the pool, and scored in a batch with the films that wait at the same
time. The event loop does no heavy work. The queue has a limit, and so has the time in it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict

from chestxray.arrays import Float32Array, UInt8Array
from chestxray.data.parallel import cores
from chestxray.errors import ChestXrayError, FilmError, UsageError
from chestxray.files import MEBIBYTE
from chestxray.inference.bundle import Bundle
from chestxray.inference.predictor import FILMS_A_PASS, Predictor
from chestxray.schema import Prediction
from chestxray.serving.decoders import DecoderLimits, DecoderPool, DecodersGone
from chestxray.serving.intake import Intake, Part, boundary_of, check_encoding
from chestxray.serving.problems import (
    CROSS_ORIGIN,
    DECODER_LOST,
    EMPTY_BODY,
    NOT_READY,
    OVERLOADED,
    TOO_LONG,
    UNKNOWN_POINT,
    Refusal,
    problem_of,
    refusal_of,
)
from chestxray.serving.security import HostRule, KeyRing, caller_at
from chestxray.serving.static import EXAMPLES
from chestxray.serving.telemetry import Metrics

NDJSON: Final = "application/x-ndjson"

_ORIGIN: Final = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """The limits of one service, and the names and keys that open it.

    Attributes:
        max_body: largest size of one film, in bytes.
        body_seconds: seconds within which a body has to arrive.
        max_bodies: bytes of all bodies together that are arriving or waiting, and of heat maps that wait to be sent.
        workers: number of decoding processes.
        waiting: films that may wait beyond these; the next is refused with 503.
        decoding: what decoding one film may cost.
        hosts: names that the Host header may have.
        keys: accepted keys; without any, no key is needed.
        cors_origins: other origins whose pages may call, each exactly as browsers send it: "https://pacs.example".
        transform: whether this is a SageMaker batch transform, whose answers are lines.
    """

    max_body: int = 20 * MEBIBYTE
    body_seconds: float = 30.0
    max_bodies: int = 512 * MEBIBYTE
    workers: int = field(default_factory=lambda: min(cores(), 4))
    waiting: int = 16
    decoding: DecoderLimits = field(default_factory=DecoderLimits)
    hosts: HostRule = field(default_factory=HostRule)
    keys: KeyRing = field(default_factory=KeyRing)
    cors_origins: tuple[str, ...] = ()
    transform: bool = False

    def __post_init__(self) -> None:
        """Check the origins. Raises: UsageError, if an origin is not exact."""
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--cors-origin {origin}: not an exact origin. Give scheme, name and port as browsers send them: "
                    "https://pacs.example"
                )


SECONDS_A_WORKLIST: Final = 900.0  # seconds for all the films of one request together
SECONDS_A_FILM: Final = 60.0  # seconds from a film's first byte to its answer, whatever happens

Waiting = tuple[UInt8Array, asyncio.Future[tuple[Float32Array, Float32Array]]]


class Scorer:
    """Workers in front of the network, one a core. A free worker takes its part of the waiting films as one batch.

    A film that is alone in the service uses all cores instead.
    """

    def __init__(self, predictor: Predictor, metrics: Metrics) -> None:
        self._all_threads = predictor
        self._one_thread = predictor.on_one_thread()
        self._metrics = metrics
        self._waiting: list[Waiting] = []
        self._cores = cores()
        self._working: set[asyncio.Task[None] | None] = set()
        self._threads = ThreadPoolExecutor(self._cores, thread_name_prefix="network")

    async def score(self, plane: UInt8Array, *, alone: bool = False) -> tuple[Float32Array, Float32Array]:
        """Return the logit of a plane, shape (1,), and its activation map, shape (rows, columns)."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Float32Array, Float32Array]] = loop.create_future()
        self._waiting.append((plane, answer))
        if len(self._working) < self._cores:
            self._working.add(loop.create_task(self._work(self._all_threads if alone else self._one_thread)))
        return await answer

    async def _work(self, predictor: Predictor) -> None:
        try:
            while self._waiting:
                share = min(-(-len(self._waiting) // self._cores), FILMS_A_PASS)
                batch = self._waiting[:share]
                del self._waiting[:share]
                await self._score_batch(predictor, batch)
                predictor = self._one_thread  # more films came meanwhile, so this film is not alone
        finally:  # without a pause, so that no film is left waiting when a worker has just found the queue empty
            self._working.discard(asyncio.current_task())

    async def _score_batch(self, predictor: Predictor, batch: list[Waiting]) -> None:
        planes = np.stack([plane for plane, _ in batch])
        self._metrics.batch.observe(len(batch))
        try:
            logits, activations = await asyncio.get_running_loop().run_in_executor(
                self._threads, predictor.logits, planes
            )
        except Exception as error:  # noqa: BLE001 - it is passed on to the callers that wait for the answers
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for at, (_, answer) in enumerate(batch):
            if not answer.done():  # otherwise it was cancelled, because its request ran out of time
                answer.set_result((logits[at : at + 1], activations[at]))

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False)


class PredictionQueue:
    """Admits films up to a limit, and follows each to its answer.

    Attributes:
        inside: number of films that were admitted and have no answer yet.
        on_room: called after an answer, if the queue is at most half full: others may then be let in.
        on_film: called whenever a film is admitted.
    """

    def __init__(self, predictor: Predictor, decoders: DecoderPool, capacity: int, metrics: Metrics) -> None:
        self.predictor = predictor
        self.inside = 0  # changed on the event loop only
        self.on_room: Callable[[], None] = lambda: None
        self.on_film: Callable[[], None] = lambda: None
        self._decoders = decoders
        self._capacity = capacity
        self._scorer = Scorer(predictor, metrics)
        self._left = asyncio.Event()  # set and replaced whenever a film has its answer
        self._deadlines: set[asyncio.Timeout] = set()
        self._latest = float("inf")  # deadline on the clock of the event loop

    @property
    def free(self) -> int:
        """For how many more films there is room."""
        return self._capacity - self.inside

    def refuse_if_full(self) -> None:
        """Check that another film finds room. Raises: Refusal (503)."""
        if self.free <= 0:
            raise Refusal(OVERLOADED, f"{self.inside} films are waiting already", {"Retry-After": "1"})

    async def room(self) -> None:
        """Wait for room that a caller with many films may take: the other half is for those who send one."""
        while self.inside >= max(1, self._capacity // 2):
            await self._left.wait()

    async def predict(
        self, data: bytes, operating_point: str | None = None, *, heatmap: bool = False, caller: str = ""
    ) -> Prediction:
        """Predict as ``Predictor.predict`` does: decode in another process, and score in a batch with other films.

        Args:
            data: its bytes.
            operating_point: its name; None takes the bundle's default.
            heatmap: whether to draw where the evidence lies.
            caller: name of the caller, which takes turns with others.

        Raises: Refusal.
        """
        predictor = self.predictor
        point = predictor.info.operating_point(operating_point)
        with self._film_inside():
            film = await self._decoders.prepare(data, caller)
            if film.plane is None:
                return predictor.answer(film.sha256, point, film.gate, notes=film.notes)
            logits, activation = await self._scorer.score(film.plane, alone=self.inside == 1)
            picture = await asyncio.to_thread(predictor.overlay, activation, film.size) if heatmap else None
            probability = float(predictor.probabilities(logits)[0])
            return predictor.answer(film.sha256, point, film.gate, probability, picture, film.notes)

    async def draw(self, data: bytes, caller: str = "") -> bytes:
        """Draw one film as PNG. Arguments and errors as of ``predict``."""
        with self._film_inside():
            return await self._decoders.draw(data, caller)

    @contextmanager
    def _film_inside(self) -> Iterator[None]:
        """Count a film until it has its answer, then wake a film that waits for its place. Raises: Refusal."""
        self.refuse_if_full()
        self.inside += 1
        self.on_film()
        try:
            yield
        except FilmError as error:
            raise refusal_of(error) from error
        except DecodersGone as error:
            raise Refusal(DECODER_LOST, str(error), {"Retry-After": "1"}) from error
        finally:
            self.inside -= 1
            self._left.set()
            self._left = asyncio.Event()
            if self.inside <= self._capacity // 2:
                self.on_room()

    @asynccontextmanager
    async def in_time(self, seconds: float = SECONDS_A_FILM) -> AsyncIterator[None]:
        """Limit the time of a whole request, its body included. Raises: Refusal (503), if the time runs out."""
        now = asyncio.get_running_loop().time()
        deadline = asyncio.timeout_at(min(now + seconds, self._latest))
        try:
            async with deadline:
                self._deadlines.add(deadline)
                yield
        except TimeoutError:
            raise Refusal(
                TOO_LONG, "no answer came in time, or the service is stopping", {"Retry-After": "5"}
            ) from None
        finally:
            self._deadlines.discard(deadline)

    def end_within(self, seconds: float) -> None:
        """Limit the time of all present and later requests, for a service that has to stop."""
        self._latest = asyncio.get_running_loop().time() + seconds
        for deadline in self._deadlines:
            when = deadline.when()
            if not deadline.expired() and (when is None or when > self._latest):
                deadline.reschedule(self._latest)

    def close(self) -> None:
        """Stop threads and processes."""
        self._scorer.close()
        self._decoders.close()


DRAIN_SECONDS: Final = 20.0  # seconds for films that are under way when the service is told to stop


class PredictParameters(BaseModel):
    """Query of ``/v1/predict``. A misspelt parameter is refused: it would change the answer silently."""

    model_config = ConfigDict(extra="forbid")

    operating_point: str | None = None
    heatmap: bool = False


def _caller_of(request: Request) -> str:
    """Return the caller with whom a film's turns are counted: the key's holder, else the address."""
    if hasattr(request.state, "holder"):
        return str(request.state.holder)
    return caller_at(request.client.host) if request.client else ""


class Service:
    """One loaded bundle, the queue in front of it, and what the routes do with it."""

    def __init__(self, predictor: Predictor, settings: ServiceSettings, decoders: DecoderPool | None = None) -> None:
        self.predictor = predictor
        self.settings = settings
        self.metrics = Metrics()
        if decoders is None:
            bundle = Bundle(predictor.folder, predictor.info)
            limits = replace(settings.decoding, require_age=predictor.require_age)
            decoders = DecoderPool(bundle, settings.workers, limits)
        self.queue = PredictionQueue(predictor, decoders, settings.workers + settings.waiting, self.metrics)
        self.intake = Intake(settings.max_body, settings.body_seconds, settings.max_bodies)
        self.ready = False
        self.metrics.watch("films_inside", "Films admitted and not yet answered.", lambda: self.queue.inside)
        self.metrics.watch("decoders_replaced", "Decoding processes that died.", lambda: decoders.replaced)
        self.metrics.watch("ready", "1 while films are classified, else 0.", lambda: self.ready)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Warm up and become ready; at the end stop threads and processes. Raises: ChestXrayError, if it cannot."""
        for example in sorted(EXAMPLES.glob("*.jpg"))[:1]:
            try:
                await self.queue.predict(example.read_bytes(), heatmap=True)
            except Refusal as refusal:
                raise ChestXrayError(f"no film can be classified here: {refusal.detail}") from refusal
        self.ready = True
        yield
        self.ready = False
        self.queue.close()

    def begin_to_stop(self) -> None:
        """Become not ready; requests that are under way have ``DRAIN_SECONDS``."""
        self.ready = False
        self.queue.end_within(DRAIN_SECONDS)

    async def predict(self, request: Request, parameters: PredictParameters) -> Response:
        """Predict the film in the body, or the films in a multipart body. Raises: Refusal."""
        points = [point.name for point in self.predictor.info.operating_points]
        wanted = parameters.operating_point
        if wanted is not None and wanted not in points:
            raise Refusal(UNKNOWN_POINT, f"there is no operating point {wanted[:80]!r}; there are {', '.join(points)}")
        if (boundary := boundary_of(request.headers.get("content-type", ""))) is not None:
            return await self._predict_many(request, parameters, boundary)
        self.queue.refuse_if_full()  # refuse before the body is read
        async with self.queue.in_time(), self.intake.body(request) as data:
            prediction = await self._predicted(data, parameters, request)
        return Response(prediction.to_json(), media_type="application/json")

    async def draw(self, request: Request) -> Response:
        """Draw the film in the body as a picture. Raises: Refusal."""
        self.queue.refuse_if_full()  # refuse before the body is read
        async with self.queue.in_time(), self.intake.body(request) as data:
            picture = await self.queue.draw(data, _caller_of(request))
        return Response(picture, media_type="image/png")

    async def _predicted(self, data: bytes, parameters: PredictParameters, request: Request) -> Prediction:
        return await self.queue.predict(
            data, parameters.operating_point, heatmap=parameters.heatmap, caller=_caller_of(request)
        )

    async def _predict_many(self, request: Request, parameters: PredictParameters, boundary: str) -> Response:
        """Predict the parts of the body in order: one film as if it were the body, several as one line of JSON each."""
        check_encoding(request)
        self._check_origin(request)
        lines: list[asyncio.Task[Prediction | Refusal]] = []
        places = asyncio.Semaphore(2 * self.settings.workers)  # the number of films that a request reads ahead
        async with self.queue.in_time(SECONDS_A_WORKLIST):
            answers = ExitStack()
            try:
                async for part in self.intake.films(request, boundary):
                    await places.acquire()
                    line = asyncio.create_task(self._predict_part(part, parameters, request, answers))
                    line.add_done_callback(lambda _: places.release())
                    lines.append(line)
                found = await asyncio.gather(*lines)
            finally:
                for line in lines:
                    line.cancel()
                answers.close()
        if not found:
            raise Refusal(EMPTY_BODY, "the body has no part; each has to be the bytes of one film")
        if len(found) == 1 and NDJSON not in request.headers.get("accept", ""):
            if isinstance(found[0], Refusal):
                raise found[0]
            return Response(found[0].to_json(), media_type="application/json")
        text = "".join(f"{_json_line(at, each, request.state.request_id)}\n" for at, each in enumerate(found))
        return Response(text, media_type=NDJSON)

    async def _predict_part(
        self, part: Part, parameters: PredictParameters, request: Request, answers: ExitStack
    ) -> Prediction | Refusal:
        """Predict one film of several; the film waits for room, because the caller has sent it whole.

        Its heat map counts among the bytes that are held until ``answers`` is closed, when all films have theirs.
        """
        try:
            self.intake.check_part(part)
            with self.intake.holding(len(part.data)):
                async with self.queue.in_time():
                    await self.queue.room()
                    found = await self._predicted(part.data, parameters, request)
            answers.enter_context(self.intake.holding(len(found.heatmap or "")))
        except Refusal as refusal:
            return refusal
        return found

    def _check_origin(self, request: Request) -> None:
        """Check that a form comes from the service's own page: browsers send forms unasked. Raises: Refusal."""
        origin = request.headers.get("origin")
        if origin is None or origin in self.settings.cors_origins:
            return
        if origin.partition("://")[2].lower() != request.headers.get("host", "").lower():
            raise Refusal(CROSS_ORIGIN, "the Origin header names another page than this service's own")

    def check_ready(self) -> None:
        """Check that the service is ready: warmed up and not stopping. Raises: Refusal (503)."""
        if not self.ready:
            raise Refusal(NOT_READY, "the model is being loaded, or the service is stopping", {"Retry-After": "1"})


def _json_line(at: int, found: Prediction | Refusal, request_id: str) -> str:
    """Return one line of the answer to several films."""
    if isinstance(found, Prediction):
        return f'{{"index": {at}, "status": 200, "prediction": {found.to_json()}}}'
    problem = problem_of(found.kind, found.detail, request_id)
    return json.dumps({"index": at, "status": found.kind.status, "problem": problem})
