"""The house: imports point only upwards, torch has one home, and the command line starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import chestxray

ROOT = Path(chestxray.__file__).parent

# A module may import what stands above its own entry. The first row knows the standard library only.
ORDER = (
    ("errors", "progress", "text"),
    ("files", "arrays"),
    ("arguments",),
    ("schema",),
    ("images",),
    ("metrics",),
    ("data",),
    ("synthetic",),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("serving",),
    ("dicom",),
    ("diagnosis",),
    ("aws",),
    ("pipeline", "api", "plots"),
    ("cli",),
)
FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names}

ALLOWED_IN_VOCABULARY = frozenset(sys.stdlib_module_names) | {"chestxray"}
HOMES = {
    "torch": {"training"},
    "onnx": {"training"},
    "onnxruntime": {"inference"},
    "fastapi": {"serving"},
    "click": {"cli"},
}


def imports() -> Iterator[tuple[Path, str]]:
    """Every import in the package, inside functions too: (file, dotted name)."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: a relative import"
                if node.module == "chestxray":
                    yield from ((path, f"chestxray.{alias.name}") for alias in node.names)
                else:
                    yield path, node.module


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_its_place_in_the_order() -> None:
    rooms = {room_of(path) for path in ROOT.rglob("*.py")} - {"__init__", "__main__"}
    assert rooms <= set(FLOOR)


def test_imports_point_only_upwards() -> None:
    wrong = []
    for path, name in imports():
        here, there = room_of(path), name.split(".")[1] if name.startswith("chestxray.") else None
        if there in FLOOR and here in FLOOR and here != there and FLOOR[there] >= FLOOR[here]:
            wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_each_heavy_library_has_one_home() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in imports()
        if (home := HOMES.get(name.split(".")[0])) and room_of(path) not in home
    ]
    assert wrong == []


def test_only_those_who_run_the_stages_know_training() -> None:
    users = {room_of(path) for path, name in imports() if name.startswith("chestxray.training")}
    assert users <= {"training", "aws", "pipeline", "diagnosis", "api", "plots", "cli", "__init__"}


def test_the_vocabulary_needs_the_standard_library_only() -> None:
    foreign = [
        (path.name, name)
        for path, name in imports()
        if room_of(path) in {"errors", "progress", "text", "files", "schema"}
        and name.split(".")[0] not in ALLOWED_IN_VOCABULARY
    ]
    assert foreign == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from chestxray.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'onnxruntime', 'PIL', 'fastapi', 'matplotlib', 'boto3'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_listing_films_loads_no_numpy() -> None:
    code = "import sys; import chestxray.data.collect; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_a_house_of_its_own() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in ROOT.rglob("*.py") if (n := len(path.read_text().splitlines())) > 600
    }
    assert long == {}
