"""The verb that brings films to S3: upload."""

from __future__ import annotations

from pathlib import Path

import click

from chestxray.cli.aws_options import Order, aws_options
from chestxray.cli.options import PATH


@click.command()
@click.argument("data", type=PATH)
@click.argument("address", metavar="s3://BUCKET/PREFIX")
@aws_options
def upload(order: Order, data: Path, address: str) -> None:
    """Send films to S3: what is new or changed, several at once.

    Every file's SHA-256 is checked by S3 when it arrives, and is what a later run compares. Stopped at any moment,
    the same command goes on. Objects that have no file in DATA are left alone.
    """
    from chestxray.aws import storage

    creates = storage.check_bucket(order.cloud, order.names, address)
    with order.console.progress("Comparing") as move:
        comparison = (
            storage.without_bucket(data, address) if creates else storage.compare(order.cloud, data, address, move)
        )
    if not order.go_ahead(storage.upload_plan(comparison, creates=creates)):
        return
    if creates:
        storage.ensure_bucket(order.cloud, order.names)
    with order.console.progress("Sending") as move:
        storage.send(order.cloud, comparison, move)
    sent, same = len(comparison.to_send), len(comparison.same)
    document = {"address": address, "sent": sent, "bytes": comparison.bytes_to_send, "same": same}
    others = f"; {comparison.others:,} further objects were left alone" if comparison.others else ""
    order.console.result(
        document | {"others": comparison.others},
        f"{address}: {sent:,} files sent ({comparison.bytes_to_send / 1e6:,.1f} MB), {same:,} were there{others}",
    )
