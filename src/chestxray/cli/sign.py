"""The verbs about who vouches for a bundle: sign and verify."""

from __future__ import annotations

import os
from pathlib import Path

import click

from chestxray.cli.console import Console
from chestxray.cli.options import FILE, json_option
from chestxray.inference.shipped import folder_of


@click.command()
@click.argument("bundle", metavar="FOLDER|NAME")
@click.option("--private-key", type=FILE, required=True, help="An elliptic-curve key in PEM, as openssl makes it.")
@json_option
def sign(console: Console, bundle: str, private_key: Path) -> None:
    """Sign a bundle, so that others can tell that you vouch for it.

    Writes model.sig into the bundle, in the format of OpenSSF's Model Signing. The password of an encrypted key is
    taken from CHESTXRAY_SIGNING_PASSWORD. Needs the extra "sign", and no network.
    """
    from chestxray.inference.signature import PASSWORD_VARIABLE
    from chestxray.verbs import sign as sign_bundle

    signature = sign_bundle(bundle, private_key, os.environ.get(PASSWORD_VARIABLE))
    folder = signature.parent
    console.result({"bundle": folder, "signature": signature}, f"{signature}: {folder} is signed")


@click.command()
@click.argument("bundle", metavar="FOLDER|NAME")
@click.option("--public-key", type=FILE, required=True, help="The key whose holder must have signed, in PEM.")
@json_option
def verify(console: Console, bundle: str, public_key: Path) -> None:
    """Check that the holder of a key signed a bundle, and that no file was changed, added or lost since.

    "serve", "predict" and "batch" do the same before they judge, with --verify-key or CHESTXRAY_VERIFY_KEY. Exit
    status 1 where the bundle is not as it was signed. Needs the extra "sign", and no network.
    """
    from chestxray.verbs import verify as verify_bundle

    folder, info = folder_of(bundle), verify_bundle(bundle, public_key)
    document = {"bundle": folder, "model": info.name, "public_key": public_key}
    console.result(document, f"{folder}: as {public_key} signed it ({info.name})")
