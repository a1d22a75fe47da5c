"""The node through its two doors: real associations and real HTTP on loopback, within limits, whatever is sent."""

from __future__ import annotations

import io
import itertools
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pynetdicom import AE

from chestxray.data.parallel import CleanProcess
from chestxray.dicom import associations
from chestxray.dicom import send as send_module
from chestxray.dicom.node import TRIED_AT_MOST, Node
from chestxray.dicom.queue import DEAD, DONE, WAITING
from chestxray.dicom.receive import FILM_CLASSES, silence_libraries
from chestxray.dicom.settings import Destination, Limits, NodeSettings, Tls
from chestxray.dicom.web import PLACES
from chestxray.dicom.workers import WORKER_FAILED
from chestxray.errors import OutputUnwritable, PeerError, SettingsInvalid, UsageError
from hospital import (
    CR,
    DX,
    EXPLICIT,
    Archive,
    association,
    grey,
    modality_film,
    read,
    send,
    settings,
    settings_text,
    source_of,
    with_raw_elements,
)
from live_orthanc import free_port, until

BLACK = np.zeros((64, 64), np.uint8)
TEN_MINUTES_S = 600.0
PASSED_BY = modality_film(BLACK, 99, Modality="MG")  # no rule wants it: taken, and no process is started for it


def quick(tmp_path: Path, archive: Archive, more: str = "", **options: Any) -> NodeSettings:
    limits = "" if "[limits]" in more else "[limits]\nfirst_pause = 0.2\nlongest_pause = 0.5\n"
    return settings(tmp_path / "queue", archive.port, limits + more, **options)


# --------------------------------------------------------------------------- films come, results go


def test_a_film_is_answered_with_a_report_and_a_picture(
    node: Node, archive: Archive, film_paths: tuple[Path, ...]
) -> None:
    film = modality_film(grey(film_paths[0]))
    assert send(node, film) == [0x0000]
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    assert sorted(one.Modality for (one,) in archive.objects.values()) == ["OT", "SR"]


def test_a_film_that_is_sent_often_is_answered_once(node: Node, archive: Archive) -> None:
    film = modality_film(BLACK)
    threads = [threading.Thread(target=send, args=(node, film, film)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    assert send(node, film) == [0x0000]
    assert node.queue.counts()[WAITING] == 0
    assert [len(kept) for kept in archive.objects.values()] == [1]


def test_what_cannot_be_read_or_must_not_be_classified_is_answered_with_the_reason(
    node: Node, archive: Archive
) -> None:
    cut = read(modality_film(np.zeros((256, 256), np.uint8), 2))
    cut.PixelData = cut.PixelData[:1000]
    assert send(node, modality_film(BLACK), modality_film(BLACK, 3, Rows=65)) == [0x0000, 0x0000]
    with association(node) as opened:
        assert opened.send_c_store(cut).Status == 0x0000
    until(lambda: node.queue.counts()[DONE] == 3, node.queue.entries)
    said = ["\n".join(str(e.value) for e in one.iterall() if e.VR == "UT") for (one,) in archive.objects.values()]
    assert all("Not classified: " in text for text in said)
    assert sum("ends before its picture does" in text for text in said) == 2


ODD: dict[str, dict[int, tuple[str, bytes]]] = {
    "two frames": {0x00280008: ("IS", b"2 ")},
    "no pixel": {0x7FE00010: ("OB", b"")},
    "no row": {0x00280010: ("US", b"\0\0")},
    "32 bits": {0x00280100: ("US", b"\x20\0")},
    "a photometric interpretation of its own": {0x00280004: ("CS", b"NONSENSE")},
    "a slope that is no number": {0x00281052: ("DS", b"NaN "), 0x00281053: ("DS", b"1e999 ")},
    "no date": {0x00080020: ("DA", b"yesterday "), 0x00100030: ("DA", b"00000000"), 0x00101010: ("AS", b"three ")},
    "a name of 60,000 bytes": {0x00100010: ("UN", b"A^" * 30_000)},
    "a sequence for a name": {0x00100010: ("SQ", b"")},
    "a body part in letters of no character set": {0x00180015: ("CS", b"CH\xcaST ")},
    "a group length": {0x00100000: ("UL", b"\5\0\0\0")},
    "bytes after the end": {0xFFFCFFFC: ("OB", b"\xff" * 99)},
}


def test_odd_films_are_answered_and_none_is_a_dead_letter(node: Node, archive: Archive) -> None:
    for number, elements in enumerate(ODD.values(), 1):
        node.take(with_raw_elements(modality_film(BLACK, number), elements), "ROOM1")
    until(lambda: node.queue.counts()[DONE] == len(ODD), node.queue.entries)
    films = {source_of(one) for (one,) in archive.objects.values() if one.Modality == "SR"}
    assert films == {f"1.2.826.1.{number}.1.1" for number in range(1, len(ODD) + 1)}


def test_a_node_that_requires_an_age_refuses_a_film_without_one_and_classifies_the_others(
    tmp_path: Path, archive: Archive, film_paths: tuple[Path, ...]
) -> None:
    pixels = grey(film_paths[0])
    unstated = modality_film(pixels, 2, PatientAge="", PatientBirthDate="")
    with Node(quick(tmp_path, archive, node="require_age = true")) as node:
        assert send(node, modality_film(pixels, 1), unstated) == [0x0000, 0x0000]
        until(lambda: node.queue.counts()[DONE] == 2, node.queue.entries)
    reports = [one for (one,) in archive.objects.values() if one.Modality == "SR"]
    said = {source_of(one): "\n".join(str(e.value) for e in one.iterall() if e.VR == "UT") for one in reports}
    stated, refused = (said[f"1.2.826.1.{number}.1.1"] for number in (1, 2))
    assert "Not classified: " not in stated
    assert "Not classified: its file states no age" in refused
    assert sum(one.Modality == "OT" for (one,) in archive.objects.values()) == 1


def test_a_film_that_no_rule_wants_is_taken_and_not_kept(node: Node) -> None:
    assert send(node, modality_film(BLACK, Modality="MG")) == [0x0000]
    assert set(node.queue.counts().values()) == {0}
    assert not list(node.queue.films.iterdir())


def test_other_objects_and_titles_are_turned_away(node: Node) -> None:
    for_processing = "1.2.840.10008.5.1.4.1.1.1.1.1"
    with association(node, for_processing, "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.2") as opened:
        assert not opened.is_established
    with association(node, DX, syntax="1.2.840.113619.5.2") as opened:  # a private syntax
        assert not opened.is_established
    with association(node, called="ANOTHER") as opened:
        assert opened.is_rejected


def test_a_broken_header_is_refused_and_nothing_is_kept(node: Node) -> None:
    assert send(node, modality_film(BLACK, StudyInstanceUID="")) == [0xC000]
    assert not list(node.queue.films.iterdir())


def test_every_class_and_syntax_that_the_tables_name_is_accepted(node: Node) -> None:
    from chestxray.images.dicom_pixels import SYNTAXES

    for sop_class in FILM_CLASSES:
        entity = AE("ROOM1")
        for syntax in SYNTAXES:
            entity.add_requested_context(sop_class, syntax)
        opened = entity.associate("127.0.0.1", node.port, ae_title="CHESTXRAY")
        assert len(opened.accepted_contexts) == len(SYNTAXES)
        opened.release()
    assert CR in FILM_CLASSES


def test_nothing_that_happens_on_an_association_waits_for_the_next_look(
    node: Node, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what would wait for it ends by the time limit of a request
    monkeypatch.setattr(associations, "LONGEST_S", 3600.0)
    with association(node) as opened:
        assert opened.send_c_echo().Status == 0x0000
        assert [opened.send_c_store(read(modality_film(BLACK, number))).Status for number in (1, 2)] == [0, 0]
    with association(node) as opened:
        opened.abort()
    until(lambda: node.queue.counts()[DONE] == 2, node.queue.entries)
    until(lambda: node.receiver.associations == 0)
    assert [len(kept) for kept in archive.objects.values()] == [1, 1]


def test_an_answer_is_never_taken_from_the_thread_that_waits_for_it(node: Node) -> None:
    with association(node, seconds=5.0) as opened:
        associations.wait_for_events(opened)
        get, messages = opened.dimse.get_msg, opened.dimse.msg_queue
        stopped, has_come, looked = threading.Event(), threading.Event(), threading.Event()

        def at_the_wrong_moment(block: bool = False) -> Any:
            if block:
                until(lambda: bool(messages.queue))
                has_come.set()
                looked.wait()
                return get(block)
            stopped.set()
            has_come.wait()
            message = get(block)
            looked.set()
            return message

        opened.dimse.get_msg = at_the_wrong_moment
        assert stopped.wait(30)  # the library's thread is past its own look at whether somebody waits
        opened._is_paused = True  # noqa: SLF001 - as it is between two requests
        assert opened.send_c_echo().Status == 0x0000


# --------------------------------------------------------------------------- bad days


def test_a_pacs_that_is_away_gets_its_results_when_it_is_back(node: Node, archive: Archive) -> None:
    archive.stop()
    assert send(node, *(modality_film(BLACK, number) for number in range(1, 6))) == [0] * 5
    until(lambda: node.queue.counts()["answered"] == 5, node.queue.entries)
    until(lambda: node.senders["pacs"].failures >= 2)
    archive.start()
    until(lambda: node.queue.counts()[DONE] == 5, node.queue.entries)
    assert [len(kept) for kept in archive.objects.values()] == [1] * 5


@pytest.mark.slow
def test_a_pacs_away_for_minutes_of_attempts_gets_each_film_that_came_meanwhile_once(
    tmp_path: Path, archive: Archive
) -> None:
    usual = Limits()
    attempts = next(n for n in itertools.count() if sum(map(usual.pause, range(n))) > TEN_MINUTES_S)
    more = "[limits]\nfirst_pause = 0.05\nlongest_pause = 0.1\n"
    archive.stop()
    for half in (1, 2):  # the node is started anew in the middle of it
        with Node(quick(tmp_path, archive, more)) as node:
            for film in range(attempts):
                assert send(node, modality_film(BLACK, 100 * half + film)) == [0x0000]
                until(lambda seen=film: node.senders["pacs"].failures > seen)  # type: ignore[misc]
    archive.start()
    with Node(quick(tmp_path, archive, more)) as node:
        until(lambda: node.queue.counts()[DONE] == 2 * attempts, node.queue.entries)
    assert [len(kept) for kept in archive.objects.values()] == [1] * (2 * attempts)


def test_a_pacs_that_refuses_makes_dead_letters_that_can_be_retried(node: Node, archive: Archive) -> None:
    archive.status = 0xA700
    send(node, modality_film(BLACK))
    until(lambda: node.queue.counts()[DEAD] == 1, node.queue.entries)
    (entry,) = node.queue.entries()
    assert entry.deliveries == {"pacs/sr": "dead: refused with status 0xA700"}
    archive.status = 0
    node.queue.retry()
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)


def test_what_waits_when_a_node_stops_is_answered_by_the_next(tmp_path: Path, archive: Archive) -> None:
    archive.stop()
    with Node(quick(tmp_path, archive)) as node:
        send(node, modality_film(BLACK))
    archive.start()
    with Node(quick(tmp_path, archive)) as node:
        until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    assert len(archive.objects) == 1


def test_a_full_disk_is_told_to_the_sender_and_to_whoever_watches(tmp_path: Path, archive: Archive) -> None:
    with Node(quick(tmp_path, archive, "[limits]\nfree = 1000000000\n")) as node:
        assert send(node, modality_film(BLACK)) == [0xA700]
        answer = httpx.get(f"http://127.0.0.1:{node.http_port}/readyz", timeout=60)
        assert (answer.status_code, "limits.free" in answer.text) == (503, True)


def test_a_film_that_ends_its_process_twice_is_answered_with_that(node: Node, archive: Archive) -> None:
    send(node, modality_film(BLACK))
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    (worker,) = workers()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    send(node, modality_film(BLACK, 2))
    (film,) = node.queue.entries(WAITING)
    with read_without_end(node.queue.films / f"{film.key}.dcm") as (path, whole):
        os.kill(worker.pid or 0, signal.SIGCONT)
        for tried in range(1, TRIED_AT_MOST + 1):
            writing_end = opened_once_it_is_read(path)
            if tried == TRIED_AT_MOST:
                whole.replace(path)
            kill_workers()
            os.close(writing_end)
    until(lambda: node.queue.counts()[DONE] == 2, node.queue.entries)
    (report,) = archive.objects.popitem()[1]
    said = "\n".join(str(element.value) for element in report.iterall() if element.VR == "UT")
    assert WORKER_FAILED in said


def test_a_film_that_ends_its_process_costs_the_films_beside_it_nothing(node: Node, archive: Archive) -> None:
    send(node, modality_film(BLACK))
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    (worker,) = workers()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    assert send(node, *(modality_film(BLACK, number) for number in (2, 3, 4, 5))) == [0x0000] * 4
    # The process has the second film; the other three are given to it together.
    _, _, guilty, _ = sorted(node.queue.entries(WAITING), key=lambda entry: entry.id)
    with read_without_end(node.queue.films / f"{guilty.key}.dcm") as (path, whole):
        os.kill(worker.pid or 0, signal.SIGCONT)
        writing_end = opened_once_it_is_read(path)
        whole.replace(path)
        kill_workers()
        os.close(writing_end)
    until(lambda: node.queue.counts()[DONE] == 5, node.queue.entries)
    tries = {entry.id - guilty.id: entry.tries for entry in node.queue.entries(DONE)}
    assert tries == {-3: 0, -2: 0, -1: 0, 0: 1, 1: 0}
    reports = [found for found in archive.objects.values() if found[0].Modality == "SR"]
    assert sorted(len(found) for found in reports) == [1] * 5


def test_without_a_process_to_classify_films_they_wait_and_whoever_watches_is_told(
    tmp_path: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    with Node(quick(tmp_path, archive)) as node:
        monkeypatch.chdir(gone)
        gone.rmdir()  # no process can start in a folder that is no more
        send(node, modality_film(BLACK))
        until(lambda: "no process that classifies films can be started" in node.problem(), node.queue.entries)
        answer = httpx.get(f"http://127.0.0.1:{node.http_port}/readyz", timeout=60)
        assert (answer.status_code, "can be started" in answer.text) == (503, True)
        assert [entry.tries for entry in node.queue.entries(WAITING)] == [0]
        monkeypatch.undo()
        until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
        assert node.problem() == ""


@pytest.mark.slow
def test_a_node_started_in_a_folder_that_its_user_may_not_enter_answers(tmp_path: Path, archive: Archive) -> None:
    config, gone, port = tmp_path / "node.toml", tmp_path / "gone", free_port()
    config.write_text(settings_text(tmp_path / "queue", archive.port, port=port))
    gone.mkdir()
    program = Path(sys.executable).with_name("chestxray")
    script = f"cd {gone} && rmdir {gone} && exec {program} dicom serve --config {config}"
    film = tmp_path / "film.dcm"
    film.write_bytes(modality_film(BLACK))
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as node:
        try:
            until(lambda: stored(port, film))
            until(lambda: archive.objects)
        finally:
            node.terminate()


def stored(port: int, film: Path) -> bool:
    entity = AE("ROOM1")
    entity.add_requested_context(DX, EXPLICIT)
    peer = entity.associate("127.0.0.1", port, ae_title="CHESTXRAY")
    try:
        return bool(peer.is_established) and peer.send_c_store(film).Status == 0
    finally:
        if peer.is_established:
            peer.release()


@contextmanager
def read_without_end(path: Path) -> Iterator[tuple[Path, Path]]:
    """Put a named pipe in the place of a film, so that its reader waits: its path, and the film's meanwhile."""
    whole = path.with_suffix(".whole")
    path.rename(whole)
    os.mkfifo(path)
    try:
        yield path, whole
    finally:
        if whole.exists():
            whole.replace(path)


def kill_workers() -> None:
    for process in workers():
        process.kill()
        process.join()


def opened_once_it_is_read(pipe: Path) -> int:
    """Open a named pipe for writing, as soon as a process has opened it for reading; it reads until this is closed."""
    opened: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    until(is_read)
    return opened[0]


def workers() -> list[CleanProcess]:
    return [process for process in multiprocessing.active_children() if isinstance(process, CleanProcess)]


# --------------------------------------------------------------------------- limits


def test_more_associations_than_allowed_are_turned_away_and_the_others_served(tmp_path: Path, archive: Archive) -> None:
    with Node(quick(tmp_path, archive, "[limits]\nassociations = 3\n")) as node:
        with ExitStack() as stack:
            opened = [stack.enter_context(association(node)) for _ in range(12)]
            assert sum(one.is_established for one in opened) == 3
            established = next(one for one in opened if one.is_established)
            assert established.send_c_echo().Status == 0
        until(lambda: node.receiver.associations == 0)
        assert send(node, PASSED_BY) == [0]


def test_hundreds_of_connections_that_say_nothing_cost_a_bounded_number_of_threads(
    tmp_path: Path, archive: Archive
) -> None:
    with Node(quick(tmp_path, archive, "[limits]\nassociations = 4\nidle_seconds = 1\n")) as node, ExitStack() as stack:
        before = threading.active_count()
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", node.port)))
        assert threading.active_count() - before < 40
        stack.close()
        until(lambda: is_heard(node) and threading.active_count() - before < 4)  # so that there is room again
        assert send(node, PASSED_BY) == [0]


def is_heard(node: Node) -> bool:
    with association(node) as opened:
        return bool(opened.is_established)


@pytest.mark.parametrize("claimed", [2**32 - 1, 2**24])
def test_a_pdu_that_claims_gigabytes_is_not_waited_for(node: Node, claimed: int) -> None:
    with socket.create_connection(("127.0.0.1", node.port)) as peer:
        peer.settimeout(20)
        peer.sendall(struct.pack(">BBL", 1, 0, claimed) + b"\0" * 1000)
        assert peer.recv(100) == b"" or peer.recv(100) == b""


def test_a_film_larger_than_the_limit_ends_the_association_before_it_is_in_memory(
    tmp_path: Path, archive: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    with Node(quick(tmp_path, archive, "[limits]\nfilm = 1\n")) as node:
        with association(node, seconds=2.0) as opened:  # the caller's library may wait for an answer all that time
            answer = opened.send_c_store(read(modality_film(np.zeros((2048, 2048), np.uint8))))
            assert "Status" not in answer
        assert [text for text in caplog.messages if "cut" in text] == [
            "association cut: a film is larger than limits.film"
        ]
        assert send(node, PASSED_BY) == [0]


def test_an_association_has_a_longest_time_and_a_largest_number_of_films(tmp_path: Path, archive: Archive) -> None:
    more = "[limits]\nassociation_seconds = 1\nfilms = 2\n"
    with Node(quick(tmp_path, archive, more)) as node:
        assert send(node, PASSED_BY, PASSED_BY, PASSED_BY) == [0, 0, 0xA701]
        with association(node) as opened:
            assert opened.is_established
            until(lambda: not opened.is_established)


def test_only_the_listed_may_call_and_only_from_where_they_are(tmp_path: Path, archive: Archive) -> None:
    peers = '[[peer]]\nae_title = "ROOM1"\n[[peer]]\nae_title = "ELSEWHERE"\naddresses = ["192.0.2.1"]\n'
    with Node(quick(tmp_path, archive, peers)) as node:
        assert send(node, PASSED_BY) == [0]
        with association(node, title="STRANGER") as opened:
            assert opened.is_rejected
        assert send(node, modality_film(BLACK, 2), title="ELSEWHERE") == [0x0124]
        with association(node, title="ELSEWHERE") as opened:
            assert opened.send_c_echo().Status == 0x0124


# --------------------------------------------------------------------------- TLS


AUTHORITY = """
[ca]
default_ca = of_the_test
[of_the_test]
database = issued
serial = serial
new_certs_dir = .
default_md = sha256
policy = names
x509_extensions = names_of_the_machine
[names]
commonName = supplied
[names_of_the_machine]
subjectAltName = DNS:localhost,IP:127.0.0.1
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, certificates of a node and a client, one that has expired, and one of the other authority."""
    folder = tmp_path_factory.mktemp("tls")
    run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)  # noqa: E731
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for authority in ("ca", "other"):
        run("req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
            "-subj", f"/CN={authority}", "-days", "3650")  # fmt: skip
    (folder / "authority.cnf").write_text(AUTHORITY)
    (folder / "issued").touch()
    (folder / "serial").write_text("01")
    for name, authority, last in (
        ("node", "ca", "2099"), ("client", "ca", "2099"), ("expired", "ca", "2021"), ("stranger", "other", "2099"),
    ):  # fmt: skip
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("ca", "-batch", "-notext", "-config", "authority.cnf", "-cert", f"{authority}.pem", "-keyfile",
            f"{authority}.key", "-startdate", "20200101000000Z", "-enddate", f"{last}0101000000Z",
            "-in", f"{name}.csr", "-out", f"{name}.pem")  # fmt: skip
    return folder


def tls_of_node(certificates: Path) -> str:
    files = (("certificate", "node.pem"), ("key", "node.key"), ("client_authority", "ca.pem"))
    return "\n".join(["[tls]", *(f'{name} = "{certificates / file}"' for name, file in files)])


def test_both_ends_say_why_there_is_no_tls(
    tmp_path: Path, archive: Archive, certificates: Path, caplog: pytest.LogCaptureFixture, collected: None
) -> None:
    cases = [  # our certificate and the authority that we know; what we say; what the node says
        ("client", "other", "the peer's certificate is not accepted: ", "does not know the authority of our"),
        ("stranger", "ca", "the peer does not know the authority of our", "is not accepted: "),
        ("expired", "ca", "the peer says that our certificate has expired", "is not accepted: certificate has expired"),
        ("", "ca", "the peer requires a certificate of ours", "the peer showed no certificate"),
        ("", "", "ended the connection before an association. Check tls", "the peer does not use TLS"),
    ]
    with Node(quick(tmp_path, archive, tls_of_node(certificates))) as node:
        for ours, authority, we_say, node_says in cases:
            caplog.clear()
            peer = Destination(
                "pacs", "127.0.0.1", node.port, "CHESTXRAY", tls=bool(authority),
                authority=certificates / f"{authority}.pem" if authority else None,
            )  # fmt: skip
            tls = Tls(certificates / f"{ours}.pem", certificates / f"{ours}.key") if ours else None
            with (
                pytest.raises(PeerError, match=f"destination pacs: .*{we_say}"),
                send_module.association(peer, NodeSettings(tmp_path, tls=tls), [DX]),
            ):
                pass
            until(lambda expected=node_says: expected in refusal(caplog), caplog.records)  # type: ignore[misc]
        caplog.clear()
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://127.0.0.1:{node.http_port}/healthz", timeout=60)
        until(lambda: "does not use TLS" in refusal(caplog), caplog.records)
    with socket.create_server(("127.0.0.1", 0)) as plain:
        peer = Destination("pacs", "127.0.0.1", plain.getsockname()[1], "PACS", tls=True)

        def leave() -> None:
            plain.accept()[0].close()

        threading.Thread(target=leave, daemon=True).start()
        with (
            pytest.raises(PeerError, match="no TLS with .* ended the connection within the handshake"),
            send_module.association(peer, NodeSettings(tmp_path), [DX]),
        ):
            pass


def refusal(caplog: pytest.LogCaptureFixture) -> str:
    """The reasons of the connections that a node refused."""
    return " ".join(str(vars(record).get("reason")) for record in caplog.records if "refused" in record.getMessage())


def test_with_tls_only_a_client_with_a_certificate_is_heard(
    tmp_path: Path, archive: Archive, certificates: Path, collected: None
) -> None:
    with Node(quick(tmp_path, archive, tls_of_node(certificates))) as node:
        trusted = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        with_one = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        with_one.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        with association(node) as plain:
            assert not plain.is_established
        with association(node, tls_args=(trusted, "localhost")) as nobody:
            assert not nobody.is_established
        with socket.create_connection(("127.0.0.1", node.port)):  # shakes no hands, and holds up nobody
            assert send(node, PASSED_BY, tls_args=(with_one, "localhost")) == [0]
        old = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        old.set_ciphers("AES128-SHA:AES256-SHA")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with association(node, tls_args=(old, "localhost")) as weak:
            assert not weak.is_established
        with httpx.Client(verify=trusted, base_url=f"https://127.0.0.1:{node.http_port}", timeout=60) as browser:
            assert [browser.get(path).status_code for path in ("/", "/nothing", "/healthz")] == [200, 404, 200]
        plain_socket = socket.create_connection(("127.0.0.1", node.http_port))
        with trusted.wrap_socket(plain_socket, server_hostname="localhost") as stranger:
            stranger.sendall(b"rubbish\r\n\r\n")
            assert b" 400 " in b"".join(iter(lambda: stranger.recv(65536), b""))  # answered, and closed


def test_certificates_that_cannot_be_read_are_named(tmp_path: Path, archive: Archive) -> None:
    tls = '[tls]\ncertificate = "none.pem"\nkey = "none.key"\n'
    with (
        pytest.raises(SettingsInvalid, match=r"none\.pem and none\.key: no certificate"),
        Node(quick(tmp_path, archive, tls)),
    ):
        pass


# --------------------------------------------------------------------------- the web door


def test_stow_takes_films_and_tells_of_each_what_became_of_it(node: Node, archive: Archive) -> None:
    silence_libraries()
    client = DICOMwebClient(f"http://127.0.0.1:{node.http_port}/dicom-web")
    answer = client.store_instances([read(modality_film(BLACK, number)) for number in (1, 2)])
    assert [str(one.ReferencedSOPInstanceUID) for one in answer.ReferencedSOPSequence] == [
        "1.2.826.1.1.1.1",
        "1.2.826.1.2.1.1",
    ]
    answer = client.store_instances(
        [read(modality_film(BLACK, 3)), read(modality_film(BLACK, 4, SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))]
    )
    (failed,) = answer.FailedSOPSequence
    assert (str(failed.ReferencedSOPInstanceUID), failed.FailureReason) == ("1.2.826.1.4.1.1", 0xA900)
    until(lambda: node.queue.counts()[DONE] == 3, node.queue.entries)
    assert len(archive.objects) == 3


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/dicom", b"x", 415),
        ("multipart/form-data; boundary=b", b"--b--", 415),
        ('multipart/related; type="application/dicom+json"; boundary=b', b"--b--", 415),
        ('multipart/related; type="application/dicom"', b"--b--", 415),
        ('multipart/related; type="application/dicom"; boundary=b', b"nothing of the kind", 400),
        ('multipart/related; type="application/dicom"; boundary=b', b"", 400),
        ('multipart/related; type="application/dicom"; boundary=b', b"--b\r\n\r\nno dicom\r\n--b--\r\n", 409),
        ('multipart/related; type="application/dicom"; boundary=b', b"--b\r\n\r\n\r\n" * 300, 400),
    ],
)
def test_a_request_that_is_no_stow_is_told_so(node: Node, kind: str, body: bytes, status: int) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{node.http_port}/dicom-web/studies", content=body, headers={"Content-Type": kind}, timeout=60
    )
    assert answer.status_code == status, answer.text


def test_connections_that_bring_nothing_keep_nobody_from_the_web_door(node: Node, archive: Archive) -> None:
    with ExitStack() as stack:
        for _ in range(3 * PLACES):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", node.http_port)))
            with suppress(OSError):  # closed already, to make room
                peer.sendall(b"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert httpx.get(f"http://127.0.0.1:{node.http_port}/healthz", timeout=60).status_code == 200
        client = DICOMwebClient(f"http://127.0.0.1:{node.http_port}/dicom-web")
        assert len(client.store_instances([read(PASSED_BY)]).ReferencedSOPSequence) == 1


def test_a_film_of_another_study_than_the_address_names_is_refused(node: Node) -> None:
    silence_libraries()
    client = DICOMwebClient(f"http://127.0.0.1:{node.http_port}/dicom-web")
    with pytest.raises(Exception, match="409"):
        client.store_instances([read(modality_film(BLACK))], study_instance_uid="1.2.3")


def test_the_web_door_needs_a_key_where_there_are_some(tmp_path: Path, archive: Archive) -> None:
    from chestxray.serving.security import new_key

    key, entry = new_key("pacs")
    (tmp_path / "keys").write_text(entry)
    with Node(quick(tmp_path, archive, node=f'keys_file = "{tmp_path / "keys"}"')) as node:
        url = f"http://127.0.0.1:{node.http_port}"
        assert httpx.post(f"{url}/dicom-web/studies", timeout=60).status_code == 401
        assert httpx.get(f"{url}/metrics", timeout=60).status_code == 401
        assert httpx.get(f"{url}/metrics", headers={"X-API-Key": key}, timeout=60).status_code == 200
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200


def test_a_web_door_that_others_reach_needs_a_key(tmp_path: Path, archive: Archive) -> None:
    loose = quick(tmp_path, archive, '[[peer]]\nae_title = "PACS"', node='host = "0.0.0.0"')
    with pytest.raises(UsageError, match="no key limits who may"), Node(loose):
        pass


def counted(outcome: str, metrics: str) -> float:
    found = re.search(rf'^chestxray_dicom_films_total{{outcome="{outcome}"}} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_metrics_and_the_page_tell_of_the_queue_and_of_nobody(node: Node) -> None:
    url = f"http://127.0.0.1:{node.http_port}"
    before = counted("refused", httpx.get(f"{url}/metrics", timeout=60).text)
    send(node, modality_film(BLACK, PatientID="SECRET-77", PatientName="Secret^Name"))
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    metrics = httpx.get(f"{url}/metrics", timeout=60).text
    assert counted("refused", metrics) == before + 1
    assert "chestxray_dicom_waiting 0.0" in metrics
    page = httpx.get(url, timeout=60).text
    assert "Destinations" in page
    assert "SECRET" not in metrics + page
    assert httpx.get(f"{url}/readyz", timeout=60).text == "ready"


# --------------------------------------------------------------------------- privacy and order


def test_logs_hold_neither_names_nor_numbers(node: Node, archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    archive.status = 0xA700
    send(node, modality_film(BLACK, 5, PatientID="SECRET-77", PatientName="Secret^Name", AccessionNumber="ACC77"))
    send(node, modality_film(BLACK, 6, PatientID="SECRET-77", StudyInstanceUID=""))
    until(lambda: node.queue.counts()[DEAD] == 1, node.queue.entries)
    listed = json.dumps([str(entry) for entry in node.queue.entries()])
    said = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records if record.name != "pydicom")
    assert "film refused" in said
    for secret in ("SECRET-77", "Secret", "ACC77", "1.2.826.1.5"):
        assert secret not in said + listed


def test_two_nodes_do_not_share_a_folder(node: Node, tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(OutputUnwritable, match="another node runs on this folder"):
        Node(replace(settings(tmp_path, archive.port), folder=node.settings.folder))


def test_a_port_that_is_taken_is_named(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(UsageError, match="cannot be listened on"), Node(quick(tmp_path, archive, port=archive.port)):
        pass


def test_a_node_without_a_rule_is_refused(tmp_path: Path, archive: Archive) -> None:
    text = settings_text(tmp_path / "queue", archive.port)
    with pytest.raises(SettingsInvalid, match="no film would be answered"):
        Node(NodeSettings.from_toml(text[: text.index("[[rule]]")], "node.toml"))


def test_what_is_kept_for_research_names_nobody(node: Node, archive: Archive, film_paths: tuple[Path, ...]) -> None:
    assert node.settings.research_folder is not None
    before = set(node.settings.research_folder.glob("*"))
    film = modality_film(grey(film_paths[0]), 777, PatientID="SECRET-77", PatientName="Secret^Name")
    send(node, modality_film(BLACK, 778), film)
    until(lambda: node.queue.counts()[DONE] == 2, node.queue.entries)
    new = set(node.settings.research_folder.iterdir()) - before
    copies = [pydicom.dcmread(io.BytesIO(kept.read_bytes())) for kept in new]
    assert {kept.stem for kept in new} == {copy.SOPInstanceUID for copy in copies}
    assert not any(secret in kept.read_bytes() for kept in new for secret in (b"SECRET", b"Secret"))
    assert any(np.array_equal(copy.pixel_array, read(film).pixel_array) for copy in copies)
