"""A film's way through the service: admitted or refused at once, decoded in the pool, scored with whom it meets.

The event loop only passes things on. The queue never grows without end, and nobody waits in it for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

import numpy as np

from chestxray.data.parallel import cores
from chestxray.errors import FilmError
from chestxray.images.preprocess import Plane
from chestxray.inference.predictor import Float32Array, Predictor, overlay_png
from chestxray.schema import Prediction
from chestxray.serving.metrics import Metrics
from chestxray.serving.pool import DecoderPool
from chestxray.serving.problems import OVERLOADED, TOO_LONG, Refusal, refusal_of

LARGEST_BATCH: Final = 8  # films of one forward pass: more gain nothing on a processor and make the first one wait
SECONDS_A_FILM: Final = 60.0  # from its first byte to its answer, whatever happens

Waiting = tuple[Plane, asyncio.Future[tuple[Float32Array, Float32Array]]]


class Scorer:
    """Lanes in front of the network, one a core. A free one takes its share of all that wait, and waits for no more.

    A film that is alone in the service has all cores to itself instead.
    """

    def __init__(self, predictor: Predictor, metrics: Metrics) -> None:
        self._alone = predictor
        self._among_others = predictor.on_one_thread()
        self._metrics = metrics
        self._waiting: list[Waiting] = []
        self._lanes = cores()
        self._open: set[asyncio.Task[None] | None] = set()
        self._threads = ThreadPoolExecutor(self._lanes, thread_name_prefix="network")

    async def score(self, plane: Plane, *, alone: bool = False) -> tuple[Float32Array, Float32Array]:
        """The logit of a plane, shape (1,), and its activation map, shape (rows, columns)."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Float32Array, Float32Array]] = loop.create_future()
        self._waiting.append((plane, answer))
        if len(self._open) < self._lanes:
            self._open.add(loop.create_task(self._lane(self._alone if alone else self._among_others)))
        return await answer

    async def _lane(self, predictor: Predictor) -> None:
        try:
            while self._waiting:
                share = min(-(-len(self._waiting) // self._lanes), LARGEST_BATCH)
                batch = self._waiting[:share]
                del self._waiting[:share]
                await self._score_batch(predictor, batch)
                predictor = self._among_others  # whoever came meanwhile was not alone
        finally:  # at once, so that no film is left behind by a lane that has just looked
            self._open.discard(asyncio.current_task())

    async def _score_batch(self, predictor: Predictor, batch: list[Waiting]) -> None:
        planes = np.stack([plane for plane, _ in batch])
        self._metrics.batch.observe(len(batch))
        try:
            logits, activations = await asyncio.get_running_loop().run_in_executor(
                self._threads, predictor.logits, planes
            )
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the answers
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for at, (_, answer) in enumerate(batch):
            if not answer.done():  # cancelled, because its request ran out of time
                answer.set_result((logits[at : at + 1], activations[at]))

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)


class PredictionQueue:
    """Admits films up to a limit, and sees them through.

    Attributes:
        inside: films that were admitted and have no answer yet.
    """

    def __init__(self, predictor: Predictor, decoders: DecoderPool, capacity: int, metrics: Metrics) -> None:
        self.predictor = predictor
        self.inside = 0  # touched on the event loop alone
        self._decoders = decoders
        self._capacity = capacity
        self._scorer = Scorer(predictor, metrics)
        self._deadlines: set[asyncio.Timeout] = set()
        self._latest = float("inf")  # on the clock of the event loop

    @property
    def full(self) -> bool:
        """Whether another film would find no room."""
        return self.inside >= self._capacity

    def refuse_if_full(self) -> None:
        """Raises: Refusal (503)."""
        if self.full:
            raise Refusal(OVERLOADED, f"{self.inside} films are waiting already", {"Retry-After": "1"})

    async def predict(self, data: bytes, operating_point: str | None = None, *, heatmap: bool = False) -> Prediction:
        """Judge a film. Raises: Refusal."""
        self.refuse_if_full()
        self.inside += 1
        try:
            return await self._judge(data, operating_point, heatmap=heatmap)
        except FilmError as error:
            raise refusal_of(error) from error
        finally:
            self.inside -= 1

    async def _judge(self, data: bytes, operating_point: str | None, *, heatmap: bool) -> Prediction:
        """``Predictor.predict``, its first half in another process, its second beside other films."""
        predictor = self.predictor
        point = predictor.info.operating_point(operating_point)
        film = await self._decoders.prepare(data)
        if film.plane is None:
            return predictor.answer(film.sha256, point, film.gate)
        logits, activation = await self._scorer.score(film.plane, alone=self.inside == 1)
        picture = None
        if heatmap:
            picture = await asyncio.to_thread(overlay_png, activation, film.size, predictor.info.preprocessing)
        return predictor.answer(film.sha256, point, film.gate, float(predictor.probabilities(logits)[0]), picture)

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Bounds a whole request, its body included. Raises: Refusal (503), when its time is over."""
        now = asyncio.get_running_loop().time()
        deadline = asyncio.timeout_at(min(now + SECONDS_A_FILM, self._latest))
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
        """From now on nothing takes longer than that: for a service that has to stop."""
        self._latest = asyncio.get_running_loop().time() + seconds
        for deadline in self._deadlines:
            when = deadline.when()
            if not deadline.expired() and (when is None or when > self._latest):
                deadline.reschedule(self._latest)

    def close(self) -> None:
        """Let threads and processes end."""
        self._scorer.close()
        self._decoders.close()
