"""The directive `http-reference`: the server's OpenAPI description as a page."""

from __future__ import annotations

import json
from pathlib import Path

from docutils import nodes
from openapi_tables import markdown
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class HttpReference(SphinxDirective):
    """Its argument is the description's path, from the page that it stands in."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        api = json.loads(Path(path).read_text(encoding="utf-8"))
        return self.parse_text_to_nodes(markdown(api), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("http-reference", HttpReference)
    return {"parallel_read_safe": True}
