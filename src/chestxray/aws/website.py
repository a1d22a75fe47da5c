"""The website: page, API and function as one stack, and the few steps that CloudFormation cannot do.

The bundle's description, the page's files and the function's code all come from the bundle that the endpoint runs, or,
inline, from the one inside the function. Inline, the function is a zip archive and no container image, because pip can
fetch onnxruntime, numpy and Pillow for Lambda's system on any machine, whereas an image needs Docker; unpacked they
take well under the 250 MB that Lambda allows.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from chestxray.aws import lambda_handler, stacks
from chestxray.aws.deploy import running_variant
from chestxray.aws.images import files_in, package_files, zipped
from chestxray.aws.lambda_handler import MAX_BODY, ROUTES
from chestxray.aws.plan import (
    CLOUDFRONT_REQUEST,
    HTTP_API_REQUEST,
    LAMBDA_GB_SECOND,
    LAMBDA_REQUEST,
    Plan,
    PlanItem,
    dollars,
)
from chestxray.aws.session import Cloud, Names, cloud_errors
from chestxray.aws.storage import checksum_of_bytes, checksum_stored, ensure_bucket, put_bytes
from chestxray.errors import BundleInvalid, CloudError, CloudMissing, UsageError
from chestxray.inference.bundle import BUNDLE_JSON, Bundle
from chestxray.progress import Log

PYTHON: Final = "3.13"  # version in the function; website.yaml states the same
OF_DICOM: Final = ("imagecodecs", "pydicom", "pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg")
# in the versions installed here
LIBRARIES: Final = ("lazy-loader", "numpy", "onnxruntime", "pillow", "simplejpeg", *OF_DICOM)
CODECS: Final = "imagecodecs"  # has a hundred codecs in 80 MB; films need one of them, and its shared parts
NEEDED_CODECS: Final = frozenset({"_jpeg8", "_shared", "_shared_cython"})
# platforms of Amazon Linux 2023
PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
MAX_UNPACKED: Final = 250 * 2**20  # bytes; the limit of Lambda

_OF_THE_PACKAGE: Final = frozenset({".py", ".pyi", ".npz", ".json"})
_FOLDERS_NOT_NEEDED: Final = frozenset({"bundles", "page", "training"})
_NOT_NEEDED: Final = frozenset({"__pycache__", "bin", "tests", "test_files"})  # files of the libraries


def endpoint_archive(model: str) -> bytes:
    """Return the archive of the function that calls an endpoint; ``model`` is its answer to ``/v1/model``."""
    return zipped({"lambda_handler.py": Path(lambda_handler.__file__).read_bytes(), "model.json": model.encode()})


def inline_archive(bundle: Path, model: str, log: Log, python: str = "") -> bytes:
    """Return the archive of the function that classifies films itself: package, bundle, libraries for Lambda.

    Args:
        python: Python version of the function; by default ``PYTHON``.

    Raises: CloudError: too large for Lambda; UsageError: pip cannot fetch the libraries.
    """
    with tempfile.TemporaryDirectory(prefix="chestxray-") as made:
        _fetch_libraries(Path(made), python or PYTHON, log)
        files = {
            **needed_codecs(dict(files_in(Path(made), _NOT_NEEDED))),
            **package_files(without=_FOLDERS_NOT_NEEDED, suffixes=_OF_THE_PACKAGE),
            **_bundle_files(bundle),
            "model.json": model.encode(),
        }
    size = sum(map(len, files.values()))
    if size > MAX_UNPACKED:
        raise CloudError(
            f"the function would have {size / 2**20:,.0f} MiB; Lambda takes {MAX_UNPACKED / 2**20:,.0f}. "
            'Deploy an endpoint ("chestxray aws deploy") and leave out --inline'
        )
    return zipped(files)


def needed_codecs(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the libraries' files without codecs that no film needs, and without what only those codecs load.

    A shared object names what it loads, so a file that no kept object names is not needed.
    """

    def is_kept(name: str) -> bool:
        folder, _, file = name.partition("/")
        return folder != CODECS or not file.endswith((".so", ".pyd")) or file.partition(".")[0] in NEEDED_CODECS

    loadable = {name: data for name, data in files.items() if name.startswith(f"{CODECS}.libs/")}
    kept = {name: data for name, data in files.items() if name not in loadable and is_kept(name)}
    asking = [data for name, data in kept.items() if name.startswith(f"{CODECS}/") and ".so" in name]
    while asking:
        code = asking.pop()
        wanted = {name: data for name, data in loadable.items() if Path(name).name.encode() in code}
        asking += [data for name, data in wanted.items() if name not in kept]
        kept |= wanted
    return kept


def _bundle_files(bundle: Path) -> dict[str, bytes]:
    names = ("bundle.json", *Bundle.open(bundle).info.files)
    return {f"bundle/{name}": (bundle / name).read_bytes() for name in names}


def _fetch_libraries(folder: Path, python: str, log: Log) -> None:
    wanted = [f"{name}=={metadata.version(name)}" for name in LIBRARIES]
    log(f"fetching {', '.join(wanted)} for Python {python} on Linux")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--target", str(folder), "--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise UsageError(
            f"pip cannot fetch the function's libraries: {reason[0]}. Is it installed, and the network up?"
        )


CODE: Final = "website/"  # the folder of the function's archives in our bucket
SERVERLESS_BODY: Final = 4_000_000  # bytes that an endpoint accepts in one request: serverless, and on instances
INSTANCE_BODY: Final = 25_000_000
INLINE_BODY: Final = 25_000_000
MAX_KEYS: Final = 3500  # characters of all keys: a function's environment holds 4 KB, with everything else in it
_ORIGIN: Final = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?")
_REST: Final = re.compile(r"[A-Za-z0-9_-]{1,128}(/[A-Za-z0-9._~-]+)*")
FUNCTION_GB: Final = 1769 / 1024  # memory of the function that classifies films itself
FILM_SECONDS: Final = 1.0  # for one film in such a function; an estimate


@dataclass(frozen=True, slots=True)
class WebsiteSettings:
    """The configuration of the website.

    Attributes:
        access: "key", "iam" or "open".
        inline: whether the model is inside the function; otherwise the function calls the deployment's endpoint.
        api_keys: "SHA-256 NAME" entries, joined by commas, with access "key".
        email: address for the alarm when the budget is reached; "" for no budget.
        budget: dollars a month.
        rate: requests a second; twice as many at once.
        origins: origins of other pages that may call, such as ``https://ward.example.org``; or "*".
        rest: a REST API beside the HTTP API, as ``STAGE`` or ``STAGE/PATH``; "" for none.

    Raises: UsageError.
    """

    access: str
    inline: bool = False
    api_keys: str = ""
    email: str = ""
    budget: int = 20
    rate: int = 10
    origins: tuple[str, ...] = ()
    rest: str = ""

    @property
    def rest_stage(self) -> str:
        """Stage of the REST API; "" for none."""
        return self.rest.strip("/").partition("/")[0]

    @property
    def rest_path(self) -> str:
        """Path of the REST API at which films are classified, without its first slash."""
        return self.rest.strip("/").partition("/")[2] or "classify"

    def __post_init__(self) -> None:
        if self.access not in {"key", "iam", "open"}:
            raise UsageError(f"--access {self.access}: choose key, iam or open")
        if len(self.api_keys) > MAX_KEYS:
            raise UsageError(
                f"--api-keys: {self.api_keys.count(',') + 1} keys take {len(self.api_keys):,} characters, and the "
                f"environment of a function holds {MAX_KEYS:,}. Give fewer keys, or shorter names"
            )
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--origin {origin}: write it as browsers do, https://ward.example.org, without a path"
                )
        if self.rest and not _REST.fullmatch(self.rest.strip("/")):
            raise UsageError(f"--rest-api {self.rest}: give STAGE or STAGE/PATH, of letters, digits, - and _")
        if bool(self.api_keys) != (self.access == "key"):
            raise UsageError(
                "--api-keys belongs to --access key. Give both, or neither"
                if self.api_keys
                else '--access key needs --api-keys FILE. "chestxray key NAME" makes a key and its line'
            )


@dataclass(frozen=True, slots=True)
class Website:
    """A published website.

    Attributes:
        address: address of the page.
        api: address of the API itself, for signed requests.
        did: "create", "update" or "keep".
        page_files: number of the page's files that were new or changed.
        rest: address at which the REST API classifies films; "" without one.
    """

    address: str
    api: str
    did: str
    site_files: int
    stack: str
    rest: str = ""


@dataclass(frozen=True, slots=True)
class SiteModel:
    """The model behind the website: a bundle's folder, and the name of its endpoint, if any."""

    folder: Path
    endpoint: str
    max_film: int


@contextmanager
def site_model(cloud: Cloud, names: Names, folder: Path | None) -> Iterator[SiteModel]:
    """Yield the bundle in ``folder``, inline; without a folder, a temporary copy of the endpoint's bundle.

    Raises: CloudError, BundleInvalid.
    """
    if folder is not None:
        Bundle.open(folder).verify()
        yield SiteModel(folder, "", INLINE_BODY)
        return
    with tempfile.TemporaryDirectory(prefix="chestxray-") as made:
        variant, model = running_model(cloud, names)
        limit = SERVERLESS_BODY if "ServerlessConfig" in variant else INSTANCE_BODY
        yield SiteModel(_fetched_bundle(cloud, model, Path(made)), names.endpoint, limit)


def website_plan(names: Names, settings: WebsiteSettings, there: bool) -> Plan:  # noqa: FBT001 - whether there is one
    """Return what publishing will do."""
    per_thousand = 1000 * (HTTP_API_REQUEST + LAMBDA_REQUEST + 2 * CLOUDFRONT_REQUEST)
    if settings.inline:
        per_thousand += 1000 * FILM_SECONDS * FUNCTION_GB * LAMBDA_GB_SECOND
    does = "update" if there else "create"
    items = [
        PlanItem("bucket", names.bucket, note="the function's code", does="keep" if there else "create"),
        PlanItem("stack", names.website_stack, note="page, API, function, roles, logs; deleted by destroy", does=does),
        PlanItem(
            "requests to",
            "page and API",
            note=f"about {dollars(per_thousand)} a thousand films"
            + ("" if settings.inline else ", beside the endpoint's own costs"),
            does="answer",
        ),
    ]
    if settings.email:
        alarm = f"mail to {settings.email} at 80% of ${settings.budget} a month, whole account"
        items.append(PlanItem("budget", names.website_stack, note=alarm, does=does))
    return Plan("website", tuple(items))


def publish(cloud: Cloud, names: Names, settings: WebsiteSettings, behind: SiteModel, log: Log) -> Website:
    """Send the code, update the stack, send the page. Raises: CloudError, UsageError."""
    ensure_bucket(cloud, names)
    code = _send_code(cloud, names, settings, behind, log)
    parameters = {
        "Access": settings.access,
        "ApiKeys": settings.api_keys,
        "EndpointName": behind.endpoint,
        "CodeBucket": names.bucket,
        "CodeKey": code,
        "MaxFilm": str(behind.max_film),
        "RequestsPerSecond": str(settings.rate),
        "RequestsAtOnce": str(2 * settings.rate),
        "BudgetEmail": settings.email,
        "BudgetDollars": str(settings.budget),
        "Origins": ",".join(settings.origins),
        "RestStage": settings.rest_stage,
        "RestPath": settings.rest_path,
        "PermissionsBoundary": cloud.rules.boundary,
    }
    stack = stacks.deploy_stack(cloud, names, names.website_stack, stacks.stack_template("website"), parameters, log)
    changed = _send_page(cloud, stack.outputs["PageBucket"], behind.folder)
    if changed and stack.did != "create":
        _invalidate_page(cloud, stack.outputs["DistributionId"])
    outputs = stack.outputs
    return Website(outputs["Address"], outputs["Api"], stack.did, changed, stack.name, outputs.get("Rest", ""))


def site_files(folder: Path) -> Iterator[tuple[str, bytes, str]]:
    """Yield the page's files as (key, content, media type), with this API's description for its documentation."""
    from chestxray.serving import static

    for key, content, media_type in static.page_files():
        short = static.SHORT_NAMES.get(f"/{key}", "").lstrip("/")
        for name in filter(None, (key, short)):  # the distribution itself answers "/"
            yield name, content, media_type
    yield "openapi.json", _openapi(folder), static.ASSET_MEDIA_TYPES[".json"]


def _openapi(folder: Path) -> bytes:
    from chestxray.inference.predictor import Predictor
    from chestxray.serving.app import create_app

    document = create_app(Predictor.load(folder)).openapi()
    ours = {path for _, path in ROUTES}
    document["paths"] = {path: operations for path, operations in document["paths"].items() if path in ours}
    return json.dumps(document).encode()


def running_model(cloud: Cloud, names: Names) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the variant and the model of the deployment's endpoint. Raises: CloudMissing, without one; CloudError."""
    variant = running_variant(cloud, names)
    if variant is None:
        raise CloudMissing(
            f'there is no endpoint {names.endpoint} for the website to ask. Make it with "chestxray aws deploy", '
            "or put the model into the function with --inline"
        )
    with cloud_errors(f"looking for the model {variant['ModelName']}"):
        return variant, cloud.client("sagemaker").describe_model(ModelName=variant["ModelName"])


def _fetched_bundle(cloud: Cloud, model: Mapping[str, Any], into: Path) -> Path:
    """Fetch the bundle from a model's archive. Raises: BundleInvalid, CloudError."""
    address = model["PrimaryContainer"].get("ModelDataUrl", "")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    archive = into / "model.tar.gz"
    with cloud_errors(f"fetching {address}"):
        cloud.client("s3").download_file(bucket, key, str(archive))
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(into / "model", filter="data")
    except (tarfile.TarError, OSError) as error:
        raise BundleInvalid(f"{address}: cannot be unpacked ({error}). Deploy it again") from error
    found = next((into / "model").rglob(BUNDLE_JSON), None)
    if found is None:
        raise BundleInvalid(f"{address}: holds no {BUNDLE_JSON}. Deploy a bundle with chestxray aws deploy")
    return found.parent


def _send_code(cloud: Cloud, names: Names, settings: WebsiteSettings, behind: SiteModel, log: Log) -> str:
    """Send the function's archive unless it is there. Returns: its key."""
    from chestxray.serving.app import describe_model

    model = describe_model(behind.folder, Bundle.open(behind.folder).info, MAX_BODY)
    archive = inline_archive(behind.folder, model, log) if settings.inline else endpoint_archive(model)
    key = f"{CODE}{hashlib.sha256(archive).hexdigest()}.zip"
    with cloud_errors(f"sending the function's code to {names.bucket}"):
        client = cloud.client("s3")
        if not checksum_stored(client, names.bucket, key):
            log(f"sending the function's code ({len(archive) / 1e6:,.1f} MB)")
            put_bytes(client, names.bucket, key, archive)
    return key


def _send_page(cloud: Cloud, bucket: str, folder: Path) -> int:
    """Send new and changed files of the page. Returns: their number."""
    client, sent = cloud.client("s3"), 0
    with cloud_errors(f"sending the page to {bucket}"):
        for key, content, media_type in site_files(folder):
            if checksum_stored(client, bucket, key) != checksum_of_bytes(content):
                put_bytes(client, bucket, key, content, ContentType=media_type, CacheControl="no-cache")
                sent += 1
    return sent


def _invalidate_page(cloud: Cloud, distribution: str) -> None:
    """Make the content delivery network fetch the page again."""
    paths = {"Quantity": 1, "Items": ["/*"]}
    with cloud_errors("telling the distribution that the page changed"):
        cloud.client("cloudfront").create_invalidation(
            DistributionId=distribution, InvalidationBatch={"Paths": paths, "CallerReference": str(time.time_ns())}
        )
