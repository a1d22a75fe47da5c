"""The DICOM node beside a real PACS: films a minute against the plain batch, and seconds from C-STORE to the result.

python benchmarks/dicom_node.py FILM... [--films 240] [--alone 100] [--rounds 3] [--shared] [--json]

FILM are JPEGs, which are given headers of their own as often as is needed; their pixels stay as they are (JPEG
baseline). Orthanc, dcmtk and the extra "hospital" must be here. In turn, round after round:

batch    "chestxray batch" over the same DICOM files: the time of all films less that of a few, which is what starting
         costs
node     two storescu send such files to a running node; until every report, and picture, is in Orthanc

Modalities and PACS are machines of their own. So half of the cores (of two: one) belong to the batch, or to the node,
and the other half to Orthanc, the senders and this program. With --shared all of them run on all cores, as on one
machine for everything. Beside films a minute stand milliseconds of processor a film: of the batch, of the node, and of
everything else (Orthanc, senders, and this program's own questions to Orthanc).

Then one caller sends films one by one, each when the result of the one before is in Orthanc, which is asked every
few milliseconds.
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
from hospital import DX, JPEG, modality_film, settings_text
from http_load import processor_seconds
from live_orthanc import Orthanc, free_port, orthanc, until
from side_by_side import machine

PROGRAM = Path(sys.executable).with_name("chestxray")
FEW = 8  # films of the batch that shows what starting costs
FIRST = 10_000_000


class Round(NamedTuple):
    """What one round gave: films a minute, and milliseconds of processor a film, of all else as well."""

    films_a_minute: float
    processor_ms: float
    elsewhere_ms: float = 0.0


class Cores(NamedTuple):
    """The cores of the batch and of the node, and those of everything else."""

    ours: frozenset[int]
    theirs: frozenset[int]

    @classmethod
    def shared_out(cls, *, shared: bool) -> Cores:
        """All cores for all, or a half for each."""
        every = sorted(os.sched_getaffinity(0))
        middle = len(every) // 2
        if shared or not middle:
            return cls(frozenset(every), frozenset(every))
        return cls(frozenset(every[:middle]), frozenset(every[middle:]))

    def started(self, *command: str | Path) -> subprocess.Popen[bytes]:
        """Start a command on our cores."""
        os.sched_setaffinity(0, self.ours)  # which the command inherits
        try:
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            os.sched_setaffinity(0, self.theirs)


def main() -> None:
    """Measure, and print."""
    arguments = parse()
    cores = Cores.shared_out(shared=arguments.shared)
    os.sched_setaffinity(0, cores.theirs)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        templates = [template_of(path) for path in arguments.paths]
        numbers = iter(range(FIRST, 10 * FIRST))
        figures: dict[str, list[Round]] = {"batch": [], "node, report": [], "node, report and picture": []}
        for kind in range(arguments.rounds):
            halves = write_films(folder / f"round{kind}", templates, arguments.films, numbers)
            figures["batch"].append(batch_round(cores, halves, folder / f"batch{kind}"))
            for picture in (False, True):
                what = "node, report and picture" if picture else "node, report"
                fresh = write_films(folder / f"node{kind}{picture}", templates, arguments.films, numbers)
                with ExitStack() as round_of:
                    pacs, port, node = serve(
                        cores, round_of, folder / f"{what}{kind}", picture=picture, warm=templates[0]
                    )
                    figures[what].append(node_round(pacs, port, node, fresh))
        pacs, port, _ = serve(cores, stack, folder / "alone", picture=True, warm=templates[0])
        seconds = alone(pacs, port, templates, arguments.alone, numbers, folder)
        os.sched_setaffinity(0, cores.ours | cores.theirs)
    report(arguments, figures, seconds)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILM")
    parser.add_argument("--films", type=int, default=240, help="of one round")
    parser.add_argument("--alone", type=int, default=100, help="films that are sent one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="everything on all cores")
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


def batch_round(cores: Cores, halves: list[Path], out: Path) -> Round:
    """The plain batch, without what it takes to start."""
    few = out / "few"
    few.mkdir(parents=True)
    films = [film for half in halves for film in half.iterdir()]
    for film in films[:FEW]:
        (few / film.name).hardlink_to(film)
    taken = []
    for part in (few, halves[0].parent):
        before, started = os.times(), time.perf_counter()
        command = cores.started(PROGRAM, "batch", part, "--out", out / f"{len(taken)}.csv")
        if command.wait():
            raise SystemExit("the batch failed")
        after = os.times()
        taken.append((time.perf_counter() - started, sum(after[2:4]) - sum(before[2:4])))
    (start, start_cpu), (whole, whole_cpu) = taken
    more = len(films) - FEW
    return Round(60 * more / (whole - start), 1000 * (whole_cpu - start_cpu) / more)


def serve(cores: Cores, stack: ExitStack, folder: Path, *, picture: bool, warm: bytes) -> tuple[Orthanc, int, int]:
    """Start Orthanc and a node; each of the node's workers has answered a film."""
    port = free_port()
    pacs = stack.enter_context(orthanc(folder, ("CHESTXRAY", port)))
    text = settings_text(folder / "queue", pacs.dicom, port=port).replace("workers = 1", "workers = 0")
    if not picture:
        text = text.replace('send_to = ["pacs"]', 'send_to = ["pacs"]\nsecondary_capture = false')
    (folder / "node.toml").write_text(text)
    node = cores.started(PROGRAM, "dicom", "serve", "--config", folder / "node.toml", "--json")
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
    cpu, others, started = processor_seconds(node), processor_seconds(os.getpid()), time.perf_counter()
    ended = sum(os.times()[2:4])
    senders = [storescu(port, half) for half in halves]
    while instances(pacs) - before < films:
        time.sleep(0.02)
    while reports_in(pacs) - reports < films:  # a picture is an object, too, and a refused film has none
        time.sleep(0.02)
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
    cpu = processor_seconds(node) - cpu
    others = processor_seconds(os.getpid()) + sum(os.times()[2:4]) - ended - others - cpu
    return Round(60 * films / taken, 1000 * cpu / films, 1000 * others / films)


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
        minute, cpu, elsewhere = zip(*rounds, strict=True)
        rows.append(
            {
                "what": what,
                "films_a_minute": round(statistics.median(minute)),
                "least": round(min(minute)),
                "most": round(max(minute)),
                "processor_ms_a_film": round(statistics.median(cpu), 1),
                "elsewhere_ms_a_film": round(statistics.median(elsewhere), 1),
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
    whose = "all cores for all" if arguments.shared else "half of the cores for batch and node"
    print(f"{machine()}, {whose}; {arguments.films} films a round, {arguments.rounds} rounds")
    for row in rows:
        print(
            f"{row['what']:26} {row['films_a_minute']:6} films a minute ({row['least']} to {row['most']}), "
            f"{row['films_of_the_batch']} of the batch; {row['processor_ms_a_film']} ms of processor a film, "
            f"{row['processor_of_the_batch']} of the batch's films for the same; "
            f"{row['elsewhere_ms_a_film']} ms a film elsewhere"
        )
    print(
        f"C-STORE to the result in the PACS, {times['films']} films one by one: p50 {times['p50_s']} s, "
        f"p99 {times['p99_s']} s, most {times['most_s']} s"
    )


if __name__ == "__main__":
    main()
