"""`inspect`: the parts of a model or a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import JSON
from .console import print_facts, print_json, print_table


@click.command()
@click.argument("path", metavar="CHECKPOINT|BUNDLE", type=click.Path(path_type=Path))
@JSON
def inspect(path: Path, as_json: bool) -> None:
    """Show what a model or a bundle is made of."""
    from ..analysis.inspection.inspect import BundleFacts, inspect_path
    from ..tables.engines import (
        ENGINE_COLUMNS,
        SET_COLUMNS,
        engine_rows,
        engine_set_rows,
        names_of,
    )
    from ..tables.model import fact_rows, size_rows

    facts = inspect_path(path)
    if as_json:
        print_json(facts)
        return
    print_facts(f"{facts.kind} {path}", fact_rows(facts))
    precisions = [sizes.precision for sizes in facts.model.sizes]
    title = f"bytes per precision (blocks of {facts.model.block_size})"
    print_table(title, ["", *precisions], size_rows(facts.model))
    if isinstance(facts, BundleFacts) and facts.engines:
        print_table("engine sets", SET_COLUMNS, engine_set_rows(facts.engines))
        for item in {item.engines: item for item in facts.engines}.values():
            print_table(f"engines for {names_of(item, facts.engines)}", ENGINE_COLUMNS,
                        engine_rows(item))  # fmt: skip
