"""A bundle: a trained network with everything that is needed to use it, in one folder; and its signature.

    model.onnx            input "film": uint8 (N, 1, height, width)
                          outputs "logit": float32 (N,); "activation": float32 (N, rows, columns)
    weights.safetensors   the same weights, for further training
    bundle.json           BundleInfo: preprocessing, calibration, operating points, hashes
    MODEL_CARD.md, metrics.json
    model.sig             optional, in the format of OpenSSF's Model Signing: a Sigstore bundle; in it a DSSE envelope
                          with an in-toto statement: the SHA-256 of every other file of the folder

No pickle, no ONNX external data, nothing executable.

The hashes in ``bundle.json`` find damage. They do not stop an attacker who changes a file and its hash together; a
signature does. Keys are elliptic-curve keys in PEM (P-256, P-384, P-521); nothing here uses the network.

Source: https://github.com/sigstore/model-transparency, "Model Signing Format"; its own command line verifies what is
signed here, and the other way round.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chestxray.errors import BundleInvalid, SignatureInvalid, UsageError
from chestxray.files import folder_written_whole, read_text, sha256_of_file, write_atomically
from chestxray.schema import BundleInfo

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

BUNDLE_JSON: Final = "bundle.json"
GRAPH: Final = "model.onnx"
BUNDLES: Final = Path(__file__).parents[1] / "bundles"
DEFAULT: Final = "pneumonia"

SIGNATURE: Final = "model.sig"
VERIFY_KEY_VARIABLE: Final = "CHESTXRAY_VERIFY_KEY"  # the public key that must verify the signature
PASSWORD_VARIABLE: Final = "CHESTXRAY_SIGNING_PASSWORD"  # noqa: S105 - a name; of the private key, where it has one
# a damaged signature file may hold anything
_NONSENSE: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_CURVES: Final = "an elliptic-curve key (P-256, P-384 or P-521) in PEM"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle: its folder and its description. The graph's hash is not checked yet."""

    folder: Path
    info: BundleInfo

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Open a bundle. Raises: BundleInvalid, if the description or a file that it lists is missing."""
        folder = Path(folder)
        description = folder / BUNDLE_JSON
        try:
            text = read_text(description).decode("utf-8")
        except (OSError, ValueError) as error:
            raise BundleInvalid(
                f'{folder}: not a bundle, {BUNDLE_JSON} cannot be read. Make one with "chestxray export"'
            ) from error
        info = BundleInfo.from_json(text, str(description))
        for name in info.files:
            if Path(name).name != name:
                raise BundleInvalid(f"{folder}: lists {name!r}, which lies outside the bundle")
            if not (folder / name).is_file():
                raise BundleInvalid(f"{folder}: {name} is missing. Copy the whole folder again")
        return cls(folder, info)

    def graph(self) -> bytes:
        """Return the ONNX graph, after a check of its hash. Raises: BundleInvalid."""
        return self.read(GRAPH)

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file, after a check of its hash. Raises: BundleInvalid."""
        data = (self.folder / name).read_bytes()
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def verify(self) -> None:
        """Check every file against its hash. Raises: BundleInvalid, which names the first file that differs."""
        for name in self.info.files:
            self._compare(name, sha256_of_file(self.folder / name))

    def _compare(self, name: str, found: str) -> None:
        expected = self.info.files[name]
        if found != expected:
            raise BundleInvalid(
                f"{self.folder / name}: SHA-256 is {found[:12]}..., expected {expected[:12]}...: "
                "the file was changed or damaged. Copy the whole folder again"
            )


def write_bundle(folder: Path, info: BundleInfo, files: Mapping[str, bytes]) -> BundleInfo:
    """Write a complete bundle or nothing; its hashes are computed from ``files``.

    Law: ``Bundle.open(folder).info`` equals the returned description.

    Raises: OutputExists, if ``folder`` exists and is no bundle.
    """
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    complete = dataclasses.replace(info, files=hashes)
    with folder_written_whole(folder, marker=BUNDLE_JSON) as beside:
        for name, data in files.items():
            (beside / name).write_bytes(data)
        (beside / BUNDLE_JSON).write_text(complete.to_json(), encoding="utf-8")
    return complete


def shipped_bundles() -> tuple[str, ...]:
    """Return the names of the bundles in this package, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in BUNDLES.glob(f"*/{BUNDLE_JSON}")))


def folder_of(bundle: str | Path) -> Path:
    """Return the folder of a bundle, given by its path or by the name of a bundle in this package.

    A folder of that name in the working directory takes precedence.

    Raises: BundleInvalid: neither exists; the message names the bundles in the package.
    """
    folder = Path(bundle)
    if folder.exists():
        return folder
    if str(bundle) in shipped_bundles():
        return BUNDLES / bundle
    raise BundleInvalid(
        f"{bundle}: no such folder, and no bundle of that name comes with this package, which has "
        f'{", ".join(shipped_bundles()) or "none"}. Make one with "chestxray run"'
    )


def sign_bundle(folder: Path, private_key: Path, password: str | None = None) -> Path:
    """Sign every file of a bundle, as it is now; an earlier signature is replaced.

    Args:
        folder: the bundle's folder; a damaged bundle is not signed.
        private_key: the key's file.
        password: password of the private key; None if it has none.

    Returns: the signature's file, inside the folder.
    Raises: BundleInvalid, SignatureInvalid (a link in the folder), UsageError (the key), OSError.
    """
    from tempfile import TemporaryDirectory

    from model_signing import signing

    Bundle.open(folder).verify()
    with _key_faults(private_key, f"{_CURVES}; where it is encrypted, its password in {PASSWORD_VARIABLE}"):
        signer = signing.Config().use_elliptic_key_signer(
            private_key=private_key,
            password=password.encode() if password else None,  # type: ignore[arg-type] # declared str, handed on as bytes
        )
    signer.set_hashing_config(_every_file())
    with TemporaryDirectory() as beside:
        written = Path(beside) / SIGNATURE
        try:
            signer.sign(folder, written)
        except ValueError as error:
            raise SignatureInvalid(f"{folder}: cannot be signed ({_first_line(error)})") from error
        write_atomically(folder / SIGNATURE, written.read_bytes())
    return folder / SIGNATURE


def open_signed(folder: Path, public_key: Path) -> Bundle:
    """Open a bundle that the holder of a key has signed and that has not changed since.

    The returned bundle is the signed one even if the folder is changed meanwhile: its description is compared with the
    signature after it was read, and each other file with the description whenever it is read.

    Raises: SignatureInvalid, BundleInvalid, UsageError (the key).
    """
    bundle = Bundle.open(folder)
    signed = _signed_hashes(folder, public_key)
    description = (folder / BUNDLE_JSON).read_bytes()
    expected = {BUNDLE_JSON: hashlib.sha256(description).hexdigest(), **bundle.info.files}
    for name, digest in expected.items():
        if signed.get(name) != digest:
            raise SignatureInvalid(f"{folder / name}: not what was signed. Copy the whole folder again")
    if BundleInfo.from_json(description.decode(), BUNDLE_JSON) != bundle.info:
        raise SignatureInvalid(f"{folder / BUNDLE_JSON}: changed while it was read. Do not let others write there")
    return bundle


def open_bundle(folder: Path, verify_key: Path | None = None) -> Bundle:
    """Open a bundle for use; check its signature if a key is given here or by CHESTXRAY_VERIFY_KEY.

    Raises: BundleInvalid; if there is a key, SignatureInvalid and UsageError.
    """
    key = verify_key or os.environ.get(VERIFY_KEY_VARIABLE)
    return open_signed(folder, Path(key)) if key else Bundle.open(folder)


def _signed_hashes(folder: Path, public_key: Path) -> Mapping[str, str]:
    """Return the SHA-256 of each signed file by name, after a check of the signature and of the folder."""
    from tempfile import TemporaryDirectory

    from model_signing import verifying

    with _key_faults(public_key, _CURVES):
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    verifier.set_hashing_config(_every_file())
    try:
        signature = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise SignatureInvalid(
            f"{folder}: not signed ({SIGNATURE} cannot be read), and {public_key} is to have signed it. "
            'Sign it with "chestxray sign"'
        ) from error
    # imported after the library above, whose absence names the extra to install
    from cryptography.exceptions import InvalidSignature

    # verify a copy: the bytes that are verified are those whose hashes are returned
    with TemporaryDirectory() as beside:
        copy = Path(beside) / SIGNATURE
        copy.write_bytes(signature)
        try:
            with redirect_stdout(sys.stderr):  # the library prints its warnings to standard output
                verifier.verify(folder, copy)
            return _hashes_in(signature)
        except InvalidSignature as error:
            raise SignatureInvalid(f"{folder / SIGNATURE}: not a signature by {public_key}") from error
        except _NONSENSE as error:
            raise SignatureInvalid(
                f"{folder}: not as {public_key} signed it ({_what_differs(error)}). Copy the whole folder again"
            ) from error


def _hashes_in(signature: bytes) -> dict[str, str]:
    """Return the hashes in a signature that was verified before. Raises: ValueError, LookupError, TypeError."""
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    resources = statement["predicate"]["resources"]
    return {resource["name"]: resource["digest"] for resource in resources if resource["algorithm"] == "sha256"}


def _every_file() -> HashingConfig:
    """Return the hashing options: every file by its SHA-256, hidden files too; only the signature is left out."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


@contextmanager
def _key_faults(path: Path, wanted: str) -> Iterator[None]:
    """Turn errors of reading a key's file into UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be read ({error.strerror or error})") from error
    except Exception as error:  # parsers of keys raise many kinds of errors for invalid bytes
        raise UsageError(f"{path}: not a key for this. Give {wanted}") from error


def _what_differs(error: BaseException) -> str:
    """Return the first difference in the library's message, without its brackets and the bytes of the hashes."""
    reason = _first_line(error).removeprefix("Signature mismatch: ").replace("\\'", "'").partition(": Expected ")[0]
    return re.sub(r"^\[[\"']|[\"']\]$", "", reason)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(". ")
