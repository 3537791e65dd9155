"""The figures: TTFT's distribution, hits over time, load of replicas, heat maps of load and hits.

Colours are Okabe and Ito's, which colour-blind people can tell apart, with line styles where there
are more policies than colours; heat maps are cividis, which is even in lightness.
"""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure

from loadtests.sim.plots.series import Floats, Series

# Okabe & Ito 2008, "Color universal design"; without yellow, which is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
_STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))
_ACROSS_MAX = 4
_LINEAR_TO = 10.0
_STYLE: Any = {  # matplotlib types its keys by name, in some versions
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "warmroute",  # the same picture has the same bytes
}

Draw = Callable[[Sequence[Series], str], Figure]


def cdf(runs: Sequence[Series], ours: str) -> Figure:
    """Share of requests whose first token came within a time."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        axes = figure.subplots()
        for one, line in _lines(runs, ours):
            shares = np.linspace(0, 1, 400)
            if len(one.waits_s):
                label = f"{one.policy}  {one.mean_s:.3g} s"
                axes.plot(np.quantile(one.waits_s, shares), shares, label=label, **line)
        axes.set_xscale("log")
        axes.set_xlabel("time to first token, s (log)")
        axes.set_ylabel("share of requests")
        axes.set_ylim(0, 1.01)
        axes.grid(which="minor", axis="x", alpha=0.1)
        _legend(figure, axes, "policy, mean TTFT")
        return figure


def hits(runs: Sequence[Series], ours: str) -> Figure:
    """Share of prompt tokens found cached, by when the requests arrived."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        axes = figure.subplots()
        for one, line in _lines(runs, ours):
            axes.plot(one.middles_s, 100 * _smoothed(one.hit_share), label=one.policy, **line)
        axes.set_xlabel("time of arrival, s")
        axes.set_ylabel("prompt tokens cached, % (mean of 7 slices)")
        axes.set_ylim(0, 100)
        _legend(figure, axes, "policy, by mean TTFT")
        return figure


def load_lines(runs: Sequence[Series], ours: str) -> Figure:
    """Requests in flight: a thin line for each replica, a thick one for their mean."""
    highest = max(float(one.in_flight.max(initial=0.0)) for one in runs)

    def draw(axes: Any, one: Series) -> None:
        axes.plot(one.middles_s, one.in_flight.T, color=_COLOURS[5], linewidth=0.7, alpha=0.6)
        axes.plot(one.middles_s, one.in_flight.mean(axis=0), color=_COLOURS[0], linewidth=1.6)
        axes.set_yscale("symlog", linthresh=_LINEAR_TO)
        axes.set_ylim(0, highest * 1.2 or 1)

    label = "requests in flight: each replica (thin), their mean (thick); log above 10"
    return _panels(runs, ours, draw, label)[0]


def load_map(runs: Sequence[Series], ours: str) -> Figure:
    """Requests in flight, replica by time; one scale for all policies."""
    highest = max(float(one.in_flight.max(initial=0.0)) for one in runs)
    scale = SymLogNorm(_LINEAR_TO, vmin=0, vmax=highest or 1.0)
    label = "requests in flight (log above 10)"
    return _maps(runs, ours, lambda one: one.in_flight, scale, label)


def hit_map(runs: Sequence[Series], ours: str) -> Figure:
    """Share of prompt tokens cached, replica by time; white where nothing arrived."""
    scale = Normalize(0, 100)
    label = "prompt tokens cached, %"
    return _maps(runs, ours, lambda one: 100 * one.replica_hit_share, scale, label)


FIGURES: dict[str, tuple[str, Draw]] = {
    "ttft-cdf": ("Time to first token", cdf),
    "hits-over-time": ("Hit rate over time", hits),
    "load-over-time": ("Load of each replica over time", load_lines),
    "load-map": ("Load, replica by time", load_map),
    "hit-map": ("Hits, replica by time", hit_map),
}


def _maps(
    runs: Sequence[Series],
    ours: str,
    values: Callable[[Series], Floats],
    scale: Normalize,
    label: str,
) -> Figure:
    images = []

    def draw(axes: Any, one: Series) -> None:
        found = values(one)
        images.append(
            axes.imshow(
                found,
                aspect="auto",
                interpolation="nearest",
                origin="lower",
                cmap="cividis",
                norm=scale,
                extent=(0, one.edges_s[-1], -0.5, len(found) - 0.5),
            )
        )
        axes.grid(False)
        axes.yaxis.get_major_locator().set_params(integer=True)

    figure, panels = _panels(runs, ours, draw, "replica")
    figure.colorbar(images[0], ax=panels, label=label, shrink=0.6, aspect=40, pad=0.01)
    return figure


def _panels(
    runs: Sequence[Series], ours: str, draw: Callable[[Any, Series], None], label: str
) -> tuple[Figure, list[Any]]:
    """A panel for each policy, the soonest first, axes the same."""
    with mpl.rc_context(_STYLE):
        across = min(_ACROSS_MAX, len(runs))
        down = -(-len(runs) // across)
        figure = Figure(figsize=(max(6.0, 3.1 * across), 0.9 + 1.75 * down), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        used = list(panels.flat)[: len(runs)]
        for axes, one in zip(used, _by_mean(runs), strict=True):
            draw(axes, one)
            weight = "bold" if one.policy == ours else "normal"
            title = f"{one.policy}, TTFT {one.mean_s:.3g} s"
            axes.set_title(title, fontsize=9, fontweight=weight)
        for axes in list(panels.flat)[len(runs) :]:
            axes.set_visible(False)
            above = panels.flat[list(panels.flat).index(axes) - across]
            above.tick_params(labelbottom=True)
        figure.supxlabel("time, s", fontsize=9)
        figure.supylabel(label, fontsize=9)
        return figure, used


def _lines(runs: Sequence[Series], ours: str) -> list[tuple[Series, dict[str, Any]]]:
    """With a colour and a style each: ours black and thick, above the others."""
    found, number = [], 0
    for one in _by_mean(runs):
        if one.policy == ours:
            line: dict[str, Any] = {"color": "black", "linewidth": 2.4, "zorder": 5}
        else:
            style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
            colour = _COLOURS[number % len(_COLOURS)]
            line = {"color": colour, "linestyle": style, "linewidth": 1.2}
            number += 1
        found.append((one, line))
    return found


def _by_mean(runs: Sequence[Series]) -> list[Series]:
    return sorted(runs, key=lambda one: one.mean_s)


def _legend(figure: Figure, axes: Any, title: str) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", title=title, fontsize=8)


def _smoothed(values: Floats, width: int = 7) -> Floats:
    """Means of the values around each, those that are there; NaN where none is."""
    there = ~np.isnan(values)
    kernel = np.ones(width)
    sums = np.convolve(np.where(there, values, 0.0), kernel, mode="same")
    counts = np.convolve(there.astype(float), kernel, mode="same")
    means: Floats = np.divide(
        sums, counts, out=np.full_like(sums, np.nan), where=there & (counts > 0)
    )
    return means
