"""Worker processes: one that ends costs the item that ended it, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from chestxray.data.collect import collect
from chestxray.data.parallel import AHEAD, mapper_of, pooled
from chestxray.errors import UsageError
from chestxray.schema import write_manifest

FATAL = 13


def squared(value: int) -> int:
    if value == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


def lost(value: int) -> int:
    return -value


def test_an_item_that_ends_its_process_is_lost_and_every_other_has_its_result_in_order() -> None:
    expected = [lost(value) if value == FATAL else value * value for value in range(30)]
    assert list(pooled(squared, range(30), 2, lost)) == expected


def test_without_a_result_for_it_an_item_that_ends_its_process_is_an_error() -> None:
    with pytest.raises(BrokenProcessPool):
        list(pooled(squared, range(30), 2))


def threads_of_a_product(_: int) -> str | None:
    return os.environ.get("OPENBLAS_NUM_THREADS")


def test_processes_beside_each_other_multiply_matrices_on_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert set(pooled(threads_of_a_product, range(2), 2)) == {"1"}
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert set(pooled(threads_of_a_product, range(2), 2)) == {"3"}


def test_items_are_taken_as_the_work_goes() -> None:
    taken = []

    def items() -> Iterator[int]:
        for value in range(1000, 1100):
            taken.append(value)
            yield value

    results = pooled(squared, items(), 1)
    assert next(results) == 1_000_000
    assert len(taken) == AHEAD + 1
    results.close()


PARENT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
import multiprocessing
from chestxray.data.parallel import pooled
from test_parallel import squared
if __name__ == "__main__":
    results = pooled(squared, iter(range(1000, 9000)), 2)
    next(results)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("threads", ["1", "2"], ids=["forked", "started anew"])
def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path, threads: str) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", Path(__file__).parent],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": threads},
    ) as parent:
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(is_running, workers))
        parent.kill()
    for _ in range(600):
        if not any(map(is_running, workers)):
            break
        time.sleep(0.05)
    assert not any(map(is_running, workers))


def is_running(process: int) -> bool:
    """Neither gone nor a zombie that waits to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


FORKED = """
import sys, threading
from chestxray.data.parallel import pooled
sys.modules["marker"] = sys
if sys.argv[1:] == ["2"]:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(*pooled(eval, ["'marker' in __import__('sys').modules"], 1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")
def test_only_a_process_of_one_thread_is_forked_and_its_workers_have_what_it_has_imported() -> None:
    """A fork of a process that runs threads may deadlock."""
    for threads, forked in {"1": "True", "2": "False"}.items():
        done = subprocess.run(
            [sys.executable, "-c", FORKED, threads], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.stdout.split() == [forked], done.stderr


def test_a_script_without_a_guard_around_its_main_part_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import math\n"
        "from chestxray.data.parallel import map_in_order\n"
        "print('begins')\n"
        "print(sum(map_in_order(math.isqrt, range(1000), workers=2)))\n"
        "print(__file__, __spec__)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=120)
    expected = sum(int(value**0.5) for value in range(1000))
    assert done.stdout.splitlines() == ["begins", str(expected), f"{script} None"], done.stderr


# --------------------------------------------------------------------------- on Ray


@pytest.mark.slow
def test_ray_cleans_and_packs_to_the_same_bytes(synthetic_films: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    write_manifest(collect(synthetic_films), tmp_path / "films.csv")
    command = Path(sys.executable).with_name("chestxray")

    def run(*words: object) -> None:
        subprocess.run([str(word) for word in (command, *words)], check=True, capture_output=True)

    for engine in ("local", "ray"):
        options = ("--engine", engine, "--workers", 2)
        cleaned, split, packed = (tmp_path / f"{name}-{engine}" for name in ("clean.csv", "split.csv", "pack"))
        run("clean", tmp_path / "films.csv", "--out", cleaned, *options)
        run("split", cleaned, "--out", split)
        run("pack", split, "--out", packed, *options)
    assert (tmp_path / "clean.csv-ray").read_bytes() == (tmp_path / "clean.csv-local").read_bytes()
    for name in ("images.npy", "manifest.csv", "pack.json"):
        assert (tmp_path / "pack-ray" / name).read_bytes() == (tmp_path / "pack-local" / name).read_bytes()


@pytest.mark.slow
def test_an_error_on_ray_is_the_error_itself() -> None:
    pytest.importorskip("ray")
    code = (
        "from chestxray.data.parallel import map_in_order_on_ray as run\n"
        "from chestxray.files import sha256_of_file\n"
        "from pathlib import Path\n"
        "try: list(run(sha256_of_file, [Path('nowhere')], workers=1))\n"
        "except FileNotFoundError as error: print('told', error.filename)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "told nowhere\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [False, True])
def test_ray_works_with_as_many_workers_as_were_asked_for(cluster: bool) -> None:
    pytest.importorskip("ray")
    code = (
        "import os, time, ray\n"
        "from chestxray.data.parallel import ADDRESS_VARIABLE, map_in_order_on_ray as run\n"
        "def span(_):\n"
        "    began = time.time()\n"
        "    time.sleep(0.02)\n"
        "    return began, time.time()\n"
        f"if {cluster}:\n"
        "    from ray.cluster_utils import Cluster\n"
        "    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 3, 'include_dashboard': False})\n"
        "    os.environ[ADDRESS_VARIABLE] = cluster.address\n"
        "spans = sorted(run(span, range(80), workers=1))\n"
        "print(all(before[1] <= after[0] for before, after in zip(spans, spans[1:])))\n"
        f"if {cluster}:\n"
        "    cluster.shutdown()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stderr


def test_an_engine_that_nobody_knows_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"no engine 'spark'; there are local, ray"):
        mapper_of("spark")
