"""Batches: the same rows in every format and by every engine, whatever kills the run on its way."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chestxray.cli import main
from chestxray.data.collect import collect
from chestxray.errors import DataError, OutputExists
from chestxray.images.decode import FORMATS
from chestxray.inference.batch import (
    WORKER_ENDED,
    journal_of,
    predict_one_by_one,
    predictor_digest,
    run_batch,
    score_films,
)
from chestxray.inference.bundle import Bundle
from chestxray.inference.journal import FilmResult, Journal
from chestxray.inference.predictor import Predictor
from chestxray.metrics.scores import COLUMNS
from chestxray.schema import Film, Preprocessing, Resize
from dicoms import native
from drawing import write_film
from http_load import children

KILLS = int(os.environ.get("CHESTXRAY_SOAK_KILLS", "200"))
PROBABILITY_TOLERANCE = 1e-5  # of a film alone, in a batch, and on another number of threads


def batch(source: object, out: Path, bundle: Path, *options: object) -> int:
    """The command line, in this process; its exit status."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in ("batch", source, "--out", out, "--bundle", bundle, "--workers", 1, *options)])
    return int(end.value.code or 0)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return Bundle.open(bundle)


@pytest.fixture
def few(synthetic_films: Path, tmp_path: Path) -> Path:
    """A folder of six films, and of two files that are none."""
    folder = tmp_path / "few"
    folder.mkdir()
    for film in sorted((synthetic_films / "test").rglob("*.jpeg"))[:6]:
        shutil.copy(film, folder)
    (folder / "empty.png").touch()
    (folder / "cut.jpeg").write_bytes(film.read_bytes()[:3000])
    return folder


# --------------------------------------------------------------------------- rows


def test_every_format_has_the_same_columns_and_the_same_values(bundle: Path, few: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    outs = [tmp_path / f"scores{ending}" for ending in (".csv", ".jsonl", ".parquet")]
    assert [batch(few, out, bundle) for out in outs] == [0, 0, 0]
    lines = [json.loads(line) for line in outs[1].read_text(encoding="utf-8").splitlines()]
    table = parquet.read_table(outs[2])
    assert lines == table.to_pylist()
    assert [tuple(lines[0]), tuple(table.column_names), tuple(read_csv(outs[0])[0])] == [COLUMNS] * 3
    as_text = [{**line, "score": "" if line["score"] is None else repr(line["score"])} for line in lines]
    assert as_text == read_csv(outs[0])
    assert sum(line["score"] is None for line in lines) == 2


def test_a_film_that_fails_is_a_row_with_a_reason_that_names_no_file(bundle: Path, few: Path, tmp_path: Path) -> None:
    (few / "folder.png").mkdir()
    manifest = tmp_path / "table.csv"
    names = ("gone.png", "few/folder.png", "few/empty.png", "few/cut.jpeg")
    good = next(few.glob("*-0001.jpeg"))
    manifest.write_text("\n".join(["path", *names, f"few/{good.name}", ""]))
    assert batch(manifest, tmp_path / "scores.csv", bundle) == 0
    *failed, results = read_csv(tmp_path / "scores.csv")
    readable = " or ".join((", ".join(one.name for one in FORMATS[:-1]), FORMATS[-1].name))
    assert [row["reason"] for row in failed] == [
        "cannot be opened (No such file or directory)",
        "cannot be opened (is a folder)",
        f"not a {readable} file (the file is empty)",
        "the JPEG file ends before its picture does. Copy it again",
    ]
    assert all(row["score"] == row["prediction"] == "" for row in failed)
    assert [bool(row["sha256"]) for row in failed] == [False, False, True, True]
    assert float(results["score"]) > 0
    assert results["reason"] == ""


def test_notes_stand_beside_the_answers_and_an_age_can_be_required(bundle: Path, few: Path, tmp_path: Path) -> None:
    stated = few / "stated.dcm"
    pixels = np.asarray(Image.open(next(few.glob("*-0001.jpeg"))).convert("L"))
    stated.write_bytes(native(pixels, Modality="DX", PatientAge="003Y"))
    outs = tmp_path / "all.csv", tmp_path / "strict.csv"
    assert [batch(few, outs[0], bundle), batch(few, outs[1], bundle, "--require-age")] == [0, 0]
    answered, strict = ({Path(row["path"]).name: row for row in read_csv(out)} for out in outs)
    assert answered["stated.dcm"]["notes"] == strict["stated.dcm"]["notes"] == ""
    assert answered["stated.dcm"]["score"] == strict["stated.dcm"]["score"] != ""
    jpegs = [name for name, row in answered.items() if row["score"] and name != "stated.dcm"]
    assert {answered[name]["notes"] for name in jpegs} == {"age not stated; the model is for 28 days to under 12 years"}
    assert all(strict[name]["reason"].startswith("its file states no age") for name in jpegs)


def test_labels_and_patients_are_read_as_the_options_say(bundle: Path, few: Path, tmp_path: Path) -> None:
    wards = tmp_path / "wards"
    for number, film in enumerate(sorted(few.glob("person*"))[:2] + sorted(few.glob("IM*"))[:2]):
        folder = wards / ("sick" if number % 2 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(film, folder / f"case{number}.jpeg")
    options = ("--label", "sick=pneumonia", "--label", "well=normal", "--patient-pattern", r"case(\d+)")
    assert batch(wards, tmp_path / "folders.csv", bundle, *options) == 0
    rows = read_csv(tmp_path / "folders.csv")
    assert rows
    assert {(Path(row["path"]).parent.name, row["label"]) for row in rows} <= {
        ("sick", "pneumonia"),
        ("well", "normal"),
    }
    assert [row["patient_id"] for row in rows] == [Path(row["path"]).stem.removeprefix("case") for row in rows]

    (tmp_path / "elsewhere").mkdir()
    listed = "\n".join(f"{Path(row['path']).name};{row['label'][0]};9{row['patient_id']}" for row in rows)
    (tmp_path / "elsewhere" / "films.csv").write_text(f"Scan;Dx;Who\n{listed}\n")
    options = (
        *("--root", wards, "--columns", "path=Scan,label=Dx,patient_id=Who"),
        *("--label", "p=pneumonia", "--label", "n=normal"),
    )
    assert batch(tmp_path / "elsewhere" / "films.csv", tmp_path / "table.csv", bundle, *options) == 0
    again = read_csv(tmp_path / "table.csv")
    assert [(Path(row["path"]).name, row["label"]) for row in again] == [
        (Path(row["path"]).name, row["label"]) for row in rows
    ]
    assert [row["patient_id"] for row in again] == [f"9{row['patient_id']}" for row in rows]


def test_an_archive_gives_what_its_folder_gives(bundle: Path, few: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        for film in sorted(few.iterdir()):
            archive.write(film, film.name)
    assert batch(few, tmp_path / "folder.csv", bundle) == batch(tmp_path / "films.zip", tmp_path / "zip.csv", bundle)
    rows = [read_csv(tmp_path / name) for name in ("folder.csv", "zip.csv")]
    for row in (*rows[0], *rows[1]):
        row["path"] = Path(row["path"]).name
    assert rows[0] == rows[1]


def test_one_film_has_one_probability_alone_in_a_batch_and_on_two_threads(
    opened: Bundle, synthetic_rows: Sequence[Film]
) -> None:
    films = [film for film in synthetic_rows if film.is_accepted][:40]
    one, two = Predictor(opened, threads=1), Predictor(opened, threads=2)
    planes = [one.prepare(Path(film.path).read_bytes(), film.path).plane for film in films]
    together = one.probabilities(one.logits(np.stack([plane for plane in planes if plane is not None])[:32])[0])
    in_batch = [row.prediction.probability for row in score_films(two, films, workers=1)]
    alone = [[predictor(film.path).probability for film in films] for predictor in (one, two)]
    np.testing.assert_allclose(alone[0], in_batch, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_allclose(alone[1], in_batch, rtol=0, atol=PROBABILITY_TOLERANCE)
    np.testing.assert_allclose(together, in_batch[:32], rtol=0, atol=PROBABILITY_TOLERANCE)
    assert np.ptp(in_batch) > 100 * PROBABILITY_TOLERANCE


def test_an_unknown_ending_is_refused_before_anything_is_classified(
    bundle: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(few, tmp_path / "scores.xlsx", bundle) == 2
    assert "it may be .csv, .jsonl, .parquet" in capsys.readouterr().err
    assert not journal_of(tmp_path / "scores.xlsx").exists()


@pytest.mark.parametrize(
    ("missing", "options"), [("pyarrow", ["--out", "s.parquet"]), ("ray", ["--out", "s.csv", "--engine", "ray"])]
)
def test_a_missing_extra_is_one_line(
    bundle: Path, few: Path, tmp_path: Path, missing: str, options: Sequence[str]
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from chestxray.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "batch", few, "--bundle", bundle, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    extra = {"pyarrow": "parquet", "ray": "ray"}[missing]
    (line,) = done.stderr.splitlines()
    assert f'pip install "chestxray[{extra}]"' in line


def fatal_classify(group: Sequence[Film]) -> list[FilmResult]:
    if any("fatal" in film.path for film in group):
        os.kill(os.getpid(), signal.SIGKILL)
    return [FilmResult("a" * 64, 0.5, "") for _ in group]


def test_a_film_that_ends_its_process_is_a_row_and_its_neighbours_are_classified() -> None:
    found = predict_one_by_one(fatal_classify, [Film("one.png"), Film("fatal.png"), Film("other.png")])
    assert [film.reason for film in found] == ["", WORKER_ENDED, ""]


def test_processes_that_all_end_are_not_blamed_on_the_films() -> None:
    with pytest.raises(DataError, match="memory enough for the bundle"):
        predict_one_by_one(fatal_classify, [Film("fatal.png"), Film("fatal too.png")])


# --------------------------------------------------------------------------- a second run


def test_a_second_run_opens_no_film_that_did_not_change_and_leaves_the_table_alone(
    bundle: Path, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    batch(few, out, bundle)
    first, written = out.read_bytes(), out.stat().st_mtime_ns
    one, other = sorted(few.glob("*-0001.jpeg"))[:2]
    for film in (one, other):  # other bytes of the same length; the first with the old time, so it must not be seen
        status = film.stat()
        film.write_bytes(b"\0" * status.st_size)
        os.utime(film, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert batch(few, out, bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == 0
    assert (out.read_bytes(), out.stat().st_mtime_ns) == (first, written)
    other.touch()
    assert batch(few, out, bundle, "--json") == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == 1
    changed = [row["path"] for row in read_csv(out) if row["score"] == ""]
    assert str(other) in changed
    assert str(one) not in changed


def test_a_film_that_could_not_be_opened_is_tried_again(bundle: Path, few: Path, tmp_path: Path) -> None:
    film = next(few.glob("*-0001.jpeg"))
    table = tmp_path / "table.csv"
    table.write_text(f"path\nfew/{film.name}\nlate.jpeg\n")
    batch(table, tmp_path / "scores.csv", bundle)
    shutil.copy(film, tmp_path / "late.jpeg")
    batch(table, tmp_path / "scores.csv", bundle)
    here, late = read_csv(tmp_path / "scores.csv")
    assert late["score"] == here["score"] != ""


def test_another_operating_point_is_applied_without_opening_a_film(
    opened: Bundle, synthetic_rows: Sequence[Film], tmp_path: Path
) -> None:
    films = [film for film in synthetic_rows if film.is_accepted][:60]
    out = tmp_path / "scores.csv"
    calls = []
    for point in opened.info.operating_points:
        result = run_batch(opened, films, out, operating_point=point.name, workers=1)
        calls.append([row["prediction"] for row in read_csv(out)])
        expected = ["pneumonia" if float(row["score"]) >= point.threshold else "normal" for row in read_csv(out)]
        assert calls[-1] == expected
    assert result.predicted == 0
    assert calls[0] != calls[-1]


def test_what_changes_an_answer_makes_another_classify_and_calibration_does_not(opened: Bundle) -> None:
    def predict(**changes: Any) -> str:
        return predictor_digest(Bundle(opened.folder, dataclasses.replace(opened.info, **changes)))

    assert predict(temperature=2.5, bias=-1.0, created="later") == predictor_digest(opened)
    assert predict(preprocessing=Preprocessing(112, 160, Resize.LETTERBOX, 0.5, 0.2)) != predictor_digest(opened)
    assert predict(files={**opened.info.files, "model.onnx": "0" * 64}) != predictor_digest(opened)
    assert predict(files={**opened.info.files, "something.json": "0" * 64}) != predictor_digest(opened)
    assert predict(files={**opened.info.files, "MODEL_CARD.md": "0" * 64}) == predictor_digest(opened)


def test_an_object_without_a_stamp_is_known_until_its_run_ends(tmp_path: Path) -> None:
    films = [Film(f"s3://bucket/{number}.png") for number in range(3)]
    with Journal.open(tmp_path / "journal", "classify") as journal:
        journal.list(films)
        (group,) = journal.groups(32)
        journal.record(group[:2], [FilmResult("a" * 64, 0.5, ""), FilmResult("b" * 64, None, "blank")])
    with Journal.open(tmp_path / "journal", "classify") as resumed:
        resumed.list(films)
        assert resumed.pending() == 1
        resumed.finish()
    with Journal.open(tmp_path / "journal", "classify") as again:
        again.list(films)
        assert again.pending() == 3


def test_the_last_groups_are_small_so_that_no_worker_waits_for_another(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal", "classify") as journal:
        journal.list(Film(f"s3://bucket/{number}.png") for number in range(200))
        groups = [[listed.position for listed in group] for group in journal.groups(32)]
    assert [len(group) for group in groups] == [32] * 4 + [4] * 18
    assert [position for group in groups for position in group] == list(range(200))


def test_the_journal_names_nobody_whom_the_table_no_longer_names(bundle: Path, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    shutil.copy(next(few.glob("*-0001.jpeg")), few / "person4711_virus_1.jpeg")
    batch(few, out, bundle)
    assert b"person4711" in journal_of(out).read_bytes()
    (few / "person4711_virus_1.jpeg").unlink()
    batch(few, out, bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scores.csv.journal", "few", "scores.csv"]
    assert b"person4711" not in journal_of(out).read_bytes()


def test_two_runs_do_not_write_the_same_output(opened: Bundle, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    with Journal.open(journal_of(out), "classify"), pytest.raises(OutputExists, match="Another run is writing"):
        run_batch(opened, collect(few, labels_needed=False), out, workers=1)


def test_a_file_that_is_no_journal_is_named_with_the_remedy(opened: Bundle, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    journal_of(out).write_bytes(b"notes of mine " * 100)
    with pytest.raises(DataError, match="Delete it to classify every film again"):
        run_batch(opened, collect(few, labels_needed=False), out, workers=1)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_films(opened: Bundle, tmp_path: Path) -> None:
    def every_film_refused(
        _bundle: Bundle, groups: Iterable[Sequence[Film]], _films: int, _workers: int | None
    ) -> Iterator[list[FilmResult]]:
        for group in groups:
            yield [FilmResult(f"{hash(film.path):064x}"[-64:], None, f"refused {film.path}") for film in group]

    def peak(count: int) -> int:
        films = (Film(f"/films/{'long' * 20}/{number}.png") for number in range(count))
        tracemalloc.start()
        run_batch(opened, films, tmp_path / f"{count}.jsonl", engine=every_film_refused)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    few, many = peak(2_000), peak(16_000)
    assert many - few < 30 * (16_000 - 2_000)  # bytes; a path alone takes a hundred


# --------------------------------------------------------------------------- killed on its way


@pytest.fixture(scope="module")
def many(synthetic_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films enough for worker processes, twenty groups of them; each bytes at several paths."""
    folder = tmp_path_factory.mktemp("many")
    films = [film for film in sorted(synthetic_films.rglob("*.*")) if film.suffix in {".jpeg", ".png"}][:160]
    for copy in range(4):
        for number, film in enumerate(films):
            os.link(film, folder / f"{copy}-{number:03}{film.suffix}")
    write_film(folder / "5.png", 3)
    return folder


def start(source: Path, out: Path, bundle: Path) -> subprocess.Popen[bytes]:
    command = Path(sys.executable).with_name("chestxray")
    arguments = [command, "batch", source, "--out", out, "--bundle", bundle, "--workers", "2"]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_after(process: subprocess.Popen[bytes], log: Path, growths: int) -> None:
    """SIGKILL once the journal's log was seen to grow that often; a run that ended before is left alone."""
    size = 0
    while process.poll() is None:
        now = log.stat().st_size if log.exists() else 0
        growths -= now > size
        size = now
        if growths <= 0:
            process.kill()
            break
        time.sleep(0.001)
    process.wait()


def killed_and_resumed(source: Path, out: Path, bundle: Path, growths: Iterable[int]) -> list[int]:
    """Kill a batch again and again, then let it end; the answers that each killed run left behind."""
    left = []
    log = Path(f"{journal_of(out)}-wal")
    for count in growths:
        kill_after(start(source, out, bundle), log, count)
        if out.exists():
            break
        if journal_of(out).exists():
            database = sqlite3.connect(journal_of(out))
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            left.append(database.execute("SELECT count(*) FROM bytes").fetchone()[0] if "bytes" in tables else 0)
            database.close()
    assert start(source, out, bundle).wait() == 0
    return left


@pytest.fixture(scope="module")
def undisturbed(bundle: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "scores.csv"
    assert batch(many, out, bundle) == 0
    return out.read_bytes()


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    bundle: Path, many: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "scores.csv"
    left = killed_and_resumed(many, out, bundle, [5, 6])
    assert left == sorted(left)
    assert 0 < left[-1] < 641
    assert out.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".part", "-wal"))] == []


def killed_at(process: subprocess.Popen[bytes], seconds: float, *, worker: bool) -> bool:
    """Kill a batch, or one process that works for it and whose loss it has to survive; False if it ended before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        assert process.wait(seconds) == 0
        return False
    victims = children(process.pid) if worker else [process.pid]
    for victim in victims[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    assert process.wait() == (0 if worker else -signal.SIGKILL)
    return bool(victims)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_batch_that_is_killed_at_any_moment_ends_with_the_same_bytes(
    bundle: Path, many: Path, undisturbed: bytes, tmp_path: Path
) -> None:
    rng = np.random.default_rng(9)
    began = time.monotonic()
    assert start(many, tmp_path / "whole.csv", bundle).wait() == 0
    whole = time.monotonic() - began
    kills, tables = Counter[bool](), 0
    while kills.total() < KILLS:
        out = tmp_path / f"{tables}.csv"
        while not out.exists() and kills.total() < KILLS:
            worker = bool(rng.random() < 0.2)
            kills[worker] += killed_at(start(many, out, bundle), rng.uniform(0, whole), worker=worker)
        assert start(many, out, bundle).wait() == 0
        assert out.read_bytes() == undisturbed
        tables += 1
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".part", "-wal"))] == []
    sys.stdout.write(f"kills: {kills[False]} of batches, {kills[True]} of workers, tables: {tables}\n")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ray_gives_the_same_bytes(bundle: Path, many: Path, undisturbed: bytes, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = Path(sys.executable).with_name("chestxray")
    out = tmp_path / "scores.csv"
    arguments = [command, "batch", many, "--out", out, "--bundle", bundle, "--engine", "ray", "--workers", "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == undisturbed
