"""Text: accents, what a terminal may be given, and cells of tables that a spreadsheet program opens."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

ACCENTS: Final = frozenset({"Mn"})
INVISIBLE: Final = frozenset({"Cf"})
_FORMULA: Final = re.compile(r"'*[=+\-@\t\r\n]")
_BEGINS_FORMULA: Final = frozenset("'=+-@\t\r\n")  # looked at before the expression, which few texts need
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

# Control characters but for tab and line feed, and marks that turn the direction of the text around them.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return a text that commands no terminal: an escape character in the name of a file is shown as ``\x1b``."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def without_accents(text: str, dropped: frozenset[str] = ACCENTS) -> str:
    """Return text in composed form without its accents: "Neumonia" for "Neumonía".

    Args:
        text: any text.
        dropped: Unicode categories of the characters that are left out.
    """
    letters = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", "".join(one for one in letters if unicodedata.category(one) not in dropped))


def as_cell(text: str) -> str:
    """Return a text for a CSV file in a form that no spreadsheet program takes for a formula.

    A text that begins like a formula gets an apostrophe before it, except numbers; ``of_cell`` removes it again.
    Law: ``of_cell(as_cell(text)) == text``. Source: OWASP, CSV Injection.
    """
    if text[:1] not in _BEGINS_FORMULA:
        return text
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def of_cell(text: str) -> str:
    """Return the text that ``as_cell`` wrote."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def table_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as a CSV table: texts as ``as_cell`` writes them, a row with a bare carriage return in quotes."""
    text = io.StringIO(newline="")
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=how) for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:
        cells = [as_cell(cell) if isinstance(cell, str) else cell for cell in row]
        (quoted if any("\r" in cell for cell in cells if isinstance(cell, str)) else plain).writerow(cells)
    return text.getvalue().encode("utf-8", "surrogateescape")  # names of files may be any bytes
