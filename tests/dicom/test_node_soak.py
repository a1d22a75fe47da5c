"""Bad days at length: whatever ends, is full, is slow or lies, no acknowledged film is lost and none answered twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from pynetdicom import AE

from chestxray.dicom.queue import ANSWERED, DEAD, DONE, WAITING, Queue
from chestxray.dicom.receive import silence_libraries
from chestxray.dicom.settings import Limits
from hospital import DX, EXPLICIT, Archive, grey, modality_film, settings_text, with_raw_name
from http_load import descendants, resident_mib
from live_orthanc import free_port, until

pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:Unknown encoding"),  # pydicom, of names that a film declares wrongly
    pytest.mark.filterwarnings("ignore:Incorrect value for Specific Character Set"),
    pytest.mark.filterwarnings("ignore:Failed to decode byte string"),
]

PROGRAM = Path(sys.executable).with_name("chestxray")
KILLS = int(os.environ.get("CHESTXRAY_SOAK_KILLS", "200"))
MANY = int(os.environ.get("CHESTXRAY_SOAK_FILMS", "10000"))  # films of the long run; tenths of it are looked at
FIRST = 10_000_000  # numbers of films have eight digits, so that one film's bytes become another's
NAMES = (
    (b"GB18030", "\u738b^\u5c0f\u4e1c".encode("gb18030")),
    (b"\\ISO 2022 IR 149", b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3"),
    (b"ISO_IR 192", "\u03a3\u03c9".encode()),
    (b"ISO_IR 999", b"\xff\xfe\x80raw"),
)
QUICK = "[limits]\nfirst_pause = 0.1\nlongest_pause = 1.0\nfilms = 100000\n"


class Ward(threading.Thread):
    """A modality that sends films one after the other, each until it is taken.

    Attributes:
        taken: SOP Instance UIDs that were acknowledged.
        statuses: how often each answer came; None where the connection ended instead.
    """

    def __init__(self, port: int, templates: Sequence[bytes], numbers: Iterator[int], folder: Path) -> None:
        super().__init__(daemon=True)
        silence_libraries()
        self.port = port
        self.taken: set[str] = set()
        self.statuses: Counter[int | None] = Counter()
        self._templates = templates
        self._numbers = numbers
        self._path = folder / f"{id(self)}.dcm"
        self._stopped = threading.Event()
        self._peer: object = None

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        for number in self._numbers:
            template = self._templates[number % len(self._templates)]
            self._path.write_bytes(template.replace(str(FIRST).encode(), str(FIRST + number).encode()))
            for _ in range(2 if number % 10 == 0 else 1):  # every tenth film comes twice
                while not self._stopped.is_set() and self._send() != 0:
                    self._stopped.wait(0.02)
            if self._stopped.is_set():
                break
            self.taken.add(uid_of(number))
        if self._peer is not None and self._peer.is_established:  # type: ignore[attr-defined]
            self._peer.release()  # type: ignore[attr-defined]

    def _send(self) -> int | None:
        try:
            if self._peer is None or not self._peer.is_established:  # type: ignore[attr-defined]
                entity = AE("ROOM1")
                entity.dimse_timeout = entity.acse_timeout = entity.network_timeout = 5
                entity.add_requested_context(DX, EXPLICIT)
                self._peer = entity.associate("127.0.0.1", self.port, ae_title="CHESTXRAY")
            status = self._peer.send_c_store(self._path).get("Status")  # type: ignore[attr-defined]
        except (RuntimeError, OSError, ValueError):
            status = None
        self.statuses[status] += 1
        return status


def uid_of(number: int) -> str:
    return f"1.2.826.1.{FIRST + number}.1.1"


def counting(end: int = MANY * 100) -> Iterator[int]:
    """Numbers that several threads may draw from."""
    lock, numbers = threading.Lock(), iter(range(end))
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        yield number


@pytest.fixture
def templates(film_paths: tuple[Path, ...]) -> tuple[bytes, ...]:
    """Films of patients with names in many character sets; some that are answered, some that the gate refuses."""
    pixels = [np.zeros((64, 64), np.uint8), *(grey(path) for path in film_paths[:4])]
    films = [modality_film(one, FIRST) for one in pixels]
    return (*films, *(with_raw_name(films[place % len(films)], *name) for place, name in enumerate(NAMES)))


@pytest.fixture
def archive() -> Iterator[Archive]:
    archive = Archive(keep=False)
    archive.start()
    yield archive
    archive.stop()


class Running:
    """A node as a process of its own, which may be killed and started again."""

    def __init__(self, folder: Path, archive: Archive, more: str = QUICK) -> None:
        self.port, self.http = free_port(), free_port()
        self.queue_folder = folder / "queue"
        self.config = folder / "node.toml"
        text = settings_text(self.queue_folder, archive.port, more, port=self.port)
        self.config.write_text(text.replace("http_port = 0", f"http_port = {self.http}"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        command = [PROGRAM, "dicom", "serve", "--config", self.config, "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self.process

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{self.http}/healthz", timeout=60).status_code == 200
        return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def counts(self) -> dict[str, int]:
        queue = Queue(self.queue_folder, "", Limits())
        try:
            return queue.counts()
        finally:
            queue.close()

    def mib(self) -> float:
        """Memory of the node and its workers."""
        assert self.process is not None
        return resident_mib(self.process.pid)


@contextmanager
def running(folder: Path, archive: Archive, more: str = QUICK) -> Iterator[Running]:
    node = Running(folder, archive, more)
    try:
        node.start()
        until(node.ready)
        yield node
    finally:
        if node.process is not None:
            node.process.send_signal(signal.SIGTERM)
            node.process.wait(120)


def check_nothing_lost_nothing_twice(archive: Archive, *wards: Ward) -> None:
    """Every acknowledged film has one report; what came again is the same instance."""
    reports = Counter(archive.sources.values())
    taken = set().union(*(ward.taken for ward in wards))
    assert taken
    assert taken - set(reports) == set()
    assert {uid: count for uid, count in reports.items() if count != 1} == {}
    pictures = sum(modality == "OT" for modality in archive.modality.values())
    assert 0 < pictures <= len(reports)


def answered(node: Running) -> Callable[[], bool]:
    def idle() -> bool:
        counts = node.counts()
        return counts[WAITING] == counts[ANSWERED] == 0

    return idle


def print_figures(title: str, **facts: object) -> None:
    """What a run measured, for whoever runs it with -s."""
    sys.stdout.write(f"{title}: {json.dumps(facts)}\n")


def test_killed_at_many_random_moments_with_the_pacs_coming_and_going(
    tmp_path: Path, archive: Archive, templates: tuple[bytes, ...]
) -> None:
    chance = random.Random(22)  # noqa: S311
    node = Running(tmp_path, archive)
    ward = Ward(node.port, templates, counting(), tmp_path)
    ward.start()
    for kill in range(KILLS):
        process = node.start()
        time.sleep(chance.uniform(0.2, 4.0))  # the random moment
        if kill % 10 == 4:
            archive.stop()
        if kill % 10 == 8:
            archive.start()
        assert process.poll() is None
        node.kill()
    node.start()
    until(node.ready)
    ward.stop()
    until(answered(node), node.counts, seconds=600)
    assert node.counts()[DEAD] == 0
    node.process.terminate()  # type: ignore[union-attr]
    node.process.wait(120)  # type: ignore[union-attr]
    check_nothing_lost_nothing_twice(archive, ward)
    again = sum(count - 1 for count in archive.came.values())
    print_figures("kills", kills=KILLS, films=len(ward.taken), results=len(archive.came), same_instance_again=again)


def test_ten_thousand_films_in_one_run_take_no_more_memory_than_some(
    tmp_path: Path, archive: Archive, templates: tuple[bytes, ...]
) -> None:
    with running(tmp_path, archive) as node:
        numbers = counting(MANY)
        wards = [Ward(node.port, templates, numbers, tmp_path) for _ in range(2)]
        for ward in wards:
            ward.start()
        sizes, away = [], 0
        for tenth in range(1, 11):
            until(lambda past=tenth * MANY // 10: len(archive.sources) >= past, node.counts, seconds=3000)  # type: ignore[misc]
            sizes.append(round(node.mib(), 1))
            turned_away(node)
            if tenth == 4:
                archive.stop()
                until(lambda: node.counts()[ANSWERED] > MANY // 10 or not wards[0].is_alive(), seconds=3000)
                away = node.counts()[ANSWERED]
                archive.start()
        for ward in wards:
            ward.join()
        until(answered(node), node.counts, seconds=600)
        assert node.counts() == {WAITING: 0, ANSWERED: 0, DONE: MANY, DEAD: 0}
        assert not list((node.queue_folder / "films").iterdir())
        assert not list((node.queue_folder / "results").iterdir())
        check_nothing_lost_nothing_twice(archive, *wards)
        print_figures("long run", films=MANY, mib=sizes, waited_while_the_pacs_was_away=away)
        assert sizes[-1] < 1.15 * sizes[1]


def turned_away(node: Running) -> None:
    """Send what the node does not take: other SOP classes by both doors, and a private transfer syntax."""
    for sop_class, syntax in (("1.2.840.10008.5.1.4.1.1.2", EXPLICIT), (DX, "1.2.840.113619.5.2")):
        entity = AE("ROOM1")
        entity.add_requested_context(sop_class, syntax)
        assert not entity.associate("127.0.0.1", node.port, ae_title="CHESTXRAY").is_established
    slice_of_ct = modality_film(np.zeros((8, 8), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + slice_of_ct + b"\r\n--b--\r\n"
    answer = httpx.post(
        f"http://127.0.0.1:{node.http}/dicom-web/studies", content=body,
        headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}, timeout=60)  # fmt: skip
    assert answer.status_code == 409


def test_slow_broken_and_many_peers_cost_nobody_elses_film(
    tmp_path: Path, archive: Archive, templates: tuple[bytes, ...]
) -> None:
    more = QUICK + "associations = 6\nidle_seconds = 3\n"
    with running(tmp_path, archive, more) as node:
        stop = threading.Event()
        enemies = [
            threading.Thread(target=enemy, args=(node.port, stop), daemon=True)
            for enemy in (_says_nothing, _drips, _lies, _floods, _leaves_in_the_middle)
        ]
        ward = Ward(node.port, templates, counting(1000), tmp_path)
        for thread in (*enemies, ward):
            thread.start()
        threads = []
        while ward.is_alive():
            threads.append(len(list(Path(f"/proc/{node.process.pid}/task").iterdir())))  # type: ignore[union-attr]
            ward.join(0.5)
        stop.set()
        for thread in enemies:
            thread.join()
        until(answered(node), node.counts, seconds=600)
        assert len(ward.taken) == 1000
        check_nothing_lost_nothing_twice(archive, ward)
        print_figures("peers", threads=max(threads), statuses={str(key): count for key, count in ward.statuses.items()})
        assert max(threads) < 80


def _connected(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=5)
    peer.settimeout(1)
    return peer


def _says_nothing(port: int, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        with contextlib.suppress(OSError), _connected(port):
            stop.wait(2)


def _drips(port: int, stop: threading.Event) -> None:
    request = struct.pack(">BBL", 1, 0, 200) + struct.pack(
        ">HH16s16s32s", 1, 0, b"CHESTXRAY".ljust(16), b"DRIP".ljust(16), b""
    )
    while not stop.wait(0.1):
        with contextlib.suppress(OSError), _connected(port) as peer:
            for byte in request:
                peer.sendall(bytes([byte]))
                if stop.wait(0.1):
                    return


def _lies(port: int, stop: threading.Event) -> None:
    chance = random.Random(1)  # noqa: S311
    while not stop.wait(0.2):
        with contextlib.suppress(OSError), _connected(port) as peer:
            peer.sendall(
                struct.pack(">BBL", chance.randrange(9), 0, chance.choice([0, 10, 2**31])) + chance.randbytes(500)
            )
            peer.recv(100)


def _floods(port: int, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for _ in range(60):
                stack.enter_context(_connected(port))
            stop.wait(0.5)


def _leaves_in_the_middle(port: int, stop: threading.Event) -> None:
    """Associate as it should be done, and end in the middle of a film."""
    while not stop.wait(0.3):
        entity = AE("ROOM2")
        entity.add_requested_context(DX, EXPLICIT)
        entity.dimse_timeout = 1
        peer = entity.associate("127.0.0.1", port, ae_title="CHESTXRAY")
        if peer.is_established:
            raw = peer.dul.socket.socket
            raw.sendall(struct.pack(">BBLLBB", 4, 0, 100_000, 99_996, 1, 0) + b"\0" * 5000)
            peer.abort()


@pytest.mark.parametrize("kind", ["no file may grow", "no space is left"])
def test_a_disk_that_is_full_again_and_again_loses_nothing(
    kind: str, tmp_path: Path, archive: Archive, templates: tuple[bytes, ...]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        if kind == "no space is left":
            size = ["-o", "size=64m"]
            if subprocess.run(
                ["mount", "-t", "tmpfs", *size, "tmpfs", folder], check=False, capture_output=True
            ).returncode:
                pytest.skip("a file system of its own cannot be mounted here")
            stack.callback(subprocess.run, ["umount", "-l", folder], check=True)
        node = stack.enter_context(running(folder, archive, QUICK + "free = 16\n"))
        ward = Ward(node.port, templates, counting(), tmp_path)
        ward.start()
        for _ in range(20):
            until(more_than(lambda: len(ward.taken), 10), lambda: ward.statuses)
            with full(kind, node, folder):
                until(more_than(lambda: ward.statuses.total() - ward.statuses[0], 5), lambda: ward.statuses)
        ward.stop()
        until(answered(node), node.counts, seconds=600)
        check_nothing_lost_nothing_twice(archive, ward)
        assert set(ward.statuses) <= {0, 0xA700, None}
        print_figures(kind, films=len(ward.taken), statuses={str(key): count for key, count in ward.statuses.items()})


def more_than(counted: Callable[[], int], by: int) -> Callable[[], bool]:
    """Whether a number has grown by more than that since now."""
    before = counted()
    return lambda: counted() > before + by


@contextmanager
def full(kind: str, node: Running, folder: Path) -> Iterator[None]:
    """Let no file of the node's grow, or fill its file system."""
    assert node.process is not None
    if kind == "no file may grow":
        processes = [node.process.pid, *descendants(node.process.pid)]
        for process in processes:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        yield
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    yield
    ballast.unlink()
