"""Tables of labels as people have them, folders by any name, and whose films they are."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import re
import sys
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chestxray.data.clean import clean
from chestxray.data.collect import CollectSettings, collect, films_of, survey
from chestxray.data.labels import LabelWords, NoLabel, parse_name, patient_group, without_nobody
from chestxray.data.split import split
from chestxray.errors import SourceInvalid, UsageError
from chestxray.metrics.scores import read_score_file
from chestxray.schema import PATIENTS_UNKNOWN, Film, Label, read_manifest, write_manifest
from drawing import write_film


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A folder with img/n0.png, n1.png, p0.png and p1.png, of which no name tells anything."""
    for seed, name in enumerate(("n0", "n1", "p0", "p1")):
        write_film(tmp_path / "img" / f"{name}.png", seed)
    return tmp_path


def rows(found: tuple[Film, ...]) -> list[tuple[str, str, str]]:
    return [(Path(film.path).name, film.label, film.patient_id) for film in found]


# --------------------------------------------------------------------------- the field's own tables

RSNA = "patientId,x,y,width,height,Target\nn0,,,,,0\np0,264.0,152.0,213.0,379.0,1\np0,562.0,152.0,256.0,453.0,1\n"
RSNA_CLASSES = "patientId,class\nn0,Normal\nn1,No Lung Opacity / Not Normal\np0,Lung Opacity\n"
CHEXPERT = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Consolidation,Pneumonia\n"
    "CheXpert-v1.0-small/img/n0.png,Female,68,Frontal,AP,1.0,,\n"
    "CheXpert-v1.0-small/img/p0.png,Male,3,Frontal,AP,,1.0,1.0\n"
    "CheXpert-v1.0-small/img/p1.png,Male,3,Frontal,AP,,,-1.0\n"
    "CheXpert-v1.0-small/img/n1.png,Male,3,Lateral,,1.0,,\n"
)
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,View Position\n"
    "n0.png,No Finding,0,1,PA\np0.png,Pneumonia|Infiltration,0,2,AP\np1.png,Effusion|Mass,0,3,AP\n"
)
VINDR = (
    "image_id,class_name,class_id,rad_id,x_min\n"
    "n0,No finding,14,R1,\nn0,No finding,14,R2,\np0,Pneumonia,15,R1,3\np1,Aortic enlargement,0,R1,4\n"
    "n1,No finding,14,R1,\nn1,Pneumonia,15,R2,9\n"
)
VINDR_IMAGES = "image_id,Aortic enlargement,Pneumonia,No finding\nn0,0,0,1\np0,0,1,0\np1,1,0,0\n"
VINDR_CHILDREN = (
    "image_id,rad_ID,No finding,Bronchitis,Brocho-pneumonia,Pneumonia,Other disease\n"
    "n0,R1,1.0,0.0,0.0,0.0,0.0\nn1,R1,0.0,1.0,0.0,0.0,0.0\np0,R2,0.0,0.0,1.0,0.0,0.0\n"
)
ONE_HOT = "filename,covid,normal,pneumonia\nn0.png,0,1,0\nn1.png,1,0,0\np0.png,0,0,1\np1.png,0,1,1\n"
PADCHEST = (
    "ImageID,ImageDir,PatientID,Projection,Labels\n"
    "n0.png,img,A,PA,\"['normal']\"\np0.png,img,B,AP,\"['pneumonia', 'infiltrates']\"\n"
    "p1.png,img,C,PA,\"['scoliosis']\"\nn1.png,img,A,L,\"['normal']\"\n"
)
CORONA = (
    ",X_ray_image_name,Label,Dataset_type,Label_2_Virus_category,Label_1_Virus_category\n"
    "0,n0.png,Normal,TRAIN,,\n1,p0.png,Pnemonia,TEST,COVID-19,Virus\n"
)
HUB = "file_name,label\nimg/n0.png,0\nimg/p0.png,1\n"

TABLES: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "RSNA": (RSNA, [("n0.png", "normal", "n0"), ("p0.png", "pneumonia", "p0")]),
    "RSNA's classes": (RSNA_CLASSES, [("n0.png", "normal", "n0"), ("n1.png", "", "n1"), ("p0.png", "pneumonia", "p0")]),
    "CheXpert": (CHEXPERT, [("n0.png", "normal", ""), ("p0.png", "pneumonia", ""), ("p1.png", "", "")]),
    "NIH": (NIH, [("n0.png", "normal", "1"), ("p0.png", "pneumonia", "2"), ("p1.png", "", "3")]),
    "VinDr": (VINDR, [("n0.png", "normal", ""), ("p0.png", "pneumonia", ""), ("p1.png", "", ""), ("n1.png", "", "")]),
    "VinDr by film": (VINDR_IMAGES, [("n0.png", "normal", ""), ("p0.png", "pneumonia", ""), ("p1.png", "", "")]),
    "VinDr's children": (VINDR_CHILDREN, [("n0.png", "normal", ""), ("n1.png", "", ""), ("p0.png", "pneumonia", "")]),
    "columns of classes": (
        ONE_HOT,
        [("n0.png", "normal", ""), ("n1.png", "", ""), ("p0.png", "pneumonia", ""), ("p1.png", "", "")],
    ),
    "PadChest": (PADCHEST, [("n0.png", "normal", "A"), ("p0.png", "pneumonia", "B"), ("p1.png", "", "C")]),
    "CoronaHack": (CORONA, [("n0.png", "normal", ""), ("p0.png", "pneumonia", "")]),
    "the hub": (HUB, [("n0.png", "normal", ""), ("p0.png", "pneumonia", "")]),
}


@pytest.mark.parametrize("name", TABLES)
def test_each_table_of_the_field_is_read_as_its_authors_mean_it(films: Path, name: str) -> None:
    text, expected = TABLES[name]
    (films / "table.csv").write_text(text)
    assert rows(collect(films / "table.csv")) == expected


def test_what_a_table_leaves_without_a_label_is_counted(films: Path) -> None:
    (films / "table.csv").write_text(CHEXPERT)
    notes = " ".join(survey(films / "table.csv").notes)
    assert "1 uncertain" in notes
    assert "1 film is left out, whose view is not frontal" in notes
    (films / "table.csv").write_text(VINDR)
    assert "1 normal and not normal at once" in " ".join(survey(films / "table.csv").notes)


def test_coronahack_gives_split_and_cause(films: Path) -> None:
    (films / "table.csv").write_text(CORONA)
    assert [(film.split, film.cause) for film in collect(films / "table.csv")] == [("train", ""), ("test", "virus")]


def test_mimic_finds_the_films_of_each_study(tmp_path: Path) -> None:
    write_film(tmp_path / "files/p10/p10000032/s50414267/02aa.png", 1)
    write_film(tmp_path / "files/p10/p10000032/s50414267/174f.png", 2)
    write_film(tmp_path / "files/p11/p11000001/s53189527/2a2d.png", 3)
    (tmp_path / "mimic-cxr-2.0.0-chexpert.csv").write_text(
        "subject_id,study_id,No Finding,Pneumonia\n10000032,50414267,1.0,\n11000001,53189527,,1.0\n"
        "11000001,59999999,,1.0\n"
    )
    found = survey(tmp_path / "mimic-cxr-2.0.0-chexpert.csv")
    assert rows(found.films) == [
        ("02aa.png", "normal", "10000032"),
        ("174f.png", "normal", "10000032"),
        ("2a2d.png", "pneumonia", "11000001"),
    ]
    assert "1 of 3 films" in " ".join(found.notes)


def test_covid_19_radiography_leaves_out_masks_and_other_diseases_and_says_so(tmp_path: Path) -> None:
    for seed, kind in enumerate(("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")):
        write_film(tmp_path / kind / "images" / f"{kind}-1.png", seed)
        write_film(tmp_path / kind / "masks" / f"{kind}-1.png", 9)
        (tmp_path / f"{kind}.metadata.xlsx").write_bytes(b"PK")
    found = survey(tmp_path)
    assert [(Path(film.path).name, film.label, film.cause) for film in found.films] == [
        ("COVID-1.png", "", ""),
        ("Lung_Opacity-1.png", "", ""),
        ("Normal-1.png", "normal", ""),
        ("Viral Pneumonia-1.png", "pneumonia", "virus"),
    ]
    assert ("COVID", 1, "left without a label (another finding)") in found.folders
    assert "4 files in folders of masks" in " ".join(found.notes)
    assert "4 files are no films: 4 .xlsx" in " ".join(found.notes)
    films = collect(tmp_path, settings=CollectSettings(labels=["covid=pneumonia"]))
    assert films[0].label == "pneumonia"


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("NORMAL-1003233-0001", (Label.NORMAL, "1003233", "")),
        ("BACTERIA-1008087-0002", (Label.PNEUMONIA, "1008087", "bacteria")),
        ("VIRUS-1089251-0001", (Label.PNEUMONIA, "1089251", "virus")),
    ],
)
def test_the_published_set_is_known_by_mendeleys_names_too(stem: str, expected: tuple[Label, str, str]) -> None:
    assert parse_name(stem) == expected


def test_a_folder_of_the_hub_is_labelled_by_its_metadata(films: Path) -> None:
    (films / "metadata.csv").write_text("file_name,label,age\nimg/n0.png,normal,3\nimg/p0.png,pneumonia,4\n")
    found = {Path(film.path).name: film for film in collect(films)}
    assert {name: film.label for name, film in found.items()} == {
        "n0.png": "normal", "n1.png": "", "p0.png": "pneumonia", "p1.png": "",
    }  # fmt: skip
    assert found["p0.png"].extra == (("age", "4"),)
    (films / "metadata.csv").unlink()
    (films / "metadata.jsonl").write_text(json.dumps({"file_name": "img/p1.png", "label": 1}) + "\n")
    assert [film.label for film in collect(films)] == ["", "", "", "pneumonia"]


# --------------------------------------------------------------------------- how tables are written

PLAIN = "path,label\nimg/n0.png,0\nimg/p0.png,1\n"
WRITTEN: dict[str, bytes] = {
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "told to Excel": b"sep=;\r\n" + PLAIN.replace(",", ";").encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "UTF-16 without a mark": PLAIN.encode("utf-16-le"),
    "a mark and Windows' ends of lines": b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode(),
    "Windows-1252": b"path,label,ward\nimg/n0.png,0,M\xfcnchen\nimg/p0.png,1,\n",
    "capitals": PLAIN.replace("path,label", "Path,Label").encode(),
    "spaces": PLAIN.replace(",", ", ").encode(),
    "quotes": b'"path", "label"\n"img/n0.png", "0"\n"img/p0.png", "1"\n',
    "backslashes": PLAIN.replace("/", "\\").encode(),
    "blank rows": b"\n,\n" + PLAIN.encode() + b",\n,,,\n",
    "paths of elsewhere": PLAIN.replace("img/", "/kaggle/input/x/").encode(),
    "paths of a disk of Windows": PLAIN.replace("img/", "C:\\\\films\\\\img\\\\").encode(),
    "ids without ending": PLAIN.replace(".png", "").encode(),
    "fractions": PLAIN.replace("0\n", "0.0\n").replace("1\n", "1.0\n").encode(),
    "booleans": PLAIN.replace(",0", ",False").replace(",1", ",True").encode(),
    "words": PLAIN.replace(",0", ",Negative").replace(",1", ",Bacterial Pneumonia").encode(),
    "an index of pandas": b",filename,class\n0,img/n0.png,normal\n1,img/p0.png,pneumonia\n",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_table_is_read_however_it_is_written(films: Path, how: str) -> None:
    (films / "table.csv").write_bytes(WRITTEN[how])
    assert [(film.path, film.label) for film in collect(films / "table.csv")] == [
        (str(films / "img/n0.png"), "normal"),
        (str(films / "img/p0.png"), "pneumonia"),
    ]


def test_a_workbook_and_a_parquet_file_are_tables(films: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": ["img/n0.png", "img/p0.png"], "label": [0, 1], "patient_id": [None, 12.0]})
    frame.to_parquet(films / "table.parquet")
    found = collect(films / "table.parquet")
    assert rows(found) == [("n0.png", "normal", ""), ("p0.png", "pneumonia", "12")]
    pytest.importorskip("python_calamine")
    workbook(films / "table.xlsx", [["path", "label"], ["img/n0.png", 0], ["img/p0.png", 1]])
    assert [film.label for film in collect(films / "table.xlsx")] == ["normal", "pneumonia"]


def workbook(path: Path, *sheets: list[list[str | int]]) -> None:
    """The least that a workbook of ECMA-376 needs."""

    def cell(value: str | int) -> str:
        return f"<c><v>{value}</v></c>" if isinstance(value, int) else f'<c t="inlineStr"><is><t>{value}</t></is></c>'

    pages = ["".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows) for rows in sheets]
    numbers = range(1, len(pages) + 1)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {
            "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
            "_rels/.rels": f'<Relationships xmlns="{package}"><Relationship Id="r1" Type="{links}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{links}"><sheets>'
            + "".join(f'<sheet name="sheet{n}" sheetId="{n}" r:id="r{n}"/>' for n in numbers)
            + "</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}">'
            + "".join(
                f'<Relationship Id="r{n}" Type="{links}/worksheet" Target="worksheets/sheet{n}.xml"/>' for n in numbers
            )
            + "</Relationships>",
            **{
                f"xl/worksheets/sheet{n}.xml": f'<worksheet xmlns="{main}"><sheetData>{page}</sheetData></worksheet>'
                for n, page in zip(numbers, pages, strict=True)
            },
        }.items():
            archive.writestr(name, text)


def test_a_workbook_of_several_sheets_is_read_where_its_films_are(films: Path) -> None:
    pytest.importorskip("python_calamine")
    about, listed = (
        [["made by", "the ward", 3], ["on", 2020]],
        [["path", "label"], ["img/n0.png", 0], ["img/p0.png", 1]],
    )
    workbook(films / "table.xlsx", about, listed)
    assert [film.label for film in collect(films / "table.xlsx")] == ["normal", "pneumonia"]
    workbook(films / "table.xlsx", listed, listed)
    with pytest.raises(SourceInvalid, match=r"has films in several sheets \(sheet1, sheet2\). Save each as a .csv"):
        collect(films / "table.xlsx")


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    (tmp_path / "table.xlsx").write_bytes(b"no workbook")
    with pytest.raises(SourceInvalid, match="cannot be read as a workbook"):
        collect(tmp_path / "table.xlsx")
    (tmp_path / "table.parquet").write_bytes(b"no table")
    with pytest.raises(SourceInvalid, match="cannot be read as Parquet"):
        collect(tmp_path / "table.parquet")


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_a_packed_table_is_read(films: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
    table = films / f"mimic.csv{ending}"
    table.write_bytes(pack(PLAIN.encode()))
    assert [film.label for film in collect(table)] == ["normal", "pneumonia"]
    table.write_bytes(pack(PLAIN.encode())[:-9])
    with pytest.raises(SourceInvalid, match="cannot be read as a table"):
        collect(table)


COCO = {
    "images": [{"id": 1, "file_name": "img/n0.png"}, {"id": 2, "file_name": "img/p0.png"}],
    "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 2, "category_id": 8}],
    "categories": [{"id": 7, "name": "normal"}, {"id": 8, "name": "pneumonia"}],
}
JSON = {
    "objects": [{"path": "img/n0.png", "label": 0}, {"path": "img/p0.png", "label": True}],
    "columns of pandas": {"path": {"0": "img/n0.png", "1": "img/p0.png"}, "label": {"0": 0, "1": 1}},
    "lists": {"path": ["img/n0.png", "img/p0.png"], "label": ["normal", "pneumonia"]},
    "labels by path": {"img/n0.png": 0, "img/p0.png": 1},
    "annotations of COCO": COCO,
}


@pytest.mark.parametrize("form", JSON)
def test_json_of_the_usual_forms_is_a_table(films: Path, form: str) -> None:
    (films / "table.json").write_text(json.dumps(JSON[form]))
    assert rows(collect(films / "table.json")) == [("n0.png", "normal", ""), ("p0.png", "pneumonia", "")]


@pytest.mark.parametrize("content", ["7", '{"a": {"b": 1}, "c": [1, 2]}', '["img/n0.png"]'])
def test_json_of_another_form_is_refused_with_what_to_write(films: Path, content: str) -> None:
    (films / "table.json").write_text(content)
    with pytest.raises(SourceInvalid, match=r"Write a list of objects|has no column of paths"):
        collect(films / "table.json")


def test_a_table_is_read_by_what_it_is_where_its_ending_lies(films: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": ["img/n0.png", "img/p0.png"], "label": [0, 1]})
    frame.to_parquet(films / "table.csv")
    assert [film.label for film in collect(films / "table.csv")] == ["normal", "pneumonia"]
    (films / "table.txt").write_text(PLAIN)
    assert [film.label for film in collect(films / "table.txt")] == ["normal", "pneumonia"]


def test_names_of_either_form_of_unicode_are_one(tmp_path: Path) -> None:
    name = "m\u00fcller.png"
    write_film(tmp_path / unicodedata.normalize("NFD", name), 1)
    (tmp_path / "table.csv").write_text(f"path,label\n{unicodedata.normalize('NFC', name)},1\n")
    assert [film.label for film in collect(tmp_path / "table.csv")] == ["pneumonia"]


def test_metadata_that_contradict_folders_or_cannot_be_read_are_told_about(tmp_path: Path) -> None:
    for seed, name in enumerate(("NORMAL/n0.png", "PNEUMONIA/p0.png")):
        write_film(tmp_path / name, seed)
    (tmp_path / "metadata.csv").write_text("file_name,label\nNORMAL/n0.png,1\n")
    found = survey(tmp_path)
    assert [film.label for film in found.films] == ["pneumonia", "pneumonia"]
    assert "1 film has another label in metadata.csv than by folder or name" in " ".join(found.notes)
    (tmp_path / "metadata.csv").write_text("file_name,label\nNORMAL/n0.png,odd\n")
    found = survey(tmp_path)
    assert [film.label for film in found.films] == ["normal", "pneumonia"]
    assert "metadata.csv is not used" in " ".join(found.notes)


def test_labels_that_lie_elsewhere_are_pointed_at(films: Path) -> None:
    (films / "img/labels.csv").write_text(PLAIN)
    with pytest.raises(SourceInvalid, match=r"if labels.csv holds the labels, give it as the source"):
        collect(films / "img")
    (films / "img/n0.json").write_text("{}")
    with pytest.raises(SourceInvalid, match=r"1 file has the name of a film, such as n0.json; labels in such files"):
        collect(films / "img")


def test_labels_and_archives_in_an_archive_are_pointed_at(films: Path) -> None:
    with zipfile.ZipFile(films / "all.zip", "w") as archive:
        archive.write(films / "img/n0.png", "n0.png")
        archive.writestr("metadata.csv", "file_name,label\nn0.png,0\n")
    with pytest.raises(SourceInvalid, match=r"if metadata.csv holds the labels, give it .*unpack it first"):
        collect(films / "all.zip")
    (films / "img").rename(films / "normal")
    assert "archives inside are not opened: collect all.zip by itself" in " ".join(survey(films).notes)


def test_a_folder_of_one_patient_names_the_patient(tmp_path: Path) -> None:
    write_film(tmp_path / "train/patient00001/study1/view1_frontal.png", 1)
    (tmp_path / "train.csv").write_text(
        "Path,No Finding,Pneumonia\nCheXpert-v1.0-small/train/patient00001/study1/view1_frontal.png,1.0,\n"
    )
    assert rows(collect(tmp_path / "train.csv")) == [("view1_frontal.png", "normal", "patient00001")]


BOTH = ["normal", "pneumonia"]
AS_PEOPLE_HAVE_THEM = {
    "a decimal comma, semicolons, a line end within quotes": (
        'path;label;note\nimg/n0.png;0,0;"two\nlines"\nimg/p0.png;1,0;x\n',
        BOTH,
    ),
    "paths in other capitals": ("path,label\nIMG/N0.PNG,0\nimg/P0.png,1\n", BOTH),
    "one column a class": ("path,healthy,bacterial,viral\nimg/n0.png,1,0,0\nimg/p0.png,0,0,1\n", BOTH),
    "two columns of one name that agree": ("path,label,label\nimg/n0.png,0,0\nimg/p0.png,1,1\n", BOTH),
    "two remarks": ("path,label,note,note\nimg/n0.png,0,a,b\nimg/p0.png,1,c,d\n", BOTH),
    "columns without a name, and blank lines": ("\n\npath,label,,\n\nimg/n0.png,0,,\n,,,\nimg/p0.png,1,,\n", BOTH),
    "comments and a title above": (
        "# made, by hand\nFilms of 2020;;\n\npath;label;split\nimg/n0.png;0;\n# a remark\nimg/p0.png;1;\n",
        BOTH,
    ),
    "a separator told in quotes": ('"sep=;"\npath;label\nimg/n0.png;0\nimg/p0.png;1\n', BOTH),
    "quotes around paths": ('path,label\n\'img/n0.png\',0\n"""img/p0.png""",1\n', BOTH),
    "zeros between letters": ("path,label\nimg/n0.png,0\0\nimg/p0.png,1\n", BOTH),
    "addresses": ("url,path,label\n,https://x.org/img/n0.png?dl=1,0\n,gs://bucket/img/p0.png,1\n", BOTH),
    "paths as in addresses": ("path,label\nimg%2Fn0.png,0\nimg/p%30.png,1\n", BOTH),
    "endings from before a conversion": ("path,label\nimg/n0.dcm,0\nimg/p0.JPG,1\n", BOTH),
    "two columns of one name that complete each other": ("path,label,label\nimg/n0.png,0,\nimg/p0.png,,1\n", BOTH),
    "a dash for unknown": ("path,label\nimg/n0.png,0\nimg/p0.png,\u2014\n", ["normal", ""]),
    "line ends of an old Mac": ("path,label\rimg/n0.png,0\rimg/p0.png,1\r", BOTH),
    "words of other languages": ("path,label\nimg/n0.png,Unauffällig\nimg/p0.png,Neumonía.\n", BOTH),
    "words of other alphabets": ("path,label\nimg/n0.png,正常\nimg/p0.png,폐렴\n", BOTH),
    "invisible characters": ("path,label\nimg/n0.png,normal\u200b\nimg/p0.png,\u00a0pneumonia\n", BOTH),
    "crosses in columns": ("path,normal,pneumonia\nimg/n0.png,X,\nimg/p0.png,,x\n", BOTH),
    "doubt": ("path,label\nimg/n0.png,normal\nimg/p0.png,pneumonia?\n", ["normal", ""]),
    "no value, as a spreadsheet has it": ("path,label\nimg/n0.png,normal\nimg/p0.png,#N/A\n", ["normal", ""]),
    "both separators in a path": ("path,label\n./img\\n0.png,0\nhome/img\\p0.png,1\n", BOTH),
    "other views": (
        "path,label,view\nimg/n0.png,0,AP\nimg/n1.png,0,Lateral (left)\nimg/p1.png,1,OBLIQUE\nimg/p0.png,1,\n",
        BOTH,
    ),
    "UTF-16 without a mark": ("path,label\nimg/n0.png,0\nimg/p0.png,1\n".encode("utf-16-le"), BOTH),
    "a mark and semicolons": ("\ufeffpath;label\r\nimg/n0.png;0\r\nimg/p0.png;1\r\n", BOTH),
}
AS_NOBODY_CAN_READ_THEM = {
    "two labels that differ": (
        "path,label,label\nimg/n0.png,0,1\n",
        "line 2: holds '0' and '1' in two columns",
    ),
    "numbers that mean the reverse of the words beside them": (
        "path,label,class\nimg/n0.png,1,NORMAL\nimg/p0.png,0,PNEUMONIA\n",
        "line 2: label is '1', taken for pneumonia, and class is 'NORMAL'. Say which of them counts: --columns",
    ),
    "spaces between cells": ("3 img/n0.png pneumonia\n", "begins with a film, img/n0.png. Put a header above it"),
    "a quote within quotes": ('path,label,note\nimg/n0.png,0,"say \\"ah\\""\n', "near line 2: a quote is not closed"),
    "no header": ("img/n0.png,0\nimg/p0.png,1\n", "begins with a film, img/n0.png. Put a header above it"),
    "a web page": ("<html><body>Not found", "is no table: it is a web page"),
    "a workbook by a wrong name": (b"PK\3\4" + bytes(30), "is no table: it is an archive"),
    "a cell too many": ("path,label\nimg/n0.png,0,oops\n", "line 2: has 3 cells and the header 2"),
    "scores for labels": ("path,label\nimg/n0.png,0.2\n", "line 2: the label is '0.2'"),
    "degrees in a column of a class": ("path,normal,pneumonia\nimg/n0.png,1,0\nimg/p0.png,0,3\n", "the label is '3'"),
    "several films in a cell": ("path,label\nimg/n0.png;img/n1.png,0\n", "line 2: its path holds several films"),
    "a film in two splits": (
        "path,label,split\nimg/n0.png,0,train\nimg/p0.png,1,train\nimg/n0.png,0,test\n",
        'lines 2, 4: img/n0.png is in several splits (test, train). Keep one, or draw new ones: --columns "split="',
    ),
    "folds for splits": ("path,label,split\nimg/n0.png,0,fold3\n", 'leave it out: --columns "split="'),
}


@pytest.mark.parametrize("name", AS_PEOPLE_HAVE_THEM)
def test_a_table_as_people_have_it_is_read_right(films: Path, name: str) -> None:
    content, labels = AS_PEOPLE_HAVE_THEM[name]
    (films / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = collect(films / "table.csv")
    assert [(Path(film.path).name, film.label) for film in found] == list(
        zip(("n0.png", "p0.png"), labels, strict=True)
    )
    assert not any("label" in column or column in {"healthy", "viral"} for film in found for column, _ in film.extra)


@pytest.mark.parametrize("name", AS_NOBODY_CAN_READ_THEM)
def test_a_table_that_cannot_be_read_right_is_refused_with_what_to_do(films: Path, name: str) -> None:
    content, said = AS_NOBODY_CAN_READ_THEM[name]
    (films / "table.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SourceInvalid, match=re.escape(said)):
        collect(films / "table.csv")


def test_a_parquet_of_the_hub_that_holds_the_films_is_refused_and_bytes_are_text(films: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "path": [b"img/n0.png", b"img/p0.png"],
        "label": pyarrow.array(["normal", "pneumonia"]).dictionary_encode(),
    }
    parquet.write_table(pyarrow.table(columns), films / "table.parquet")
    assert rows(collect(films / "table.parquet")) == [("n0.png", "normal", ""), ("p0.png", "pneumonia", "")]
    embedded = {"image": [{"bytes": b"film", "path": "img/n0.png"}], "label": [0]}
    parquet.write_table(pyarrow.table(embedded), films / "table.parquet")
    with pytest.raises(SourceInvalid, match="holds the films themselves"):
        collect(films / "table.parquet")


def test_a_table_that_lacks_a_column_says_what_it_has_and_takes_what_it_is_told(films: Path) -> None:
    table = films / "table.csv"
    table.write_text("scan,verdict of the ward,who\nn0.png,well,7\np0.png,sick,8\n")
    with pytest.raises(SourceInvalid, match=r"it has scan, verdict of the ward, who.*--columns path=NAME"):
        collect(table)
    settings = CollectSettings(
        labels=["well=normal", "sick=pneumonia"],
        columns=["path=scan,label=verdict of the ward", "patient_id=who"],
        root=films / "img",
    )
    assert rows(collect(table, settings=settings)) == [("n0.png", "normal", "7"), ("p0.png", "pneumonia", "8")]
    with pytest.raises(SourceInvalid, match="has no column 'wrong'"):
        collect(table, settings=CollectSettings(columns=["path=wrong"]))
    with pytest.raises(UsageError, match="is not ROLE=COLUMN"):
        collect(table, settings=CollectSettings(columns=["where=scan"]))


def test_a_word_that_nobody_knows_is_asked_for_and_never_guessed(films: Path) -> None:
    table = films / "table.csv"
    table.write_text("path,label\nimg/n0.png,0\nimg/p0.png,2\nimg/p1.png,2\n")
    with pytest.raises(SourceInvalid, match=r"line 3: the label is '2'.*'2' \(2\).*--label \"2=pneumonia\""):
        collect(table)
    assert [f.label for f in collect(table, settings=CollectSettings(labels=["2=pneumonia"]))][1:] == ["pneumonia"] * 2
    assert [f.label for f in collect(table, settings=CollectSettings(labels=["2=none"]))] == ["normal", "", ""]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("no pneumonia", Label.NORMAL),
        ("Non-Pneumonia", Label.NORMAL),
        ("Viral_Pneumonia", Label.PNEUMONIA),
        ("1.0", Label.PNEUMONIA),
        ("Pneumonia|Infiltration", Label.PNEUMONIA),
        ("['normal', 'pneumonia']", NoLabel.CONTRADICTORY),
        ("Effusion|Mass", NoLabel.OTHER),
        ("", NoLabel.BLANK),
        ("NaN", NoLabel.BLANK),
        ("-1.0", NoLabel.UNCERTAIN),
        ("rule out pneumonia", NoLabel.UNKNOWN),
    ],
)
def test_a_word_counts_as_a_whole(text: str, meaning: Label | NoLabel) -> None:
    assert LabelWords().meaning(text) == meaning


def test_the_user_decides_which_findings_are_a_pneumonia(films: Path) -> None:
    words = LabelWords.of(["pneumonia=Consolidation|Infiltration"])
    assert words.meaning("Effusion|Infiltration") == Label.PNEUMONIA
    (films / "table.csv").write_text("Path,No Finding,Consolidation,Pneumonia\nimg/n0.png,1.0,,\nimg/p0.png,,1.0,\n")
    settings = CollectSettings(labels=["Consolidation=pneumonia"])
    assert [film.label for film in collect(films / "table.csv", settings=settings)] == ["normal", "pneumonia"]
    for wrong in ("sick", "sick=ill", "=pneumonia"):
        with pytest.raises(UsageError, match="is not WORD=LABEL"):
            LabelWords.of([wrong])


def test_films_that_are_missing_are_counted_and_never_exchanged_for_others(films: Path) -> None:
    write_film(films / "other" / "gone.png", 9)
    (films / "table.csv").write_text("path,label\nimg/n0.png,0\nimg/gone.png,1\n")
    found = survey(films / "table.csv")
    assert [film.path for film in found.films] == [str(films / "img/n0.png"), str(films / "img/gone.png")]
    assert "1 of 2 films of table.csv does not exist, img/gone.png for one" in " ".join(found.notes)
    write_film(films / "img2" / "n0.png", 8)
    (films / "table.csv").write_text("path,label\nn0.png,0\np0.png,1\n")
    assert "name is there more than once: n0.png" in " ".join(survey(films / "table.csv").notes)


def test_a_film_under_two_labels_is_told_about_and_becomes_conflicting(films: Path) -> None:
    (films / "table.csv").write_text("path,label\nimg/n0.png,0\nimg/n0.png,1\nimg/p0.png,1\nimg/p0.png,1\n")
    found = survey(films / "table.csv")
    assert "1 film has two labels, img/n0.png in lines 2, 3" in " ".join(found.notes)
    assert [film.verdict for film in clean(found.films)] == ["conflicting", "conflicting", "accepted"]


def test_a_column_of_splits_by_any_name_is_taken_for_them(films: Path) -> None:
    (films / "table.csv").write_text("path,label,used for\nimg/n0.png,0,Train set\nimg/p0.png,1,test_images\n")
    found = survey(films / "table.csv")
    assert [film.split for film in found.films] == ["train", "test"]
    assert "column used for is used as the split" in found.notes
    unwanted = survey(films / "table.csv", settings=CollectSettings(columns=["split="]))
    assert [film.split for film in unwanted.films] == ["", ""]


def test_patients_that_a_table_cannot_tell_apart_are_told_about(films: Path) -> None:
    table = films / "table.csv"
    table.write_text("path,label,patient_id\nimg/n0.png,0,A\nimg/n0.png,0,B\nimg/p0.png,1,1.23457E+11\n")
    notes = " ".join(survey(table).notes)
    assert "1 film has two patients, img/n0.png (A and B) for one" in notes
    assert "1 patient id was rounded by a spreadsheet, 1.23457E+11 for one" in notes


def test_a_table_of_addresses_keeps_them(films: Path) -> None:
    (films / "table.csv").write_text("path,label\ns3://bucket/a.png,0\nimg/p0.png,1\n")
    assert [film.path for film in collect(films / "table.csv")] == ["s3://bucket/a.png", str(films / "img/p0.png")]


# --------------------------------------------------------------------------- folders


def folders(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_film(root / name / "a.png", seed)
    return root


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("0", "1"), ["normal", "pneumonia"]),
        (("train/0", "train/1"), ["normal", "pneumonia"]),
        (("NEGATIVE", "POSITIVE"), ["normal", "pneumonia"]),
        (("no", "yes"), ["normal", "pneumonia"]),
        (("0_normal", "1. Pneumonia"), ["normal", "pneumonia"]),
        (("SANO", "ZNEUMONÍA/NEUMONÍA"), ["normal", "pneumonia"]),
        (("Bacterial_Pneumonia", "Viral-Pneumonia", "normal"), ["pneumonia", "pneumonia", "normal"]),
    ],
)
def test_folders_of_many_names_are_classes(tmp_path: Path, names: tuple[str, ...], labels: list[str]) -> None:
    assert [film.label for film in collect(folders(tmp_path, *names))] == labels


def test_folders_of_splits_have_many_names(tmp_path: Path) -> None:
    films = collect(folders(tmp_path, "test_images/normal", "Train set/normal", "validation-data/pneumonia"))
    assert [film.split for film in films] == ["train", "test", "val"]


def test_folders_of_any_name_are_what_the_user_says(tmp_path: Path) -> None:
    folders(tmp_path, "sick", "well")
    with pytest.raises(SourceInvalid, match=r'or say what each folder holds: --label "\w+=normal".*sick \(1\)'):
        collect(tmp_path)
    films = collect(tmp_path, settings=CollectSettings(labels=["sick=pneumonia", "well=normal"]))
    assert [film.label for film in films] == ["pneumonia", "normal"]


def test_a_folder_that_nobody_knows_beside_classes_is_an_error_not_a_loss(tmp_path: Path) -> None:
    folders(tmp_path, "Abnormal", "normal", "pneumonia")
    with pytest.raises(SourceInvalid, match=r"Abnormal \(1 films\) show is not known.*Abnormal=none"):
        collect(tmp_path)
    assert len(collect(tmp_path, labels_needed=False)) == 3
    films = collect(tmp_path, settings=CollectSettings(labels=["abnormal=none"]))
    assert [film.label for film in films] == ["", "normal", "pneumonia"]


def test_numbers_are_no_classes_unless_they_stand_beside_each_other_alone(tmp_path: Path) -> None:
    folders(tmp_path, "normal/0", "normal/1", "normal/2", "pneumonia/1")
    assert [film.label for film in collect(tmp_path)] == ["normal"] * 3 + ["pneumonia"]


def test_a_name_never_overrules_a_folder_of_another_disease(tmp_path: Path) -> None:
    write_film(tmp_path / "tuberculosis" / "person1_bacteria_1.png", 1)
    write_film(tmp_path / "normal" / "person2_virus_1.png", 2)
    write_film(tmp_path / "ward" / "person3_virus_1.png", 3)
    settings = CollectSettings(labels=["ward=none"])
    found = [(film.label, film.cause) for film in collect(tmp_path, settings=settings)]
    assert found == [("normal", ""), ("", ""), ("", "")]


def test_links_to_folders_of_a_class_are_followed_once(tmp_path: Path) -> None:
    folders(tmp_path / "elsewhere", "a", "b")
    root = tmp_path / "films"
    root.mkdir()
    (root / "NORMAL").symlink_to(tmp_path / "elsewhere" / "a")
    (root / "PNEUMONIA").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "elsewhere" / "a" / "again").symlink_to(root)  # a circle
    assert [film.label for film in collect(root)] == ["normal", "pneumonia"]


def test_a_source_that_is_none_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match="is no source that this program reads"):
        collect("https://example.org/films.zip")
    (tmp_path / "letter.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(SourceInvalid, match="is no folder, archive, table or film"):
        films_of(tmp_path / "letter.pdf", labels_needed=False)


# --------------------------------------------------------------------------- patients


@pytest.mark.parametrize("column", ["PatientID", "patientId", "Patient ID", "subject_id", "Patient_ID", "patient"])
def test_patients_are_found_by_their_usual_columns(films: Path, column: str) -> None:
    (films / "table.csv").write_text(f"path,label,{column}\nimg/n0.png,0,7\nimg/p0.png,1,8\n")
    assert [film.patient_id for film in collect(films / "table.csv")] == ["7", "8"]


def test_a_pattern_reads_patients_from_paths(tmp_path: Path) -> None:
    write_film(tmp_path / "NORMAL" / "ward1-patient17-2.png", 1)
    write_film(tmp_path / "PNEUMONIA" / "other.png", 2)
    for pattern, expected in ((r"patient(\d+)", "17"), (r"ward(?P<ward>\d)-(?P<patient>\w+)", "patient17")):
        assert [f.patient_id for f in collect(tmp_path, settings=CollectSettings(patient_pattern=pattern))] == [
            expected,
            "",
        ]
    with pytest.raises(UsageError, match="is no regular expression"):
        collect(tmp_path, settings=CollectSettings(patient_pattern="("))


def cleaned(count: int, **values: str) -> list[Film]:
    return [
        Film(f"/{label}{n}.png", label, sha256=f"{label}{n}", verdict="accepted", **values)
        for label in ("normal", "pneumonia")
        for n in range(count)
    ]


def test_unknown_patients_are_said_loudly(tmp_path: Path) -> None:
    said: list[str] = []
    split(cleaned(10), log=said.append)
    assert PATIENTS_UNKNOWN in " ".join(said)
    said.clear()
    write_film(tmp_path / "a.png", 1)
    clean([Film(str(tmp_path / "a.png"), "normal")], log=said.append)
    assert PATIENTS_UNKNOWN in " ".join(said)
    said.clear()
    clean([Film(str(tmp_path / "a.png"), "normal", patient_id="7")], log=said.append)
    assert said == []


@pytest.mark.parametrize("everybody", ["ANONYMOUS", "anonymous^", "00000000"])
def test_one_id_for_everybody_is_no_patient(everybody: str) -> None:
    said: list[str] = []
    films = split(cleaned(10, patient_id=everybody), log=said.append)
    assert {film.split for film in films} == {"train", "val", "test"}
    assert "stands for no patient" in " ".join(said)
    assert PATIENTS_UNKNOWN in " ".join(said)


def test_a_patient_of_some_films_stays_one() -> None:
    films = [*cleaned(2, patient_id="7"), Film("/x.png", "normal", patient_id="8")]
    assert without_nobody(films) == (tuple(films), "")


def test_ids_that_differ_in_zeros_stay_on_one_split_and_are_told_about(films: Path) -> None:
    assert {patient_group(text) for text in ("00012", "12", "12.0")} == {"12"}
    (films / "table.csv").write_text(
        "path,label,patient_id\nimg/n0.png,0,00012\nimg/p0.png,1,12\nimg/n1.png,0,12.0\nimg/p1.png,1,13\n"
    )
    assert "(00012 and 12 and 12.0)" in " ".join(survey(films / "table.csv").notes)
    rows = cleaned(10)
    same = [dataclasses.replace(f, patient_id=("007", "7", "7.0")[n % 3]) for n, f in enumerate(rows[:6])]
    drawn = split([*same, *rows[6:]], log=lambda _: None)
    assert len({film.split for film in drawn[:6]}) == 1


@pytest.mark.parametrize("labels", [("", "normal"), ("normal", "")])
def test_an_unlabelled_copy_never_beats_a_labelled_one(tmp_path: Path, labels: tuple[str, str]) -> None:
    paths = [write_film(tmp_path / f"{n}.png", 1) for n in range(2)]
    films = clean([Film(str(path), label) for path, label in zip(paths, labels, strict=True)], log=lambda _: None)
    assert [film.verdict for film in films if film.label] == ["accepted"]
    assert [film.verdict for film in films if not film.label] == ["duplicate"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_names_that_are_no_text_go_through_every_table(tmp_path: Path) -> None:
    (tmp_path / "NORMAL").mkdir()
    for name in (b"caf\xe9.png", b" lead.png", b"two\rlines.png"):
        write_film(Path(os.fsdecode(os.fsencode(tmp_path / "NORMAL") + b"/" + name)), len(name))
    films = clean(collect(tmp_path), log=lambda _: None)
    assert all(film.sha256 for film in films)
    films = tuple(dataclasses.replace(film, patient_id=" 7") for film in films)
    write_manifest(films, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv") == films


def test_scores_know_patients_by_their_usual_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("path,label,score,Patient ID\na,0,0.1,7\nb,1,0.9,7\n")
    assert read_score_file(path).table.patients == ("7", "7")
    assert PATIENTS_UNKNOWN not in caplog.text
    path.write_text("path,label,score\na,0,0.1\nb,1,0.9\n")
    read_score_file(path)
    assert PATIENTS_UNKNOWN in caplog.text
