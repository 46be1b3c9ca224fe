"""`replay`: cache policies compared on recorded routes."""

from __future__ import annotations

from pathlib import Path

import click

from ..sizes import format_size
from .arguments import JSON, SIZE
from .console import print_json, print_table


@click.command()
@click.argument("routes", metavar="ROUTES", type=click.Path(path_type=Path))
@click.option(
    "--memory-budget", "budgets", metavar="SIZE", type=SIZE, multiple=True,
    help="Memory for pages alone; may be given several times.  "
    "[default: 1/2 to 8 times a token's pages]",
)  # fmt: skip
@JSON
def replay(routes: Path, budgets: tuple[int, ...], as_json: bool) -> None:
    """Compare cache policies on recorded routes: of a route file, or of a calibration record.

    Hit rates while decoding. The optimum knows what comes; no policy can beat it.
    """
    from ..analysis.planning.replay import replay_rows, token_bytes, usual_capacities
    from ..analysis.planning.route_sources import load_routes
    from ..tables.model import replay_columns, replay_table

    source = load_routes(routes)
    recorded = source.routes
    rows = replay_rows(recorded, list(budgets) or usual_capacities(recorded))
    token = token_bytes(recorded)
    if as_json:
        print_json({
            "routes": str(routes), "note": source.note, "token_bytes": token, "rows": rows,
        })  # fmt: skip
        return
    title = f"page hits in {routes}; one token's pages are {format_size(token)}"
    if source.note:
        title += f", taken to be int4; {source.note}"
    print_table(title, replay_columns(rows), replay_table(rows))
