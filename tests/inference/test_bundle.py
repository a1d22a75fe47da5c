"""Signed bundles: real keys, the real library, and its own command line as the oracle."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import live_service
from chestxray.cli import main
from chestxray.errors import BundleInvalid, SignatureInvalid, UsageError
from chestxray.inference.bundle import (
    BUNDLE_JSON,
    PASSWORD_VARIABLE,
    SIGNATURE,
    VERIFY_KEY_VARIABLE,
    Bundle,
    folder_of,
    open_signed,
    sign_bundle,
)
from chestxray.inference.predictor import Predictor
from chestxray.serving.static import EXAMPLES

SMALL = "pneumonia"
FILES = (*Bundle.open(folder_of(SMALL)).info.files, BUNDLE_JSON)
FILM = EXAMPLES / "lobe.jpg"


class KeyPair(NamedTuple):
    private: Path
    public: Path


def write_pair(folder: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> KeyPair:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pair = KeyPair(folder / "key.pem", folder / "key.pub")
    folder.mkdir()
    pair.private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    public = key.public_key()
    pair.public.write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return pair


@pytest.fixture
def pair(tmp_path: Path) -> KeyPair:
    return write_pair(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    return shutil.copytree(folder_of(SMALL), tmp_path / "bundle")


@pytest.fixture
def signed(unsigned: Path, pair: KeyPair) -> Path:
    sign_bundle(unsigned, pair.private)
    return unsigned


def changed(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_signed_bundle_opens_is_whole_and_answers_as_before(signed: Path, pair: KeyPair) -> None:
    opened = open_signed(signed, pair.public)
    opened.verify()
    film = FILM.read_bytes()
    assert Predictor(opened).predict(film, "film") == Predictor.load(folder_of(SMALL)).predict(film, "film")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_keys_of_each_common_curve_sign(curve: ec.EllipticCurve, unsigned: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "keys", ec.generate_private_key(curve))
    sign_bundle(unsigned, pair.private)
    assert open_signed(unsigned, pair.public).info.name == SMALL


def test_a_bundle_may_be_moved_and_signed_again(signed: Path, pair: KeyPair, tmp_path: Path) -> None:
    moved = signed.rename(tmp_path / "elsewhere")
    open_signed(moved, pair.public)
    other = write_pair(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    sign_bundle(moved, other.private)
    open_signed(moved, other.public)
    with pytest.raises(SignatureInvalid, match=r"Key mismatch|not a signature"):
        open_signed(moved, pair.public)


# --------------------------------------------------------------------------- what a signature finds


@pytest.mark.parametrize("name", [*FILES, SIGNATURE])
def test_one_bit_changed_in_any_file_is_found(name: str, signed: Path, pair: KeyPair) -> None:
    changed(signed / name)
    with pytest.raises(BundleInvalid):
        open_signed(signed, pair.public)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_found(name: str, signed: Path, pair: KeyPair) -> None:
    (signed / name).unlink()
    with pytest.raises(BundleInvalid):
        open_signed(signed, pair.public)


def test_a_file_changed_together_with_its_hash_passes_the_hashes_and_not_the_signature(
    signed: Path, pair: KeyPair
) -> None:
    card = signed / "MODEL_CARD.md"
    before = hashlib.sha256(card.read_bytes()).hexdigest()
    card.write_text("Safe for clinical use.\n")
    description = signed / BUNDLE_JSON
    description.write_text(description.read_text().replace(before, hashlib.sha256(card.read_bytes()).hexdigest()))
    Bundle.open(signed).verify()
    with pytest.raises(SignatureInvalid, match=r"MODEL_CARD\.md"):
        open_signed(signed, pair.public)


@pytest.mark.parametrize("name", ["notes.txt", ".gitignore", "code/inference.py", "model.sig.old"])
def test_a_file_that_was_added_is_found(name: str, signed: Path, pair: KeyPair) -> None:
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).write_text("print('hello')\n")
    with pytest.raises(SignatureInvalid, match=f"Extra files.*{name}"):
        open_signed(signed, pair.public)


def test_a_file_that_became_a_link_is_found(signed: Path, pair: KeyPair, tmp_path: Path) -> None:
    (signed / "metrics.json").rename(tmp_path / "metrics.json")
    (signed / "metrics.json").symlink_to(tmp_path / "metrics.json")
    with pytest.raises(SignatureInvalid, match="symlink"):
        open_signed(signed, pair.public)


def test_no_signature_and_that_of_another_bundle_are_refused(signed: Path, pair: KeyPair, tmp_path: Path) -> None:
    other = shutil.copytree(folder_of("pneumonia"), tmp_path / "other")
    with pytest.raises(SignatureInvalid, match=r"not signed.*chestxray sign"):
        open_signed(other, pair.public)
    shutil.copy(signed / SIGNATURE, other)
    changed(other / "MODEL_CARD.md")
    with pytest.raises(SignatureInvalid, match="Hash mismatch for"):
        open_signed(other, pair.public)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "7", '{"verificationMaterial": {}}', "[" * 100_000, "\x00\xff"]
)
def test_a_signature_that_is_none_is_refused(text: str, signed: Path, pair: KeyPair) -> None:
    (signed / SIGNATURE).write_text(text, encoding="latin-1")
    with pytest.raises(SignatureInvalid):
        open_signed(signed, pair.public)


def test_a_damaged_bundle_and_one_with_a_link_are_not_signed(unsigned: Path, pair: KeyPair) -> None:
    (unsigned / "link").symlink_to(unsigned / BUNDLE_JSON)
    with pytest.raises(SignatureInvalid, match="symlink"):
        sign_bundle(unsigned, pair.private)
    (unsigned / "link").unlink()
    changed(unsigned / "gate.json")
    with pytest.raises(BundleInvalid, match=r"gate\.json"):
        sign_bundle(unsigned, pair.private)
    assert not (unsigned / SIGNATURE).exists()


# --------------------------------------------------------------------------- the format is everybody's


def openssf(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_openssf_command_verifies_what_was_signed_here(signed: Path, pair: KeyPair) -> None:
    verify = ("verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", pair.public)
    done = openssf(*verify)
    assert done.returncode == 0, done.stderr
    changed(signed / "model.onnx")
    assert openssf(*verify).returncode != 0


def test_what_the_openssf_command_signed_is_verified_here(unsigned: Path, pair: KeyPair) -> None:
    sign = ("sign", "key", unsigned, "--signature", unsigned / SIGNATURE, "--private_key", pair.private)
    assert openssf(*sign).returncode == 0
    assert open_signed(unsigned, pair.public).info.name == SMALL


@pytest.mark.parametrize("name", FILES)
def test_a_signature_that_leaves_a_file_of_the_bundle_out_is_refused(name: str, unsigned: Path, pair: KeyPair) -> None:
    sign = ("sign", "key", unsigned, "--signature", unsigned / SIGNATURE, "--private_key", pair.private)
    assert openssf(*sign, "--ignore-paths", unsigned / name).returncode == 0
    with pytest.raises(SignatureInvalid, match=name):
        open_signed(unsigned, pair.public)


# --------------------------------------------------------------------------- keys


def test_an_encrypted_key_signs_with_its_password_alone(unsigned: Path, tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()), b"ward 7")
    for password in (None, "ward 8"):
        with pytest.raises(UsageError, match=PASSWORD_VARIABLE):
            sign_bundle(unsigned, pair.private, password)
    sign_bundle(unsigned, pair.private, "ward 7")
    assert open_signed(unsigned, pair.public).info.name == SMALL


def test_files_that_are_no_keys_of_the_kind_are_wrong_usage(signed: Path, pair: KeyPair, tmp_path: Path) -> None:
    other = write_pair(tmp_path / "rsa", rsa.generate_private_key(65537, 2048))
    koblitz = write_pair(tmp_path / "koblitz", ec.generate_private_key(ec.SECP256K1()))
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_bytes(b"\x00\xff not a key")
    for private in (other.private, koblitz.private, rubbish, pair.public):
        with pytest.raises(UsageError, match="elliptic-curve key"):
            sign_bundle(signed, private)
    for public in (other.public, koblitz.public, rubbish, pair.private):
        with pytest.raises(UsageError, match="elliptic-curve key"):
            open_signed(signed, public)
    with pytest.raises(UsageError, match=r"gone\.pem: the key cannot be read \(No such file"):
        open_signed(signed, tmp_path / "gone.pem")


# --------------------------------------------------------------------------- the verbs


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chestxray(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_the_verbs_sign_and_verify_with_keys_that_openssl_makes(chestxray: Run, unsigned: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    for command in (
        f"openssl ecparam -name prime256v1 -genkey -noout -out {private}",
        f"openssl ec -in {private} -pubout -out {public}",
    ):
        subprocess.run(command, shell=True, check=True, capture_output=True)
    status, out, _ = chestxray("sign", unsigned, "--private-key", private, "--json")
    assert (status, json.loads(out)["signature"]) == (0, str(unsigned / SIGNATURE))
    status, out, _ = chestxray("verify", unsigned, "--public-key", public)
    assert (status, SMALL in out) == (0, True)
    changed(unsigned / "metrics.json")
    status, out, err = chestxray("verify", unsigned, "--public-key", public)
    assert (status, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith("SignatureInvalid: ")
    assert "metrics.json" in err


def test_machines_read_one_document_also_where_the_library_prints_a_warning(
    chestxray: Run, signed: Path, pair: KeyPair
) -> None:
    signature = json.loads((signed / SIGNATURE).read_text())
    del signature["verificationMaterial"]["publicKey"]["hint"]
    (signed / SIGNATURE).write_text(json.dumps(signature))
    status, out, err = chestxray("verify", signed, "--public-key", pair.public, "--json")
    assert (status, json.loads(out)["model"]) == (0, SMALL)
    assert "WARNING" in err


@pytest.fixture(params=["option", "environment"])
def demanding(request: pytest.FixtureRequest, pair: KeyPair, monkeypatch: pytest.MonkeyPatch) -> Sequence[object]:
    """Arguments that let a verb classify with signed bundles only."""
    if request.param == "option":
        return ("--verify-key", pair.public)
    monkeypatch.setenv(VERIFY_KEY_VARIABLE, str(pair.public))
    return ()


def test_predict_and_batch_classify_only_with_the_signed_bundle(
    chestxray: Run, signed: Path, tmp_path: Path, demanding: Sequence[object]
) -> None:
    verbs = (("predict", FILM), ("batch", EXAMPLES, "--workers", 1, "--out", tmp_path / "scores.csv"))
    for verb in verbs:
        assert chestxray(*verb, "--bundle", signed, *demanding)[0] == 0
    (tmp_path / "scores.csv").unlink()
    changed(signed / "gate.json")
    for bundle in (SMALL, signed):
        for verb in verbs:
            status, out, err = chestxray(*verb, "--bundle", bundle, *demanding)
            assert (status, out, len(err.splitlines())) == (1, "", 1)
            assert err.startswith("SignatureInvalid: ")
    assert not (tmp_path / "scores.csv").exists()


def test_serve_starts_with_the_signed_bundle_and_with_no_other(
    signed: Path, tmp_path: Path, demanding: Sequence[object]
) -> None:
    with live_service.process(signed, tmp_path / "log", *map(str, demanding)) as (address, _):
        answer = httpx.post(
            f"{address}/v1/predict", content=FILM.read_bytes(), headers={"Content-Type": "image/jpeg"}, timeout=60
        ).json()
    assert answer["model"] == SMALL
    changed(signed / "MODEL_CARD.md")
    command = [Path(sys.executable).with_name("chestxray"), "serve", "--bundle", signed, "--port", "0", *demanding]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith("SignatureInvalid: ")
    assert "MODEL_CARD.md" in done.stderr


@pytest.mark.parametrize("module", ["model_signing", "OpenSSL"])
def test_without_the_extra_a_key_that_is_demanded_is_never_passed_over(
    module: str, signed: Path, pair: KeyPair
) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from chestxray.cli import main; main(sys.argv[1:])"
    for arguments in (
        ["sign", signed, "--private-key", pair.private],
        ["verify", signed, "--public-key", pair.public],
        ["predict", FILM, "--bundle", signed, "--verify-key", pair.public],
        ["serve", "--bundle", signed, "--port", "0", "--verify-key", pair.public],
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.strip() == (
            'MissingExtra: This command needs an extra. Install it with: pip install "chestxray[sign]"'
        )
