"""C-STORE as bytes: what we write is what libraries write, and what peers may send in many shapes is one film."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta

import live_orthanc
from chestxray.dicom import associations
from chestxray.dicom import send as sending
from chestxray.dicom.associations import IS_COMMAND, IS_LAST, command_set, file_meta, fragment_pdu, values_of
from chestxray.dicom.node import Node
from chestxray.dicom.queue import WAITING
from chestxray.dicom.settings import Destination
from chestxray.files import MEBIBYTE
from hospital import DX, EXPLICIT, association, modality_film, settings
from live_orthanc import free_port, until

FILM = modality_film(np.zeros((64, 64), np.uint8), 99, Modality="MG")  # no rule wants it: taken, and not classified
UIDS = st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,5}", fullmatch=True)
CONTEXT = 3  # of the second class that ``association`` proposes


def request(instance: str = "1.2.3", number: int = 7, **more: int) -> dict[int, int | str]:
    """The elements of a usual request."""
    return {
        associations.SOP_CLASS: DX,
        associations.COMMAND: associations.STORE,
        associations.MESSAGE: number,
        associations.PRIORITY: associations.LOW,
        associations.DATA_SET_TYPE: associations.SOME_DATA_SET,
        associations.SOP_INSTANCE: instance,
        **{int(tag, 16): value for tag, value in more.items()},
    }


@given(instance=UIDS, number=st.integers(0, 0xFFFF))
def test_a_request_is_the_one_that_the_library_would_send(instance: str, number: int) -> None:
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = number, associations.LOW
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = UID(DX), UID(instance)
    primitive.DataSet = io.BytesIO(b"some")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    sent = next(message.encode_msg(CONTEXT, 0)).presentation_data_value_list[0][1]
    assert sent[1:] == command_set(request(instance, number))


@given(values=st.dictionaries(st.integers(1, 0xFFFF), st.one_of(st.integers(0, 0xFFFF), UIDS), max_size=9))
def test_a_command_set_is_read_as_it_was_written_and_a_cut_one_not_at_all(values: dict[int, int | str]) -> None:
    written = command_set(values)
    found = values_of(written)
    assert set(found) == {0, *values}
    for tag, value in values.items():
        assert found[tag] == (value.to_bytes(2, "little") if isinstance(value, int) else pad(value.encode()))
    assert all(values_of(written[:end]) == {} or end in ends(written) for end in range(1, len(written)))


def pad(text: bytes) -> bytes:
    return text + b"\0" * (len(text) % 2)


def ends(written: bytes) -> list[int]:
    """Where elements end: a set that is cut there is a shorter set."""
    found, position = [], 0
    while position < len(written):
        position += 8 + int.from_bytes(written[position + 4 : position + 8], "little")
        found.append(position)
    return found


@given(instance=UIDS, name=st.from_regex("[A-Z_0-9]{1,16}", fullmatch=True))
def test_the_head_of_a_file_is_the_one_that_the_libraries_write(instance: str, name: str) -> None:
    meta = create_file_meta(
        sop_class_uid=UID(DX),
        sop_instance_uid=UID(instance),
        transfer_syntax=UID(EXPLICIT),
        implementation_uid=UID("2.25.1"),
        implementation_version=name,
    )
    expected = io.BytesIO()
    pydicom.dcmwrite(expected, pydicom.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128))
    assert file_meta(DX, instance, EXPLICIT, ("2.25.1", name)) == expected.getvalue()


# --------------------------------------------------------------------------- peers


class Peer:
    """An association whose bytes a test writes itself."""

    def __init__(self, opened: Any) -> None:
        self.opened = opened
        opened._reactor_checkpoint.clear()  # noqa: SLF001 - its own thread takes no answer
        until(lambda: opened._is_paused)  # noqa: SLF001

    def write(self, *pdus: bytes) -> None:
        self.opened.dul.socket.socket.sendall(b"".join(pdus))

    def status(self) -> int | None:
        """The status of the next answer; None, if the node ended the association."""
        _, answer = self.opened.dimse.get_msg(block=True)
        return None if answer is None else int(answer.Status)

    def close(self) -> None:
        self.opened._reactor_checkpoint.set()  # noqa: SLF001


@pytest.fixture
def peer(node: Node) -> Iterator[Peer]:
    with association(node) as opened:
        made = Peer(opened)
        yield made
        made.close()


def data_of(film: bytes) -> bytes:
    return film[
        film.index(b"\x08\x00\x05\x00CS") if b"\x08\x00\x05\x00CS" in film else film.index(b"\x08\x00\x16\x00UI") :
    ]


def pieces(control: int, data: bytes, size: int) -> list[tuple[int, bytes]]:
    """Fragments of that size."""
    cut = [data[start : start + size] for start in range(0, len(data), size)]
    return [(control | (IS_LAST if place == len(cut) - 1 else 0), piece) for place, piece in enumerate(cut)]


def apart(fragments: list[tuple[int, bytes]]) -> bytes:
    return b"".join(fragment_pdu(CONTEXT, control, piece) for control, piece in fragments)


def together(fragments: list[tuple[int, bytes]]) -> bytes:
    """All fragments in one PDU."""
    items = apart(fragments)
    body, position = b"", 0
    while position < len(items):
        length = int.from_bytes(items[position + 2 : position + 6], "big")
        body += items[position + 6 : position + 6 + length]
        position += 6 + length
    return b"\x04\0" + len(body).to_bytes(4, "big") + body


COMMAND = command_set(request())
DATA = data_of(FILM)
SHAPES = {
    "one fragment": apart([(IS_COMMAND | IS_LAST, COMMAND), (IS_LAST, DATA)]),
    "many fragments": apart([(IS_COMMAND | IS_LAST, COMMAND), *pieces(0, DATA, 100)]),
    "one PDU": together([(IS_COMMAND | IS_LAST, COMMAND), *pieces(0, DATA, 1000)]),
    "an empty last fragment": apart([(IS_COMMAND | IS_LAST, COMMAND), (0, DATA), (IS_LAST, b"")]),
    "a command in pieces": apart([*pieces(IS_COMMAND, COMMAND, 50), *pieces(0, DATA, 1000)]),
    "more elements": apart([(IS_COMMAND | IS_LAST, command_set(request(**{"1031": 5}))), *pieces(0, DATA, 1000)]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_film_is_taken_in_every_shape_that_the_standard_allows(peer: Peer, shape: str) -> None:
    for _ in range(3):  # nothing is left over from the one before
        peer.write(SHAPES[shape])
        assert peer.status() == 0x0000


def test_a_film_is_kept_as_it_was_sent_bit_for_bit(peer: Peer, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bytes] = []
    monkeypatch.setattr(node.receiver, "_take", lambda data, _: kept.append(data))
    for shape in SHAPES.values():
        peer.write(shape)
        assert peer.status() == 0x0000
    assert len(kept) == len(SHAPES)
    assert {data[-len(DATA) :] for data in kept} == {DATA}
    assert len(set(kept)) == 1  # those that the library reads as well


DAMAGED = {
    "another command within the data": [
        (IS_COMMAND | IS_LAST, COMMAND),
        (0, DATA[:50]),
        (IS_COMMAND | IS_LAST, COMMAND),
    ],
    "data before a command": [(IS_LAST, DATA)],
    "no command": [(IS_COMMAND | IS_LAST, b"")],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_message_ends_its_association_and_no_other(kind: str, peer: Peer, node: Node) -> None:
    peer.write(apart(DAMAGED[kind]))
    assert peer.status() is None
    with association(node) as opened:
        assert opened.send_c_echo().Status == 0x0000
    assert node.queue.counts()[WAITING] == 0
    until(lambda: node.receiver.associations == 0)


@pytest.mark.parametrize(("pdu", "item"), [(10, 0xFFFFFFFF), (10, 1), (10, 100), (3, 3), (7, 1)])
def test_lengths_that_contradict_each_other_end_the_association(peer: Peer, pdu: int, item: int) -> None:
    head = bytes([CONTEXT, IS_COMMAND | IS_LAST])
    peer.write(b"\x04\0" + pdu.to_bytes(4, "big") + item.to_bytes(4, "big") + head + b"\0" * 20)
    assert peer.status() is None


def test_a_request_for_a_class_that_is_not_its_contexts_is_left_to_the_library(peer: Peer) -> None:
    other = command_set(request() | {associations.SOP_CLASS: "1.2.840.10008.5.1.4.1.1.2"})
    peer.write(apart([(IS_COMMAND | IS_LAST, other), (IS_LAST, DATA)]))
    assert peer.status() == 0x0000  # as ever: the film's own header decides


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.skipif(not live_orthanc.HERE, reason=live_orthanc.MISSING)
@pytest.mark.parametrize("stopped", [True, False])
def test_a_peer_that_stops_reading_ends_the_sending_and_one_that_reads_gets_all(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "TIMEOUT_S", 1.0 if stopped else 60.0)
    port = free_port()
    command = ["storescp", "-od", tmp_path, "--ignore", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as storescp:
        until(lambda: listens(port))
        destination = Destination(name="pacs", host="127.0.0.1", port=port, ae_title="ANY")
        with sending.association(destination, settings(tmp_path, port), [DX]) as opened:
            if stopped:
                storescp.send_signal(signal.SIGSTOP)
            context = opened.accepted_contexts[0].context_id
            pixels = struct.pack("<HH2sxxL", 0x7FE0, 0x0010, b"OB", 32 * MEBIBYTE) + bytes(32 * MEBIBYTE)
            status = associations.Stores(opened).send(context, DX, "1.2.3", pixels)
            storescp.send_signal(signal.SIGCONT)
        assert status == (None if stopped else 0x0000)
        storescp.terminate()
