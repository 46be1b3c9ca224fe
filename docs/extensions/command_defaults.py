"""Shows the defaults of the command line's options, as `--help` does.

sphinx-click makes contexts without the settings of the group, among them that defaults are shown.
"""

from __future__ import annotations

import click
from sphinx.application import Sphinx


def show_defaults(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Told of each command before its options are written."""
    for option in context.command.params:
        if isinstance(option, click.Option) and option.show_default is None:
            # Click has a value of its own for "none", which other versions lack.
            told = isinstance(option.default, (str, int, float))
            option.show_default = told and not option.is_flag


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx_click")
    app.connect("sphinx-click-process-description", show_defaults)
    return {"parallel_read_safe": True}
