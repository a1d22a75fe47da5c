"""``--compile``: where torch can compile the network, and where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chestxray.files import sha256_of_file
from chestxray.training.config import Recipe
from chestxray.training.run_folder import BEST_WEIGHTS
from packs import write_small_pack


def train(pack: Path, out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    recipe = out.with_suffix(".toml")
    recipe.write_text(Recipe(epochs=1, batch_size=8, precision="float32", dropout=0.0).to_toml())
    command = [str(Path(sys.executable).with_name("chestxray")), "train", str(pack), "--out", str(out), "--json"]
    return subprocess.run(
        [*command, "--recipe", str(recipe), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_uncompiled_and_says_so(tmp_path: Path) -> None:
    pack = write_small_pack(tmp_path / "pack")
    cache = str(tmp_path / "cache")
    done = train(pack, tmp_path / "run", "--compile", CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=cache)
    assert done.returncode == 0, done.stderr
    assert "--compile is left out: the network cannot be compiled here (" in done.stderr
    assert "Traceback" not in done.stderr
    plain = train(pack, tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    assert sha256_of_file(tmp_path / "run" / BEST_WEIGHTS) == sha256_of_file(tmp_path / "plain" / BEST_WEIGHTS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_network_learns_what_the_plain_one_learns(tmp_path: Path) -> None:
    pack = write_small_pack(tmp_path / "pack")
    losses = []
    for name, options in (("compiled", ["--compile"]), ("plain", [])):
        done = train(pack, tmp_path / name, *options, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr
        assert "left out" not in done.stderr
        losses.append(json.loads(done.stdout)["epochs"][0]["validation_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
