"""The DICOM node beside a real PACS: films a minute against the plain batch, and seconds from C-STORE to the result.

python benchmarks/dicom_node.py FILM... [--films 240] [--alone 100] [--rounds 3] [--json]

FILM are JPEGs, which are given headers of their own as often as is needed; their pixels stay as they are (JPEG
baseline). Orthanc, dcmtk and the extra "hospital" must be here. In turn, round after round:

batch    "run_batch" over the files: the time of all films less that of a few, which is what starting costs
node     two storescu send the same films to a running node; until every report, and picture, is in Orthanc

Beside films a minute stand milliseconds of processor a film: of the batch's processes, and of the node's alone. Where
PACS and modalities run on machines of their own, as they do, the second decides how many films a core answers.

Then one caller sends films one by one, each when the result of the one before is in Orthanc, which is asked every
few milliseconds. Orthanc and the senders run on the same cores as the node, which the batch has for itself.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path += [str(Path(__file__).parents[1] / "tests" / "support")]

import dicoms
from chestxray.data.collect import collect
from chestxray.inference.batch import run_batch
from chestxray.inference.bundle import Bundle, folder_of
from hospital import DX, JPEG, modality_film, settings_text
from http_load import processor_seconds
from live_orthanc import Orthanc, free_port, orthanc, until
from side_by_side import machine

FEW = 8  # films of the batch that shows what starting costs
FIRST = 10_000_000


class Round(NamedTuple):
    """What one round gave: films a minute, and milliseconds of processor a film."""

    films_a_minute: float
    processor_ms: float


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        templates = [template_of(path) for path in arguments.paths]
        numbers = iter(range(FIRST, 10 * FIRST))
        figures: dict[str, list[Round]] = {"batch": [], "node, report": [], "node, report and picture": []}
        for kind in range(arguments.rounds):
            halves = write_films(folder / f"round{kind}", templates, arguments.films, numbers)
            figures["batch"].append(batch_round(halves, folder / f"batch{kind}"))
            for picture in (False, True):
                what = "node, report and picture" if picture else "node, report"
                fresh = write_films(folder / f"node{kind}{picture}", templates, arguments.films, numbers)
                with ExitStack() as round_of:
                    pacs, port, node = serve(round_of, folder / f"{what}{kind}", picture=picture, warm=templates[0])
                    figures[what].append(node_round(pacs, port, node, fresh))
        pacs, port, _ = serve(stack, folder / "alone", picture=True, warm=templates[0])
        seconds = alone(pacs, port, templates, arguments.alone, numbers, folder)
    report(arguments, figures, seconds)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--films", type=int, default=240, help="of one round")
    parser.add_argument("--alone", type=int, default=100, help="films that are sent one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def template_of(path: Path) -> bytes:
    """A DICOM file of a JPEG, whose numbers have eight digits, so that one film's bytes become another's."""
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        if image.mode != "L":
            raise SystemExit(f"{path}: give grey JPEGs")
        blank = np.zeros((image.height, image.width), np.uint8)
    empty = modality_film(np.zeros((8, 8), np.uint8), FIRST)
    header = dicoms.pydicom.dcmread(io.BytesIO(empty))
    given = {
        element.keyword: element.value
        for element in header
        if element.keyword and element.tag.group not in {0x0028, 0x7FE0} and element.keyword != "SOPInstanceUID"
    }
    dataset = dicoms.pydicom.dcmread(io.BytesIO(dicoms.coded([data], JPEG, blank, **given)))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    out = io.BytesIO()
    dicoms.pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def write_films(folder: Path, templates: list[bytes], count: int, numbers: Iterator[int]) -> list[Path]:
    """Write that many films, no two of one UID, in two folders."""
    halves = [folder / "a", folder / "b"]
    for half in halves:
        half.mkdir(parents=True)
    for place in range(count):
        data = numbered(templates[place % len(templates)], next(numbers))
        (halves[place % 2] / f"{place:05}.dcm").write_bytes(data)
    return halves


def numbered(template: bytes, number: int) -> bytes:
    """The film with another number wherever it has one."""
    return template.replace(str(FIRST).encode(), str(number).encode())


def batch_round(halves: list[Path], out: Path) -> Round:
    """The plain batch, without what it takes to start."""
    films = collect(halves[0].parent, labels_needed=False)
    bundle = Bundle.open(folder_of("pneumonia"))
    taken = []
    for part in (films[:FEW], films):
        before, started = os.times(), time.perf_counter()
        run_batch(bundle, part, out.with_suffix(f".{len(part)}.csv"))
        after = os.times()
        taken.append((time.perf_counter() - started, sum(after[:4]) - sum(before[:4])))
    (start, start_cpu), (whole, whole_cpu) = taken
    more = len(films) - FEW
    return Round(60 * more / (whole - start), 1000 * (whole_cpu - start_cpu) / more)


def serve(stack: ExitStack, folder: Path, *, picture: bool, warm: bytes) -> tuple[Orthanc, int, int]:
    """Start Orthanc and a node; each of the node's workers has answered a film."""
    port = free_port()
    pacs = stack.enter_context(orthanc(folder, ("CHESTXRAY", port)))
    text = settings_text(folder / "queue", pacs.dicom, port=port).replace("workers = 1", "workers = 0")
    if not picture:
        text = text.replace('send_to = ["pacs"]', 'send_to = ["pacs"]\nsecondary_capture = false')
    (folder / "node.toml").write_text(text)
    command = [
        Path(sys.executable).with_name("chestxray"),
        "dicom",
        "serve",
        "--config",
        folder / "node.toml",
        "--json",
    ]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(node.wait, 60)
    stack.callback(node.terminate)
    files = []
    for place in range(8):
        files.append(folder / f"warm{place}.dcm")
        files[-1].write_bytes(numbered(warm, 90_000_000 + place))
    until(lambda: storescu(port, *files).wait() == 0)
    until(lambda: instances(pacs) >= len(files) * (1 + picture))
    return pacs, port, node.pid


def storescu(port: int, *files: Path) -> subprocess.Popen[bytes]:
    """Send files as a modality would."""
    command = ["storescu", "-xy", "-aec", "CHESTXRAY", "+sd", "127.0.0.1", str(port), *map(str, files)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def instances(pacs: Orthanc) -> int:
    """How many objects the PACS holds."""
    return int(pacs.get("/statistics")["CountInstances"])


def node_round(pacs: Orthanc, port: int, node: int, halves: list[Path]) -> Round:
    """From the first C-STORE to the last result in the PACS."""
    before, films = instances(pacs), sum(len(list(half.iterdir())) for half in halves)
    reports = reports_in(pacs)
    cpu, started = processor_seconds(node), time.perf_counter()
    senders = [storescu(port, half) for half in halves]
    while instances(pacs) - before < films:
        time.sleep(0.05)
    while reports_in(pacs) - reports < films:  # a picture is an object, too, and a refused film has none
        time.sleep(0.1)
    quiet = instances(pacs)
    taken = time.perf_counter() - started
    while True:  # pictures that are still on their way
        time.sleep(0.5)
        now = instances(pacs)
        if now == quiet:
            break
        quiet, taken = now, time.perf_counter() - started
    for sender in senders:
        if sender.wait():
            raise SystemExit("a film was not taken")
    return Round(60 * films / taken, 1000 * (processor_seconds(node) - cpu) / films)


def reports_in(pacs: Orthanc) -> int:
    """How many reports the PACS holds."""
    found = pacs.post("/tools/find", {"Level": "Instance", "Query": {"Modality": "SR"}})
    return len(found)


def alone(
    pacs: Orthanc, port: int, templates: list[bytes], count: int, numbers: Iterator[int], folder: Path
) -> list[float]:
    """Seconds from the start of each C-STORE to the result in the PACS, one film at a time."""
    from pynetdicom import AE

    entity = AE("BENCH")
    entity.add_requested_context(DX, JPEG)
    peer = entity.associate("127.0.0.1", port, ae_title="CHESTXRAY")
    path, seconds = folder / "alone.dcm", []
    for place in range(count):
        path.write_bytes(numbered(templates[place % len(templates)], next(numbers)))
        before = instances(pacs)
        started = time.perf_counter()
        if peer.send_c_store(path).Status:
            raise SystemExit("a film was not taken")
        while instances(pacs) == before:
            time.sleep(0.003)
        seconds.append(time.perf_counter() - started)
        settle(pacs)
    peer.release()
    return seconds


def settle(pacs: Orthanc) -> None:
    """Wait until nothing more comes: the picture follows the report."""
    seen = -1
    while seen != (seen := instances(pacs)):
        time.sleep(0.3)


def report(arguments: argparse.Namespace, figures: dict[str, list[Round]], seconds: list[float]) -> None:
    """Print medians, spreads, the ratio to the batch, and the quantiles."""
    rows: list[dict[str, Any]] = []
    for what, rounds in figures.items():
        minute, cpu = zip(*rounds, strict=True)
        rows.append(
            {
                "what": what,
                "films_a_minute": round(statistics.median(minute)),
                "least": round(min(minute)),
                "most": round(max(minute)),
                "processor_ms_a_film": round(statistics.median(cpu), 1),
            }
        )
    for row in rows:
        row["films_of_the_batch"] = round(row["films_a_minute"] / rows[0]["films_a_minute"], 2)
        row["processor_of_the_batch"] = round(rows[0]["processor_ms_a_film"] / row["processor_ms_a_film"], 2)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    times = {
        "films": len(seconds),
        "p50_s": round(cuts[49], 3),
        "p99_s": round(cuts[98], 3),
        "most_s": round(max(seconds), 3),
    }
    if arguments.json:
        print(json.dumps({"machine": machine(), "films": arguments.films, "rows": rows, "alone": times}))
        return
    print(f"{machine()}; {arguments.films} films a round, {arguments.rounds} rounds")
    for row in rows:
        print(
            f"{row['what']:26} {row['films_a_minute']:6} films a minute ({row['least']} to {row['most']}), "
            f"{row['films_of_the_batch']} of the batch; {row['processor_ms_a_film']} ms of processor a film, "
            f"{row['processor_of_the_batch']} of the batch's films for the same"
        )
    print(
        f"C-STORE to the result in the PACS, {times['films']} films one by one: p50 {times['p50_s']} s, "
        f"p99 {times['p99_s']} s, most {times['most_s']} s"
    )


if __name__ == "__main__":
    main()
