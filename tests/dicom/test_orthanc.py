"""The round trip with a real PACS: Orthanc sends films by its own rule, and results come back into their studies."""

from __future__ import annotations

import io
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import live_orthanc
from chestxray.dicom.node import Node
from chestxray.dicom.queue import DONE
from chestxray.schema import NOTICE
from hospital import EVERY_SYNTAX, grey, modality_film, read, settings
from live_orthanc import Orthanc, free_port, orthanc, until

pytestmark = pytest.mark.skipif(not live_orthanc.HERE, reason=live_orthanc.MISSING)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[tuple[Orthanc, int]]:
    """Orthanc that sends each film to a node on that port."""
    port = free_port()
    with orthanc(tmp_path / "orthanc", ("CHESTXRAY", port), route=True) as running:
        yield running, port


def reported(pacs: Orthanc, study: str, modality: str) -> list[bytes]:
    """The objects of a modality in a study."""
    found = pacs.find("Series", StudyInstanceUID=study, Modality=modality)
    return [pacs.get(f"/instances/{one}/file") for series in found for one in series["Instances"]]


def test_films_in_every_syntax_come_back_as_results_in_their_own_studies(
    pacs: tuple[Orthanc, int], film_paths: tuple[Path, ...], tmp_path: Path
) -> None:
    running, port = pacs
    pixels = grey(film_paths[0])
    with Node(settings(tmp_path / "queue", running.dicom, port=port)) as node:
        for number, syntax in enumerate(EVERY_SYNTAX, start=1):
            running.post("/instances", modality_film(pixels, number, syntax))
        until(lambda: node.queue.counts()[DONE] == len(EVERY_SYNTAX), node.queue.entries)
        assert not any((tmp_path / "queue" / "films").iterdir())
        assert not any((tmp_path / "queue" / "results").iterdir())
    for number in range(1, len(EVERY_SYNTAX) + 1):
        (report,) = reported(running, f"1.2.826.1.{number}", "SR")
        dataset = read(report)
        assert (dataset.PatientID, str(dataset.PatientName)) == (f"P{number}", f"Doe^Jane{number}")
        assert dataset.AccessionNumber == f"A{number}"
        referenced = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
        assert referenced.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == f"1.2.826.1.{number}.1.1"


def test_results_are_valid_and_shown_by_the_pacs(
    pacs: tuple[Orthanc, int], film_paths: tuple[Path, ...], tmp_path: Path
) -> None:
    running, port = pacs
    with Node(settings(tmp_path / "queue", running.dicom, port=port)) as node:
        running.post("/instances", modality_film(grey(film_paths[0])))
        until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    (series,) = running.find("Series", Modality="OT")
    preview = running.get(f"/instances/{series['Instances'][0]}/preview")
    with Image.open(io.BytesIO(preview)) as shown:
        assert min(shown.size) > 200
        assert np.asarray(shown.convert("L")).std() > 10
    report = tmp_path / "report.dcm"
    report.write_bytes(reported(running, "1.2.826.1.1", "SR")[0])
    shown_text = subprocess.run(["dsrdump", "+Pl", report], capture_output=True, text=True, check=True).stdout
    assert re.search(r'"Certainty of Finding"\)="[\d.]+" \(%,UCUM', shown_text)
    assert NOTICE in shown_text


def test_storage_commitment_is_asked_for_and_films_are_done_when_its_report_came(
    pacs: tuple[Orthanc, int], film_paths: tuple[Path, ...], tmp_path: Path
) -> None:
    running, port = pacs
    with Node(settings(tmp_path / "queue", running.dicom, port=port)) as node:
        for number in (1, 2):
            running.post("/instances", modality_film(grey(film_paths[0]), number))
        until(lambda: node.queue.counts()[DONE] == 2, node.queue.entries)
        assert node.receiver.reports


def test_dcmtk_sends_to_the_node_as_any_modality_would(tmp_path: Path, film_paths: tuple[Path, ...]) -> None:
    with orthanc(tmp_path / "orthanc") as running, Node(settings(tmp_path / "queue", running.dicom)) as node:
        where = ["-aet", "DCMTK", "-aec", "CHESTXRAY", "127.0.0.1", str(node.port)]
        environment = os.environ | {"TZ": "UTC"}
        subprocess.run(["echoscu", *where], check=True, env=environment)
        files = []
        for number in (1, 2, 3):
            files.append(tmp_path / f"{number}.dcm")
            files[-1].write_bytes(modality_film(grey(film_paths[0]), number))
        subprocess.run(["storescu", *where, *files], check=True, env=environment)
        until(lambda: len(running.instances("SR")) == 3, node.queue.entries)
        found = subprocess.run(
            ["findscu", "-S", "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=SERIES", "-k", "Modality=SR",
             "-k", "StudyInstanceUID=1.2.826.1.2", "-k", "SeriesInstanceUID", "127.0.0.1", str(running.dicom)],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert "2.25." in found.stdout + found.stderr
