"""The round trip with a real PACS: Orthanc sends films by its own rule, and results come back into their studies."""

from __future__ import annotations

import getpass
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import live_orthanc
from chestxray.dicom.node import Node
from chestxray.dicom.queue import DONE
from chestxray.inference.bundle import folder_of
from chestxray.inference.predictor import Predictor
from chestxray.schema import NOTICE
from hospital import BUNDLE, EVERY_SYNTAX, grey, modality_film, read, send, settings, source_of
from live_orthanc import Orthanc, free_port, orthanc, until

pytestmark = pytest.mark.skipif(not live_orthanc.HERE, reason=live_orthanc.MISSING)

FILMS = 120
DEBIAN = Path("/etc/orthanc")


def reported(pacs: Orthanc, study: str, modality: str) -> list[bytes]:
    """The objects of a modality in a study."""
    found = pacs.find("Series", StudyInstanceUID=study, Modality=modality)
    return [pacs.get(f"/instances/{one}/file") for series in found for one in series["Instances"]]


def complaints(tool: str, data: bytes, path: Path) -> list[str]:
    """What another toolkit has against an object."""
    path.write_bytes(data)
    done = subprocess.run([tool, path], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).split("\n") if line.startswith(("Error", "E:", "F:"))]


def check_report(pacs: Orthanc, number: int) -> bytes:
    """The one report of the study of that film, which names its patient and its film."""
    (report,) = reported(pacs, f"1.2.826.1.{number}", "SR")
    dataset = read(report)
    assert (dataset.PatientID, str(dataset.PatientName)) == (f"P{number}", f"Doe^Jane{number}")
    assert dataset.AccessionNumber == f"A{number}"
    assert source_of(dataset) == f"1.2.826.1.{number}.1.1"
    return report


def certainty(report: bytes) -> float:
    """The probability that a report states, in percent."""
    for item in read(report).iterall():
        if item.keyword == "NumericValue":
            return float(item.value)
    raise AssertionError("no number")


def test_films_in_every_syntax_come_back_as_results_in_their_own_studies(
    pacs: Orthanc, node: Node, film_paths: tuple[Path, ...]
) -> None:
    pacs.route(on=True)
    for number, syntax in enumerate(EVERY_SYNTAX, start=1):
        pacs.post("/instances", modality_film(grey(film_paths[0]), number, syntax))
    until(lambda: node.queue.counts()[DONE] == len(EVERY_SYNTAX), node.queue.entries)
    until(lambda: not any(node.queue.films.iterdir()))  # a film goes once its answers are counted
    until(lambda: not any(node.queue.results.iterdir()))
    for number in range(1, len(EVERY_SYNTAX) + 1):
        check_report(pacs, number)


def test_results_are_valid_and_shown_by_the_pacs_and_storage_commitment_is_asked_for(
    pacs: Orthanc, node: Node, film_paths: tuple[Path, ...], tmp_path: Path
) -> None:
    pacs.route(on=True)
    reports = node.receiver.reports
    pacs.post("/instances", modality_film(grey(film_paths[0])))
    until(lambda: node.queue.counts()[DONE] == 1, node.queue.entries)
    until(lambda: node.receiver.reports > reports)  # the PACS sends it by an association of its own
    (series,) = pacs.find("Series", Modality="OT")
    preview = pacs.get(f"/instances/{series['Instances'][0]}/preview")
    with Image.open(io.BytesIO(preview)) as shown:
        assert min(shown.size) > 200
        assert np.asarray(shown.convert("L")).std() > 10
    report = tmp_path / "report.dcm"
    report.write_bytes(check_report(pacs, 1))
    shown_text = subprocess.run(["dsrdump", "+Pl", report], capture_output=True, text=True, check=True).stdout
    assert re.search(r'"Certainty of Finding"\)="[\d.]+" \(%,UCUM', shown_text)
    assert NOTICE in shown_text


def test_results_go_by_stow_rs_where_the_destination_is_a_web_address(
    pacs: Orthanc, node: Node, film_paths: tuple[Path, ...]
) -> None:
    film = modality_film(grey(film_paths[0]))
    assert send(node, film, modality_film(np.zeros((64, 64), np.uint8), 2), title="WEB") == [0, 0]
    until(lambda: node.queue.counts()[DONE] == 2, node.queue.entries)
    until(lambda: not any(node.queue.results.iterdir()))
    assert certainty(check_report(pacs, 1)) > 0
    (picture,) = reported(pacs, "1.2.826.1.1", "OT")
    assert read(picture).PatientID == "P1"
    assert b"Not classified: " in check_report(pacs, 2)
    assert reported(pacs, "1.2.826.1.2", "OT") == []


def test_dcmtk_sends_to_the_node_as_any_modality_would(
    pacs: Orthanc, node: Node, tmp_path: Path, film_paths: tuple[Path, ...]
) -> None:
    where = ["-aet", "DCMTK", "-aec", "CHESTXRAY", "127.0.0.1", str(node.port)]
    environment = os.environ | {"TZ": "UTC"}
    subprocess.run(["echoscu", *where], check=True, env=environment)
    files = []
    for number in (1, 2, 3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(modality_film(grey(film_paths[0]), number))
    subprocess.run(["storescu", *where, *files], check=True, env=environment)
    until(lambda: len(pacs.instances("SR")) == 3, node.queue.entries)
    found = subprocess.run(
        ["findscu", "-S", "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=SERIES", "-k", "Modality=SR",
         "-k", "StudyInstanceUID=1.2.826.1.2", "-k", "SeriesInstanceUID", "127.0.0.1", str(pacs.dicom)],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert "2.25." in found.stdout + found.stderr


@pytest.mark.slow
@pytest.mark.real_films
def test_120_real_films_in_every_syntax_go_round_by_the_lua_rule_of_the_configuration(
    real_films: Path, tmp_path: Path
) -> None:
    paths = sorted((real_films / "originals").rglob("*.jpeg"))[:FILMS]
    assert len(paths) == FILMS
    predictor, port = Predictor.load(folder_of(BUNDLE), threads=1), free_port()
    with (
        orthanc(tmp_path / "orthanc", ("CHESTXRAY", port), route=True) as pacs,
        Node(settings(tmp_path / "queue", pacs.dicom, port=port)) as node,
    ):
        syntaxes = [EVERY_SYNTAX[place % len(EVERY_SYNTAX)] for place in range(FILMS)]
        films = [
            modality_film(grey(path), number, syntax)
            for number, (path, syntax) in enumerate(zip(paths, syntaxes, strict=True), start=1)
        ]
        for film in films:
            pacs.post("/instances", film)
        until(lambda: node.queue.counts()[DONE] == FILMS, node.queue.entries, seconds=550)
        assert len(pacs.instances("SR")) == FILMS
        classified = 0
        for number, (path, film) in enumerate(zip(paths, films, strict=True), start=1):
            report = check_report(pacs, number)
            pictures = reported(pacs, f"1.2.826.1.{number}", "OT")
            prediction = predictor.predict(film, path.name)
            assert complaints("dsrdump", report, tmp_path / "sr.dcm") == []
            for data in (report, *pictures):
                assert complaints("dciodvfy", data, tmp_path / "result.dcm") == []
            assert bool(pictures) is prediction.gate.accepted
            if prediction.probability is not None:
                classified += 1
                assert certainty(report) == pytest.approx(100 * prediction.probability, abs=1e-3)
        assert classified > FILMS // 2


HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "beside-the-pacs.md"


def block(kind: str, holding: str) -> str:
    """The fenced block of the how-to that holds these words."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```$", HOW_TO.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (found,) = [text for text in blocks if holding in text]
    return str(found)


@pytest.mark.slow
def test_the_how_to_leads_from_the_distributions_orthanc_to_a_result(
    tmp_path: Path, film_paths: tuple[Path, ...]
) -> None:
    if not DEBIAN.is_dir():
        pytest.skip("Orthanc of Debian is not here, with its settings in /etc/orthanc")
    etc, ports = tmp_path / "orthanc", {port: str(free_port()) for port in ("4242", "8042", "8104", "11112")}
    shutil.copytree(DEBIAN, etc)

    def here(text: str) -> str:
        for port, free in ports.items():
            text = text.replace(port, free)
        text = text.replace("systemctl restart orthanc\n", "")
        return text.replace("/etc/orthanc", str(etc)).replace("/var/lib/orthanc/db-v6", str(tmp_path / "store"))

    (etc / "route.lua").write_text(here(block("lua", "SendToModality")))
    for path in etc.glob("*.json"):
        path.write_text(here(path.read_text()))
    run = lambda text: subprocess.run(["bash", "-euc", here(text)], check=True, cwd=tmp_path)  # noqa: E731
    run(block("sh", "LuaScripts"))
    run(block("sh", "cat > node.toml"))
    (tmp_path / "film.dcm").write_bytes(modality_film(grey(film_paths[0])))
    serve = block("sh", "dicom serve --config node.toml\n").split()
    program = Path(sys.executable).with_name(serve[0])
    with ExitStack() as stack:
        for command in ([str(live_orthanc.ORTHANC), etc], [program, *serve[1:]]):
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
        pacs = Orthanc(int(ports["8042"]), int(ports["4242"]), tmp_path)
        until(lambda: answers(int(ports["4242"])) and answers(int(ports["11112"])))
        run(block("sh", "storescu"))
        until(lambda: pacs.instances("SR") and pacs.instances("OT"))
        check_report(pacs, 1)
        run(f'PATH="{program.parent}:$PATH"\n{block("sh", "queue retry")}')


def test_unit_and_container_run_the_same_node_and_give_it_all_that_it_reads_and_writes(tmp_path: Path) -> None:
    unit = block("ini", "[Service]")
    (start,) = re.findall(r"^ExecStart=(\S+) (.*)$", unit, re.MULTILINE)
    service = yaml.safe_load(block("yaml", "services:"))["services"]["chestxray"]
    assert service["command"] == f"chestxray {start[1]}"
    config = Path(start[1].split()[-1])
    assert chestxray_options(start[1]) == ["--config", str(config)]
    mounted = {Path(volume.split(":")[1]): volume.endswith(":ro") for volume in service["volumes"]}
    (folder,) = re.findall(r'`"(/[^"]+)"`, the only place that the node may write to', HOW_TO.read_text())
    state = Path("/var/lib") / re.findall(r"^StateDirectory=(\S+)$", unit, re.MULTILINE)[0]
    assert mounted == {config.parent: True, state: False}
    assert Path(folder).parent == state
    assert f"install -d -o chestxray {state}" in block("dockerfile", "FROM")
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here, to check the unit")
    program, user = Path(sys.executable).with_name("chestxray"), getpass.getuser()
    here = tmp_path / "chestxray.service"
    here.write_text(unit.replace(start[0], str(program)).replace("User=chestxray", f"User={user}"))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, check=False)
    assert str(here) not in done.stderr, done.stderr


def chestxray_options(words: str) -> list[str]:
    """The options of "dicom serve" in a command line, each of which it knows."""
    from chestxray.cli.dicom import serve

    verb, name, *options = words.split()
    assert (verb, name) == ("dicom", "serve")
    known = {option for parameter in serve.params for option in parameter.opts}
    assert {option for option in options if option.startswith("-")} <= known
    return options


def answers(port: int) -> bool:
    return subprocess.run(["echoscu", "127.0.0.1", str(port), "-aec", "CHESTXRAY"], check=False).returncode == 0
