"""What a command is about to create, and its cost: shown before anything is done.

Prices are list prices in US dollars, of one region, without tax.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from chestxray.aws.session import Names

PRICES_AS_OF: Final = "2025-06"
PRICES_REGION: Final = "us-east-1"  # the region of these prices, for deployments in any region
PRICES_NOTICE: Final = (
    f"Prices are about those of the public list of {PRICES_AS_OF} in {PRICES_REGION}, in US dollars, without tax and "
    "free tiers. "
    "Your region, your contract and today's list may differ."
)
PRICE_UNKNOWN: Final = "price not known here"

# Dollars an hour of one instance; hosting, training and batch transform cost the same.
INSTANCES: Final = {
    "ml.t2.medium": 0.056,
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.c5.large": 0.102,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
    "ml.g4dn.xlarge": 0.736,
    "ml.g4dn.2xlarge": 0.94,
    "ml.g5.xlarge": 1.408,
    "ml.g5.2xlarge": 1.515,
}

SERVERLESS_GB_SECOND: Final = 0.00002  # dollars, of a serverless endpoint, while it computes
LAMBDA_GB_SECOND: Final = 0.0000166667
LAMBDA_REQUEST: Final = 0.20 / 1e6
HTTP_API_REQUEST: Final = 1.00 / 1e6
CLOUDFRONT_REQUEST: Final = 0.01 / 1e4  # HTTPS
S3_GB_MONTH: Final = 0.023
S3_PUT: Final = 0.005 / 1e3
ECR_GB_MONTH: Final = 0.10
CODEBUILD_MINUTE: Final = 0.005  # general1.small
HOURS_A_MONTH: Final = 730


def instance_hours(instance: str, count: int = 1) -> float | None:
    """Return dollars an hour for instances; None for a type that is not in the table, which AWS may well offer."""
    price = INSTANCES.get(instance)
    return None if price is None else price * count


def dollars(amount: float | None) -> str:
    """Format dollars for people: two significant digits, whatever the size."""
    if amount is None:
        return "unknown"
    if amount == 0:
        return "$0"
    return f"${amount:,.2f}" if amount >= 1 else f"${amount:.2g}" if amount >= 1e-4 else f"${amount:.1e}"  # noqa: PLR2004


@dataclass(frozen=True, slots=True)
class PlanItem:
    """One thing that a command creates, changes or removes.

    Attributes:
        what: the kind of thing, in words: "serverless endpoint".
        name: its name in AWS.
        hourly: dollars an hour for as long as it exists, used or not; None if the price is not known here.
        once: dollars for this step, paid once.
        note: further costs or effects: "$0.02 a thousand films", "deleted after 4 hours".
        does: "create", "update", "keep", "ensure" (create unless it exists) or "delete".
    """

    what: str
    name: str
    hourly: float | None = 0.0
    once: float = 0.0
    note: str = ""
    does: str = "create"


def bucket_and_role(names: Names, role_note: str = "") -> tuple[PlanItem, PlanItem]:
    """Return the items for the deployment's bucket and for the role of its jobs and endpoints."""
    return (
        PlanItem("bucket", names.bucket, note="kept where it is there", does="ensure"),
        PlanItem("role", names.role("sagemaker"), note=role_note, does="ensure"),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a command will do, before it starts."""

    verb: str
    items: tuple[PlanItem, ...]

    @property
    def hourly(self) -> float:
        """Dollars an hour, once everything exists, as far as the prices are known."""
        return sum(item.hourly or 0.0 for item in self.items if item.does != "delete")

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of items whose further cost is not known here."""
        return tuple(item.name for item in self.items if item.hourly is None and item.does != "delete")

    @property
    def once(self) -> float:
        """Dollars paid once."""
        return sum(item.once for item in self.items)

    def document(self) -> dict[str, Any]:
        """Return the plan for machines."""
        items = [dataclasses.asdict(item) for item in self.items]
        totals = {"hourly": round(self.hourly, 6), "once": round(self.once, 6), "currency": "USD"}
        about = {"prices_as_of": PRICES_AS_OF, "prices_of_region": PRICES_REGION, "unpriced": list(self.unpriced)}
        return {"verb": self.verb, "items": items, **totals, **about}

    def text(self) -> str:
        """Return the plan for people, one line for each item."""
        lines = [f"{self.verb} will:"]
        lines += [f"  {item.does} {item.what} {item.name}{_costs(item)}" for item in self.items]
        if not self.items:
            lines.append("  do nothing: all is as it should be")
        total = f"  cost about {dollars(self.hourly)} an hour while it exists"
        total += f" and what {', '.join(self.unpriced)} costs" if self.unpriced else ""
        lines.append(f"{total}, and {dollars(self.once)} once" if self.once else total)
        return "\n".join([*lines, PRICES_NOTICE])


def _costs(item: PlanItem) -> str:
    parts = [f"about {dollars(item.hourly)} an hour"] if item.hourly else []
    parts += [PRICE_UNKNOWN] if item.hourly is None else []
    parts += [f"about {dollars(item.once)} once"] if item.once else []
    parts += [item.note] if item.note else []
    return f": {', '.join(parts)}" if parts else ""
