"""The groups of ``batch`` on the same prediction path, distributed by Ray Data: on this machine or on a cluster.

``RAY_ADDRESS`` names a cluster; without it Ray is started here and stopped at the end. The bundle is sent to every
worker; the films must be where every worker can read them, on a shared disk or in S3.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from chestxray.data.parallel import started
from chestxray.inference.batch import READ_BY_PEOPLE, Group, predict_group
from chestxray.inference.bundle import Bundle
from chestxray.inference.journal import FilmResult
from chestxray.schema import Film

GROUPS_AT_ONCE: Final = 4096  # groups in one Ray data set: this many are listed in memory


class RayPredictor:
    """One worker: holds the unpacked bundle, and classifies groups of films."""

    def __init__(self, files: Any, description: str, *, require_age: bool) -> None:
        """Unpack the bundle.

        Args:
            files: a Ray reference to the bundle's files: bytes by name.
            description: the bundle's ``bundle.json``.
            require_age: refuse films whose file states no age.
        """
        import ray

        self._description = description
        self._require_age = require_age
        self._folder = tempfile.TemporaryDirectory()
        for name, data in ray.get(files).items():
            (Path(self._folder.name) / name).write_bytes(data)

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Classify the films of a group. Paths and results are JSON, which keeps numbers and names unchanged."""
        group = [Film(path) for path in json.loads(row["paths"])]
        folder = Path(self._folder.name)
        results = predict_group(group, folder, self._description, require_age=self._require_age)
        return {"results": json.dumps([dataclasses.astuple(found) for found in results])}


def predict_groups_on_ray(
    bundle: Bundle, groups: Iterable[Group], films: int, workers: int | None = None, *, require_age: bool = False
) -> Iterator[list[FilmResult]]:
    """Classify as ``batch.predict_groups`` does, with the same answers.

    Args:
        bundle: sent to each worker.
        groups: films that are sent to a worker together; consumed by the thousand.
        films: their number in all; if it is 0, Ray is not started.
        workers: number of workers, of one core each; by default as many as Ray has cores.
        require_age: refuse films whose file states no age.

    Raises: MissingExtra, BundleInvalid.
    """
    if not films:
        return
    bundle.graph()  # finds a damaged bundle before anything is started
    with started() as ray:
        names = [name for name in bundle.info.files if name not in READ_BY_PEOPLE]
        files = ray.put({name: (bundle.folder / name).read_bytes() for name in names})
        size = workers or int(ray.cluster_resources().get("CPU", 1))
        left = iter(groups)
        while some := list(islice(left, GROUPS_AT_ONCE)):
            rows = [{"paths": json.dumps([film.path for film in group])} for group in some]
            answered = ray.data.from_items(rows, override_num_blocks=_blocks(len(rows), size)).map(
                RayPredictor,
                fn_constructor_kwargs={
                    "files": files,
                    "description": bundle.info.to_json(),
                    "require_age": require_age,
                },
                compute=ray.data.ActorPoolStrategy(size=min(size, len(rows))),
            )
            for row in answered.iter_rows():
                yield [FilmResult(*found) for found in json.loads(row["results"])]


def _blocks(groups: int, workers: int) -> int:
    """Return the number of parts of a data set: many small ones, so that all workers end at about the same time."""
    return min(groups, 8 * workers)
