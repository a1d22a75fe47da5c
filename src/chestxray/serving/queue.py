"""Films wait here for a thread. The event loop never decodes; the queue never grows without end."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from chestxray.errors import FilmError, MissingExtra
from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction
from chestxray.serving.problems import OVERLOADED, Refusal, refusal_of


class PredictionQueue:
    """A few threads in front of one predictor. Pillow and onnxruntime release the interpreter while they work."""

    def __init__(self, predictor: Predictor, workers: int, waiting: int) -> None:
        """Make the threads.

        Args:
            workers: films that are judged at the same time.
            waiting: films that may wait beyond these before the next is refused.
        """
        self.predictor = predictor
        self.capacity = workers + waiting
        self.inside = 0  # waiting and being judged; touched on the event loop alone
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="film")

    def refuse_if_full(self) -> None:
        """Raises: Refusal (503), where another film would find no room."""
        if self.inside >= self.capacity:
            raise Refusal(OVERLOADED, f"{self.inside} films are waiting already", {"Retry-After": "1"})

    async def predict(self, data: bytes, operating_point: str | None = None, *, heatmap: bool = False) -> Prediction:
        """Judge a film on one of the threads. Raises: Refusal."""
        self.refuse_if_full()
        self.inside += 1
        try:
            judge = partial(self.predictor.predict, data, "this film", operating_point=operating_point, heatmap=heatmap)
            return await asyncio.get_running_loop().run_in_executor(self._pool, judge)
        except (FilmError, MissingExtra) as error:
            raise refusal_of(error) from error
        finally:
            self.inside -= 1

    def close(self) -> None:
        """Let the threads end once they are done."""
        self._pool.shutdown(wait=False)
