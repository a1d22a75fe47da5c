"""From a source to rows: what is collected, and what a name tells."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from chestxray.data.clean import clean
from chestxray.data.collect import collect, survey
from chestxray.data.labels import parse_name, patient_group
from chestxray.data.sources import downloaded, name_of, read_film, stamp_of
from chestxray.errors import SourceInvalid
from chestxray.images import MAX_BYTES
from chestxray.schema import Film, Label, read_manifest, write_manifest
from drawing import encoded, textured, write_film

# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("stem", "label", "patient", "cause", "group"),
    [
        ("person281_bacteria_1328", Label.PNEUMONIA, "person281_bacteria", "bacteria", "person281"),
        ("person281_virus_552", Label.PNEUMONIA, "person281_virus", "virus", "person281"),
        ("person1372_virus_2365_1", Label.PNEUMONIA, "person1372_virus", "virus", "person1372"),
        ("IM-0115-0001", Label.NORMAL, "IM-0115", "", "IM-0115"),
        ("IM-0451-0001-0002", Label.NORMAL, "IM-0451", "", "IM-0451"),
        ("NORMAL2-IM-0587-0001", Label.NORMAL, "NORMAL2-IM-0587", "", "IM-0587"),
    ],
)
def test_a_published_name_tells_label_patient_and_cause(
    stem: str, label: Label, patient: str, cause: str, group: str
) -> None:
    assert parse_name(stem) == (label, patient, cause)
    assert patient_group(patient) == group


@pytest.mark.parametrize("stem", ["", "film", "person_bacteria_1", "IM-0115", "scan-person1", "NORMAL"])
def test_other_names_tell_nothing(stem: str) -> None:
    assert parse_name(stem) is None
    assert patient_group(stem) == stem


# --------------------------------------------------------------------------- folders


LAYOUTS = {
    "published": ["train/NORMAL/IM-0001-0001.png", "val/PNEUMONIA/person1_virus_1.png", "test/NORMAL/IM-0002-0001.png"],
    "nested twice": ["chest_xray/train/NORMAL/a.png", "chest_xray/test/PNEUMONIA/b.png"],
    "one folder a class": ["normal/a.png", "pneumonia/b.png"],
    "flat": ["IM-0001-0001.png", "person1_bacteria_1.png"],
    "by cause": ["bacteria/a.png", "virus/b.png", "normal/c.png"],
}
EXPECTED = {
    "published": [
        ("test", "normal", "IM-0002", ""),
        ("train", "normal", "IM-0001", ""),
        ("val", "pneumonia", "person1_virus", "virus"),
    ],
    "nested twice": [("test", "pneumonia", "", ""), ("train", "normal", "", "")],
    "one folder a class": [("", "normal", "", ""), ("", "pneumonia", "", "")],
    "flat": [("", "normal", "IM-0001", ""), ("", "pneumonia", "person1_bacteria", "bacteria")],
    "by cause": [("", "pneumonia", "", "bacteria"), ("", "normal", "", ""), ("", "pneumonia", "", "virus")],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_split_label_patient_and_cause(tmp_path: Path, layout: str) -> None:
    for seed, name in enumerate(LAYOUTS[layout]):
        write_film(tmp_path / name, seed)
    rows = [(film.split, film.label, film.patient_id, film.cause) for film in collect(tmp_path)]
    assert rows == EXPECTED[layout]


def test_what_is_no_film_is_not_collected(tmp_path: Path) -> None:
    write_film(tmp_path / "NORMAL" / "a.PNG", 1)
    for name in ("NORMAL/.DS_Store", "NORMAL/._b.png", "__MACOSX/NORMAL/c.png", "readme.txt", ".hidden/d.png"):
        write_film(tmp_path / name, 2)
    assert [Path(film.path).name for film in collect(tmp_path)] == ["a.PNG"]


def test_a_source_without_films_or_labels_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="does not exist"):
        collect(tmp_path / "nowhere")
    with pytest.raises(SourceInvalid, match="holds no film"):
        collect(tmp_path)
    write_film(tmp_path / "scan.png", 1)
    with pytest.raises(SourceInvalid, match="folders named NORMAL and PNEUMONIA"):
        collect(tmp_path)
    assert len(collect(tmp_path, labels_needed=False)) == 1


def test_dicom_files_are_found_by_their_ending_or_by_how_they_begin(tmp_path: Path) -> None:
    folder = tmp_path / "NORMAL"
    folder.mkdir()
    for name, data in {
        "a.dcm": b"",
        "IM000001": bytes(128) + b"DICM",
        "1.2.840.113619.2": bytes(128) + b"DICM",
        "notes": b"DICM",
        "b.txt": bytes(128) + b"DICM",
        "empty": b"",
    }.items():
        (folder / name).write_bytes(data)
    assert [Path(film.path).name for film in collect(tmp_path)] == ["1.2.840.113619.2", "IM000001", "a.dcm"]


@pytest.mark.real_films
def test_the_published_archive_layout_gives_every_film(real_films: Path) -> None:
    films = collect(real_films / "chest_xray")
    assert len(films) == 5216
    assert all(film.label and film.patient_id and film.split == "train" for film in films)
    assert {film.cause for film in films if film.label == "pneumonia"} == {"bacteria", "virus"}


# --------------------------------------------------------------------------- tables


def table_of(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_table_gives_label_patient_split_and_keeps_its_further_columns(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "person7_virus_1.png"):
        write_film(tmp_path / name, 1)
    text = (
        "label,path,age,Ward name,patient_id,split,width,sha256\n"
        'NORMAL,a.png,3,"north,  east",p1,Training,17,ff\n'
        f"1,{tmp_path / 'sub/b.png'},,,p2,test,,\n"
        ",person7_virus_1.png,5,,,,,\n"
    )
    films = collect(table_of(tmp_path / "films.csv", text))
    assert films == (
        Film(
            str(tmp_path / "a.png"),
            "normal",
            "train",
            "p1",
            extra=(("Ward name", "north, east"), ("age", "3")),
        ),
        Film(str(tmp_path / "sub/b.png"), "pneumonia", "test", "p2"),
        Film(str(tmp_path / "person7_virus_1.png"), "pneumonia", "", "person7_virus", "virus", extra=(("age", "5"),)),
    )
    write_manifest(clean(films), tmp_path / "clean.csv")
    assert [film.extra for film in read_manifest(tmp_path / "clean.csv")] == [film.extra for film in films]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scan,label\na.png,normal\n", "no column of paths; it has scan, label"),
        ("path,label\na.png,tumour\n", "line 2: the label is 'tumour'"),
        ("path,label,split\na.png,normal,left\n", "line 2: the split is 'left'"),
        ("path,label\n,normal\n", "line 2: the path is empty"),
        ("path,label\ngone.png,normal\n", "its film does not exist"),
        ("path,label\n", "holds no film"),
        ('path,label\n"a.png,normal\n', "near line 2: a quote is not closed"),
        ("path,label\n\x81", "cannot be read as a table"),
        ("path,label\na.png,normal,more\n", "line 2: has 3 cells and the header 2"),
    ],
)
def test_a_table_that_makes_no_sense_says_where(tmp_path: Path, text: str, message: str) -> None:
    write_film(tmp_path / "a.png", 1)
    (tmp_path / "films.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceInvalid, match=message):
        collect(tmp_path / "films.csv")


# --------------------------------------------------------------------------- archives


NAMES = ("train/NORMAL/IM-0001-0001.png", "./train/PNEUMONIA/person1_virus_1.png", "test/NORMAL/IM-0002-0001.png")


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def zipped_by_windows(path: Path, members: dict[str, bytes]) -> Path:
    """Backslashes in names, and entries for the folders."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {"train\\": b"", "train\\NORMAL\\": b"", **members}.items():
            archive.writestr(zipfile.ZipInfo(name.removeprefix("./").replace("/", "\\")), data)
    return path


def packed_by_zstd(path: Path, members: dict[str, bytes]) -> Path:
    zstandard = pytest.importorskip("zstandard")
    path.write_bytes(zstandard.compress(tarred(path.with_suffix(""), members).read_bytes()))
    path.with_suffix("").unlink()
    return path


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    kind = {".gz": "w:gz", ".xz": "w:xz", ".bz2": "w:bz2"}.get(path.suffix, "w")
    with tarfile.open(path, kind) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.zip", zipped),
        ("windows.zip", zipped_by_windows),
        ("a.tar", tarred),
        ("a.tar.gz", tarred),
        ("a.tar.xz", tarred),
        ("a.tar.bz2", tarred),
        ("a.tar.zst", packed_by_zstd),
    ],
)
def test_an_archive_is_read_in_place_and_gives_what_its_folder_would(
    tmp_path: Path, name: str, make: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    for seed, member in enumerate(NAMES):
        write_film(tmp_path / "folder" / member, seed)
    members = {member: (tmp_path / "folder" / member).read_bytes() for member in NAMES}
    archive = make(tmp_path / name, {**members, "readme.txt": b"", "__MACOSX/NORMAL/c.png": b"x"})
    found = clean(collect(archive))
    unpacked = clean(collect(tmp_path / "folder"))

    def facts(films: Iterable[Film]) -> list[Film]:
        return sorted((dataclasses.replace(film, path=name_of(film)) for film in films), key=lambda film: film.path)

    assert facts(found) == facts(unpacked)
    assert all(film.is_accepted for film in found)
    write_manifest(found, tmp_path / "clean.csv")
    again = read_manifest(tmp_path / "clean.csv")
    assert again == found
    assert [read_film(film) for film in again] == [members[member] for member in NAMES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["folder", name, "clean.csv"])


def test_an_archive_that_changed_is_opened_anew(tmp_path: Path) -> None:
    data = [encoded(textured(seed)) for seed in range(2)]
    (film,) = collect(zipped(tmp_path / "a.zip", {"NORMAL/a.png": data[0]}))
    assert read_film(film) == data[0]
    stamp = stamp_of(film)
    zipped(tmp_path / "a.zip", {"NORMAL/a.png": data[1]})
    assert read_film(film) == data[1]
    assert stamp_of(film) != stamp
    zipped(tmp_path / "a.zip", {"NORMAL/b.png": data[1]})
    with pytest.raises(OSError, match=r"is no longer in a\.zip"):
        read_film(film)


def test_archives_are_looked_into_as_folders_are(tmp_path: Path) -> None:
    bare = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100\x08\x00\x60\x00CS\x02\x00DX" + bytes(64)  # without a preamble
    members = {
        "NORMAL/IM000001": bytes(128) + b"DICM",
        "NORMAL/1.2.840.113619.2": bytes(128) + b"DICM",
        "NORMAL/bare": bare,
        "NORMAL/scan": encoded(textured(1)),
        "NORMAL/b.ima": b"",
        "NORMAL/notes": b"DICM",
        "NORMAL/c.txt": bytes(128) + b"DICM",
    }
    for name, data in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    expected = ["1.2.840.113619.2", "IM000001", "b.ima", "bare", "scan"]
    for source in (tmp_path / "folder", zipped(tmp_path / "a.zip", members), tarred(tmp_path / "a.tar.xz", members)):
        found = survey(source)
        assert sorted(name_of(film) for film in found.films) == expected
        assert "2 files are no films: 1 .txt, 1 without an ending" in " ".join(found.notes)


def test_an_archive_below_a_folder_with_a_mark_in_its_name_is_read(tmp_path: Path) -> None:
    for folder in ("wow!", "old.zip!"):
        (tmp_path / folder).mkdir()
        (film,) = collect(zipped(tmp_path / folder / "a.zip", {"NORMAL/a.png": encoded(textured(1))}))
        assert read_film(film) == encoded(textured(1))
        write_manifest([film], tmp_path / "m.csv")
        assert read_manifest(tmp_path / "m.csv") == (film,)


def test_a_film_in_a_folder_named_like_an_archive_with_a_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.zip!" / "NORMAL").mkdir(parents=True)
    (tmp_path / "old.zip!" / "NORMAL" / "a.png").write_bytes(encoded(textured(1)))
    (film,) = collect(tmp_path / "old.zip!")
    assert read_film(film) == encoded(textured(1))
    assert stamp_of(film)


def test_what_cannot_be_followed_in_a_folder_is_said(tmp_path: Path) -> None:
    for seed, name in enumerate(("NORMAL/n0.png", "PNEUMONIA/p0.png", "@eaDir/n0.png", "DICOMDIR")):
        write_film(tmp_path / name, seed)
    (tmp_path / "NORMAL/gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "NORMAL/pipe.png")
    found = survey(tmp_path)
    assert len(found.films) == 2
    notes = " ".join(found.notes)
    assert "1 left out, links that lead nowhere" in notes
    assert "1 left out, no regular files" in notes
    assert "1 hidden file is passed over" in notes
    assert "1 file is no film: 1 without an ending" in notes
    with pytest.raises(SourceInvalid, match="the index of a DICOM disc. Give its folder"):
        collect(tmp_path / "DICOMDIR")


def test_a_folder_that_cannot_be_listed_is_said_whoever_asks(tmp_path: Path) -> None:
    for seed, name in enumerate(("NORMAL/n0.png", "PNEUMONIA/p0.png")):
        write_film(tmp_path / name, seed)
    inside = os.open(tmp_path / "NORMAL", os.O_RDONLY)
    for _ in range(25):  # deeper than a path may be long
        os.mkdir("d" * 200, dir_fd=inside)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = below
    os.close(inside)
    found = survey(tmp_path)
    assert len(found.films) == 2
    assert "1 left out, File name too long" in " ".join(found.notes)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    for seed, name in enumerate(("NORMAL/n0.png", "PNEUMONIA/p0.png", "COVID/c0.png")):
        write_film(tmp_path / name, seed)
    (tmp_path / "COVID").chmod(0)
    assert "1 left out, Permission denied" in " ".join(survey(tmp_path).notes)


def test_hard_links_in_an_archive_are_films_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("NORMAL/n0.png", "PNEUMONIA/p0.png", "PNEUMONIA/p0.png"):
            archive.add(write_film(tmp_path / "film.png", 1), name)
        for name, kind in (("NORMAL/again.png", tarfile.LNKTYPE), ("NORMAL/soft.png", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "NORMAL/n0.png"
            archive.addfile(link)
    found = survey(tmp_path / "a.tar")
    assert [Path(film.path).name for film in found.films] == ["n0.png", "p0.png", "again.png"]
    assert len({read_film(film) for film in found.films}) == 1
    assert "1 left out, links or devices in an archive: NORMAL/soft.png" in found.notes[-2]
    assert "1 left out, names that the archive has twice" in found.notes[-1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pneumoniamnist.npz", ".npz: arrays of NumPy, as MedMNIST has them. Write its pictures to files"),
        ("train-00000.tfrecord", ".tfrecord: records of TensorFlow"),
        ("films.h5", ".h5: HDF5"),
        ("scan.nii.gz", ".nii.gz: a volume. Export it as DICOM or PNG"),
        ("films.7z", ".7z: a packed file. Unpack it"),
        ("films.pkl", "a pickle, which may run any program"),
    ],
)
def test_files_that_hold_films_in_another_form_say_what_to_do(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(b"\x89something" + bytes(40))
    for source in (tmp_path / "data" / name, tmp_path / "data"):
        with pytest.raises(SourceInvalid, match=re.escape(said)):
            collect(source)


def test_names_that_climb_and_links_are_no_films(tmp_path: Path) -> None:
    good = encoded(textured(1))
    zipped(
        tmp_path / "a.zip", dict.fromkeys(("NORMAL/a.png", "../NORMAL/b.png", "/NORMAL/c.png", "x!/NORMAL/d.png"), good)
    )
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        link = zipfile.ZipInfo("NORMAL/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert [name_of(film) for film in collect(tmp_path / "a.zip")] == ["a.png"]
    tarred(tmp_path / "a.tar", dict.fromkeys(("NORMAL/a.png", "../NORMAL/b.png", "/NORMAL/c.png"), good))
    with tarfile.open(tmp_path / "a.tar", "a") as archive_:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(f"NORMAL/{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive_.addfile(member)
    assert [name_of(film) for film in collect(tmp_path / "a.tar")] == ["a.png"]


def test_members_that_swell_are_rows_with_a_reason(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"NORMAL/bomb.png": bytes(10 * 2**20), "NORMAL/a.png": encoded(textured(1))})
    films = {name_of(film): film for film in clean(collect(archive))}
    assert films["a.png"].is_accepted
    assert "swells to more than 200 times" in films["bomb.png"].reason
    large = tarred(tmp_path / "a.tar.gz", {"NORMAL/large.png": bytes(MAX_BYTES + 1)})
    (film,) = clean(collect(large))
    assert "holds more than 67,108,864 bytes" in film.reason


def test_a_damaged_member_is_a_row_with_a_reason_and_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    data = encoded(textured(1))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("NORMAL/a.png", data)
    whole = path.read_bytes()
    at = whole.index(data) + len(data) // 2
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    (film,) = clean(collect(path))
    assert film.verdict == "unreadable"
    assert "damaged in its archive" in film.reason
    for name in ("b.zip", "b.tar", "b.tar.gz"):
        (tmp_path / name).write_bytes(b"no archive at all")
        with pytest.raises(SourceInvalid, match="cannot be read as an archive"):
            collect(tmp_path / name)


@pytest.mark.parametrize("damage", ["second header", "header that ends early", "name that is no text", "sparse map"])
def test_an_archive_whose_index_is_damaged_is_refused_and_never_read_in_part(tmp_path: Path, damage: str) -> None:
    films = dict.fromkeys(("NORMAL/a.png", "PNEUMONIA/bé.png"), encoded(textured(1)))
    if damage == "name that is no text":
        path = zipped(tmp_path / "a.zip", films)
        path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    else:
        path = tarred(tmp_path / "a.tar", {name.replace("é", "e"): film for name, film in films.items()})
        data = bytearray(path.read_bytes())
        second = data.index(b"PNEUMONIA")
        if damage == "second header":
            data[second] ^= 1
        elif damage == "header that ends early":
            del data[second + 300 :]
        path.write_bytes(bytes(data))
    if damage == "sparse map":
        with tarfile.open(path, "w") as archive:
            sparse = tarfile.TarInfo("NORMAL/a.png")
            sparse.size, sparse.pax_headers = 512, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
            archive.addfile(sparse, io.BytesIO(b"no number\n".ljust(512)))
    with pytest.raises(SourceInvalid, match="cannot be read as an archive"):
        collect(path)


@pytest.mark.parametrize("ending", ["gz", "xz", "bz2"])
def test_a_packed_archive_is_compared_with_its_checksum(tmp_path: Path, ending: str) -> None:
    path = tarred(tmp_path / f"a.tar.{ending}", {"NORMAL/a.png": encoded(textured(1))})
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    with pytest.raises(SourceInvalid, match="cannot be read as an archive"):
        collect(path)


def test_members_with_names_that_no_file_can_have_are_left_out(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", dict.fromkeys((".", "NORMAL/a.png"), encoded(textured(1))))
    found = survey(path)
    assert [name_of(film) for film in found.films] == ["a.png"]
    assert "1 left out, names that no file can have" in found.notes[0]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("NORMAL/a.png", "NORMAL/n\0l.png"):
            entry = tarfile.TarInfo("x")
            entry.pax_headers = {"path": name}
            archive.addfile(entry)
    assert [name_of(film) for film in collect(tmp_path / "a.tar")] == ["a.png"]


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"NORMAL/a.png": encoded(textured(1))})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(bytes(data))
    with pytest.raises(SourceInvalid, match="is encrypted"):
        collect(path)


# --------------------------------------------------------------------------- Kaggle


@pytest.mark.parametrize("address", ["kaggle:", "kaggle:owner", "kaggle:../x", "kaggle:a/b/c", "kaggle:a/b/versions/0"])
def test_what_is_no_address_of_a_data_set_is_refused_before_anything_is_fetched(address: str) -> None:
    with pytest.raises(SourceInvalid, match="write it as kaggle:owner/dataset"):
        collect(address)


def test_an_address_reaches_the_client_as_it_wants_it() -> None:
    asked: list[str] = []

    def fetch_one(handle: str) -> Path:
        asked.append(handle)
        return Path("/folder")

    for address in ("kaggle:owner/chest-xray", "kaggle:owner/chest-xray/versions/2"):
        assert downloaded(address, fetch_one) == Path("/folder")
    assert asked == ["owner/chest-xray", "owner/chest-xray/versions/2"]


def test_a_data_set_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("kagglehub")
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    with pytest.raises(SourceInvalid, match="kaggle:owner/films: cannot be fetched"):
        collect("kaggle:owner/films")


def test_a_source_that_is_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", tmp_path / "pipe.csv", Path("/dev/zero")):
        if not source.exists():
            os.mkfifo(source)
        with pytest.raises(SourceInvalid, match="is a pipe or a device"):
            collect(source)
