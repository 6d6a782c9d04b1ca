"""Figures of how dictionaries transfer between layers, and the founding document's files beside them."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ndt_ray.analysis.mechanisms.sae import founding
from ndt_ray.analysis.mechanisms.sae.matrix import PARTIAL, UNIVERSAL, LayerMatrix, divergence, row_means, row_verdicts
from ndt_ray.errors import SpecError
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, head, require, save

GREEN, YELLOW, RED, SKIPPED = "#5aae61", "#f6e08b", "#d6604d", "#d9d9d9"
BANDS = ((GREEN, "universal (≥ .9)"), (YELLOW, "partially universal (.6–.9)"), (RED, "model-specific (< .6)"))
MAX_PANELS = 24


def layer_universality_heatmap(matrices: Sequence[LayerMatrix]) -> Figure:
    """Transfer quality by source (rows) and target layer (columns), a panel a matrix: green from .9, yellow from .6,
    red below, grey where skipped; each row with what it says. SpecError for none, or over 24."""
    _require(matrices)
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    most = max(max(m.values.shape) for m in matrices)
    size = (columns * (2.6 + 0.46 * most), rows * (0.9 + 0.36 * most))
    title = (
        "Transfer quality of dictionaries between layers",
        "source loss / target loss, at most 1; rows: source layer",
    )
    legend = [Patch(color=colour, label=label) for colour, label in (*BANDS, (SKIPPED, "skipped"))]
    drawn = canvas(size, (rows, columns), len(matrices), title, legend)
    for axes, found in zip(drawn.axes, matrices, strict=True):
        _panel(axes, found, size[0] / columns)
    return drawn.figure


def layer_universality_curve(matrices: Sequence[LayerMatrix]) -> Figure:
    """Mean quality of each source layer by its depth, and quality by distance of the layers, a line a matrix."""
    _require(matrices)
    title = ("Universality along the network", "mean over target layers, and by distance between the two")
    drawn = canvas((7.6, 2.7), (1, 2), 2, title)
    for found in matrices:
        depth = np.linspace(0, 1, len(found.sources)) if len(found.sources) > 1 else np.zeros(1)
        drawn.axes[0].plot(depth, list(row_means(found).values()), marker="o", ms=3, lw=1, label=found.pair)
        if found.square and len(found.sources) > 1:
            distance = np.abs(np.subtract.outer(*(np.arange(len(found.sources)),) * 2))
            lags = range(distance.max() + 1)
            means = [np.nanmean(v) if (~np.isnan(v := found.values[distance == lag])).any() else np.nan for lag in lags]
            drawn.axes[1].plot(list(lags), means, marker="o", ms=3, lw=1)
    for axes, label in zip(drawn.axes, ("depth of the source layer", "layers between source and target"), strict=True):
        for level in (0.9, 0.7, 0.5):
            axes.axhline(level, color=GREY, lw=0.6, ls=(0, (4, 3)))
        axes.set(ylim=(0, 1.03))
        axes.set_xlabel(label, fontsize=NORMAL, color=INK)
    drawn.axes[0].set_ylabel("quality", fontsize=NORMAL, color=INK)
    if len(matrices) <= 8:
        drawn.axes[0].legend(fontsize=SMALL - 1, frameon=False, loc="lower left")
    return drawn.figure


def four_numbers(rows: pd.DataFrame) -> Figure:
    """Raw and aligned explained variance beside best control and ceiling, one dot a pair, a panel a relation."""
    require(rows, ("relation", "status", "raw", "aligned", "control", "ceiling"), "sae_transfer")
    known = rows[rows["status"] == "ok"]
    if not len(known):
        raise SpecError("sae_transfer: every pair was skipped - its column reason says why")
    names = list(dict.fromkeys(known["relation"]))
    title = ("What transfers between layers", "explained variance on held-out stimuli, one dot a pair; bars: median")
    drawn = canvas((1.9 * len(names) + 0.6, 2.6), (1, len(names)), len(names), title, sharey=True)
    for axes, name in zip(drawn.axes, names, strict=True):
        own = known[known["relation"] == name]
        head(axes, f"{name} (n = {len(own)})", 1.8)
        for place, column in enumerate(("raw", "aligned", "control", "ceiling")):
            values = own[column].dropna().to_numpy(np.float64).clip(-1, 1)
            jitter = place + 0.3 * (np.arange(len(values)) / max(len(values) - 1, 1) - 0.5)
            axes.scatter(jitter, values, s=5, color=GREY, alpha=0.5, linewidths=0)
            if len(values):
                axes.hlines(np.median(values), place - 0.3, place + 0.3, color=INK, lw=1.4)
        axes.set_xticks(range(4), ["raw", "aligned", "control", "ceiling"], rotation=40, ha="right")
        axes.axhline(0, color=GREY, lw=0.5)
        axes.set_ylim(-1.05, 1.05)
    return drawn.figure


def write(rows: pd.DataFrame, folder: str | Path) -> list[Path]:
    """The founding document's files from rows of `sae_transfer`: JSON, insights, checks, and the figures if any."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in founding.files(rows).items():
        (folder / name).write_text(text)
        written.append(folder / name)
    made = founding.matrices(rows)
    within = [m for m in made if "->" not in m.pair][:MAX_PANELS]
    if within:
        written.append(save(layer_universality_heatmap(within), folder / "layer_universality_heatmap.png"))
        written.append(save(layer_universality_curve(within), folder / "layer_universality_curve.png"))
    if len(rows) and (rows["status"] == "ok").any():
        written.append(save(four_numbers(rows), folder / "sae_transfer.png"))
    return written


def summary_json(rows: pd.DataFrame) -> str:
    """`multilayer_training_summary.json` from rows of `sae`: final and smallest loss, sparsity and configuration."""
    found = {
        f"{r.trial_id}_{r.layer}_step{r.step}_{r.dictionary}": {
            "final_loss": r.final_loss,
            "min_loss": r.min_loss,
            "sparsity": r.sparsity,
            "config": json.loads(r.config),
        }
        for r in rows[rows["flag"].isna()].itertuples()
    }
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def _panel(axes: Axes, found: LayerMatrix, inches: float) -> None:
    axes.set_facecolor(SKIPPED)  # what is masked shows it
    colours = ListedColormap([RED, YELLOW, GREEN])
    limits = BoundaryNorm([-1e9, PARTIAL, UNIVERSAL, 1e9], 3)
    axes.imshow(np.ma.masked_invalid(found.values), cmap=colours, norm=limits, aspect="auto")
    for i, row in enumerate(found.values):
        for j, value in enumerate(row):
            text = "–" if np.isnan(value) else f"{value:.2f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=SMALL, color=INK)
    verdicts = row_verdicts(found)
    axes.set_xticks(range(len(found.targets)), found.targets, rotation=40, ha="right")
    axes.set_yticks(range(len(found.sources)), found.sources)
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(found.sources)), [verdicts[name] for name in found.sources])
    right.tick_params(labelsize=SMALL - 1, length=0, labelcolor=GREY)
    right.spines["right"].set_visible(False)
    apart = divergence(found)
    head(axes, f"{found.pair}: mean {found.universality:.2f}" + (f", apart at {apart}" if apart else ""), inches)


def _require(matrices: Sequence[LayerMatrix]) -> None:
    if not 1 <= len(matrices) <= MAX_PANELS:
        raise SpecError(f"a figure holds 1 to {MAX_PANELS} matrices, but got {len(matrices)}: choose some cells")
