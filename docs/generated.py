"""The parts of the pages that the code itself tells: a page names one as ``<!-- generated: command_line -->``."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

import chestxray
from chestxray import errors
from chestxray.cli import chestxray_group
from chestxray.evaluation.model_card import gate_figures, gate_table
from chestxray.inference.bundle import BUNDLES, DEFAULT, Bundle, shipped_bundles
from chestxray.inference.ood import detector_of
from chestxray.inference.predictor import Predictor
from chestxray.serving.app import MODEL_CARD, create_app

Document = Mapping[str, Any]

_PLACE: Final = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def filled_in(page: str) -> str:
    """The Markdown of a page with every generated part in its place. Raises: KeyError, for one that is unknown."""
    return _PLACE.sub(lambda place: PARTS[place[1]](), page)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; cells are Markdown on one line."""
    lines = (head, ("---",) * len(head), *rows)
    cells = ((" ".join(cell.split()).replace("|", r"\|") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _plain(text: str) -> str:
    """Text as Markdown that shows it as it is, options as code."""
    return re.sub(r"(?<!\S)(--[a-z-]+)", r"`\1`", re.sub(r"([*<\[\]])", r"\\\1", text))


def _code(text: str) -> str:
    return f"`{text}`"


# --------------------------------------------------------------------------- the command line


def command_line() -> str:
    """Every verb with its usage, its help and its options, as ``--help`` has them."""
    return "\n\n".join(_verbs(chestxray_group, "chestxray", 2))


def _verbs(group: click.Group, path: str, level: int) -> Iterator[str]:
    for name, command in group.commands.items():
        ctx = click.Context(command, info_name=name)
        usage = " ".join([path, name, *command.collect_usage_pieces(ctx)])
        yield f"{'#' * level} {path} {name}\n\n```text\n{usage}\n```\n\n{_help(command)}"
        named = (param for param in command.params if isinstance(param, click.Option))
        options = [record for option in named if (record := option.get_help_record(ctx))]
        if options:
            yield _table(("option", "what it does"), ((_code(names), _plain(what)) for names, what in options))
        if isinstance(command, click.Group):
            yield from _verbs(command, f"{path} {name}", level + 1)


def _help(command: click.Command) -> str:
    return _plain(inspect.cleandoc(command.help or "").replace("\b", ""))


# --------------------------------------------------------------------------- the HTTP API


def http_api() -> str:
    """Every address, what it takes and what it answers, from the service's own OpenAPI document."""
    document = create_app(Predictor.load(BUNDLES / "pneumonia")).openapi()
    addresses = [
        _operation(path, method, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    refusals, answers = _problems(document), _schemas(document)
    return "\n\n".join(["## Addresses", *addresses, "## Refusals", refusals, "## Answers", *answers])


def _operation(path: str, method: str, operation: Document) -> str:
    parts = [f"### `{method.upper()} {path}`", f"{operation['summary']}. {operation.get('description', '')}"]
    if body := operation.get("requestBody"):
        parts.append(f"Body: {body['description']} Content types: {', '.join(map(_code, body['content']))}.")
    if parameters := operation.get("parameters"):
        rows = ((_code(p["name"]), p["in"], _type(p["schema"]), p.get("description", "")) for p in parameters)
        parts.append(_table(("parameter", "in", "type", "what it is"), rows))
    rows = (
        (status, _answer(response), _plain(response["description"]))
        for status, response in operation["responses"].items()
    )
    parts.append(_table(("status", "answer", "when"), rows))
    return "\n\n".join(parts)


def _answer(response: Document) -> str:
    content = response.get("content", {})
    named = (f"{_code(kind)} {_type(of.get('schema', {}))}".strip() for kind, of in content.items())
    return ", ".join(named) or "no body"


def _problems(document: Document) -> str:
    rows = ((str(k["status"]), _code(k["name"]), k["title"], k["remedy"]) for k in document["x-problems"])
    return _table(("status", "type ends in", "title", "remedy"), rows)


def _schemas(document: Document) -> Iterator[str]:
    for name, schema in document["components"]["schemas"].items():
        if "properties" not in schema:
            yield f"### {name}\n\n{schema['type']}: {_type(schema)}."
            continue
        needed = schema.get("required", ())
        rows = (
            (_code(field), _type(of), "always" if field in needed or "default" in of else "may be missing")
            for field, of in schema["properties"].items()
        )
        yield f"### {name}\n\n{_table(('field', 'type', 'there'), rows)}"


def _type(schema: Document) -> str:
    """A JSON schema in a few words; those with a name of their own are links."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf"):
        return " or ".join(map(_type, choices))
    if values := schema.get("enum"):
        return " or ".join(map(_code, values))
    kind = schema.get("type", "")
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}".removesuffix(" of ")
    return str(kind)


# --------------------------------------------------------------------------- the Python API, the model cards


# The headings of the names of ``chestxray``, by the first name below each.
_CHAPTERS: Final = {
    "write_synthetic_films": "Films",
    "pack": "Training",
    "evaluate": "Evaluation and prediction",
    "serve": "Serving, and everything at once",
    "plot_films": "Plots",
    "Film": "What the functions take and give",
}


def public_names() -> tuple[str, ...]:
    """The public names in the order of the stub, which is that of the pipeline."""
    tree = ast.parse(Path(chestxray.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    return tuple(alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names)


def python_api() -> str:
    """What ``import chestxray`` gives, from the docstrings; errors have a table of their own."""
    parts = []
    for name in public_names():
        if name in _CHAPTERS:
            parts.append(f"## {_CHAPTERS[name]}")
        given = getattr(chestxray, name)
        if inspect.isclass(given) and not issubclass(given, Exception):
            parts.append(_directive(f"autoclass:: chestxray.{name}", ":members:"))
        elif inspect.isroutine(given):
            parts.append(_directive(f"autofunction:: chestxray.{name}"))
    return "\n\n".join(parts)


def _directive(what: str, *options: str) -> str:
    return "\n".join(["```{eval-rst}", f".. {what}", *(f"   {option}" for option in options), "```"])


def error_tree() -> str:
    """The tree of errors as their module draws it, and what each one means."""
    drawn = inspect.cleandoc(errors.__doc__ or "").replace("\n    ", "\n")
    tree = re.search(r"^ChestXrayError\n(?:.+\n)+", drawn, re.MULTILINE)
    assert tree is not None  # noqa: S101 - the module's docstring is the tree
    classes = filter(inspect.isclass, vars(errors).values())
    kinds = [kind for kind in classes if issubclass(kind, errors.ChestXrayError)]
    rows = ((_code(kind.__name__), _plain((inspect.getdoc(kind) or "").partition("\n")[0])) for kind in kinds)
    return f"```text\n{tree[0]}```\n\n{_table(('error', 'means'), rows)}"


def model_figures() -> str:
    """A row for each bundle that comes with the package, from its own metrics."""
    head = ("model", "validation films", "AUROC (95%)", "mean over shifts", "worst shift", "sensitivity", "specificity")
    return _table(head, (_figures(name) for name in shipped_bundles()))


def _figures(name: str) -> tuple[str, ...]:
    info = Bundle.open(BUNDLES / name).info
    metrics = json.loads((BUNDLES / name / "metrics.json").read_text(encoding="utf-8"))
    stress = metrics["stress"]
    worst = next(row for row in stress["rows"] if row["shift"] == stress["worst"])
    point = next(point for point in metrics["operating_points"] if point["name"] == info.default_operating_point)
    return (
        f"`{name}`: {info.network}",
        f"{metrics['positives']:,} pneumonia, {metrics['negatives']:,} normal",
        _with_interval(metrics["auroc"]),
        f"{stress['mean_auroc']:.4f}",
        f"{_with_interval(worst['auroc'])}, {worst['shift']}",
        *(f"{rate['value']:.3f} ({rate['numerator']} of {rate['films']})" for rate in map(point.get, _RATES)),
    )


def model_refusals() -> str:
    """How much of each kind of picture the gate of the bundle refuses that comes with the package."""
    detector = detector_of(Bundle.open(BUNDLES / DEFAULT))
    return gate_table(gate_figures(detector)) if detector else "It refuses nothing for its looks."


_RATES: Final = ("sensitivity", "specificity")


def _with_interval(figure: Document) -> str:
    interval = figure["interval"]
    return f"{figure['value']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def model_cards() -> str:
    """The cards of the bundles that come with the package, without their front matter, one heading lower."""
    cards = (_card(BUNDLES / name / MODEL_CARD) for name in shipped_bundles())
    return "\n\n".join(cards)


def _card(path: Any) -> str:
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^#", "##", re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL), flags=re.MULTILINE)


# --------------------------------------------------------------------------- the DICOM conformance statement


def dicom_conformance() -> str:
    """What the node offers and asks for, from the tables that it works by."""
    from chestxray.dicom import receive, results, send, settings
    from chestxray.images.dicom_pixels import SYNTAXES

    offered = [(name, _code(uid), "SCP", "all of the table below") for uid, name in receive.FILM_CLASSES.items()]
    asked = [
        (what, _code(uid), "SCU", "explicit and implicit VR little endian")
        for uid, _, what in results.RESULT_KINDS.values()
    ]
    little = "implicit VR little endian, explicit VR little and big endian, deflated"
    both = [
        ("Verification", _code(receive.VERIFICATION), "SCP", little),
        (
            "Storage Commitment Push Model",
            _code(receive.STORAGE_COMMITMENT),
            "SCU",
            "explicit and implicit VR little endian",
        ),
        (
            "Study Root Query/Retrieve: FIND, MOVE, GET",
            "`...5.1.4.1.2.2.1`, `.2`, `.3`",
            "SCU",
            "explicit and implicit VR little endian",
        ),
    ]
    limits = settings.Limits()
    statuses = [("0x0000", "success: the film is on the disk, or no rule wants it")]
    statuses += [(f"0x{code:04X}", what) for _, code, what in receive.STATUSES]
    statuses += [
        (f"0x{receive.TOO_MANY:04X}", "out of resources: more than limits.films on one association"),
        (f"0x{receive.NOT_AUTHORISED:04X}", "refused: not authorised, since the AE title calls from another address"),
        (f"0x{receive.FAILED:04X}", "failed: an error that nobody foresaw"),
    ]
    parts = [
        "## SOP classes",
        _table(("SOP class", "UID", "role", "transfer syntaxes"), [*offered, *asked, *both]),
        "## Transfer syntaxes of films",
        _table(("transfer syntax", "UID"), ((row.name, _code(uid)) for uid, row in SYNTAXES.items())),
        "## Answers to C-STORE",
        _table(("status", "means"), statuses),
        "Of a destination's answers, "
        + ", ".join(f"0x{code:04X}" for code in sorted(send.STORED_STATUSES))
        + " count as accepted; a result with any other is tried again, and is a dead letter in the end.",
        "## Associations",
        _table(
            ("limit", "default"),
            (
                ("longest PDU that is asked for", f"{receive.MAX_PDU:,} bytes"),
                *((_code(f"limits.{name}"), f"{getattr(limits, name):,}") for name in type(limits).__slots__),
            ),
        ),
    ]
    return "\n\n".join(parts)


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "command_line": command_line,
    "dicom_conformance": dicom_conformance,
    "http_api": http_api,
    "python_api": python_api,
    "error_tree": error_tree,
    "model_cards": model_cards,
    "model_figures": model_figures,
    "model_refusals": model_refusals,
}
