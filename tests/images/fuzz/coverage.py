"""Coverage-guided fuzzing of ``decode``: new paths through the readers steer the damage. Needs atheris (Linux).

    python tests/images/fuzz/coverage.py [CORPUS] [-max_total_time=60] [other options of libFuzzer]

Without a corpus it starts from one drawn film of each format. libFuzzer writes what escapes to ``crash-*``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from test_fuzz_decode import FILMS  # before instrumenting: it writes the films

for name in [name for name in sys.modules if name.startswith("chestxray.images")]:
    del sys.modules[name]  # loaded anew below, this time instrumented
with atheris.instrument_imports(include=["chestxray.images"]):
    from chestxray.images.decode import decode

from chestxray.errors import FilmError  # noqa: E402


def one(data: bytes) -> None:
    """Pixels or a typed error; whatever else is raised ends the run."""
    try:
        decode(data, "fuzzed", at_least=(112, 160))
    except FilmError:
        return


def main() -> None:
    """Hand over to libFuzzer."""
    folder = tempfile.mkdtemp(prefix="films-")
    for number, film in enumerate(FILMS.values()):
        Path(folder, f"{number:02}").write_bytes(film)
    atheris.Setup([*sys.argv, folder, "-rss_limit_mb=2048", "-timeout=20"], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
