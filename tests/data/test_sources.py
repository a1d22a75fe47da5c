"""Films in an object store: a real S3 protocol server on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import live_moto
from chestxray.cli import main
from chestxray.data import sources
from chestxray.data.clean import clean
from chestxray.data.collect import collect
from chestxray.data.pack import Pack
from chestxray.data.sources import read_film, stamp_of
from chestxray.errors import SourceInvalid
from chestxray.images import MAX_BYTES
from chestxray.schema import Film, read_manifest, write_manifest
from drawing import encoded, textured

boto3 = pytest.importorskip("boto3")

FILMS = {
    f"set/train/{folder}/{name}.png": encoded(textured(seed))
    for seed, (folder, name) in enumerate(
        [
            (f, n.format(i))
            for i in range(6)
            for f, n in (("NORMAL", "IM-{:04}-0001"), ("PNEUMONIA", "person{}_virus_1"))
        ]
    )
}
OTHERS = {"set/readme.txt": b"", "set/train/": b"", "setting/NORMAL/a.png": b"", "set/.hidden/NORMAL/b.png": b""}


@pytest.fixture
def store(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket with films, and boto3 pointed at it."""
    for name, value in {**live_moto.CREDENTIALS, sources.S3_ENDPOINT_VARIABLE: moto}.items():
        monkeypatch.setenv(name, value)
    sources.client.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="films")
    for key, data in {**FILMS, **OTHERS}.items():
        client.put_object(Bucket="films", Key=key, Body=data)
    yield client
    client.close()
    sources.client().close()
    sources.client.cache_clear()


@pytest.mark.parametrize("source", ["s3://films/set", "s3://films/set/"])
def test_the_films_below_a_prefix_are_collected_and_read(store: Any, tmp_path: Path, source: str) -> None:
    films = collect(source)
    assert [film.path for film in films] == sorted(f"s3://films/{key}" for key in FILMS)
    assert {(film.split, film.label) for film in films} == {("train", "normal"), ("train", "pneumonia")}
    assert all(read_film(film) == FILMS[film.path.removeprefix("s3://films/")] for film in films)
    write_manifest(films, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv") == films


def test_the_owner_of_a_bucket_is_stated_where_it_is_known(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 then refuses a bucket of that name in another account."""
    stated: list[tuple[str, Any]] = []

    def note(request: Any, operation_name: str, **_: Any) -> None:
        stated.append((operation_name, request.headers.get("x-amz-expected-bucket-owner")))

    sources.client().meta.events.register("before-sign.s3", note)
    first = next(iter(FILMS))
    for owner, told in (("", None), ("films=123456789012", "123456789012"), ("others=123456789012", None)):
        monkeypatch.setenv(sources.OWNER_VARIABLE, owner)
        collect("s3://films/set")
        sources.read_object(f"s3://films/{first}")
        found = dict(stated)
        assert found == {"ListObjectsV2": told, "GetObject": told}, owner
        stated.clear()


def test_more_objects_than_fit_one_page_are_all_listed(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "OBJECTS_AT_ONCE", 5)
    assert len(collect("s3://films/set")) == len(FILMS) == 12


def test_the_verbs_go_from_a_store_to_a_pack(
    store: Any, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sources.S3_ENDPOINT_VARIABLE, "http://127.0.0.1:9")  # the option has to win
    sources.client.cache_clear()
    at = ["--endpoint-url", moto]
    for arguments in (
        ["collect", "s3://films/set", "--out", tmp_path / "m.csv", *at],
        ["clean", tmp_path / "m.csv", "--out", tmp_path / "c.csv", *at],
        ["split", tmp_path / "c.csv", "--out", tmp_path / "s.csv"],
        ["pack", tmp_path / "s.csv", "--out", tmp_path / "pack", "--size", "32x32", *at],
    ):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        assert not end.value.code
    assert len(Pack.open(tmp_path / "pack").films) == len(FILMS)


def test_what_cannot_be_listed_or_fetched_says_so(store: Any) -> None:
    with pytest.raises(SourceInvalid, match=r"s3://nowhere/x: cannot be listed \(.*NoSuchBucket"):
        collect("s3://nowhere/x")
    with pytest.raises(SourceInvalid, match="names no bucket"):
        collect("s3:///x")
    with pytest.raises(SourceInvalid, match="holds no film"):
        collect("s3://films/empty")
    store.put_object(Bucket="films", Key="large.png", Body=bytes(MAX_BYTES + 1))
    gone, large = clean([Film("s3://films/gone.png"), Film("s3://films/large.png")])
    assert "cannot be fetched" in gone.reason
    assert "holds more than 67,108,864 bytes" in large.reason
    assert stamp_of(large) == ""
