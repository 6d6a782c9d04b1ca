"""The founding plan's result folders and key table, computed from a sweep's tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ndt_ray.analysis.phases import BINS, EDGES
from ndt_ray.architectures import family_of
from ndt_ray.figures import founding_tables as founded
from ndt_ray.figures.album import Album
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, head
from ndt_ray.figures.founding_tables import Jumps
from ndt_ray.report.data_sets import records

SECTION = "Founding plan"
COLOUR = {"transformer": "#0072b2", "cnn": "#d55e00", "mlp": "#009e73"}
TIMING = {"early": "#56b4e9", "mid": "#e69f00", "late": "#cc79a7"}
NOISE = "#9a9a9a"
MOST = 14
"""Experiments with a bar of their own; of more, those with most jumps."""


def write(album: Album, tables: Mapping[str, pd.DataFrame], experiments: Sequence[str] = ()) -> None:
    """The files of all three folders and the key table; what a sweep has no networks or tables for is left out, with
    the reason. SpecError for an experiment that there is not."""
    found = founded.read(tables, experiments)
    if found is None:
        analyses = ("jumps", "events", "event_windows", "event_phases")
        why = f"neither jumps nor events were sought: {album.analyze(*analyses)}"
        album.skip(SECTION, "phase2_week3_4, phase2_week5_6, phase2_week7_8", why)
        return
    if not len(found.rows):
        album.skip(SECTION, "figures of jumps", f"there is not one: {found.words}")
    _weeks_3_4(album, found, tables)
    _weeks_5_6(album, found)
    _weeks_7_8(album, found, tables)
    table = founded.key_table(found)
    album.text(SECTION, "key_table.csv", table.to_csv(index=False), f"Key table; {found.words}.")
    album.text(
        SECTION,
        "key_table.md",
        f"# Key table: {album.sweep}: {found.words}\n\n{founded.said(found.data)}{founded.markdown(table)}",
        "The same in Markdown.",
    )


def _weeks_3_4(album: Album, found: Jumps, tables: Mapping[str, pd.DataFrame]) -> None:
    folder, rows = "phase2_week3_4", found.rows[found.rows["family"] == "transformer"]
    if not len(rows) and not _any(found, "transformer"):
        album.skip(SECTION, folder, "no transformer in this sweep")
        return
    album.text(SECTION, f"{folder}/transformer_jumps_detailed.csv", _csv(founded.detailed(rows)), _told(rows, found))
    coordination = tables["coordination"]
    own = (
        coordination[coordination["trial_id"].isin(_trials(tables, found, "transformer"))]
        if len(coordination)
        else coordination
    )
    if len(own):
        names = tables["trials"][["trial_id", "cell"]].rename(columns={"cell": "experiment"})
        text = _csv(names.merge(own, on="trial_id").sort_values(["experiment", "mode", "measure"]))
        caption = "Whether layers move together, by trial, beside what shifted layers give."
        album.text(SECTION, f"{folder}/transformer_coordination_detailed.csv", text, caption)
    else:
        why = f"no table coordination: {album.analyze('critical_periods')}"
        album.skip(SECTION, f"{folder}/transformer_coordination_detailed.csv", why)
    kinds = _only(found, ["transformer"]).kinds
    name = f"{folder}/transformer_layer_kinds.csv"
    if len(kinds):
        caption = (
            "Jumps by kind of layer, beside what is expected where there is nothing; the attention's output apart."
        )
        album.text(SECTION, name, _csv(kinds), caption)
    elif found.mode == "default":
        album.skip(SECTION, name, "uncalibrated jumps are not counted by kind of layer")
    else:
        album.skip(SECTION, name, f"no table event_kinds: {album.analyze('event_layers')}")
    _json(album, f"{folder}/transformer_analysis_results.json", _results(found, ["transformer"]))
    if len(rows):
        one = _only(found, ["transformer"])
        _drawn(album, f"{folder}/transformer_jump_overview", overview(one), f"Transformers: {found.words}.")
        _drawn(album, f"{folder}/transformer_early_vs_late", by_timing(one), "Transformers: early, mid and late jumps.")


def _weeks_5_6(album: Album, found: Jumps) -> None:
    folder, own = "phase2_week5_6", _only(found, ["cnn", "mlp"])
    if not (_any(found, "cnn") or _any(found, "mlp") or len(own.rows)):
        album.skip(SECTION, folder, "no CNN and no MLP in this sweep")
        return
    for family in ("cnn", "mlp"):
        chosen = own.rows[(own.rows["family"] == family) & own.rows["representative"].astype(bool)]
        album.text(
            SECTION, f"{folder}/{family}_representative_jumps.csv", _csv(founded.detailed(chosen)), _told(chosen, found)
        )
    _json(album, f"{folder}/cnn_mlp_comparison_results.json", _results(found, ["cnn", "mlp"]))
    if len(own.rows):
        _drawn(album, f"{folder}/cnn_mlp_comprehensive_comparison", overview(own), f"CNNs and MLPs: {found.words}.")
        _drawn(album, f"{folder}/cnn_mlp_layer_analysis", by_layer(own), "CNNs and MLPs: jumps by layer.")


def _weeks_7_8(album: Album, found: Jumps, tables: Mapping[str, pd.DataFrame]) -> None:
    folder = "phase2_week7_8"
    table = founded.loss_correlations(found)
    if len(table):
        caption = "Loss over the jumps by experiment and timing, beside windows of the same length nearby."
        album.text(SECTION, f"{folder}/loss_correlations.csv", _csv(table), caption)
    else:
        why = f"no table event_windows: {album.analyze('event_windows')}"
        album.skip(SECTION, f"{folder}/loss_correlations.csv", why)
    results = _results(found, list(founded.FAMILIES))
    verdicts = tables["phase_verdicts"]
    results["verdicts"] = _records(verdicts[verdicts["grouping"].isin(["all", "family"])]) if len(verdicts) else []
    _json(album, f"{folder}/early_late_results.json", results)
    if len(found.rows):
        drawn = comprehensive(found, album.sweep)
        _drawn(album, f"{folder}/early_late_comprehensive", drawn, f"Early and late: {found.words}.")
        _drawn(album, f"{folder}/early_late_by_architecture", by_architecture(found), "Timing by architecture.")


def _drawn(album: Album, name: str, figure: Figure, caption: str) -> None:
    if album.room(SECTION):
        album.figure(SECTION, name, figure, caption)


# -- figures ----------------------------------------------------------------------------------------------------------


def overview(found: Jumps) -> Figure:
    """Jumps by experiment beside noise, by phase, sizes, and where in the network."""
    rows = found.rows
    drawn = canvas((9.0, 6.4), (2, 2), 4, ("Jumps: how many, when, how large, where", found.words))
    _by_experiment(drawn.axes[0], found)
    _phases(drawn.axes[1], rows)
    _sizes(drawn.axes[2], rows)
    _box(
        drawn.axes[3],
        {f: rows[rows["family"] == f]["depth"] for f in _families(rows)},
        "depth of the layer (0 first, 1 last)",
    )
    return drawn.figure


def by_timing(found: Jumps) -> Figure:
    """Early, mid and late jumps: number, size, speed, depth, and what the loss did."""
    drawn = canvas((9.4, 2.9), (1, 5), 5, ("Early, mid and late", found.words))
    _timing_panels(drawn.axes, found)
    return drawn.figure


def _timing_panels(axes: Sequence[Axes], found: Jumps) -> None:
    own = {name: found.rows[found.rows["phase_bin"] == name] for name in BINS}
    axes[0].bar(list(own), [len(rows) for rows in own.values()], color=list(TIMING.values()))
    _label(axes[0], "jumps", f"timing (n = {len(found.rows)})")
    _box(axes[1], {n: _log(r["magnitude"]) for n, r in own.items()}, "log10 magnitude")
    _box(axes[2], {n: _log(r["speed"]) for n, r in own.items()}, "log10 speed")
    _box(axes[3], {n: r["depth"] for n, r in own.items()}, "depth of the layer")
    _box(axes[4], {n: r["loss_change"] for n, r in own.items()}, "change of the loss (nats)", zero=True)


def by_layer(found: Jumps) -> Figure:
    """A panel a family: jumps a trial by place of the layer, a line a model."""
    names = _families(found.rows)
    drawn = canvas((4.0 * len(names), 3.0), (1, len(names)), len(names), ("Jumps by layer", found.words))
    for axes, family in zip(drawn.axes, names, strict=True):
        own = found.rows[found.rows["family"] == family]
        for model, group in own.groupby("model", sort=True):
            counts = group["layer_index"].value_counts().sort_index() / group["trial_id"].nunique()
            axes.plot(counts.index, counts.to_numpy(), marker="o", ms=3, lw=1, label=str(model))
        head(axes, f"{family} (n = {len(own)})", 3.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _label(axes, "jumps a trial that has any", "place of the layer in the forward pass")
        if own["model"].nunique() <= 10:
            axes.legend(fontsize=SMALL - 1, frameon=False)
    return drawn.figure


def comprehensive(found: Jumps, sweep: str) -> Figure:
    """The founding plan's 3 × 3 panels: timing, experiments, phases; size, speed, loss; depth, type, loss by count.

    `sweep`: its name, for the commands that would fill a panel that is empty.
    """
    rows = found.rows
    drawn = canvas((11.0, 8.6), (3, 3), 9, ("Early and late jumps", found.words))
    own = {name: rows[rows["phase_bin"] == name] for name in BINS}
    experiments, counts, phases, size, speed, loss, depth, kind, coupling = drawn.axes
    _timing_panels([counts, size, speed, depth, loss], found)
    _by_experiment(experiments, found)
    _phases(phases, rows)
    kinds = rows["type"].dropna()
    if len(kinds):
        bottom = np.zeros(kinds.nunique())
        for name in BINS:
            n = own[name]["type"].value_counts().reindex(sorted(kinds.unique()), fill_value=0).to_numpy()
            kind.bar(
                [f"type {int(k)}" for k in sorted(kinds.unique())], n, bottom=bottom, color=TIMING[name], label=name
            )
            bottom = bottom + n
        kind.legend(fontsize=SMALL - 1, frameon=False)
        _label(kind, "jumps", "type (cluster)")
    else:
        _empty(kind, f"no types: `ndt analyze {sweep} taxonomy`")
    table = founded.loss_correlations(found)
    known = table[table["mean_loss_change"].notna()] if len(table) else table
    for name in BINS if len(known) else ():
        part = known[known["timing"] == name]
        coupling.scatter(part["num_jumps"], part["mean_loss_change"], s=12, color=TIMING[name], label=name, alpha=0.8)
    if len(known):
        coupling.axhline(0, color=GREY, lw=0.6)
        coupling.legend(fontsize=SMALL - 1, frameon=False)
        _label(coupling, "mean change of the loss (nats)", "jumps of an experiment")
    else:
        _empty(coupling, f"no loss: `ndt analyze {sweep} event_windows`")
    return drawn.figure


def by_architecture(found: Jumps) -> Figure:
    """Share of early, mid and late jumps by family and by model; in original mode as published and in true steps."""
    kinds = [("phase_bin", "as measured")]
    if found.mode == "original":
        kinds = [("phase_bin", "phases as published"), ("true_phase_bin", "phases in true steps")]
    drawn = canvas(
        (5.0 * len(kinds), 4.2), (1, len(kinds)), len(kinds), ("Timing by architecture", found.words), sharey=True
    )
    models = sorted(found.rows["model"].unique(), key=lambda m: (family_of(m), m))
    for axes, (column, word) in zip(drawn.axes, kinds, strict=True):
        left = np.zeros(len(models))
        for name in BINS:
            share = np.array([float((found.rows.loc[found.rows["model"] == m, column] == name).mean()) for m in models])
            axes.barh(models, 100 * share, left=left, color=TIMING[name], label=name)
            left = left + 100 * share
        head(axes, word, 4.6)
        _label(
            axes,
            "",
            "% of the model's jumps"
            + (" (rest: phase 0, dropped)" if column == "phase_bin" and found.mode == "original" else ""),
        )
        axes.set_xlim(0, 100)
        for y, m in enumerate(models):
            axes.text(
                101,
                y,
                f"n = {int((found.rows['model'] == m).sum())}",
                fontsize=SMALL - 1,
                color=GREY,
                va="center",
                clip_on=False,
            )
    drawn.axes[0].invert_yaxis()
    drawn.axes[0].legend(fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.08), ncols=3)
    return drawn.figure


def _by_experiment(axes: Axes, found: Jumps) -> None:
    counts = found.rows.groupby(["experiment", "family"]).size().sort_values(ascending=False).head(MOST)
    names = [str(e) for e, _ in counts.index]
    axes.barh(names, counts.to_numpy(), color=[COLOUR.get(str(f), GREY) for _, f in counts.index], height=0.7)
    noise = founded.beside_noise(found, "experiment")
    if len(noise):
        known = noise.set_index("experiment").reindex(names)
        for kind, mark in (("white", "|"), ("ar1", "d")):
            axes.plot(
                known[f"expected_{kind}"],
                names,
                mark,
                color=INK,
                ms=6 if mark == "|" else 3,
                label=f"{kind} noise, z > 2",
            )
        axes.legend(fontsize=SMALL - 1, frameon=False, loc="lower right")
    axes.invert_yaxis()
    axes.tick_params(labelsize=SMALL - 1)
    more = found.rows["experiment"].nunique() - len(names)
    _label(axes, "", "jumps" + (f" ({more} further experiments not shown)" if more > 0 else ""))


def _phases(axes: Axes, rows: pd.DataFrame) -> None:
    top = max(1e-9, float(rows["phase"].max()))
    edges = np.linspace(0, max(0.55, top), 45)
    families = _families(rows)
    values = [rows.loc[rows["family"] == f, "phase"].to_numpy(np.float64) for f in families]
    axes.hist(values, bins=edges.tolist(), stacked=True, color=[COLOUR.get(f, GREY) for f in families], label=families)
    for edge in EDGES:
        axes.axvline(edge, color=INK, lw=0.8, ls=(0, (4, 3)))
    axes.legend(fontsize=SMALL - 1, frameon=False)
    _label(axes, "jumps", "phase (dashed: early | mid | late)")


def _sizes(axes: Axes, rows: pd.DataFrame) -> None:
    for family in _families(rows):
        own = rows[rows["family"] == family]
        axes.scatter(own["phase"], own["magnitude"], s=5, alpha=0.5, lw=0, color=COLOUR.get(family, GREY), label=family)
    if (rows["magnitude"] > 0).any():
        axes.set_yscale("log")
    _label(axes, "magnitude (units of the measure)", "phase")
    axes.legend(fontsize=SMALL - 1, frameon=False, loc="upper right")


def _box(axes: Axes, groups: Mapping[str, Any], label: str, zero: bool = False) -> None:
    values = {
        n: np.asarray(g, dtype=np.float64)[np.isfinite(np.asarray(g, dtype=np.float64))] for n, g in groups.items()
    }
    drawn = axes.boxplot(
        [v if len(v) else [np.nan] for v in values.values()], widths=0.6, patch_artist=True, flierprops={"ms": 2}
    )
    for box, name in zip(drawn["boxes"], values, strict=True):
        box.set(facecolor=TIMING.get(name, COLOUR.get(name, "#dddddd")), linewidth=0.7)
    for line in drawn["medians"]:
        line.set(color=INK)
    axes.set_xticks(range(1, len(values) + 1), [f"{n}\nn = {len(v)}" for n, v in values.items()])
    if zero:
        axes.axhline(0, color=GREY, lw=0.6)
    _label(axes, label, "")


def _label(axes: Axes, y: str, x: str) -> None:
    axes.set_ylabel(y, fontsize=NORMAL, color=INK)
    axes.set_xlabel(x, fontsize=NORMAL, color=INK)
    axes.tick_params(labelsize=SMALL)


def _empty(axes: Axes, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", fontsize=SMALL, color=GREY, transform=axes.transAxes, wrap=True)
    axes.set_axis_off()


def _log(values: pd.Series) -> NDArray[np.float64]:
    known = values.to_numpy(np.float64, na_value=np.nan)
    return np.asarray(np.log10(known[known > 0]))


# -- words ------------------------------------------------------------------------------------------------------------


def _families(rows: pd.DataFrame) -> list[str]:
    there = set(rows["family"])
    return [f for f in founded.FAMILIES if f in there] + sorted(there - set(founded.FAMILIES))


def _only(found: Jumps, families: Sequence[str]) -> Jumps:
    counts = found.counts[found.counts["family"].isin(families)] if len(found.counts) else found.counts
    rows = found.rows[found.rows["family"].isin(families)]
    kinds = found.kinds[found.kinds["family"].isin(families)] if len(found.kinds) else found.kinds
    return replace(found, rows=rows, counts=counts, kinds=kinds)


def _any(found: Jumps, family: str) -> bool:
    return bool(len(found.counts)) and bool((found.counts["family"] == family).any())


def _trials(tables: Mapping[str, pd.DataFrame], found: Jumps, family: str) -> set[str]:
    named = founded.named(tables["trials"])
    shown = set(found.rows["experiment"]) | set(found.counts["experiment"] if len(found.counts) else ())
    return set(named.loc[(named["family"] == family) & named["experiment"].isin(shown), "trial_id"])


def _told(rows: pd.DataFrame, found: Jumps) -> str:
    return f"{len(rows)} jumps: {found.words}."


def _results(found: Jumps, families: Sequence[str]) -> dict[str, Any]:
    """Numbers of the families: counts beside noise, phases, sizes, and the loss beside what windows nearby give."""
    own = _only(found, families)
    loss = founded.loss_correlations(own)
    shown = set(own.rows["experiment"])
    return {
        "source": found.words,
        "data_sets": records(found.data),
        "events_expected_under_the_null": found.null_events,
        "key_table": _records(founded.key_table(own)),
        "beside_noise": _records(founded.beside_noise(own, "experiment")),
        "by_layer": _records(own.rows.groupby(["experiment", "layer"]).size().rename("jumps").reset_index())
        if len(own.rows)
        else [],
        "by_kind_of_layer": _records(own.kinds),
        "loss": _records(loss[loss["experiment"].isin(shown)]) if len(loss) else [],
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): _plain(v) for k, v in row.items()} for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def _json(album: Album, name: str, results: dict[str, Any]) -> None:
    album.text(SECTION, name, json.dumps(results, indent=2) + "\n", "Counts beside noise, phases and loss, as JSON.")


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False))
