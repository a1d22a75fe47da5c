"""The processes that decode for the service: one that dies costs one film, and nothing else notices."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from test_fuzz_decode import FILMS
from test_limits import TRAPS

from chestxray.errors import ChestXrayError, FilmTooLarge, TruncatedFilm, UnreadableFilm
from chestxray.inference.bundle import Bundle
from chestxray.inference.ood import Prepared
from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction
from chestxray.serving import decoders as decoders_module
from chestxray.serving.admission import ConnectionLimits
from chestxray.serving.decoders import DecoderLimits, DecoderPool, DecodersGone, FairSemaphore
from chestxray.serving.server import make_server
from chestxray.serving.service import PredictionQueue, ServiceSettings
from chestxray.serving.telemetry import Metrics
from drawing import encoded, textured
from http_load import Case, children, processor_seconds, right
from live_service import awaited, running

JPEG = {"Content-Type": "image/jpeg"}
KILLS = int(os.environ.get("CHESTXRAY_SOAK_KILLS", "200"))
NAME = b"chestxray.serving.decoders"  # in the command line of decoders and of what forks them
SLOW_FILM = encoded(np.tile(textured(1, 2000, 1500), (4, 4)))  # PNG: decoded at full size


@asynccontextmanager
async def pool_of(bundle: Path, size: int = 1, limits: DecoderLimits | None = None) -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(Bundle.open(bundle), size, limits)
    try:
        yield pool
    finally:
        pool.close()


def fork_servers() -> list[int]:
    """Of this process."""
    return [child for child in children(os.getpid()) if NAME in cmdline(child)]


def cmdline(process: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""  # it is gone


def decoders() -> list[int]:
    return [decoder for fork_server in fork_servers() for decoder in children(fork_server)]


def the_decoder_since(others: list[int]) -> int:
    """The one that was not there before: other services of this process have decoders of their own."""
    (decoder,) = set(decoders()) - set(others)
    return decoder


def ask(address: str, film: bytes) -> httpx.Response:
    return httpx.post(f"{address}/v1/predict", content=film, headers=JPEG, timeout=60)


def in_a_thread(ask: Callable[[], httpx.Response]) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    return thread, answers


@contextmanager
def full(
    predictor: Predictor, film: bytes, connections: ConnectionLimits | None = None
) -> Iterator[tuple[str, list[httpx.Response]]]:
    """A service whose only decoder stands still over a film, until the block ends; then its caller has an answer."""
    others = decoders()
    with running(predictor, ServiceSettings(workers=1, waiting=0), connections) as address:
        ask(address, film)
        decoder = the_decoder_since(others)
        os.kill(decoder, signal.SIGSTOP)
        thread, answers = in_a_thread(lambda: ask(address, film))
        until_inside(address)
        try:
            yield address, answers
        finally:
            os.kill(decoder, signal.SIGCONT)
            thread.join()


def until_inside(address: str) -> None:
    """Wait until the service has admitted one film that has no answer yet."""
    while "chestxray_films_inside 1.0" not in httpx.get(f"{address}/metrics", timeout=60).text:
        time.sleep(0.01)


@contextmanager
def slowed(process: int) -> Iterator[None]:
    """Let a process run for a fifth of the time, as on a machine that has much else to do."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for blow, seconds in ((signal.SIGSTOP, 0.02), (signal.SIGCONT, 0.005)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, blow)
                time.sleep(seconds)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def same(one: Prepared, other: Prepared) -> bool:
    assert one.plane is not None
    assert other.plane is not None
    return (one.sha256, one.gate, one.size) == (other.sha256, other.gate, other.size) and np.array_equal(
        one.plane, other.plane
    )


def run(work: Awaitable[None]) -> None:
    async def main() -> None:
        await work

    awaited(main())


def test_a_decoder_prepares_a_film_as_the_corridor_does(bundle: Path, film: bytes) -> None:
    async def work() -> None:
        async with pool_of(bundle) as pool:
            assert same(await pool.prepare(film), here)

    here = Predictor.load(bundle).prepare(film, "this film")
    run(work())


def test_what_is_wrong_with_a_film_comes_back_as_the_error_that_it_is(bundle: Path, film: bytes) -> None:
    async def work() -> None:
        async with pool_of(bundle) as pool:
            with pytest.raises(TruncatedFilm, match=r"^this film: "):
                await pool.prepare(film[: len(film) // 2])
            await pool.prepare(film)
            assert pool.replaced == 0

    run(work())


def test_a_film_that_takes_too_long_costs_its_decoder_and_no_other_film(
    bundle: Path, film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with pool_of(bundle, 1, DecoderLimits(seconds=0.4)) as pool:
            with pytest.raises(UnreadableFilm, match=r"more than 0\.4 seconds"):
                await pool.prepare(SLOW_FILM)
            assert (await pool.prepare(film)).plane is not None
            assert pool.replaced == 1

    monkeypatch.setattr(decoders_module, "PATIENCE", 1000)  # tests share the processor with others
    run(work())


def test_a_film_that_takes_too_much_memory_is_refused(bundle: Path, film: bytes) -> None:
    async def work() -> None:
        async with pool_of(bundle, 1, DecoderLimits(memory=16 * 2**20)) as pool:
            with pytest.raises(FilmTooLarge, match="more memory than there is"):
                await pool.prepare(SLOW_FILM)
            assert (await pool.prepare(film)).plane is not None

    run(work())


def test_a_request_that_gives_up_takes_its_decoder_along_and_mixes_no_answers(bundle: Path, film: bytes) -> None:
    async def work() -> None:
        async with pool_of(bundle) as pool:
            first = await pool.prepare(film)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await pool.prepare(SLOW_FILM)
            assert same(await pool.prepare(film), first)

    run(work())


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_is_killed_costs_its_film_nothing_but_time(bundle: Path, film: bytes, blow: int) -> None:
    predictor, others = Predictor.load(bundle), decoders()
    with running(predictor, ServiceSettings(workers=2)) as address:
        ask(address, film)
        victim = the_decoder_since(others)  # it gets the next film
        os.kill(victim, signal.SIGSTOP)
        thread, answers = in_a_thread(lambda: ask(address, film))
        until_inside(address)
        beside = ask(address, film)
        os.kill(victim, blow)
        with contextlib.suppress(ProcessLookupError):  # a kill ends even one that stands still
            os.kill(victim, signal.SIGCONT)
        thread.join()
        after = ask(address, film)
        counted = httpx.get(f"{address}/metrics", timeout=60).text
    expected = predictor.predict(film, "film")
    for answer in (answers[0], beside, after):
        assert answer.status_code == 200
        assert Prediction.from_json(answer.text).film_sha256 == expected.film_sha256
    assert "chestxray_decoders_replaced 1.0" in counted


def test_films_that_waited_for_one_nursery_share_the_one_that_replaces_it(bundle: Path, film: bytes) -> None:
    """Each of them finds it gone; only the first may put another in its place."""

    async def work() -> None:
        async with pool_of(bundle, size=3) as pool:
            others = fork_servers()
            pool.launch()
            while not (launched := set(fork_servers()) - set(others)):  # its command line shows a little later
                await asyncio.sleep(0.01)
            (fork_server,) = launched
            os.kill(fork_server, signal.SIGSTOP)
            waiting = [asyncio.create_task(pool.prepare(film)) for _ in range(3)]
            await asyncio.sleep(0.1)  # all of them wait for it
            os.kill(fork_server, signal.SIGKILL)
            assert all(same(each, here) for each in await asyncio.gather(*waiting))
            assert len(set(fork_servers()) - set(others)) == 1

    here = Predictor.load(bundle).prepare(film, "this film")
    run(work())


def test_a_nursery_that_dies_is_replaced_as_well(bundle: Path, film: bytes) -> None:
    with running(Predictor.load(bundle), ServiceSettings(workers=1)) as address:
        ask(address, film)
        for process in [*decoders(), *fork_servers()]:
            os.kill(process, signal.SIGKILL)
        answers = [ask(address, film) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_nursery_that_dies_at_birth_is_replaced_once(
    bundle: Path, film: bytes, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    """It has ended before it could be told what to do."""
    start, started = subprocess.Popen, []

    def dying(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        dies = len(started) < deaths
        process = start([sys.executable, "-c", ""] if dies else command, **options)
        started.append(process)
        if dies:
            process.wait()
        return process

    async def work() -> None:
        async with pool_of(bundle) as pool:
            if deaths == 1:
                assert (await pool.prepare(film)).plane is not None
            else:
                with pytest.raises(DecodersGone, match="no decoding process starts"):
                    await pool.prepare(film)
            assert len(started) == 2

    monkeypatch.setattr(subprocess, "Popen", dying)
    run(work())


def test_a_service_whose_decoders_never_start_says_so_in_a_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: start([sys.executable, "-c", ""], **options))
    server = make_server(Predictor.load(bundle))
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ChestXrayError, match="no decoding process"):
        awaited(asyncio.to_thread(server.run, listener))


def test_a_decoder_that_stands_still_is_killed_and_its_film_read_by_another(bundle: Path, film: bytes) -> None:
    async def work() -> None:
        async with pool_of(bundle, 1, DecoderLimits(seconds=0.8)) as pool:
            first = await pool.prepare(film)
            victim = the_decoder_since(others)
            os.kill(victim, signal.SIGSTOP)
            assert same(await pool.prepare(film), first)
            assert pool.replaced == 1
            assert victim not in decoders()

    others = decoders()
    run(work())


def test_a_busy_machine_is_not_the_fault_of_the_film(
    bundle: Path, film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film's time is processor time, so a film that is read slowly is read, or else nobody blames it."""

    async def work(patience: int) -> None:
        others = decoders()
        async with pool_of(bundle, 1) as pool:
            expected = await pool.prepare(SLOW_FILM)
            victim = the_decoder_since(others)
            before = processor_seconds(victim)
            await pool.prepare(SLOW_FILM)
            needed = processor_seconds(victim) - before
        monkeypatch.setattr(decoders_module, "PATIENCE", patience)
        others = decoders()
        async with pool_of(bundle, 1, DecoderLimits(seconds=2 * needed)) as pool:
            await pool.prepare(film)
            with slowed(the_decoder_since(others)):
                assert await pool.prepare(SLOW_FILM) == expected  # refused by the gate: no plane

    run(work(patience=1000))
    with pytest.raises(DecodersGone, match="too busy"):
        run(work(patience=1))


def test_a_film_under_which_decoders_are_killed_again_and_again_is_not_called_damaged(
    bundle: Path, film: bytes
) -> None:
    predictor, others = Predictor.load(bundle), decoders()
    with running(predictor, ServiceSettings(workers=1)) as address:
        ask(address, film)
        first = the_decoder_since(others)
        os.kill(first, signal.SIGSTOP)
        thread, answers = in_a_thread(lambda: ask(address, SLOW_FILM))
        until_inside(address)
        os.kill(first, signal.SIGKILL)
        while not (further := set(decoders()) - {*others, first}):
            time.sleep(0.001)
        (second,) = further
        while processor_seconds(second) < 0.1:  # then it reads the film, which takes it much longer
            time.sleep(0.001)
        os.kill(second, signal.SIGKILL)
        thread.join()
        after = ask(address, film)
    assert answers[0].status_code == 503
    assert answers[0].json()["type"] == "/docs#decoder-lost"
    assert answers[0].headers["Retry-After"] == "1"
    assert after.status_code == 200


def test_idle_decoders_that_are_killed_cost_the_next_films_nothing(bundle: Path, film: bytes) -> None:
    others = decoders()
    with running(Predictor.load(bundle), ServiceSettings(workers=2)) as address:
        for _ in range(10):
            assert ask(address, film).status_code == 200
            for decoder in set(decoders()) - set(others):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(decoder, signal.SIGKILL)
        assert ask(address, film).status_code == 200


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_hundreds_of_kills_under_load_lose_no_film_and_blame_none(bundle: Path, film_paths: tuple[Path, ...]) -> None:
    """Each film has its right answer or 503, whatever is killed under it: decoders, and sometimes what forks them."""
    chance = random.Random(19)  # noqa: S311
    predictor, others = Predictor.load(bundle), [*decoders(), *fork_servers()]
    films = [*(path.read_bytes() for path in film_paths[:8]), encoded(textured(2, 2000, 1500))]
    cases = [Case.of(data, predictor.predict(data, "film").probability) for data in films]
    answers: Counter[int] = Counter()
    wrong: list[str] = []
    ended = threading.Event()

    def call(address: str, first: int) -> None:
        with httpx.Client(base_url=address, headers=JPEG, timeout=120) as client:
            for number in itertools.count(first):
                if ended.is_set():
                    return
                case = cases[number % len(cases)]
                answer = client.post("/v1/predict", content=case.data)
                answers[answer.status_code] += 1
                if answer.status_code == 200 and not right(case, answer.content):
                    wrong.append(answer.text)

    with running(predictor, ServiceSettings(workers=2)) as address:
        ask(address, films[0])  # only now it is ready
        callers = [threading.Thread(target=call, args=(address, number)) for number in range(4)]
        for caller in callers:
            caller.start()
        seen, killed = set[int](), set[int]()
        while len(killed) < KILLS and all(caller.is_alive() for caller in callers):
            time.sleep(chance.uniform(0, 0.1))  # the random moment
            seen |= {*decoders()} - {*others}  # they outlive what forked them, and are nobody's children then
            alive = {each for each in seen if NAME in cmdline(each)} - killed
            if chance.random() < 0.05:
                alive = {*fork_servers()} - {*others} - killed
            if alive:
                victim = chance.choice(sorted(alive))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, chance.choice([signal.SIGKILL, signal.SIGSEGV]))
                    killed.add(victim)
        ended.set()
        for caller in callers:
            caller.join()
        after = [ask(address, case.data) for case in cases]
        counted = httpx.get(f"{address}/metrics", timeout=60).text
    sys.stdout.write(f"kills: {len(killed)}, answers: {dict(answers)}\n")
    assert len(killed) == KILLS
    assert wrong == []
    assert set(answers) <= {200, 503}
    assert all(right(case, answer.content) for case, answer in zip(cases, after, strict=True))
    assert "chestxray_films_inside 0.0" in counted


def test_a_caller_whose_films_cost_much_waits_behind_those_whose_films_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    now = 0.0
    all_wait = asyncio.Event()

    async def one(turns: FairSemaphore, caller: str, seconds: float) -> None:
        nonlocal now
        async with turns.one(caller):
            order.append(caller)
            await all_wait.wait()
            now += seconds

    async def work() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        turns = FairSemaphore(1)
        all_wait.set()
        await one(turns, "greedy", 0.05)
        all_wait.clear()
        waiting = [asyncio.create_task(one(turns, "greedy", 0.05)) for _ in range(4)]
        await asyncio.sleep(0)
        waiting += [asyncio.create_task(one(turns, "modest", 0.0)) for _ in range(3)]
        await asyncio.sleep(0)
        all_wait.set()
        await asyncio.gather(*waiting)

    run(work())
    assert order == ["greedy", "greedy", "modest", "modest", "modest", "greedy", "greedy", "greedy"]


def test_who_gives_up_waiting_for_a_decoder_takes_no_place_along() -> None:
    async def work() -> None:
        turns = FairSemaphore(1)
        async with turns.one("a"):
            waiting = asyncio.create_task(turns.one("b").__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
        async with asyncio.timeout(5), turns.one("c"):
            pass

    run(work())


def test_no_process_outlives_its_service(bundle: Path, film: bytes) -> None:
    with running(Predictor.load(bundle), ServiceSettings(workers=2)) as address:
        ask(address, film)
        processes = [*decoders(), *fork_servers()]
        assert len(processes) >= 2
    deadline = time.monotonic() + 30
    while alive := [process for process in processes if Path(f"/proc/{process}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)


def test_decoders_load_no_network_and_know_no_key(bundle: Path, film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHESTXRAY_API_KEYS", f"{'0' * 64} nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    others = decoders()
    with running(Predictor.load(bundle), ServiceSettings(workers=1)) as address:
        ask(address, film)
        decoder = the_decoder_since(others)
        environment = Path(f"/proc/{decoder}/environ").read_bytes()
        maps = Path(f"/proc/{decoder}/maps").read_text()
        limits = Path(f"/proc/{decoder}/limits").read_text()
    assert b"a-secret" not in environment
    assert b"API_KEYS" not in environment
    assert "PIL" in maps
    assert "onnxruntime" not in maps
    for name in ("Max core file size", "Max file size"):
        (line,) = [line for line in limits.splitlines() if line.startswith(name)]
        assert line.removeprefix(name).split()[:2] == ["0", "0"]


def test_the_reading_half_imports_no_network() -> None:
    code = "import sys, chestxray.serving.decoders; print({'onnxruntime', 'torch', 'fastapi'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def corpus() -> Iterator[tuple[str, bytes]]:
    """Films cut short, with flipped bits, spliced; and the traps."""
    random = np.random.default_rng(6)
    for name, data in FILMS.items():
        for _ in range(4):
            damaged = bytearray(data)
            for at in random.integers(0, min(len(damaged), 1024), 3):
                damaged[at] ^= 1 << random.integers(0, 8)
            yield f"{name}, bits flipped", bytes(damaged)
            yield f"{name}, cut short", data[: random.integers(1, len(data))]
    yield from ((name, make()) for name, (make, _, _) in TRAPS.items())


def test_the_malformed_corpus_over_http_harms_no_film_beside_it(bundle: Path, film: bytes) -> None:
    predictor = Predictor.load(bundle)
    expected = predictor.predict(film, "film")
    with (
        running(predictor, ServiceSettings(workers=1)) as address,
        httpx.Client(base_url=address, headers=JPEG, timeout=120) as client,
    ):
        for at, (name, data) in enumerate(corpus()):
            answer = client.post("/v1/predict", content=data)
            assert answer.status_code in {200, 413, 415, 422}, name
            if at % 20 == 0:
                good = Prediction.from_json(client.post("/v1/predict", content=film).text)
                assert good.film_sha256 == expected.film_sha256, name
                assert good.probability == pytest.approx(expected.probability, abs=1e-5), name


def test_a_caller_with_many_films_leaves_half_of_the_room_to_others(bundle: Path) -> None:
    async def work() -> None:
        async with pool_of(bundle) as pool:
            queue = PredictionQueue(Predictor.load(bundle), pool, capacity=4, metrics=Metrics())
            drawings = [asyncio.create_task(queue.draw(SLOW_FILM)) for _ in range(2)]
            while queue.inside < 2:
                await asyncio.sleep(0)
            room = asyncio.create_task(queue.room())
            await asyncio.sleep(0)
            assert queue.free
            assert not room.done()
            await asyncio.gather(*drawings, room)

    run(work())


def test_a_film_that_waits_for_room_is_woken_when_a_drawing_ends(bundle: Path) -> None:
    async def work() -> None:
        async with pool_of(bundle) as pool:
            queue = PredictionQueue(Predictor.load(bundle), pool, capacity=1, metrics=Metrics())
            drawing = asyncio.create_task(queue.draw(SLOW_FILM))
            while queue.free:
                await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await queue.room()
            assert (await drawing).startswith(b"\x89PNG")

    run(work())
