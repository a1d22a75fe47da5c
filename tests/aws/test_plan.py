"""What a plan says that things cost: about, of when and where, and no more than is known."""

from __future__ import annotations

import re

import pytest

from chestxray.aws.deploy import Hosting
from chestxray.aws.plan import PRICE_UNKNOWN, Plan, PlanItem, dollars
from chestxray.aws.session import Names
from chestxray.aws.teardown import Found, Survey
from live_moto import ACCOUNT

NAMES = Names("chestxray", ACCOUNT, "eu-central-1")


def test_every_plan_says_about_of_when_and_where_and_that_the_bill_may_differ() -> None:
    text = Plan("deploy", (Hosting("ml.m5.large").item(NAMES, "until deleted"),)).text()
    assert "cost about $0.12 an hour" in text
    assert re.search(r"about those of the public list of \d{4}-\d{2} in us-east-1", text)
    assert "may differ" in text


def test_an_instance_without_a_price_is_planned_all_the_same_and_said_to_be_unknown() -> None:
    known, unknown = (Hosting(kind).item(NAMES, "") for kind in ("ml.m5.large", "ml.m9x.large"))
    assert unknown.hourly is None
    plan = Plan("deploy", (known, unknown))
    assert plan.hourly == pytest.approx(0.115)
    assert f"{unknown.name}: {PRICE_UNKNOWN}" in plan.text()
    assert f"an hour while it exists and what {unknown.name} costs" in plan.text()
    assert plan.document()["unpriced"] == [unknown.name]
    assert plan.document()["items"][1]["hourly"] is None


def test_what_is_deleted_costs_nothing_more() -> None:
    plan = Plan("destroy", (PlanItem("endpoint", "chestxray", hourly=None, does="delete"),))
    assert (plan.hourly, plan.unpriced) == (0, ())


def test_a_survey_adds_up_what_is_known_and_names_the_rest() -> None:
    found = Survey((Found("endpoint", "a", hourly=0.5), Found("training job", "b", hourly=None)), ())
    assert (found.hourly, found.unpriced) == (0.5, ("b",))
    assert dollars(None) == "unknown"
