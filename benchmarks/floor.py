"""The floor under every way of serving: what decoding and the network take inside one process.

    python benchmarks/floor.py BUNDLE [FOLDER] [--films 32] [--rounds 20] [--json]
    python benchmarks/floor.py BUNDLE FILM... --answers 200

One film alone and a batch of 32, on one thread and on two; decoding (with the gate and the scaling) is always on one.
The gate's score and the grey levels are timed alone as well, and their share of a whole prediction is printed.
Films are read into memory first: what a disk takes is no part of this. With ``--answers`` the films' probabilities and
the seconds of so many predictions on one thread, in turn, are printed as JSON, for other benchmarks. The libraries'
own threads are off: idle ones spin, and take the time of the one that works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from chestxray.data.collect import collect
from chestxray.data.sources import read_film
from chestxray.images.preprocess import levelled
from chestxray.inference.bundle import Bundle, folder_of
from chestxray.inference.ood import detector_of
from chestxray.inference.predictor import Predictor
from side_by_side import DATA, anew_on_one_thread, report, take_turns

ALONE = "decode + network, one film, 1 thread"
LEVELS = "grey levels alone"
SCORE = "the gate's score alone"
PARTS = (ALONE, LEVELS, SCORE)


def decode_and_score(predictor: Predictor, films: list[bytes]) -> None:
    """The whole corridor, one forward pass."""
    predictor.logits(np.stack([predictor.prepare(data, "film").plane for data in films]))


def results(predictor: Predictor, data: bytes) -> bool:
    """Whether the film gets as far as the network."""
    return predictor.prepare(data, "film").plane is not None


def repeatedly(way: Callable[[], object], times: int) -> None:
    """So that every way handles as many films."""
    for _ in range(times):
        way()


def processor_time(way: Callable[[], object], rounds: int) -> float:
    """Seconds of this thread in the fastest round: other work on the machine hardly moves it."""
    taken = []
    for _ in range(rounds):
        began = time.thread_time()
        way()
        taken.append(time.thread_time() - began)
    return min(taken)


def answers(bundle: Path, paths: list[Path], times: int) -> dict[str, list[float | None]]:
    """The films' probabilities, and the seconds of ``times`` predictions, in turn."""
    predictor = Predictor.load(bundle, threads=1)
    films = [path.read_bytes() for path in paths]
    found = [predictor.predict(data, "film").probability for data in films]
    seconds = []
    for data in itertools.islice(itertools.cycle(films), times):
        began = time.perf_counter()
        predictor.predict(data, "film")
        seconds.append(time.perf_counter() - began)
    return {"answers": found, "seconds": seconds}


def main() -> None:
    """Measure and print; each way's milliseconds are those of one film."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of)
    parser.add_argument("films_or_folder", type=Path, nargs="*", default=[DATA / "chest_xray"])
    parser.add_argument("--answers", type=int, metavar="N", help="time N predictions of these films, print JSON")
    parser.add_argument("--films", type=int, default=32, help="of a batch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.answers:
        print(json.dumps(answers(arguments.bundle, arguments.films_or_folder, arguments.answers)))
        return
    (folder,) = arguments.films_or_folder
    one, two = (Predictor.load(arguments.bundle, threads=threads) for threads in (1, 2))
    found = (read_film(film) for film in collect(folder, labels_needed=False))
    films = list(itertools.islice((data for data in found if results(one, data)), arguments.films))
    planes = np.stack([one.prepare(data, "film").plane for data in films])
    alone = {
        ALONE: partial(decode_and_score, one, films[:1]),
        "decode + network, one film, 2 threads": partial(decode_and_score, two, films[:1]),
        "decode alone": partial(one.prepare, films[0], "film"),
        "network alone, one film, 1 thread": partial(one.logits, planes[:1]),
        "network alone, one film, 2 threads": partial(two.logits, planes[:1]),
    }
    detector, info = detector_of(Bundle.open(arguments.bundle)), one.info
    exact = planes[0].astype(np.float32)
    alone[LEVELS] = partial(levelled, exact, info.preprocessing.levels)
    if detector:
        alone[SCORE] = partial(detector.score, planes[0])
    together = {
        f"decode + network, {len(films)} films, 1 thread": partial(decode_and_score, one, films),
        f"decode + network, {len(films)} films, 2 threads": partial(decode_and_score, two, films),
        f"network alone, {len(films)} films, 1 thread": partial(one.logits, planes),
        f"network alone, {len(films)} films, 2 threads": partial(two.logits, planes),
    }
    ways = {name: partial(repeatedly, way, len(films)) for name, way in alone.items()} | together
    timings = take_turns(ways, arguments.rounds)
    report(f"{folder.name}, in process", timings, ALONE, len(films), as_json=arguments.json)
    if not arguments.json:
        taken = {name: processor_time(way, arguments.rounds) for name, way in ways.items() if name in PARTS}
        for name in PARTS[1:]:
            if name in taken:
                share = taken[name] / taken[ALONE]
                print(f"{name}: {1e3 * taken[name] / len(films):.2f} ms of processor time, {share:.1%} of a prediction")


if __name__ == "__main__":
    anew_on_one_thread()
    main()
