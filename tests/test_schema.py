"""The four contracts: reading what was written gives an equal value, and nonsense is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestxray.data.pack import write_pack
from chestxray.data.split import SplitSettings
from chestxray.errors import BundleInvalid, ManifestInvalid, PackInvalid, UsageError
from chestxray.schema import (
    BundleInfo,
    Film,
    Gate,
    Label,
    OperatingPoint,
    PackInfo,
    Prediction,
    Preprocessing,
    Resize,
    Split,
    Verdict,
    fingerprint,
    read_manifest,
    write_manifest,
)
from chestxray.training.config import Augmentation, Recipe, recipe_of

words = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), max_size=20).map(str.strip)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
shares = st.floats(0.0, 1.0)
preprocessings = st.builds(
    Preprocessing,
    height=st.integers(32, 4096),
    width=st.integers(32, 4096),
    resize=st.sampled_from(Resize),
    mean=shares,
    std=st.floats(0.001, 1.0),
)
points = st.builds(
    OperatingPoint,
    name=words,
    threshold=shares,
    sensitivity=shares,
    specificity=shares,
    positives=st.integers(0, 10**6),
    negatives=st.integers(0, 10**6),
)
films = st.builds(
    Film,
    path=words.map(lambda word: "/films/" + word.replace("/", "-") + ".jpeg"),
    label=st.sampled_from(["", *(label.value for label in Label)]),
    split=st.sampled_from(["", *(split.value for split in Split)]),
    patient_id=words,
    cause=words,
    sha256=hashes,
    width=st.integers(0, 10_000),
    height=st.integers(0, 10_000),
    channels=st.integers(0, 4),
    bit_depth=st.sampled_from([0, 1, 8, 16]),
    perceptual_hash=words,
    verdict=st.sampled_from(["", *(verdict.value for verdict in Verdict)]),
    reason=words,
    mean_level=st.floats(0, 1),
    extra=st.dictionaries(words.filter(lambda word: " ".join(word.split())).map(lambda word: "x" + word), words).map(
        lambda extra: tuple({" ".join(name.split()): value for name, value in extra.items()}.items())
    ),
)


@given(st.lists(films, max_size=5))
def test_a_manifest_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, rows: list[Film]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.csv"
    write_manifest(rows, path)
    assert read_manifest(path) == tuple(rows)


def test_a_manifest_moves_together_with_films_below_it(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write_manifest([Film(str(old / "films" / "a.png"))], old / "manifest.csv")
    assert "films/a.png" in (old / "manifest.csv").read_text().splitlines()[1].split(",")
    old.rename(new)
    assert read_manifest(new / "manifest.csv") == (Film(str(new / "films" / "a.png")),)


@given(preprocessings, st.integers(0, 10**6), hashes)
def test_a_pack_description_survives_its_text(preprocessing: Preprocessing, count: int, name: str) -> None:
    info = PackInfo(count, preprocessing, name)
    assert PackInfo.from_json(info.to_json()) == info


@given(preprocessings, points, st.floats(0.01, 100.0), hashes)
def test_a_bundle_description_survives_its_text(
    preprocessing: Preprocessing, point: OperatingPoint, temperature: float, name: str
) -> None:
    info = bundle_info(preprocessing, point, temperature, name)
    assert BundleInfo.from_json(info.to_json()) == info


@given(hashes, shares, st.booleans(), st.none() | words)
def test_a_prediction_survives_its_text(name: str, probability: float, accepted: bool, heatmap: str | None) -> None:
    prediction = Prediction(
        film_sha256=name,
        gate=Gate(accepted, "" if accepted else "blank"),
        probability=probability if accepted else None,
        label="pneumonia" if accepted else None,
        operating_point="balanced",
        threshold=0.5,
        model="pneumonia",
        model_sha256=name,
        heatmap=heatmap,
    )
    assert Prediction.from_json(prediction.to_json()) == prediction


def bundle_info(
    preprocessing: Preprocessing, point: OperatingPoint, temperature: float = 1.0, name: str = "0" * 64
) -> BundleInfo:
    return BundleInfo(
        name="pneumonia",
        network="alexnet5",
        preprocessing=preprocessing,
        temperature=temperature,
        operating_points=(point,),
        default_operating_point=point.name,
        training_data=name,
        files={"model.onnx": name},
        parameters=1,
        created="2026-01-01T00:00:00+00:00",
        package_version="0.1.0",
    )


SOUND = bundle_info(
    Preprocessing(112, 160, Resize.SQUEEZE, 0.5, 0.2), OperatingPoint("balanced", 0.5, 0.9, 0.9, 10, 10)
)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"default_operating_point": "unheard"},
        {"files": {}},
    ],
)
def test_a_bundle_cannot_hold_nonsense(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="."):
        dataclasses.replace(SOUND, **change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "unheard": 2}', "null"])
def test_a_description_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(PackInvalid, match=r"ward\.json"):
        PackInfo.from_json(text, "ward.json")
    with pytest.raises(BundleInvalid, match=r"ward\.json"):
        BundleInfo.from_json(text, "ward.json")


def test_another_version_is_refused_with_both_numbers() -> None:
    newer = json.dumps({**json.loads(SOUND.to_json()), "version": 99})
    with pytest.raises(BundleInvalid, match="version 99; this program reads 1"):
        BundleInfo.from_json(newer)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", 'no column "path"'),
        ("a,b\n1,2\n", 'no column "path"'),
        ("path,label\nx.png,healthy\n", "line 2.*'healthy'.*normal, pneumonia"),
        ("path,width\nx.png,wide\n", "line 2.*wide"),
        ("path,label\n,normal\n", "line 2.*no path"),
        ("path,manifest_version\nx.png,7\n", "line 2.*version 7"),
        ('path,reason\nx.png,"' + "a," * 100_000, "line 2.*field limit"),
    ],
)
def test_a_faulty_manifest_is_refused_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(text)
    with pytest.raises(ManifestInvalid, match=complaint):
        read_manifest(path)


def test_a_manifest_that_is_no_regular_file_or_no_text_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(2**32)
    for path in (tmp_path / "pipe", tmp_path / "sparse", Path("/dev/zero"), tmp_path):
        with pytest.raises(ManifestInvalid, match="no regular file|no text|folder"):
            read_manifest(path)


def test_further_columns_may_have_any_name_and_value(tmp_path: Path) -> None:
    film = Film(str(tmp_path / "a.png"), extra=(("=1+1", "\r=2"), ("ward", "a\rb")))
    write_manifest([film], tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv") == (film,)
    assert "'=1+1" in (tmp_path / "manifest.csv").read_text()


def test_a_manifest_that_is_a_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ManifestInvalid, match="cannot be read"):
        read_manifest(path)


def test_a_film_is_classified_if_and_only_if_the_gate_accepts_it() -> None:
    with pytest.raises(ValueError, match="if and only if"):
        Prediction("0" * 64, Gate(accepted=False, reason="blank"), 0.5, "normal", "balanced", 0.5, "m", "0" * 64)


def test_the_fingerprint_sees_label_split_patient_and_order() -> None:
    film = Film("/a.png", label="normal", split="train", patient_id="p1", sha256="0" * 64)
    others = [
        dataclasses.replace(film, label="pneumonia"),
        dataclasses.replace(film, split="val"),
        dataclasses.replace(film, patient_id="p2"),
        dataclasses.replace(film, sha256="1" * 64),
    ]
    names = {fingerprint([film, other]) for other in [film, *others]} | {fingerprint([others[0], film])}
    assert len(names) == 6
    assert fingerprint([film]) == fingerprint([dataclasses.replace(film, path="/elsewhere.png")])


# --------------------------------------------------------------------------- values that cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SplitSettings(test=1.5), "test is 1.5"),
        (lambda: SplitSettings(validation=0.0), "validation is 0.0"),
        (lambda: Recipe(epochs="3"), "epochs is '3'; it must be a whole number"),
        (lambda: Recipe(epochs=3.5), "epochs is 3.5; it must be a whole number"),
        (lambda: Recipe(learning_rate=float("nan")), "learning_rate is nan"),
        (lambda: Augmentation(rotation="much"), "augmentation.rotation is 'much'; it must be a number"),
        (lambda: recipe_of("nope"), "no recipe 'nope'; there are default"),
        (lambda: Preprocessing(16, 16, Resize.SQUEEZE, 0.5, 0.2), "input size 16 x 16"),
        (lambda: Preprocessing(64, 64, "stretch", 0.5, 0.2), "'stretch' is no resize; it may be"),
        (lambda: write_pack([], "pack", resize="stretch"), "'stretch' is no resize; it may be"),
        (lambda: write_pack([], "pack", size=(16, 16)), "input size 16 x 16"),
    ],
)
def test_a_value_out_of_range_is_an_error_of_ours_before_any_work(
    make: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)) as found:
        make()
    assert found.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    assert Recipe(dropout=0) == Recipe(dropout=0.0)
    assert type(Recipe(dropout=0).dropout) is float
