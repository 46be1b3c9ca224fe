"""Links types in signatures to the names under which users know them.

A signature says `pocketmoe.runtime.generation.generation.Generation`; the reference documents
`pocketmoe.Generation`. A name that is documented once is that one, wherever it is defined.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def find_by_last_part(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    objects = env.get_domain("py").data["objects"]
    found = [item for full, item in objects.items() if full.rpartition(".")[2] == name]
    if len(found) != 1 or app.builder is None:
        return None
    return make_refnode(app.builder, node["refdoc"], found[0].docname, found[0].node_id, content)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", find_by_last_part)
    return {"parallel_read_safe": True}
