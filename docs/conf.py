"""Sphinx builds the documentation of `docs/` with this: `make docs`."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "pocketmoe"
release = version = installed_version("pocketmoe")
copyright = "the pocketmoe contributors, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # Args, Attributes and Raises in docstrings
    "sphinx_click",
    "command_defaults",
    "http_reference",
    "public_names",
]
exclude_patterns = ["extensions"]
nitpicky = True
# What others define. Nothing is fetched while building, so there is no index of theirs.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections|np|numpy|os|pathlib|threading|tokenizers|types)\..*"),
]
nitpick_ignore = [
    ("py:class", "PathLike"),  # str | os.PathLike[str]
    # Part of the manifest; model/spec.py tells of each field, to whoever adds a family.
    ("py:class", "pocketmoe.model.spec.ModelSpec"),
    ("py:class", "pocketmoe.model.spec.Activation"),
]
smartquotes = False  # they would make one dash of the two before an option

# The headings of Markdown pages have the anchors that GitHub gives them.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
default_role = "literal"  # `name` in a docstring
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"pocketmoe {release}"
html_show_sphinx = False
