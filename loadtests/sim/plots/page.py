"""A page of figures that needs nothing beside itself, and the same figures as PNG files."""

import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from loadtests.sim.plots.figures import FIGURES
from loadtests.sim.plots.series import edges_of, series_of
from loadtests.sim.report import COLUMNS, Row
from loadtests.sim.world import Run

PAGE = "report.html"
_DPI = 150

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1280px; margin: 2em auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.ours {{ font-weight: bold; }}
figure {{ margin: 1em 0 2.5em; }} svg {{ max-width: 100%; height: auto; }}
</style></head><body>
<h1>{title}</h1>
"""


def write(
    folder: Path, title: str, rows: Sequence[Row], runs: Mapping[str, Run], ours: str
) -> list[Path]:
    """The page and the figures' PNG files.

    Args:
        folder: Made if it is not there.
        title: What was simulated.
        runs: By policy.
        ours: The policy that stands out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    edges_s = edges_of(list(runs.values()))
    series = [series_of(policy, run, edges_s) for policy, run in runs.items()]
    parts = [_HEAD.format(title=html.escape(title)), _table(rows, ours)]
    written = [folder / PAGE]
    for name, (heading, draw) in FIGURES.items():
        figure = draw(series, ours)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=_DPI)
        written.append(path)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        _, _, svg = drawn.getvalue().partition("<svg")
        about = html.escape((draw.__doc__ or "").partition("\n")[0])
        parts.append(f"<h2>{html.escape(heading)}</h2><p>{about}</p>")
        parts.append(f"<figure><svg{_own_ids(svg, name)}</figure>")
    data = json.dumps([asdict(row) for row in rows]).replace("<", "\\u003c")
    parts.append(f'<script type="application/json" id="rows">{data}</script></body></html>\n')
    (folder / PAGE).write_text("\n".join(parts))
    return written


def _own_ids(svg: str, name: str) -> str:
    """Ids that are those of no other figure on the page."""
    return (
        svg.replace('id="', f'id="{name}-')
        .replace('href="#', f'href="#{name}-')
        .replace("url(#", f"url(#{name}-")
    )


def _table(rows: Sequence[Row], ours: str) -> str:
    heads = "".join(f"<th>{html.escape(head)}</th>" for head, _, _ in COLUMNS)
    lines = []
    for row in sorted(rows, key=lambda one: one.ttft_mean_s):
        cells = "".join(
            f"<td>{html.escape(form.format(getattr(row, name)))}</td>" for _, name, form in COLUMNS
        )
        kind = ' class="ours"' if row.policy == ours else ""
        lines.append(f"<tr{kind}>{cells}</tr>")
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>"
