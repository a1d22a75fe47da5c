"""The service at one, two and ten times its capacity: every answer is compared with a serial reference.

python benchmarks/load.py BUNDLE FILM... [--requests 100000] [--only "10 x"] [--lag 0.2] [--json]

30,000 requests take about two minutes.

Starts ``chestxray serve`` on a free port of this machine, finds its capacity with callers that ask again as soon as
they are answered, then offers it films at fixed rates, and last to 256 callers that ask again at once however they are
answered. The callers are one process on the same machine; where it has
more than two cores, ``--callers-core N`` keeps them off the service's. Where they share its cores, what they take is
missing in its goodput: so processor time is counted on both sides, and right answers for a second of the service's own
processor time, refusals paid for, are compared as well. Exit status 1 where an answer is wrong or lost,
or where goodput at ten times the capacity, or with 256 callers, falls by more than a tenth from its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from chestxray.inference.bundle import folder_of
from chestxray.inference.predictor import Predictor
from http_load import Callers, Case, Tally, processor_seconds, resident_mib
from side_by_side import machine

SHARES = {1: 0.3, 2: 0.3, 10: 0.4}  # of the requests, by how many times the capacity they are offered at
MANY = 256  # callers who ignore Retry-After
OF_MANY = 0.2  # of the requests, beside those at fixed rates
PHASES = (*(f"{times} x" for times in SHARES), f"{MANY} callers")
SETTLED = 0.9  # of the peak, which goodput keeps at ten times the capacity and with so many callers


def main() -> None:
    """Measure, print, compare with the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of)
    parser.add_argument("films", type=Path, nargs="+")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--only", choices=PHASES, action="append", help="these loads, beside the one at capacity")
    parser.add_argument(
        "--lag", type=float, default=0.0, help="seconds between a connection and its request, beyond capacity"
    )
    parser.add_argument("--callers-core", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    cases = references(arguments.bundle, arguments.films)
    with service(arguments.bundle) as (address, process):
        if arguments.callers_core is not None:
            os.sched_setaffinity(0, {arguments.callers_core})
        asked = arguments.requests, arguments.only or PHASES, arguments.lag
        tallies, memory = measure(address, process, cases, *asked)
    peak = max(tally.goodput for tally in tallies.values())
    kept = {name: tallies[name].goodput / peak for name in PHASES[-2:] if name in tallies}
    per_second = {name: tallies["capacity"].each / tallies[name].each for name in kept}
    flawless = not any(each.wrong or each.lost or each.other or each.refused_without_time for each in tallies.values())
    if arguments.json:
        rows = {name: vars(tally) | {"seconds": None, "goodput": tally.goodput} for name, tally in tallies.items()}
        facts = {"machine": machine(), "kept": kept, "kept_of_processor_time": per_second}
        facts |= {"flawless": flawless, "resident_mib": memory}
        print(json.dumps(facts | rows, indent=2))
    else:
        print(f"{len(cases)} films, {machine()}; {memory:.0f} MiB resident under load")
        for name, tally in tallies.items():
            print(f"  {name:10} {tally}")
        shares = ", ".join(f"{share:.2f} at {name}" for name, share in kept.items())
        print(f"  goodput, of its peak: {shares}; answers {'all right' if flawless else 'NOT all right'}")
        shares = ", ".join(f"{share:.2f} at {name}" for name, share in per_second.items())
        print(f"  right answers for a second of the service's processor time, of those at capacity: {shares}")
    sys.exit(0 if flawless and min(kept.values(), default=1.0) >= SETTLED else 1)


def references(bundle: Path, films: list[Path]) -> list[Case]:
    """What each film gets alone."""
    predictor = Predictor.load(bundle)
    contents = [film.read_bytes() for film in films]
    return [Case.of(data, predictor.predict(data, "film").probability) for data in contents]


def measure(
    address: str, process: int, cases: list[Case], requests: int, phases: Collection[str], lag: float
) -> tuple[dict[str, Tally], float]:
    """Tallies by name, and MiB at the end."""

    def counted(work: Coroutine[None, None, Tally]) -> Tally:
        served, called = processor_seconds(process), time.process_time()
        tally = uvloop.run(work)  # callers cost less than on the standard loop
        tally.served, tally.called = processor_seconds(process) - served, time.process_time() - called
        return tally

    counted(Callers(address).closed(cases, 200, at_once=4))  # warm
    found = counted(Callers(address).closed(cases, max(400, requests // 50), at_once=8))
    tallies = {"capacity": found}
    for times, share in SHARES.items():
        count, rate = int(share * requests), times * found.goodput
        if f"{times} x" in phases:
            tallies[f"{times} x"] = counted(Callers(address, lag=lag).open(cases, count, rate))
    if PHASES[-1] in phases:
        tallies[PHASES[-1]] = counted(Callers(address).closed(cases, int(OF_MANY * requests), MANY))
    return tallies, resident_mib(process)


@contextmanager
def service(bundle: Path) -> Iterator[tuple[str, int]]:
    """Our service, until the block ends; gives address and process."""
    command = [Path(sys.executable).with_name("chestxray"), "serve", "--bundle", bundle, "--port", "0", "--json"]
    with tempfile.TemporaryFile("w") as log:
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            text = ""
            while not text.endswith("\n}\n"):
                line = started.stdout.readline()
                if not line:
                    raise RuntimeError("the service ended before it answered")
                text += line
            yield json.loads(text)["address"], started.pid
        finally:
            started.terminate()
            started.communicate()


if __name__ == "__main__":
    main()
