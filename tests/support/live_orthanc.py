"""A real PACS: Orthanc of the distribution as a process of its own, in a temporary folder, on free ports."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ORTHANC: Final = shutil.which("Orthanc")
DICOM_WEB: Final = next(iter(sorted(Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so"))), None)
DCMTK: Final = shutil.which("storescu") and shutil.which("dsrdump")
MISSING: Final = "Orthanc, its DICOMweb plugin and dcmtk are not all here (Debian: orthanc orthanc-dicomweb dcmtk)"
HERE: Final = bool(ORTHANC and DICOM_WEB and DCMTK)

# Films go to the node as they arrive; results, which are no CR and no DX, stay.
ROUTE: Final = """
function OnStoredInstance(instanceId, tags, metadata)
  if tags['Modality'] == 'DX' or tags['Modality'] == 'CR' then
    Delete = SendToModality(instanceId, 'node')
  end
end
"""


@dataclass(frozen=True)
class Orthanc:
    """Where it runs."""

    http: int
    dicom: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:  # noqa: S310 - on loopback
            data = answer.read()
            return json.loads(data) if "json" in answer.headers.get("Content-Type", "") else data

    def post(self, path: str, body: bytes | Mapping[str, Any] | str) -> Any:
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, method="POST")  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            text = answer.read()
            return json.loads(text) if text.startswith((b"{", b"[")) else text

    def put(self, path: str, body: Mapping[str, Any]) -> None:
        request = urllib.request.Request(f"{self.url}{path}", data=json.dumps(body).encode(), method="PUT")  # noqa: S310
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310

    def delete(self, path: str) -> None:
        request = urllib.request.Request(f"{self.url}{path}", method="DELETE")  # noqa: S310
        urllib.request.urlopen(request, timeout=30).close()  # noqa: S310

    def clear(self) -> None:
        """Forget every patient, and send nothing on."""
        self.route(on=False)
        for patient in self.get("/patients"):
            self.delete(f"/patients/{patient}")

    def route(self, *, on: bool) -> None:
        """Send films to the modality "node" as they arrive, or do not."""
        self.post("/tools/execute-script", ROUTE if on else "function OnStoredInstance() end")

    def find(self, level: str = "Instance", **query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post("/tools/find", {"Level": level, "Query": query, "Expand": True})
        return found

    def instances(self, modality: str) -> list[str]:
        """SOP Instance UIDs of all instances of a modality."""
        series = self.find("Series", Modality=modality)
        return [
            self.get(f"/instances/{one}")["MainDicomTags"]["SOPInstanceUID"]
            for found in series
            for one in found["Instances"]
        ]


def free_port() -> int:
    """Find a port that nobody has, outside of those that the system gives to connections by itself."""
    while True:
        port = secrets.choice(range(10_000, 30_000))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def orthanc(
    folder: Path,
    node: tuple[str, int] | None = None,
    *,
    route: bool = False,
    ports: tuple[int, int] | None = None,
) -> Iterator[Orthanc]:
    """Run until the block ends; ``node`` is an AE title and a port that Orthanc may send to and answer.

    Args:
        ports: for HTTP and DICOM; free ones where None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    http, dicom = ports or (free_port(), free_port())
    (folder / "route.lua").write_text(ROUTE if route else "")
    modalities = {} if node is None else {"node": modality(*node)}
    settings = {
        "Name": "pacs", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
        "HttpPort": http, "DicomPort": dicom, "DicomAet": "ORTHANC", "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomModalities": modalities, "LuaScripts": [str(folder / "route.lua")],
        "Plugins": [str(DICOM_WEB)], "DicomWeb": {"Enable": True}, "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True, "DicomCheckCalledAet": False, "OverwriteInstances": True,
        "DicomAlwaysAllowFind": True, "DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True,
        "ExecuteLuaEnabled": True, "UnknownSopClassAccepted": False, "ConcurrentJobs": 4, "Verbose": False,
        "JobsHistorySize": 100, "SaveJobs": False, "DicomScuTimeout": 10, "StableAge": 1,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log = folder / "orthanc.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(ORTHANC), str(folder / "orthanc.json")], stdout=out, stderr=out)
    running = Orthanc(http, dicom, folder)
    try:
        until(lambda: process.poll() is not None or _answers(running), log.read_text)
        assert process.poll() is None, log.read_text()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def modality(title: str, port: int) -> dict[str, Any]:
    return {"AET": title, "Host": "127.0.0.1", "Port": port, "AllowStorageCommitment": True, "Timeout": 10}


def _answers(running: Orthanc) -> bool:
    try:
        return bool(running.get("/system"))
    except (urllib.error.URLError, OSError):
        return False


def until(
    true: Callable[[], object], said: Callable[[], object] = str, seconds: float = 120.0, pause: float = 0.05
) -> None:
    """Wait for something that will happen; how long it may take says only when to give up."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, said()
        time.sleep(pause)
