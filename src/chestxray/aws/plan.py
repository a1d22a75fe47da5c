"""What a verb is about to create, and what that costs: told before anything is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chestxray.aws import prices


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a verb creates, changes or removes.

    Attributes:
        what: the kind of thing, in words: "serverless endpoint".
        name: as AWS will know it.
        hourly: dollars an hour for as long as it exists, used or not; None where the price is not known here.
        once: dollars, for doing this.
        note: what else it costs or means: "$0.02 a thousand films", "deleted after 4 hours".
        does: "create", "update", "keep", "ensure" (create unless it is there) or "delete".
    """

    what: str
    name: str
    hourly: float | None = 0.0
    once: float = 0.0
    note: str = ""
    does: str = "create"


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a verb will do, before it does."""

    verb: str
    items: tuple[Item, ...]

    @property
    def hourly(self) -> float:
        """Dollars an hour, once all of it exists, as far as the prices are known."""
        return sum(item.hourly or 0.0 for item in self.items if item.does != "delete")

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Names of what costs more than that, nobody here knows how much."""
        return tuple(item.name for item in self.items if item.hourly is None and item.does != "delete")

    @property
    def once(self) -> float:
        """Dollars for doing it."""
        return sum(item.once for item in self.items)

    def document(self) -> dict[str, Any]:
        """For machines."""
        items = [
            {name: getattr(item, name) for name in ("does", "what", "name", "hourly", "once", "note")}
            for item in self.items
        ]
        totals = {"hourly": round(self.hourly, 6), "once": round(self.once, 6), "currency": "USD"}
        about = {"prices_as_of": prices.AS_OF, "prices_of_region": prices.REGION, "unpriced": list(self.unpriced)}
        return {"verb": self.verb, "items": items, **totals, **about}

    def text(self) -> str:
        """For people, a line an item."""
        lines = [f"{self.verb} will:"]
        lines += [f"  {item.does} {item.what} {item.name}{_costs(item)}" for item in self.items]
        if not self.items:
            lines.append("  do nothing: all is as it should be")
        total = f"  cost about {prices.dollars(self.hourly)} an hour while it exists"
        total += f" and what {', '.join(self.unpriced)} costs" if self.unpriced else ""
        lines.append(f"{total}, and {prices.dollars(self.once)} once" if self.once else total)
        return "\n".join([*lines, prices.NOTICE])


def _costs(item: Item) -> str:
    parts = [f"about {prices.dollars(item.hourly)} an hour"] if item.hourly else []
    parts += [prices.UNKNOWN] if item.hourly is None else []
    parts += [f"about {prices.dollars(item.once)} once"] if item.once else []
    parts += [item.note] if item.note else []
    return f": {', '.join(parts)}" if parts else ""
