"""Figures of modular networks: the transition beside the dimensionality events, and units' maps as small multiples."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ndt_ray.analysis.mechanisms.grokking.observations import observations, summary
from ndt_ray.errors import SpecError
from ndt_ray.figures.album import Album
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, head, require, step_axis

STRUCTURE = {"low_frequency": "#0072b2", "mixed": "#e69f00", "high_frequency": "#d55e00", "flat": "#9a9a9a"}
"""Colour of a unit's badge by its structural type."""
SECTION = "Modular addition"
GRID = (16, 32)
"""Rows and columns of a page: all 512 neurons."""
MANY = 1024
"""Maps on one page beyond which drawing takes over 10 s."""


def transition(
    measures: pd.DataFrame,
    evaluations: pd.DataFrame,
    measurements: pd.DataFrame,
    *,
    events: pd.DataFrame | None = None,
    onset: pd.Series | None = None,
    measure: str = "participation_ratio",
) -> Figure:
    """One trial: losses, restricted and excluded loss, Fourier sparsity, and the dimensionality of each layer over
    training, with the events found in it and the steps of the second descent.

    Rows of `grokking_measures`, `evaluations`, `measurements` and (optionally) significant `events` and the trial's
    `grokking_onsets`. SpecError without rows.
    """
    require(measures, ("step", "train_loss", "test_loss", "restricted_loss", "gini_embedding"), "grokking_measures")
    require(measurements, ("step", "layer", measure), "measurements")
    rows = measures.sort_values("step")
    title = ("Grokking: the Fourier transition and the dimensionality", _words(onset))
    drawn = canvas((6.6, 6.4), (4, 1), 4, title, sharex=True)
    losses, progress, sparsity, dimensions = drawn.axes
    held = evaluations.sort_values("step") if len(evaluations) else rows.rename(columns={"test_loss": "loss"})
    _lines(losses, [(held["step"], held["loss"], "held-out"), (rows["step"], rows["train_loss"], "training")], "loss")
    _lines(progress, [(rows["step"], rows[f"{n}_loss"], n) for n in ("restricted", "excluded")], "loss")
    for axes in (losses, progress):
        axes.set_yscale("log")
    names = {"gini_embedding": "Gini of W_E", "specialised_neurons": "neurons ≥ 85 % one frequency", "explained": "FVE"}
    _lines(sparsity, [(rows["step"], rows[c], label) for c, label in names.items()], "share")
    sparsity.set_ylim(-0.02, 1.02)
    for layer, own in measurements.sort_values("step").groupby("layer", sort=False):
        dimensions.plot(own["step"], own[measure], lw=1, label=str(layer))
    dimensions.set_ylabel(measure.replace("_", " "), fontsize=NORMAL, color=INK)
    dimensions.legend(fontsize=SMALL - 1, frameon=False, ncols=2)
    for event in events.itertuples() if events is not None else ():
        dimensions.axvspan(event.step_before, event.step_after, color="#cc79a7", alpha=0.25, lw=0)
    steps = [] if onset is None else [onset[f"{name}_step"] for name in ("memorised", "inflection", "onset")]
    for step in steps:
        if pd.notna(step):
            for axes in drawn.axes:
                axes.axvline(step, color=GREY, lw=0.7, ls=(0, (4, 3)))
    step_axis(dimensions, float(rows["step"].max()))
    dimensions.set_xlabel("training step", fontsize=NORMAL, color=INK)
    return drawn.figure


def small_multiples(
    maps: NDArray[np.floating[Any]],
    *,
    units: Sequence[int] | None = None,
    page: int = 0,
    grid: tuple[int, int] = GRID,
    badges: Mapping[int, str] | None = None,
) -> Figure:
    """Maps [n, h, w] of the chosen units (default: all) as a grid, a page of rows × columns at a time.

    `badges`: structural type by unit, as a coloured line below its map. Warns where a page is slow to draw; SpecError
    for a page that is empty.
    """
    chosen = list(range(len(maps))) if units is None else list(units)
    per_page = grid[0] * grid[1]
    shown = chosen[page * per_page : (page + 1) * per_page]
    if page < 0 or not shown:
        pages = -(-len(chosen) // per_page)
        raise SpecError(f"no page {page} of {len(chosen)} units: there are {pages} pages of {per_page}, from 0")
    if len(shown) > MANY:
        warnings.warn(f"{len(shown)} maps on one page take long to draw; under {MANY} do not", stacklevel=2)
    columns = min(grid[1], len(shown))
    rows = -(-len(shown) // columns)
    side = maps.shape[-1]
    sheet = np.full((rows * (side + 2), columns * (side + 2)), np.nan)
    for place, unit in enumerate(shown):
        top, left = (place // columns) * (side + 2), (place % columns) * (side + 2)
        low, high = float(maps[unit].min()), float(maps[unit].max())
        sheet[top : top + side, left : left + side] = (maps[unit] - low) / (high - low) if high > low else 0.0
    first, last = page * per_page, page * per_page + len(shown) - 1
    title = (f"Units {first} to {last} of {len(chosen)}", "activation over all pairs (a, b), each map scaled by itself")
    drawn = canvas((0.32 * columns + 0.2, 0.32 * rows + 0.2), (1, 1), 1, title)
    axes = drawn.axes[0]
    axes.imshow(np.ma.masked_invalid(sheet), cmap="viridis", interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    for place, unit in enumerate(shown) if badges else ():
        colour = STRUCTURE.get((badges or {}).get(unit, ""), None)
        if colour is not None:
            y, x = (place // columns) * (side + 2) + side, (place % columns) * (side + 2)
            axes.plot([x, x + side], [y, y], color=colour, lw=1.2, solid_capstyle="butt")
    return drawn.figure


def neuron_frequencies(timeline: pd.DataFrame, scales: pd.DataFrame) -> Figure:
    """Share of each neuron's energy in its dominant frequency over checkpoints, neurons ordered by frequency: the
    selector of the founding document. Rows of `specialisation_timeline` and `scale_metrics` of one trial."""
    require(timeline, ("kind", "unit", "frequency", "fraction"), "specialisation_timeline")
    own = timeline[timeline["kind"] == "neuron"].sort_values(["frequency", "fraction"])
    table = scales[scales["kind"] == "neuron"].pivot(index="unit", columns="step", values="fraction")
    values = table.loc[own["unit"]].to_numpy(np.float64)
    title = (
        "When neurons specialise",
        "share of one frequency (colour); neurons ordered by the frequency they end with",
    )
    drawn = canvas((5.2, 4.2), (1, 1), 1, title)
    axes = drawn.axes[0]
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(range(len(table.columns)), [f"{s:,}" for s in table.columns], rotation=60, ha="right")
    edges = np.flatnonzero(np.diff(own["frequency"].to_numpy())) + 0.5
    axes.hlines(edges, -0.5, len(table.columns) - 0.5, color="white", lw=0.6)
    centres = own.reset_index().groupby("frequency").apply(lambda g: float(g.index.to_numpy().mean()))
    axes.set_yticks(list(centres), [str(int(k)) for k in centres.index])
    axes.set_ylabel("frequency at the end", fontsize=NORMAL, color=INK)
    axes.set_xlabel("checkpoint", fontsize=NORMAL, color=INK)
    drawn.figure.colorbar(image, ax=axes, shrink=0.8)
    return drawn.figure


def fractions_by_frequency(fractions: NDArray[np.float64], words: str) -> Figure:
    """Share of each neuron's energy `[n, p//2]` by frequency at one checkpoint, neurons ordered by their strongest
    frequency and its share; `words` says of which. Constant neurons are left out."""
    if fractions.ndim != 2 or not np.isfinite(fractions).any():
        raise SpecError(f"shares are [neurons, frequencies] of neurons that vary, but got shape {fractions.shape}")
    known = fractions[np.isfinite(fractions).all(1)]
    best = known.argmax(1)
    order = np.lexsort((-known.max(1), best))
    title = ("Neurons by frequency", f"share of a neuron's energy (colour), neurons ordered by frequency; {words}")
    drawn = canvas((7.2, 3.6), (1, 1), 1, title)
    axes = drawn.axes[0]
    image = axes.imshow(known[order].T, "viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    counts = np.bincount(best, minlength=known.shape[1])
    main = np.flatnonzero(counts >= 0.05 * len(known))
    axes.set_yticks(list(main), [f"{k + 1}" for k in main])
    axes.set_ylabel("frequency", fontsize=NORMAL, color=INK)
    axes.set_xlabel(f"{len(known):,} neurons", fontsize=NORMAL, color=INK)
    axes.set_xticks([])
    bar = drawn.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=SMALL)
    return drawn.figure


def head_cards(maps: NDArray[np.floating[Any]], heads: pd.DataFrame) -> Figure:
    """Attention of each head over all pairs, grouped by structural type and coloured by it; `heads`: rows of
    `scale_metrics` of one checkpoint and kind."""
    require(heads, ("unit", "fft_no_dc", "relative_gradient", "structure", "label"), "scale_metrics")
    ordered = heads.sort_values(["structure", "fft_no_dc"], ascending=[True, False])
    title = ("Heads by scale", "attention from = over all pairs; low-frequency share and relative gradient")
    drawn = canvas((2.0 * len(ordered), 2.3), (1, len(ordered)), len(ordered), title)
    for axes, row in zip(drawn.axes, ordered.itertuples(), strict=True):
        axes.imshow(maps[row.unit], cmap="viridis", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, linewidth=2.0, color=STRUCTURE.get(row.structure, GREY))
        head(axes, f"{row.unit}: {row.label}", 1.8)
        axes.set_xlabel(f"{row.fft_no_dc:.2f}, {row.relative_gradient:.2f}", fontsize=SMALL, color=GREY)
    return drawn.figure


def write(tables: Mapping[str, pd.DataFrame], album: Album) -> None:
    """For each trial of `grokking_measures`: the transition, the neurons' frequencies, the summary statistics (CSV) and
    the key observations (Markdown), named by the first six digits of the trial.

    `tables`: by name, of one sweep; any but grokking_measures may be empty.
    """
    for trial, measures in tables["grokking_measures"].groupby("trial_id", sort=True):
        own = {name: rows[rows["trial_id"] == trial] if "trial_id" in rows else rows for name, rows in tables.items()}
        onset = own["grokking_onsets"].iloc[0] if len(own["grokking_onsets"]) else None
        name = f"grokking_{str(trial)[:6]}"
        shows = f"trial {str(trial)[:12]}, {len(measures)} checkpoints to step {int(measures['step'].max()):,}"
        if len(own["measurements"]) and album.room(SECTION):
            events = own.get("events")
            found = events[events["significant"].astype(bool)] if events is not None and len(events) else None
            made = transition(measures, own["evaluations"], own["measurements"], events=found, onset=onset)
            caption = "Losses, progress measures and Fourier sparsity beside the dimensionality of each layer."
            if found is not None:
                caption += f" Shaded: its {len(found)} significant events, of the family that was declared."
            album.figure(SECTION, name, made, caption, shows)
        if len(own["specialisation_timeline"]) and len(own["scale_metrics"]):
            if album.room(SECTION):
                made = neuron_frequencies(own["specialisation_timeline"], own["scale_metrics"])
                caption = "Share of each neuron's energy in one frequency over training."
                album.figure(SECTION, f"{name}_neurons", made, caption, shows)
            text = summary(measures, own["scale_metrics"]).to_csv(index=False)
            album.text(SECTION, f"{name}_summary.csv", text, "Summary statistics of every checkpoint.", shows)
        if onset is not None:
            lines = observations(onset, measures, own["specialisation_timeline"], own["scale_questions"])
            text = "\n".join([f"# Trial {trial}", "", *(f"- {line}" for line in lines)]) + "\n"
            album.text(SECTION, f"{name}.md", text, "Key observations, computed.", shows)


def _lines(axes: Axes, series: Sequence[tuple[Any, Any, str]], label: str) -> None:
    for x, y, name in series:
        axes.plot(x, y, lw=1.1, label=name)
    axes.set_ylabel(label, fontsize=NORMAL, color=INK)
    axes.legend(fontsize=SMALL - 1, frameon=False)


def _words(onset: pd.Series | None) -> str:
    if onset is None:
        return "one trial"
    known = [(n, onset[f"{n}_step"]) for n in ("memorised", "inflection", "onset") if pd.notna(onset[f"{n}_step"])]
    return f"{onset['status']}; dashed: " + ", ".join(f"{n} {int(v):,}" for n, v in known) if known else onset["status"]
