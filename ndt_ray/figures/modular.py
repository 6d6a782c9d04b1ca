"""Maps of modular networks at checkpoints: neurons at full and reduced resolution, pages of all, clusters, heads."""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ndt_ray.errors import NdtError, SpecError, did_you_mean
from ndt_ray.figures.album import Album
from ndt_ray.figures.canvas import GREY, INK, SMALL, canvas, fitted, head
from ndt_ray.figures.grokking import GRID, MANY, STRUCTURE, fractions_by_frequency, head_cards, small_multiples
from ndt_ray.figures.moments import Moment

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import ProbeContext

Maps = NDArray[np.floating[Any]]
SECTION = "Modular addition: maps"
REDUCED = (28, 56)
"""Sides of the founding document's display maps."""
SHOWN = 8
"""Neurons at full resolution, where there are no clusters: those with the largest share of one frequency."""
MEMBERS = 6
"""Of a cluster, beside its representative."""
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge, "<=": operator.le, "!=": operator.ne, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """Which neurons are drawn, and how."""

    most: int | None = None
    """At most so many; by default all."""
    grid: tuple[int, int] = GRID
    page: int | None = None
    """One page, from 0; by default every one."""
    where: str | None = None
    side: int = 28
    """Side of the maps on pages: 28, 56, or 0 for full resolution."""

    def __post_init__(self) -> None:
        if self.side and self.side < 2 or min(self.grid) < 1 or (self.most is not None and self.most < 1):
            raise SpecError(f"sides of maps, rows, columns and numbers of neurons are positive, but got {self}")

    @property
    def slow(self) -> str | None:
        """A warning where a page takes long to draw."""
        count = self.grid[0] * self.grid[1]
        if self.most is not None:
            count = min(count, self.most)
        return f"{count} maps on one page take long to draw; under {MANY} do not" if count > MANY else None


def chosen(scales: pd.DataFrame, where: str | None) -> list[int]:
    """Neurons of one checkpoint's `scale_metrics` for which `COLUMN OP VALUE` holds (=, !=, >, >=, <, <=), such as
    `structure=low_frequency` or `fraction>=0.85`. SpecError for another column or no comparison."""
    rows = scales[scales["kind"] == "neuron"].sort_values("unit")
    if where is None:
        return [int(u) for u in rows["unit"]]
    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|!=|=|>|<)\s*(\S+)\s*", where)
    if found is None:
        raise SpecError(f"--neurons-where is COLUMN OP VALUE, such as fraction>=0.85, but got '{where}'")
    column, sign, text = found.groups()
    if column not in rows:
        raise SpecError(f"scale_metrics has no column '{column}'{did_you_mean(column, map(str, rows.columns))}")
    value: Any = text
    if pd.api.types.is_numeric_dtype(rows[column]):
        try:
            value = float(text)
        except ValueError:
            raise SpecError(f"'{column}' holds numbers, but --neurons-where gives '{text}'") from None
    elif sign not in ("=", "!="):
        raise SpecError(f"'{column}' holds words: compare it by = or !=, not by {sign}")
    return [int(u) for u in rows.loc[COMPARE[sign](rows[column], value).fillna(False).astype(bool), "unit"]]


def draw(
    album: Album,
    moment: Moment,
    contexts: Callable[[str, int], "ProbeContext"],
    scales: pd.DataFrame,
    timeline: pd.DataFrame,
    view: View,
) -> None:
    """Maps of a modular network at a moment's checkpoints; `scales` and `timeline` are rows of its trial, or empty."""
    from ndt_ray.analysis.mechanisms.grokking.maps import (
        DownsampledActivationsAnalyzer,
        NeuronActivationsAnalyzer,
        bundle,
    )
    from ndt_ray.data import load

    maps: dict[int, dict[str, Maps]] = {}
    fractions: dict[int, NDArray[np.float64] | None] = {}
    for name, step in moment.steps.items():
        try:
            context = contexts(moment.trial, step)
            found = bundle(context.model, load(context.trial.data.name, context.trial.data.params))
        except NdtError as error:
            album.skip(SECTION, f"trial {moment.trial[:12]}, step {step:,} ({name})", str(error))
            continue
        maps[step] = NeuronActivationsAnalyzer().analyze(found)
        fractions[step] = found.neuron_fractions
    if not maps:
        return
    last = max(maps)
    full = maps[last]
    if "neuron_acts" not in full:
        album.skip(SECTION, moment.cell, "this architecture has no block with neurons and heads")
        return
    reduced = {side: DownsampledActivationsAnalyzer(side).analyze(full) for side in {*REDUCED, view.side or 28}}
    small = {side: found["neuron_acts_downsampled"] for side, found in reduced.items()}
    now = scales[scales["step"] == last] if len(scales) else scales
    clusters = timeline[(timeline["kind"] == "neuron") & timeline["cluster"].notna()] if len(timeline) else timeline
    names = _representatives(full["neuron_acts"], now, clusters)
    shows = f"{moment.cell}, trial {moment.trial[:12]}, step {last:,}"
    folder = f"maps_{moment.trial[:6]}"
    if album.room(SECTION):
        made = resolutions(full["neuron_acts"], {28: small[28], 56: small[56]}, names)
        caption = f"Neurons over all pairs (a, b) at full resolution, 56 × 56 and 28 × 28 (bilinear): {_why(clusters)}."
        album.figure(SECTION, f"{folder}/neurons_full_step_{last}", made, caption, shows)
    if album.room(SECTION) and len(maps) > 1:
        made = over_training({step: m["neuron_acts"] for step, m in maps.items()}, names)
        steps = ", ".join(f"{s:,}" for s in maps)
        album.figure(
            SECTION,
            f"{folder}/neurons_over_training",
            made,
            "The same neurons along training.",
            f"{moment.cell}, trial {moment.trial[:12]}, steps {steps}",
        )
    shares = fractions[last]
    if shares is not None and np.isfinite(shares).any() and album.room(SECTION):
        made = fractions_by_frequency(shares, f"step {last:,}")
        caption = (
            "Which frequencies explain which neurons; `--neurons-where frequency=K` draws the neurons of one of them."
        )
        album.figure(SECTION, f"{folder}/neurons_by_frequency_step_{last}", made, caption, shows)
    pages(album, folder, small[view.side] if view.side else full["neuron_acts"], now, view, (last, shows))
    if len(clusters) and album.room(SECTION):
        made = cluster_cards(small[28], clusters, now)
        caption = "Clusters of neurons with similar scale profiles: the representative (framed) and the next members."
        album.figure(SECTION, f"{folder}/clusters_step_{last}", made, caption, shows)
    if not len(clusters):
        album.skip(
            SECTION, f"clusters of trial {moment.trial[:12]}", f"{album.analyze('grokking_timeline')} finds them"
        )
    for to in ("a", "b"):
        rows = now[now["kind"] == f"head_to_{to}"] if len(now) else now
        if not len(rows):
            album.skip(
                SECTION, f"head cards of trial {moment.trial[:12]}", f"{album.analyze('grokking')} has their scales"
            )
        elif album.room(SECTION):
            made = head_cards(full[f"attn_to_{to}"], rows)
            caption = f"Heads by scale: attention from = to {to}, framed and grouped by structural type."
            album.figure(SECTION, f"{folder}/heads_to_{to}_step_{last}", made, caption, shows)


def pages(album: Album, folder: str, maps: Maps, now: pd.DataFrame, view: View, where: tuple[int, str]) -> None:
    """All neurons that the view asks for, a page at a time, with a line coloured by structural type below each."""
    step, shows = where
    units, badges = list(range(len(maps))), None
    if len(now):
        units = chosen(now, view.where)
        neurons = now[now["kind"] == "neuron"]
        badges = dict(zip(neurons["unit"].astype(int), neurons["structure"].astype(str), strict=True))
    elif view.where is not None:
        album.skip(SECTION, f"neurons with {view.where}", f"{album.analyze('grokking')} has their scales")
        return
    units = units if view.most is None else units[: view.most]
    per_page = view.grid[0] * view.grid[1]
    count = -(-len(units) // per_page)
    if not units:
        album.skip(SECTION, f"neurons with {view.where} ({shows})", "none")
    for page in range(count) if view.page is None else [view.page] if units else []:
        if album.room(SECTION):
            made = small_multiples(maps, units=units, page=page, grid=view.grid, badges=badges)
            rule = f" with {view.where}" if view.where else ""
            caption = (
                f"Neurons{rule}, page {page + 1} of {count}: {maps.shape[-1]} × {maps.shape[-1]} over all pairs (a, b)."
            )
            album.figure(SECTION, f"{folder}/neurons_step_{step}_page_{page}", made, caption, shows)


def _representatives(maps: Maps, now: pd.DataFrame, clusters: pd.DataFrame) -> list[tuple[int, str]]:
    """(unit, words): one a cluster, and those of the largest share of one frequency up to eight in all."""
    shares = now[now["kind"] == "neuron"].dropna(subset=["fraction"]) if len(now) else now
    words = {}
    if len(shares):
        words = {int(r.unit): f"neuron {r.unit}: {r.fraction:.0%} frequency {r.frequency}" for r in shares.itertuples()}
    first = clusters[clusters["representative"].astype(bool)].sort_values("cluster") if len(clusters) else clusters
    units = [int(u) for u in first["unit"]] if len(first) else []
    more = shares.sort_values("fraction", ascending=False)["unit"].astype(int) if len(shares) else range(len(maps))
    units += [int(u) for u in more if int(u) not in units][: max(0, SHOWN - len(units))]
    return [(u, words.get(u, f"neuron {u}")) for u in units[:SHOWN]]


def _why(clusters: pd.DataFrame) -> str:
    more = "then those with the largest share of one frequency"
    return f"one a cluster of similar scales, {more}" if len(clusters) else "the first ones, or " + more[5:]


def resolutions(full: Maps, reduced: dict[int, Maps], units: Sequence[tuple[int, str]]) -> Figure:
    """A row a neuron: its p × p map, and the same reduced; a row has one scale of colours."""
    columns = {full.shape[-1]: full} | {side: reduced[side] for side in sorted(reduced, reverse=True)}
    return _rows(
        {f"{side} × {side}": maps for side, maps in columns.items()},
        units,
        ("Neurons over all pairs", "activation after the ReLU at =, a down, b across; a scale a row"),
    )


def over_training(maps: dict[int, Maps], units: Sequence[tuple[int, str]]) -> Figure:
    """A row a neuron, a column a checkpoint; a row has one scale of colours."""
    told = "activation after the ReLU at =, a down, b across; a scale a row"
    return _rows({f"step {step:,}": m for step, m in maps.items()}, units, ("Neurons along training", told))


def _rows(columns: dict[str, Maps], units: Sequence[tuple[int, str]], title: tuple[str, str]) -> Figure:
    n = len(columns)
    drawn = canvas((1.9 * n + 2.1, 1.75 * len(units) + 0.2), (len(units), n), n * len(units), title)
    for row, (unit, words) in enumerate(units):
        own = [maps[unit] for maps in columns.values()]
        low, high = min(float(m.min()) for m in own), max(float(m.max()) for m in own)
        for i, (name, values) in enumerate(zip(columns, own, strict=True)):
            axes = drawn.axes[row * n + i]
            image = axes.imshow(
                values, "viridis", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest"
            )
            axes.set(xticks=[], yticks=[])
            if row == 0:
                head(axes, name, 1.8)
        drawn.axes[row * n].set_ylabel(words.replace(": ", "\n"), fontsize=SMALL, color=INK)
        bar = drawn.figure.colorbar(image, ax=drawn.axes[row * n : (row + 1) * n], shrink=0.9, pad=0.02)
        bar.ax.tick_params(labelsize=SMALL)
    return drawn.figure


def cluster_cards(maps: Maps, clusters: pd.DataFrame, now: pd.DataFrame) -> Figure:
    """A row a cluster: its representative, framed, and further members; beside it what they have in common."""
    rows = [(int(c), own.sort_values("representative", ascending=False)) for c, own in clusters.groupby("cluster")]
    scale = now[now["kind"] == "neuron"].set_index("unit") if len(now) else pd.DataFrame()
    title = (
        f"{len(rows)} clusters of neurons",
        "by scale profile (FFT without DC, variance preserved, gradient); each map scaled by itself",
    )
    drawn = canvas(
        (1.15 * (MEMBERS + 1) + 1.6, 1.3 * len(rows)), (len(rows), MEMBERS + 1), len(rows) * (MEMBERS + 1), title
    )
    for place, (cluster, own) in enumerate(rows):
        units = [int(u) for u in own["unit"]][: MEMBERS + 1]
        for i, axes in enumerate(drawn.axes[place * (MEMBERS + 1) : (place + 1) * (MEMBERS + 1)]):
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if i >= len(units):
                continue
            axes.imshow(maps[units[i]], "viridis", interpolation="nearest")
            kind = str(scale["structure"].get(units[i], "")) if len(scale) else ""
            for spine in axes.spines.values():
                spine.set(visible=i == 0, linewidth=2.0, color=STRUCTURE.get(kind, GREY))
            axes.set_xlabel(f"neuron {units[i]}", fontsize=SMALL - 1, color=INK, labelpad=2)
        text = f"cluster {cluster}\n{len(own)} neurons"
        if len(scale):
            known = scale.loc[scale.index.isin(own["unit"])]
            text += f"\nFFT {known['fft_no_dc'].mean():.2f}, gradient {known['relative_gradient'].mean():.2f}"
        drawn.axes[place * (MEMBERS + 1)].set_ylabel(text, fontsize=fitted(text, 4.0, SMALL), color=INK)
    return drawn.figure
