"""Figures of how dictionaries transfer between layers, and the founding document's files beside them."""

import json
import re
import string
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ndt_ray.analysis.mechanisms.sae import founding
from ndt_ray.analysis.mechanisms.sae.matrix import PARTIAL, UNIVERSAL, LayerMatrix, divergence, row_means, row_verdicts
from ndt_ray.errors import SpecError
from ndt_ray.figures.album import Album
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, head, require

GREEN, YELLOW, RED, SKIPPED = "#5aae61", "#f6e08b", "#d6604d", "#d9d9d9"
BANDS = ((GREEN, "universal (≥ .9)"), (YELLOW, "partially universal (.6–.9)"), (RED, "model-specific (< .6)"))
MAX_PANELS = 24
SECTION = "Sparse autoencoders and their transfer"
SUMMARY = "multilayer_training_summary.json"
CAPTIONS = {
    "layer_transfer_matrix.json": "Transfer qualities of every pair of layers, and the mean of each pair of networks.",
    "layer_analysis_insights.md": "Early layers, divergence, bottleneck and the effect of size, as sentences.",
    "sae_checks.json": "Checks of losses, convergence, widths, ratios and files.",
    SUMMARY: "Losses, sparsity and configuration of every dictionary.",
}


def layer_universality_heatmap(
    matrices: Sequence[LayerMatrix], told: str = "source loss / target loss, at most 1; rows: source layer"
) -> Figure:
    """Transfer quality by source (rows) and target layer (columns), a panel a matrix: green from .9, yellow from .6,
    red below, grey where there is no value. A letter says why a pair was skipped, a dash that it was not compared; each
    row with what it says. SpecError for none, or over 24."""
    _require(matrices)
    columns = min(3, len(matrices))
    rows = -(-len(matrices) // columns)
    most = max(max(m.values.shape) for m in matrices)
    size = (columns * (2.6 + 0.46 * most), rows * (0.9 + 0.36 * most))
    title = ("Transfer quality of dictionaries between layers", told)
    codes = skip_codes(matrices)
    legend = [Patch(color=colour, label=label) for colour, label in (*BANDS, (SKIPPED, "– not compared"))]
    legend += [Patch(color=SKIPPED, label=f"{letter}: {reason}") for reason, letter in codes.items()]
    drawn = canvas(size, (rows, columns), len(matrices), title, legend)
    for axes, found in zip(drawn.axes, matrices, strict=True):
        _panel(axes, found, size[0] / columns, codes)
    return drawn.figure


def skip_codes(matrices: Sequence[LayerMatrix]) -> dict[str, str]:
    """A letter for each reason for which pairs were skipped; numbers in reasons are left out."""
    reasons = sorted({_reason(text) for m in matrices for text in m.reasons.values()})
    return dict(zip(reasons, string.ascii_lowercase, strict=False))


def _reason(text: str) -> str:
    return re.sub(r"\d+_vs_\d+", "…", text)


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
    known = founding.named(rows[rows["status"] == "ok"])
    if not len(known):
        raise SpecError("sae_transfer: every pair was skipped - its column reason says why")
    if known["configuration"].nunique() > 1:
        known = known.assign(relation=known["relation"] + "\n" + known["configuration"])
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


def write(rows: pd.DataFrame, dictionaries: pd.DataFrame, album: Album) -> None:
    """The founding document's files from rows of `sae_transfer` and `sae` into an album.

    JSON, insights, checks, and the figures: within networks, between networks (also by explained variance after
    alignment), and the four numbers.
    """
    for name, text in founding.files(rows, dictionaries).items():
        album.text(SECTION, name, text, CAPTIONS[name])
    made = founding.matrices(rows)
    within = [m for m in made if m.within]
    if within:
        networks = "one network" if len(within) == 1 else f"{len(within)} networks"
        what = f"within {networks}: source loss / target loss, at most 1; diagonal 1"
        if album.room(SECTION):
            drawn = layer_universality_heatmap(within[:MAX_PANELS])
            album.figure(SECTION, "layer_universality_heatmap", drawn, f"Transfer between layers {what}.")
        if album.room(SECTION):
            drawn = layer_universality_curve(within[:MAX_PANELS])
            album.figure(SECTION, "layer_universality_curve", drawn, f"Universality along the network, {what}.")
        _left_out(album, within)
    told = "rows: layer of the network named first; columns: of the second; source loss / target loss, at most 1"
    _across(album, [m for m in made if not m.within], "layer_universality_heatmap_across", told)
    aligned = [m for m in founding.matrices(rows, "aligned") if not m.within]
    told = "explained variance of the target after alignment on other stimuli (widths may differ); rows: source layer"
    _across(album, aligned, "layer_universality_heatmap_across_aligned", told)
    skipped = rows[rows["status"] != "ok"] if len(rows) else rows
    if len(skipped):
        columns = [
            c
            for c in skipped
            if c in ("relation", "reason") or c.startswith(("source_", "target_")) and "loss" not in c
        ]
        text = skipped[columns].to_csv(index=False)
        album.text(
            SECTION, "sae_transfer_skipped.csv", text, f"{len(skipped)} pairs that were skipped, with the reason."
        )
        counts = skipped["reason"].fillna("no reason").map(_reason).value_counts()
        for reason, count in counts.items():
            album.skip(SECTION, f"{count} of {len(rows)} pairs of layers", str(reason))
    if len(rows) and (rows["status"] == "ok").any() and album.room(SECTION):
        what = "Explained variance of a dictionary on another layer: raw, aligned, best control, ceiling."
        album.figure(SECTION, "sae_transfer", four_numbers(rows), what)


def _across(album: Album, made: Sequence[LayerMatrix], name: str, told: str) -> None:
    """Pages of as many matrices between networks as one figure holds."""
    if not made:
        album.skip(SECTION, name, "no pair of networks has such a value: sae_transfer's column reason says why")
    for page, start in enumerate(range(0, len(made), MAX_PANELS)):
        if album.room(SECTION):
            own = made[start : start + MAX_PANELS]
            caption = f"Between networks, {start + 1} to {start + len(own)} of {len(made)}; {told}."
            drawn = layer_universality_heatmap(own, told)
            album.figure(SECTION, name + (f"_{page + 1}" if page else ""), drawn, caption)


def _left_out(album: Album, within: Sequence[LayerMatrix]) -> None:
    if len(within) > MAX_PANELS:
        names = ", ".join(m.pair for m in within[MAX_PANELS:])
        album.skip(SECTION, f"panels of {names}", f"a figure holds {MAX_PANELS}; layer_transfer_matrix.json has all")


def summary_json(rows: pd.DataFrame) -> str:
    """`multilayer_training_summary.json` from rows of `sae`: final and smallest loss, sparsity and configuration."""
    rows = founding.named(rows)
    several = rows["configuration"].nunique() > 1
    found = {
        f"{r.trial_id}_{r.layer}_step{r.step}_{r.dictionary}" + (f"_{r.configuration}" if several else ""): {
            "final_loss": r.final_loss,
            "min_loss": r.min_loss,
            "sparsity": r.sparsity,
            "config": json.loads(r.config),
        }
        for r in rows[rows["flag"].isna()].itertuples()
    }
    return json.dumps(found, indent=2, sort_keys=True) + "\n"


def _panel(axes: Axes, found: LayerMatrix, inches: float, codes: Mapping[str, str]) -> None:
    axes.set_facecolor(SKIPPED)  # what is masked shows it
    colours = ListedColormap([RED, YELLOW, GREEN])
    limits = BoundaryNorm([-1e9, PARTIAL, UNIVERSAL, 1e9], 3)
    axes.imshow(np.ma.masked_invalid(found.values), cmap=colours, norm=limits, aspect="auto")
    for i, row in enumerate(found.values):
        for j, value in enumerate(row):
            why = codes.get(_reason(found.reasons.get((i, j), "")), "–")
            text = why if np.isnan(value) else f"{value:.2f}"
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
