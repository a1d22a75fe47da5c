"""The audit of the pinned versions: the real pip-audit before a stand-in for the advisory service."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stand_in import StandIn, serving
from supply_chain import NOT_AUDITED, Audit, audit, read_audit

ADVISORY = {
    "id": "GHSA-0000-0000-0000",
    "summary": "Reads what it must not.",
    "affected": [
        {
            "package": {"name": "shaky", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2"}]}],
        }
    ],
}


class Advisories(StandIn):
    """Knows one weakness, of one package."""

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        answer = {"vulns": [ADVISORY]} if asked["package"]["name"] == "shaky" else {}
        self.reply(200, json.dumps(answer).encode())


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serving(Advisories) as address:
        monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
        monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"{address}/v1/query")
        yield


def requirements(folder: Path, *lines: str) -> Path:
    path = folder / "constraints.txt"
    path.write_text("# pins\n" + "".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.usefixtures("service")
def test_what_is_known_of_a_pinned_version_is_told_and_fails(tmp_path: Path) -> None:
    found = audit(requirements(tmp_path, "shaky==1.1", "sound==2.0"))
    assert found == Audit(asked=2, found=("shaky 1.1: GHSA-0000-0000-0000, mended in 1.2",))
    assert found.status == 1
    assert "2 packages audited, 1 vulnerabilities" in str(found)


@pytest.mark.usefixtures("service")
def test_where_everything_was_looked_at_and_nothing_found_all_is_well(tmp_path: Path) -> None:
    found = audit(requirements(tmp_path, "sound==2.0"))
    assert (found, found.status) == (Audit(asked=1), 0)


def test_a_service_that_cannot_be_reached_is_no_clean_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("PIP_AUDIT_VULNERABILITY_SERVICE", "osv")
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"http://127.0.0.1:{port}/v1/query")
    found = audit(requirements(tmp_path, "sound==2.0"))
    assert found.status == NOT_AUDITED
    assert str(found).startswith("NOT audited: the advisory service was not reached (")


def test_a_package_that_the_service_does_not_know_is_no_clean_bill_either() -> None:
    skipped = {"name": "inhouse", "skip_reason": "Dependency not found on PyPI and could not be audited"}
    found = read_audit(json.dumps({"dependencies": [skipped], "fixes": []}), "No known vulnerabilities found\n")
    assert found.status == NOT_AUDITED
    assert "NOT audited: 1 packages that the advisory service did not know (inhouse)" in str(found)
