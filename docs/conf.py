"""How Sphinx builds the documentation: ``make docs``, then open ``site/index.html``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

import generated

import chestxray

project = "chestxray"
version = release = chestxray.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the model cards and SECURITY.md begin where their own files do

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

# Types of other projects have no page here, and their inventories would have to be fetched to link to one.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!chestxray\.).*")]

html_theme = "furo"
html_title = "chestxray"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_show_search_summary = False  # it fetches pages, which browsers forbid on disk
html_show_sphinx = False
html_theme_options = {
    "announcement": "Research use only. Not a medical device; not for clinical use.",
    "light_css_variables": {"color-brand-primary": "#0b5c7a", "color-brand-content": "#0b5c7a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4de", "color-brand-content": "#7cc4de"},
}


def setup(app: Sphinx) -> None:
    """Change pages as they are read, and docstrings before napoleon does."""
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", name_one_by_one, priority=400)
    app.connect("autodoc-process-docstring", set_apart, priority=401)


def fill_in(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Put what the code itself tells into a page."""
    source[0] = generated.filled_in(source[0])


def name_one_by_one(*event: Any) -> None:
    """Give each of "width, height: in pixels" a line of its own, which napoleon would read as a name and its type."""
    lines: list[str] = event[-1]
    out: list[str] = []
    for line in lines:
        found = re.match(r"( +)((?:\w+, )+)(\w+): (.+)", line)
        others = found[2].split(", ")[:-1] if found else []
        out += [f"{found[1]}{name}: as ``{found[3]}``." for name in others] if found else []
        out.append(f"{found[1]}{found[3]}: {found[4]}" if found else line)
    lines[:] = out


def set_apart(*event: Any) -> None:
    """Give "Raises: ..." and its like, which stand on a line of their own, a paragraph of their own."""
    lines: list[str] = event[-1]
    out: list[str] = []
    inside = False
    for line in lines:
        found = re.match(r"(Returns|Raises|Source|Law): (.+)", line)
        inside = bool(found) or (inside and line.startswith(" "))
        out += ["", f"**{found[1]}:** {found[2]}"] if found else [line.strip() if inside else line]
    lines[:] = out
