"""A report as one HTML file: no script, and no font or picture from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import jinja2

from .facts import Report
from .sections import key_figures, sections
from .svg import scale_colours

TEMPLATE = "page.html.jinja"
# By which a report that is written again knows what it may replace.
FIRST_LINE = "<!doctype html><!-- pocketmoe report -->"


def render_report(report: Report) -> str:
    """The page after its first line, in ASCII: other characters are references."""
    source = files(__package__).joinpath(TEMPLATE).read_text(encoding="ascii")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    family = (
        report.manifest.spec.family
        if report.manifest is not None
        else report.record.provenance.family if report.record is not None else ""
    )  # fmt: skip
    page = environment.from_string(source).render(
        name=Path(report.path).resolve().name,
        kind="bundle" if report.manifest is not None else "calibration record",
        family=family,
        figures=key_figures(report),
        sections=sections(report),
        colours=scale_colours(),
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")
