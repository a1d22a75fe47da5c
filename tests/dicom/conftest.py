"""What the tests of the node share: one node, one bad archive and one real PACS for all of a process's tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

import live_orthanc
from chestxray.dicom.node import Node
from chestxray.dicom.queue import ANSWERED, DEAD, DONE, WAITING
from chestxray.dicom.settings import NodeSettings
from hospital import Archive, settings_text
from live_orthanc import Orthanc, free_port, modality, orthanc, until

HERE = Path(__file__).parent

# pynetdicom leaves the socket of a connection that failed to be closed when it is collected, which is at once.
UNCLOSED = "ignore:Exception ignored in. <(s|chestxray.dicom.settings):pytest.PytestUnraisableExceptionWarning"

# Beside the rule of every test's node: what the real PACS, or dcmtk, sends is answered to the PACS, by AE or by web.
SHARED = """
[[rule]]
name = "of the PACS"
modality = ["CR", "DX"]
ae_title = ["ORTHANC", "DCMTK"]
send_to = ["orthanc"]

[[rule]]
name = "by web"
modality = ["CR", "DX"]
ae_title = ["WEB"]
send_to = ["web"]

[[destination]]
name = "orthanc"
host = "127.0.0.1"
port = {dicom}
ae_title = "ORTHANC"

[[destination]]
name = "web"
url = "http://127.0.0.1:{http}/dicom-web"

[limits]
first_pause = 0.1
longest_pause = 0.3
tries = 2
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(UNCLOSED))


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect what the library leaves unclosed, while the warnings of this folder's tests are ignored."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def common_archive() -> Iterator[Archive]:
    archive = Archive()
    archive.start()
    yield archive
    archive.stop()


@pytest.fixture
def archive(common_archive: Archive) -> Iterator[Archive]:
    """A destination that has seen nothing yet."""
    common_archive.clear()
    yield common_archive
    common_archive.stop()
    common_archive.start()


@pytest.fixture(scope="session")
def pacs_ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="session")
def common_node(
    common_archive: Archive, pacs_ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    http, dicom = pacs_ports
    research = f'research_folder = "{folder / "research"}"'
    text = settings_text(folder / "queue", common_archive.port, node=research)
    shared = SHARED.format(http=http, dicom=dicom)
    rules = shared.index("[[destination]]")  # the first rule that is met decides
    text = text.replace("[[rule]]", f"{shared[:rules]}[[rule]]", 1) + shared[rules:]
    with Node(NodeSettings.from_toml(text, "node.toml")) as running:
        yield running


@pytest.fixture
def node(common_node: Node, archive: Archive) -> Iterator[Node]:
    """A running node whose queue is empty; it starts no process of its own for a test."""
    yield common_node
    archive.clear()
    queue = common_node.queue
    until(lambda: not queue.counts()[WAITING], queue.entries)
    for state in (WAITING, ANSWERED, DONE, DEAD):
        for entry in queue.entries(state):
            queue.drop(entry.id)


@pytest.fixture(scope="session")
def common_pacs(
    common_node: Node, pacs_ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Orthanc]:
    if not live_orthanc.HERE:
        pytest.skip(live_orthanc.MISSING)
    with orthanc(tmp_path_factory.mktemp("orthanc"), ports=pacs_ports) as running:
        running.put("/modalities/node", modality("CHESTXRAY", common_node.port))
        yield running


@pytest.fixture
def pacs(common_pacs: Orthanc, node: Node) -> Iterator[Orthanc]:
    """A real PACS without patients, which knows the node and sends it nothing of itself."""
    common_pacs.clear()
    yield common_pacs
    common_pacs.clear()
