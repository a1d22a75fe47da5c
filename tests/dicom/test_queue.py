"""The durable queue: nothing acknowledged is lost, nothing is answered twice, whatever moment the process ends at."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chestxray.dicom import queue as module
from chestxray.dicom.queue import (
    ANSWERED,
    DEAD,
    DONE,
    WAITING,
    Order,
    OutOfRoom,
    Queue,
    QueuedFilm,
    Result,
)
from chestxray.dicom.settings import Limits
from chestxray.dicom.workers import write_result
from chestxray.errors import OutputUnwritable, SourceInvalid

ORDER = Order("all", ("pacs",), secondary_capture=True)
RESULTS = (Result("sr", "1.88", "2.25.1", b"report"), Result("sc", "1.7", "2.25.2", b"picture"))
LIMITS = Limits(tries=3, free=0)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Queue:
    return Queue(tmp_path / "queue", "model", LIMITS, clock)


def next_film(queue: Queue) -> QueuedFilm | None:
    return next(iter(queue.next_films(1)), None)


def answer(queue: Queue, film: QueuedFilm, results: Sequence[Result] = RESULTS) -> None:
    queue.answer([(film, [write_result(queue.results, film.id, result) for result in results])])


def answered(queue: Queue, instance: str = "1.2.3") -> None:
    assert queue.take(b"film", instance, "PACS", ORDER)
    film = next_film(queue)
    assert film is not None
    assert film.path.read_bytes() == b"film"
    answer(queue, film)


def test_a_film_waits_is_answered_and_leaves_when_every_result_was_accepted(queue: Queue) -> None:
    answered(queue)
    report, picture = queue.deliveries("pacs")
    assert (report.path.read_bytes(), picture.path.read_bytes()) == (b"report", b"picture")
    queue.delivered([report], commitment=False)
    assert queue.counts()[ANSWERED] == 1
    assert list(queue.films.iterdir())
    queue.delivered([picture], commitment=False)
    assert queue.counts() == {WAITING: 0, ANSWERED: 0, DONE: 1, DEAD: 0}
    assert not list(queue.films.iterdir())
    assert not list(queue.results.iterdir())


def test_a_film_that_comes_again_is_answered_once_and_by_another_model_once_more(queue: Queue, tmp_path: Path) -> None:
    assert queue.take(b"film", "1.2.3", "PACS", ORDER)
    assert not queue.take(b"film", "1.2.3", "PACS", ORDER)
    film = next_film(queue)
    assert film is not None
    assert next_film(queue) is None
    answer(queue, film)
    queue.delivered(queue.deliveries("pacs"), commitment=False)
    assert not queue.take(b"film", "1.2.3", "PACS", ORDER)
    other = Queue(tmp_path / "queue", "another model", LIMITS)
    assert other.take(b"film", "1.2.3", "PACS", ORDER)


def test_films_are_shared_out_among_those_who_ask_and_one_that_was_tried_comes_alone(queue: Queue) -> None:
    for number in range(1, 8):
        queue.take(b"film", f"1.{number}", "PACS", ORDER)
    first, second, third, fourth = queue.next_films(4, among=2)
    assert [film.id for film in queue.next_films(4, among=2)] == [5, 6]
    queue.put_back(second)
    queue.put_back(third, tried=False)
    assert [film.id for film in queue.next_films(4)] == [2]
    queue.put_back(fourth)
    queue.put_back(first, tried=False)
    assert [film.id for film in queue.next_films(4)] == [1, 3, 7]
    assert [film.id for film in queue.next_films(4)] == [4]
    assert queue.next_films(4) == ()


def test_a_film_that_is_dropped_meanwhile_takes_its_results_with_it_and_no_others(queue: Queue) -> None:
    for number in (1, 2):
        queue.take(b"film", f"1.{number}", "PACS", ORDER)
    films = queue.next_films(2)
    written = [(film, [write_result(queue.results, film.id, RESULTS[0])]) for film in films]
    queue.drop(1)
    queue.answer(written)
    assert [delivery.film for delivery in queue.deliveries("pacs")] == [2]
    assert [path.name for path in queue.results.iterdir()] == ["2-sr.dcm"]


def test_storage_commitment_ends_a_delivery_or_sends_it_again(queue: Queue, clock: Clock) -> None:
    answered(queue)
    queue.delivered(queue.deliveries("pacs"), commitment=True)
    sent = queue.deliveries("pacs", module.SENT)
    queue.asked(sent, "transaction", wait=300.0)
    assert queue.committed("another", ["2.25.1"], []) == 0
    assert queue.committed("transaction", ["2.25.1"], ["2.25.2"]) == 2
    assert [delivery.kind for delivery in queue.deliveries("pacs")] == []
    clock.now += 2 * LIMITS.first_pause
    assert [delivery.kind for delivery in queue.deliveries("pacs")] == ["sc"]


def test_a_refused_result_waits_longer_each_time_and_is_a_dead_letter_in_the_end(queue: Queue, clock: Clock) -> None:
    answered(queue)
    queue.delivered(queue.deliveries("pacs")[:1], commitment=False)
    waits = []
    for _ in range(LIMITS.tries - 1):
        (delivery,) = queue.deliveries("pacs")
        queue.refused(delivery, "refused with status 0xA700")
        since = clock.now
        while not queue.deliveries("pacs"):
            clock.now += 0.25
        waits.append(clock.now - since)
    assert waits == [1.0, 2.0]
    queue.refused(queue.deliveries("pacs")[0], "refused with status 0xA700")
    (entry,) = queue.entries(DEAD)
    assert entry.deliveries == {"pacs/sr": "done", "pacs/sc": "dead: refused with status 0xA700"}
    assert queue.retry(entry.id) == 1
    assert [delivery.kind for delivery in queue.deliveries("pacs")] == ["sc"]


def test_a_destination_that_is_away_costs_no_tries_until_results_are_too_old(queue: Queue, clock: Clock) -> None:
    answered(queue)
    for _ in range(10):
        queue.unreachable("pacs", "nobody answers there")
    assert [delivery.tries for delivery in queue.deliveries("pacs")] == [0, 0]
    clock.now += LIMITS.give_up_hours * 3600 + 1
    queue.unreachable("pacs", "nobody answers there")
    assert queue.counts()[DEAD] == 1


def test_dead_letters_are_listed_retried_and_dropped(queue: Queue) -> None:
    queue.take(b"film", "1.2.3", "PACS", ORDER)
    film = next_film(queue)
    assert film is not None
    queue.bury(film, "damaged")
    (entry,) = queue.entries()
    assert (entry.state, entry.reason, entry.peer) == (DEAD, "damaged", "PACS")
    assert queue.retry() == 1
    again = next_film(queue)
    assert again is not None
    queue.bury(again, "damaged")
    queue.drop(entry.id)
    assert queue.entries() == ()
    assert not list(queue.films.iterdir())
    assert queue.take(b"film", "1.2.3", "PACS", ORDER)
    with pytest.raises(SourceInvalid, match="there is no film 99"):
        queue.drop(99)
    with pytest.raises(SourceInvalid, match="there is no dead letter 1"):
        queue.retry(1)


def test_old_dead_letters_and_files_that_nobody_knows_are_swept(queue: Queue, clock: Clock) -> None:
    queue.take(b"film", "1.2.3", "PACS", ORDER)
    film = next_film(queue)
    assert film is not None
    queue.bury(film, "damaged")
    (queue.results / "77-sr.dcm").write_bytes(b"left by a kill")
    assert queue.sweep() == 0
    assert not (queue.results / "77-sr.dcm").exists()
    clock.now += LIMITS.dead_days * 86400 + 1
    assert queue.sweep() == 1
    assert queue.entries() == ()


def test_a_film_whose_writing_was_killed_is_swept_and_one_that_is_being_written_is_not(queue: Queue) -> None:
    left, written = queue.films / "left.1.part", queue.films / "written.2.part"
    for path in (left, written):
        path.write_bytes(b"half of a film")
    long_ago = time.time() - 2 * module.BEING_TAKEN_S
    os.utime(left, (long_ago, long_ago))
    queue.sweep()
    assert list(queue.films.iterdir()) == [written]


@pytest.mark.parametrize("when", ["written", "kept"])
def test_results_that_find_no_room_cost_the_film_no_tries(when: str, queue: Queue, clock: Clock) -> None:
    queue.take(b"film", "1.2.3", "PACS", ORDER)
    place = queue.results / "1-sr.dcm"
    for _ in range(4):
        film = next_film(queue)
        assert film is not None
        assert film.tries == 0
        if when == "written":
            place.mkdir()  # no file can take that place
            with pytest.raises(OutOfRoom, match="a result could not be kept"):
                write_result(queue.results, film.id, RESULTS[0])
            queue.hold(film)
            place.rmdir()
        else:
            written = [write_result(queue.results, film.id, result) for result in RESULTS]
            place.unlink()
            with pytest.raises(OutOfRoom, match="a result could not be kept"):
                queue.answer([(film, written)])
        assert next_film(queue) is None
        clock.now += LIMITS.longest_pause
    film = next_film(queue)
    assert film is not None
    answer(queue, film)
    assert len(queue.deliveries("pacs")) == 2


def test_a_queue_that_is_full_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue", "model", replace(LIMITS, queue=1))
    assert queue.take(b"x" * 700_000, "1.1", "PACS", ORDER)
    with pytest.raises(OutOfRoom, match=r"more than limits\.queue, 1 MiB"):
        queue.take(b"x" * 700_000, "1.2", "PACS", ORDER)
    full = Queue(tmp_path / "other", "model", replace(LIMITS, free=10**9))
    with pytest.raises(OutOfRoom, match=r"less than limits\.free"):
        full.take(b"x", "1.1", "PACS", ORDER)
    assert not list(full.films.iterdir())


def test_a_queue_may_be_listed_while_a_node_takes_and_forgets_films(queue: Queue) -> None:
    stop = threading.Event()

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            answered(queue, f"1.{number}")
            queue.delivered(queue.deliveries("pacs"), commitment=False)

    node = threading.Thread(target=work)
    node.start()
    try:
        for _ in range(10):
            beside = Queue(queue.folder, "", LIMITS)
            assert beside.counts()[DEAD] == 0
            beside.sweep()
            beside.close()
    finally:
        stop.set()
        node.join()


def test_a_folder_that_is_no_queue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "queue.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(OutputUnwritable, match="cannot be used as a queue"):
        Queue(tmp_path / "queue", "model")


def test_neither_the_database_nor_a_hash_holds_an_identifier_of_the_film(queue: Queue, tmp_path: Path) -> None:
    answered(queue, "1.2.826.99.12345")
    queue.close()
    for path in (tmp_path / "queue").glob("queue.sqlite*"):
        assert b"1.2.826.99.12345" not in path.read_bytes()
    other = Queue(tmp_path / "other", "model", LIMITS)
    assert other.hashed("1.2.826.99.12345") != Queue(tmp_path / "queue", "model").hashed("1.2.826.99.12345")


KILLED = """
import os, sys
from pathlib import Path
from chestxray.dicom import queue as module
from chestxray.dicom.queue import Order, Queue, Result
from chestxray.dicom.workers import write_result

step, folder = int(sys.argv[1]), Path(sys.argv[2])
steps = 0

def audit(event, args):
    # One of a few hundred system calls: the process ends there as by SIGKILL, with nothing flushed.
    global steps
    if event in {"open", "os.rename", "os.remove", "sqlite3.connect"}:
        steps += 1
        if steps == step:
            os._exit(9)

queue = Queue(folder, "model")
sys.addaudithook(audit)
for number in range(4):
    if queue.take(b"film %d" % number, f"1.{number}", "PACS", Order("all", ("pacs",), True)):
        print(number, flush=True)
    for film in queue.next_films(1):
        result = Result("sr", "1.88", f"2.25.{film.id}", film.path.read_bytes())
        queue.answer([(film, [write_result(queue.results, film.id, result)])])
        print("answered", film.id, flush=True)
    for delivery in queue.deliveries("pacs"):
        print("sent", delivery.sop_instance, flush=True)
        queue.delivered([delivery], commitment=False)
os._exit(0)
"""


def killed_at(step: int, folder: Path) -> tuple[int, list[str]]:
    command = [sys.executable, "-c", KILLED, str(step), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 9}, done.stderr
    return done.returncode, done.stdout.split("\n")


@pytest.mark.slow
def test_killed_at_every_step_no_acknowledged_film_is_lost_and_no_result_is_made_twice(tmp_path: Path) -> None:
    step, kills = 0, 0
    while True:
        step += 1
        folder = tmp_path / str(step)
        status, said = killed_at(step, folder)
        queue = Queue(folder, "model")
        queue.sweep()
        known = {entry.key for state in (WAITING, ANSWERED, DONE) for entry in queue.entries(state)}
        taken = [line for line in said if line.isdigit()]
        assert {queue.hashed(f"1.{number}\nmodel") for number in taken} <= known
        while (film := next_film(queue)) is not None:
            answer(queue, film, [Result("sr", "1.88", f"2.25.{film.id}", film.path.read_bytes())])
        for delivery in queue.deliveries("pacs"):
            assert delivery.path.read_bytes().startswith(b"film ")
            queue.delivered([delivery], commitment=False)
        assert queue.counts()[DONE] == len(known)
        queue.close()
        if status == 0:
            break
        kills += 1
    assert kills > 15


def test_the_next_film_and_the_next_results_cost_as_much_in_a_long_queue_as_in_a_short_one(queue: Queue) -> None:
    steps = {}
    for waiting in (5, 300):
        with queue._changing() as database:  # noqa: SLF001 - without a file for each, which would take a minute
            for place in range(waiting):
                key = f"{waiting}-{place}"
                film = database.execute(
                    "INSERT INTO film VALUES (NULL, ?, 'model', ?, '', 0, 0, 0, 0, 4, 'PACS', "
                    """'{"rule": "all", "send_to": ["pacs"], "secondary_capture": true}') RETURNING id""",
                    (key, WAITING),
                ).fetchone()[0]
                database.execute(
                    "INSERT INTO delivery VALUES (NULL, ?, 'pacs', 'sr', '1.88', ?, ?, '', 0, 0, '', 0)",
                    (film, key, WAITING),
                )
        done = [0]

        def step(done: list[int] = done) -> None:
            done[0] += 1

        queue._database.set_progress_handler(step, 1)  # noqa: SLF001 - SQLite's own count of what a query does
        film_taken = next_film(queue)
        queue.deliveries("pacs", limit=1)
        queue._database.set_progress_handler(None, 1)  # noqa: SLF001
        assert film_taken is not None
        queue._release(film_taken)  # noqa: SLF001
        steps[waiting] = done[0]
    assert steps[300] == steps[5]


def test_a_queue_of_an_earlier_release_is_taken_over_with_its_films(queue: Queue, tmp_path: Path, clock: Clock) -> None:
    assert queue.take(b"film", "1.2.3", "PACS", ORDER)
    with queue._changing() as database:  # noqa: SLF001 - as releases before this one left it
        database.execute("DROP INDEX film_in_order")
        database.execute("CREATE INDEX film_by_state ON film (state, next_try)")
    queue.close()
    again = Queue(tmp_path / "queue", "model", LIMITS, clock)
    assert next_film(again) is not None
    indices = {name for (name,) in again._database.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}  # noqa: SLF001
    assert "film_by_state" not in indices
    assert "film_in_order" in indices
