"""Our service against the same model behind LitServe, BentoML, Ray Serve and the original's way (Flask under gunicorn).

python benchmarks/service.py BUNDLE FILM... [--peers-python PATH] [--requests 600] [--rounds 3] [--minutes 6] [--json]

Each server runs alone on this machine, in turn, round after round: one caller for p50 and p99, then as many as keep
it busy for requests a second and the processor time of all its processes; every answer is compared with the graph's
own. Memory is the proportional set size of all of its processes under load; start-up is from the command to the
first answer. The floor is decode plus network, one film after the other on one thread, in a process that does nothing
else, before and after the servers. The peers live in environments of their own, since BentoML and Ray cannot share
one; a peer that is installed in none of them is reported as not run:

    python -m venv peers && peers/bin/pip install -c constraints.txt torch==2.13.0      # first, as the Makefile says
    peers/bin/pip install -e ".[train]" litserve python-multipart "ray[serve]" flask gunicorn
    python -m venv bento && bento/bin/pip install -e . "bentoml>=1.4"
    python benchmarks/service.py BUNDLE FILM... --peers-python peers/bin/python --peers-python bento/bin/python

The original's way needs the bundle's weights.safetensors. Full-size films: give them as FILM. A server that does not
answer in time is reported with its last words, and the others go on; after ``--minutes`` no further turn begins,
and the rounds that each server has are said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chestxray.inference.bundle import folder_of
from http_load import Callers, Case, Tally, as_form, as_it_is, descendants, processor_seconds, resident_mib, right
from side_by_side import machine

HERE = Path(__file__).parent
START_SECONDS = 60.0  # from the command to the first answer
TURN_SECONDS = 90.0  # for all the requests of one server in one round
LAST_WORDS = 400  # characters of its output that tell why a server did not answer
AT_ONCE = 8  # callers that keep a server busy
CLOSE = 1e-3  # of a probability: the original's way computes with another library
FLOOR_FILMS = 200


@dataclass(frozen=True)
class Server:
    """How a server is started and asked. ``{python}``, ``{bin}``, ``{bundle}`` and ``{port}`` are filled in."""

    name: str
    package: str
    command: str
    path: str = "/predict"
    wrap: Callable[[bytes], tuple[str, bytes]] = as_it_is


SERVERS = (
    Server("chestxray", "", "{own} serve --bundle {bundle} --port {port}", "/v1/predict"),
    Server("litserve", "litserve", "{python} litserve_peer.py", wrap=as_form),
    Server(
        "bentoml",
        "bentoml",
        "{python} -m bentoml serve bentoml_peer:Films --host 127.0.0.1 --port {port}",
        wrap=as_form,
    ),
    Server("ray serve", "ray", "{python} ray_peer.py"),
    Server(
        "flask, gunicorn",
        "gunicorn",
        "{python} -m gunicorn --workers {cores} --bind 127.0.0.1:{port} --log-level error flask_peer:app",
    ),
)


class NoAnswer(Exception):
    """A server that did not start, or did not answer in time."""


@dataclass
class Row:
    """What one server did in one round."""

    start: float
    p50: float
    p99: float
    rate: float
    memory: float
    wrong: int
    processor: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=folder_of)
    parser.add_argument("films", type=Path, nargs="+")
    parser.add_argument("--peers-python", type=Path, action="append", help="repeatable")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=6.0, help="after which no further turn begins")
    parser.add_argument("--only", action="append", help="name of a server; repeatable")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    end = time.monotonic() + 60.0 * arguments.minutes
    cases, before = references(arguments.bundle, arguments.films)
    rows: dict[str, list[Row]] = {}
    missing = {}
    chosen = [server for server in SERVERS if not arguments.only or server.name in arguments.only]
    pythons = {server.name: python_of(server, arguments.peers_python or []) for server in chosen}
    for server in chosen * arguments.rounds:
        python = pythons[server.name]
        if python is None or server.name in missing:
            missing.setdefault(server.name, "not installed")
            continue
        if (left := end - time.monotonic()) <= 0:
            break
        try:
            rows.setdefault(server.name, []).append(measure(server, arguments, python, cases, left))
        except NoAnswer as why:
            missing[server.name] = str(why)
    _, after = references(arguments.bundle, arguments.films)
    floor = statistics.median(before + after)
    show({name: each for name, each in rows.items() if each}, missing, floor, as_json=arguments.json)


def references(bundle: Path, films: list[Path]) -> tuple[list[Case], list[float]]:
    """What each film gets alone, and the seconds that decode plus network take; in a process that does only this."""
    command = [sys.executable, HERE / "floor.py", bundle, *films, "--answers", str(FLOOR_FILMS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    cases = [Case.of(film.read_bytes(), answer) for film, answer in zip(films, found["answers"], strict=True)]
    return [case for case in cases if case.probability is not None], found["seconds"]


def measure(server: Server, arguments: argparse.Namespace, python: Path, cases: list[Case], left: float) -> Row:
    """One round of one server, in at most ``left`` seconds. Raises: NoAnswer."""
    predict = right if server.name == "chestxray" else close
    with running(server, arguments.bundle, python) as (address, process, began):

        def asked(count: int, at_once: int, seconds: float) -> Tally:
            callers = Callers(address, server.path, predict, server.wrap)
            try:
                return asyncio.run(asyncio.wait_for(callers.closed(cases, count, at_once), max(seconds, 0.0)))
            except TimeoutError:
                why = f"{callers.tally.answered} of {count} requests answered in {seconds:.0f} seconds"
                raise NoAnswer(why) from None

        last = began + min(START_SECONDS, left)
        while not asked(1, 1, last - time.perf_counter()).answered:
            if process.poll() is not None:
                raise NoAnswer("no answer")
            time.sleep(0.02)  # the server needs the processor more
        first = time.perf_counter() - began
        last = time.perf_counter() + min(TURN_SECONDS, left - first)
        asked(50, 4, last - time.perf_counter())  # warm
        alone = asked(arguments.requests // 2, 1, last - time.perf_counter())
        before = processor_seconds(process.pid)
        busy = asked(arguments.requests, AT_ONCE, last - time.perf_counter())
        faults = [each.wrong + len(each.lost) + each.refused + sum(each.other.values()) for each in (alone, busy)]
        processor = (processor_seconds(process.pid) - before) / max(1, busy.answered)
        return Row(
            first,
            alone.quantile(0.5),
            alone.quantile(0.99),
            busy.goodput,
            resident_mib(process.pid),
            sum(faults),
            processor,
        )


def close(case: Case, body: bytes) -> bool:
    """Whether a peer's answer is the case's."""
    return abs(json.loads(body)["probability"] - case.probability) <= CLOSE


@contextmanager
def running(server: Server, bundle: Path, python: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], float]]:
    """A server in processes of its own; gives address, process and when it was started.

    Raises: NoAnswer, which the block raised, with the server's last words.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    bundle = bundle.resolve()
    words = {
        "own": Path(sys.executable).with_name("chestxray"),
        "python": python.absolute(),
        "bundle": bundle,
        "port": port,
        "cores": len(os.sched_getaffinity(0)),
    }
    command = [word.format(**words) for word in server.command.split()]
    environment = os.environ | {"PEER_BUNDLE": str(bundle), "PEER_PORT": str(port)}
    with tempfile.TemporaryFile() as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=HERE / "peers", env=environment, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}", process, began
        except NoAnswer as why:
            ended = process.poll()
            stop(process)
            log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS))
            words = " ".join(log.read().decode(errors="replace").split())
            state = "" if ended is None else f", it had ended with status {ended}"
            raise NoAnswer(f"{why}{state}; its last words: {words or 'none'}") from None
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started."""
    if process.returncode is not None:
        return
    children = descendants(process.pid)
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue


def python_of(server: Server, pythons: list[Path]) -> Path | None:
    """The first of these that has what the server needs; None where none has."""
    if not server.package:
        return Path(sys.executable)
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({server.package!r}) is None)"
    return next((each for each in pythons if not subprocess.run([each, "-c", code], check=False).returncode), None)


def show(rows: dict[str, list[Row]], missing: dict[str, str], floor: float, *, as_json: bool) -> None:
    """Medians of the rounds."""
    medians = {
        name: {field: statistics.median(vars(row)[field] for row in each) for field in vars(each[0])}
        for name, each in rows.items()
    }
    if as_json:
        print(json.dumps({"machine": machine(), "floor": floor, "not_run": missing, "servers": medians}, indent=2))
        return
    print(f"{machine()}; medians of the rounds, in turn")
    print(f"  {'floor: decode plus network, in process':40} p50 {1e3 * floor:7.2f} ms")
    for name, row in medians.items():
        latency = f"p50 alone {1e3 * row['p50']:7.2f} ms, p99 {1e3 * row['p99']:7.2f} ms"
        rest = f"{row['memory']:7.0f} MiB   first answer after {row['start']:5.2f} s   {row['wrong']:.0f} not right"
        latency += f" ({row['p50'] / floor:.2f} x the floor)"
        rate = f"{row['rate']:8.1f} a second, {1e3 * row['processor']:6.2f} ms of processor time each"
        print(f"  {name:20} {rate}   {latency}   {rest}   {len(rows[name])} rounds")
    for name, why in missing.items():
        print(f"  {name:20} not measured: {why}")


if __name__ == "__main__":
    main()
