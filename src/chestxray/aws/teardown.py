"""Teardown: everything of a deployment is removed, in the right order, and searched again until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from chestxray.aws import waiting
from chestxray.aws.inventory import KINDS, Found, Kind
from chestxray.aws.plan import Item, Plan
from chestxray.aws.session import Cloud, Names, cloud_errors, unless_missing
from chestxray.errors import CloudError
from chestxray.progress import Log

PATIENCE_S: Final = 1800.0  # a distribution takes AWS a quarter of an hour to delete
UNDER_WAY: Final = frozenset(
    {"Stopping", "Deleting", "Creating", "Updating", "SystemUpdating", "RollingBack", "DELETE_IN_PROGRESS"}
)


@dataclass(frozen=True, slots=True)
class Survey:
    """The resources that were found.

    Attributes:
        found: everything of the deployment, in the order of deletion.
        foreign: resources with a name of ours that are not ours; they are not touched.
        unknown: kinds that could not be searched, and why.
    """

    found: tuple[Found, ...]
    unknown: tuple[str, ...]
    foreign: tuple[Found, ...] = ()

    @property
    def hourly(self) -> float:
        """Dollars an hour for everything, as far as the prices are known."""
        return sum(item.hourly or 0.0 for item in self.found)

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of resources whose further cost is not known here."""
        return tuple(item.name for item in self.found if item.hourly is None)


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a teardown.

    Attributes:
        removed: resources that are gone.
        left: resources that still exist, or may.
        problems: errors on the way, in sentences.
    """

    removed: tuple[Found, ...]
    left: tuple[Found, ...]
    problems: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """True if everything is gone for certain."""
        return not self.left and not self.problems


def survey(cloud: Cloud, names: Names, *, data: bool = True, endpoint: bool = False) -> Survey:
    """Search for all resources; a kind that may not be listed does not hide the others.

    Args:
        data: whether to include our bucket, and the records of training jobs.
        endpoint: only the endpoint, and its parts.
    """
    found: list[Found] = []
    unknown: list[str] = []
    for kind in _kinds(data=data, endpoint=endpoint):
        try:
            with cloud_errors(f"looking for {kind.what}"):
                found += kind.find(cloud, names)
        except CloudError as error:
            unknown.append(str(error))
    ours = tuple(item for item in found if not item.foreign)
    return Survey(ours, tuple(unknown), tuple(item for item in found if item.foreign))


def plan(found: Sequence[Found]) -> Plan:
    """Return what ``destroy`` would do."""
    items = [Item(item.kind, item.name, hourly=item.hourly, note=item.note, does="delete") for item in found]
    return Plan("destroy", tuple(items))


def destroy(
    cloud: Cloud,
    names: Names,
    before: Survey,
    log: Log,
    *,
    data: bool = True,
    endpoint: bool = False,
    patience: float = PATIENCE_S,
) -> Result:
    """Remove everything, continue after errors, and search again until nothing is left or patience ends.

    Args:
        before: the result of ``survey`` with the same ``data`` and ``endpoint``.
        data: also our bucket, with the bundles and the reports' scores, and the records of training jobs, by which
            bundles are found. The films' own bucket is never touched.
        endpoint: only the endpoint, and what goes with it.
        patience: seconds.
    """
    if not before.found:
        return Result((), (), before.unknown)
    until = time.monotonic() + patience
    told: set[tuple[str, str]] = set()
    while True:
        problems: dict[tuple[str, str], str] = {}
        for kind in _kinds(data=data, endpoint=endpoint):
            if _remove_all(cloud, names, kind, told, problems, log):
                break  # later kinds may still be needed by what is being deleted
        now = survey(cloud, names, data=data, endpoint=endpoint)
        stuck = bool(problems) and all((item.kind, item.name) in problems for item in now.found)
        if not now.found or stuck or time.monotonic() > until:
            break
        time.sleep(waiting.POLL_S)
    left = {(item.kind, item.name) for item in now.found}
    removed = tuple(item for item in before.found if (item.kind, item.name) not in left)
    kept = [reason for thing, reason in problems.items() if thing in left]
    return Result(removed, now.found, (*now.unknown, *kept))


def _kinds(*, data: bool, endpoint: bool) -> list[Kind]:
    if endpoint:
        return [kind for kind in KINDS if kind.of_endpoint]
    return [kind for kind in KINDS if data or not kind.is_data]


def _remove_all(
    cloud: Cloud,
    names: Names,
    kind: Kind,
    told: set[tuple[str, str]],
    problems: dict[tuple[str, str], str],
    log: Log,
) -> bool:
    """Remove all resources of a kind. Returns: whether some are still being deleted, without a problem."""
    found = _found(cloud, names, kind)
    for item in found:
        thing = (item.kind, item.name)
        if item.state in UNDER_WAY:
            continue
        if thing not in told:
            log(f"removing {item.kind} {item.name}")
            told.add(thing)
        try:
            with cloud_errors(f"removing {item.kind} {item.name}"):
                unless_missing(partial(kind.remove, cloud, names, item.name))  # may be gone meanwhile
        except CloudError as error:
            problems[thing] = str(error)
    return bool(found) and any(item.state in UNDER_WAY for item in _found(cloud, names, kind))


def _found(cloud: Cloud, names: Names, kind: Kind) -> tuple[Found, ...]:
    try:
        with cloud_errors(f"looking for {kind.what}"):
            return tuple(item for item in kind.find(cloud, names) if not item.foreign)
    except CloudError:
        return ()  # the survey at the end shows what is left
