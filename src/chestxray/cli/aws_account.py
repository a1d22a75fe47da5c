"""The verbs over all that exists on AWS: status, destroy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from chestxray.cli.aws_options import Order, aws_options
from chestxray.cli.console import plain, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chestxray.aws.inventory import Found


@click.command()
@click.option("--cost", is_flag=True, help="Also what each thing costs an hour.")
@aws_options
def status(order: Order, cost: bool) -> None:  # noqa: FBT001 - click passes it by name
    """List everything of this deployment that exists in the account and region.

    Exit status 1 where something could not be looked for.
    """
    from chestxray.aws import prices
    from chestxray.aws.teardown import survey

    found = survey(order.cloud, order.names)
    lines = [_table(found.found, cost=cost)] if found.found else [f"{order.names.deployment}: nothing exists"]
    if cost:
        more = f", and what {', '.join(found.unpriced)} costs" if found.unpriced else ""
        lines += [f"together about {prices.dollars(found.hourly)} an hour, used or not{more}", prices.NOTICE]
    lines += [f"Beware: {why}" for why in found.unknown]
    document = {"found": plain(found.found), "unknown": list(found.unknown)}
    costs = {"hourly": found.hourly, "unpriced": list(found.unpriced), "prices_as_of": prices.AS_OF} if cost else {}
    order.console.result(document | costs, "\n".join(lines))
    if found.unknown:
        sys.exit(1)


@click.command()
@click.option("--keep-data", is_flag=True, help="Leave our own bucket: bundles, scores, checkpoints.")
@aws_options
def destroy(order: Order, keep_data: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Remove everything of this deployment, and look again until nothing of it is left.

    Goes on past what cannot be removed and says why at the end; exit status 1 where something is left. Films in
    buckets of yours are never touched; finished jobs stay in AWS's lists and cost nothing.
    """
    from chestxray.aws import teardown

    data = not keep_data
    before = teardown.survey(order.cloud, order.names, data=data)
    for why in before.unknown:  # so that an empty plan is not taken for an empty account
        order.console.log(f"Beware: {why}")
    if not order.go_ahead(teardown.plan(before.found)):
        sys.exit(1 if before.unknown else 0)
    result = teardown.destroy(order.cloud, order.names, before, order.console.log, data=data)
    lines = [f"{len(result.removed):,} things are gone" if before.found else "nothing was there to remove"]
    lines += ["still there:", _table(result.left, cost=True)] if result.left else []
    lines += [f"Beware: {problem}" for problem in result.problems]
    lines += ["Looked again: nothing is left."] if result.is_clean else ["Repeat the command once that is mended."]
    order.console.result(plain(result), "\n".join(lines))
    if not result.is_clean:
        sys.exit(1)


def _table(found: Sequence[Found], *, cost: bool) -> str:
    from chestxray.aws import prices

    rows = [("what", "name", "state", *(["an hour"] if cost else []), "note")]
    rows += [
        (item.kind, item.name, item.state, *([prices.dollars(item.hourly)] if cost else []), item.note)
        for item in found
    ]
    return table(rows)
