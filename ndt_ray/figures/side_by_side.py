"""Modular networks beside each other: dimensionality events against the Fourier transition, moduli and seeds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ndt_ray.figures.album import Album
from ndt_ray.figures.canvas import GREY, INK, NORMAL, SMALL, canvas, head, require, step_axis
from ndt_ray.figures.grokking import SECTION

LANDMARKS = {
    "memorised": ("o", "#4d4d4d"), "excluded": ("<", "#009e73"), "restricted": (">", "#0072b2"),
    "gini": ("^", "#56b4e9"), "turn": ("d", "#e69f00"), "inflection": ("s", "#d55e00"), "onset": ("*", "#d55e00"),
}  # fmt: skip
"""Marker and colour of `NAME_step` of grokking_onsets: Fourier ones are blue and green, the held-out loss orange."""
EVENT, CANDIDATE = "#cc79a7", "#e8c7d9"
COLUMNS = 8
"""Trials side by side in one figure."""
QUANTITIES = (
    "memorised_step", "excluded_step", "gini_step", "restricted_step", "turn_step", "inflection_step", "onset_step",
    "delay", "n_key_frequencies", "final_gini_embedding", "final_specialised_neurons", "final_explained",
    "final_loss", "final_squared_weights",
)  # fmt: skip
CANDIDATES = 3
"""Of a trial, where no event of its sweep is significant."""


def write(tables: Mapping[str, pd.DataFrame], album: Album, spectra: pd.DataFrame) -> None:
    """The figures of all trials of a sweep together, from the tables of the grokking analyses (any may be empty)."""
    onsets, trials = tables["grokking_onsets"], tables["trials"]
    if not len(onsets):
        album.skip(SECTION, "comparisons of seeds and moduli", f"{album.analyze('grokking_timeline')} has the onsets")
        return
    named = trials.set_index("trial_id")
    shows = f"{len(onsets)} trials: {', '.join(str(t)[:6] for t in onsets['trial_id'])}"
    if album.room(SECTION):
        made, told = landmarks(onsets, tables["events"], trials, tables.get("grokking_lags", pd.DataFrame()))
        caption = "Events of the declared family, by layer, against Fourier transition and second descent. " + told
        album.figure(SECTION, "events_and_transition", made, caption, shows)
    order = [
        t for t in trials.sort_values(["cell", "seed"])["trial_id"] if t in set(tables["grokking_measures"]["trial_id"])
    ]
    for page, start in enumerate(range(0, len(order), COLUMNS)):
        if album.room(SECTION):
            own = order[start : start + COLUMNS]
            made = beside({str(t): str(named.loc[t, "cell"]) for t in own}, tables, spectra)
            caption = (
                f"Trials side by side, {start + 1} to {start + len(own)} of {len(order)}: losses, spectrum, neurons."
            )
            album.figure(SECTION, f"side_by_side_{page}", made, caption, ", ".join(t[:12] for t in own))
    rows = tables.get("grokking_comparison", pd.DataFrame())
    if not len(rows):
        album.skip(SECTION, "comparison of moduli", f"{album.analyze('grokking_comparison')} makes its table")
        return
    album.text(SECTION, "grokking_comparison.csv", rows.to_csv(index=False), "Every quantity by cell and modulus.")
    album.text(SECTION, "grokking_comparison.md", sentences(rows), "What is consistent, and what the seed decides.")
    answers = tables.get("scale_answers", pd.DataFrame())
    if len(answers):
        what = "Open questions on scales, of all networks of a cell together."
        album.text(SECTION, "scale_answers.csv", answers.to_csv(index=False), what)
    if album.room(SECTION):
        caption = "Quantities by cell: mean and 95 % interval over seeds; filled: consistent, open: the seed decides."
        album.figure(SECTION, "grokking_comparison", comparison(rows), caption, shows)
    if rows["p"].nunique() < 2:
        album.skip(SECTION, "comparison across p", f"all trials of this sweep have p = {int(rows['p'].iloc[0])}")


def landmarks(
    onsets: pd.DataFrame, events: pd.DataFrame, trials: pd.DataFrame, lags: pd.DataFrame
) -> tuple[Figure, str]:
    """(a lane a trial and layer: its events as bars, the trial's landmarks as marks; what it says in words)."""
    require(onsets, [f"{name}_step" for name in LANDMARKS], "grokking_onsets")
    known = trials[trials["trial_id"].isin(onsets["trial_id"])].sort_values(["cell", "seed", "trial_id"])
    found = events[events["significant"].astype(bool)] if len(events) else events
    guess = not len(found) and bool(len(events))
    if guess:
        ranked = events.sort_values(["p_event", "trial_id", "layer_index"], kind="stable")
        found = ranked.drop_duplicates(["trial_id", "layer", "step_before"]).groupby("trial_id").head(CANDIDATES)
    layers = list(found.sort_values("layer_index")["layer"].unique()) if len(found) else []
    lanes = max(1, len(layers))
    words = "events" if not guess else "no event is significant: candidates"
    told = f"bars: {words if len(events) else 'no events were sought'}; marks: steps of grokking_onsets"
    handles: list[Artist] = [
        Line2D([], [], marker=m, color=c, ls="", ms=5, label=name) for name, (m, c) in LANDMARKS.items()
    ]
    if len(found):
        handles.append(Patch(color=CANDIDATE if guess else EVENT, label="candidate" if guess else "event"))
    size = (7.4, 0.6 + 0.22 * (lanes + 1) * len(known))
    drawn = canvas(size, (1, 1), 1, ("Dimensionality events and the Fourier transition", told), handles)
    (axes,) = drawn.axes
    marks, last = onsets.set_index("trial_id"), 1.0
    ticks: list[tuple[float, str]] = []
    for place, trial in enumerate(known.itertuples()):
        top = place * (lanes + 1.0)
        axes.axhspan(top - 0.5, top + lanes - 0.5, color="#f4f4f4" if place % 2 else "#ffffff", lw=0, zorder=0)
        for lane, layer in enumerate(layers or [""]):
            label = f"{str(trial.trial_id)[:6]} seed {trial.seed}  {layer}" if lane == 0 else layer
            ticks.append((top + lane, label))
            own = found[(found["trial_id"] == trial.trial_id) & (found["layer"] == layer)] if len(found) else found
            for event in own.itertuples():
                width = max(float(event.step_after - event.step_before), 1.0)
                colour = CANDIDATE if guess else EVENT
                axes.barh(top + lane, width, 0.8, left=event.step_before, color=colour, lw=0.6, edgecolor=EVENT)
                last = max(last, float(event.step_after))
        for name, (mark, colour) in LANDMARKS.items():
            step = marks.loc[trial.trial_id, f"{name}_step"]
            if pd.notna(step):
                axes.plot([step, step], [top - 0.4, top + lanes - 0.6], color=colour, lw=0.6, alpha=0.6)
                axes.plot(step, top - 0.4, marker=mark, color=colour, ms=5, ls="", clip_on=False)
                last = max(last, float(step))
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
    axes.set_ylim(len(known) * (lanes + 1.0) - 0.5, -1.0)
    axes.set_xlim(0, 1.03 * last)
    step_axis(axes, last)
    axes.set_xlabel("training step", fontsize=NORMAL, color=INK)
    return drawn.figure, _lag_words(lags)


def _lag_words(lags: pd.DataFrame) -> str:
    """How many layers' largest events come before, with or after each landmark; nothing without that table."""
    if not len(lags):
        return "Lags were not computed (grokking_lags)."
    parts = []
    for name, own in lags.groupby("landmark", sort=False):
        counts = own["answer"].value_counts()
        parts.append(f"{name}: " + ", ".join(f"{answer} {count}" for answer, count in counts.items()))
    return "Largest event of each layer against the landmark (rows of grokking_lags) - " + "; ".join(parts) + "."


def beside(names: Mapping[str, str], tables: Mapping[str, pd.DataFrame], spectra: pd.DataFrame) -> Figure:
    """A column a trial: losses with its second descent, the logits' spectrum at its last checkpoint, and how many
    neurons each frequency has."""
    n = len(names)
    told = "dashed: memorised and onset; spectrum: share of the logits' energy in w(a + b - c)"
    drawn = canvas((2.0 * n + 0.5, 4.8), (3, n), 3 * n, ("Seeds and moduli side by side", told), sharey="row")
    for i, (trial, cell) in enumerate(names.items()):
        losses, spectrum, neurons = (drawn.axes[row * n + i] for row in range(3))
        rows = tables["grokking_measures"]
        rows = rows[rows["trial_id"] == trial].sort_values("step")
        losses.plot(rows["step"], rows["train_loss"], lw=1, color=GREY, label="training")
        losses.plot(rows["step"], rows["test_loss"], lw=1.2, color="#d55e00", label="held-out")
        losses.set_yscale("log")
        onset = tables["grokking_onsets"].set_index("trial_id")
        for name in ("memorised_step", "onset_step"):
            if trial in onset.index and pd.notna(onset.loc[trial, name]):
                losses.axvline(onset.loc[trial, name], color=INK, lw=0.6, ls=(0, (4, 3)))
        head(losses, f"p = {int(rows['p'].iloc[0])}, {trial[:6]}", 1.9)
        losses.set_xlabel(f"step ({cell[:24]})", fontsize=SMALL - 1, color=GREY)
        step_axis(losses, float(rows["step"].max()))
        last = int(rows["step"].max())
        if len(spectra):
            own = spectra[(spectra["trial_id"] == trial) & (spectra["step"] == last) & (spectra["part"] == "logits")]
            spectrum.bar(own["frequency"], own["share"], width=0.9, color="#0072b2")
        most = int(rows["p"].iloc[0]) // 2 + 1
        spectrum.set_xlim(0, most)
        neurons.set_xlim(0, most)
        spectrum.set_xlabel("frequency", fontsize=SMALL, color=INK)
        timeline = tables["specialisation_timeline"]
        if len(timeline):
            own = timeline[(timeline["trial_id"] == trial) & (timeline["kind"] == "neuron")]
            for part, colour in ((own, "#cccccc"), (own[own["fraction"] >= 0.85], "#009e73")):
                counts = part[part["frequency"] > 0]["frequency"].value_counts()
                neurons.bar(counts.index, counts.to_numpy(), width=0.9, color=colour)
        neurons.set_xlabel("frequency", fontsize=SMALL, color=INK)
        if i == 0:
            for axes, text in ((losses, "loss (nats)"), (spectrum, "share of logits"), (neurons, "neurons")):
                axes.set_ylabel(text, fontsize=NORMAL, color=INK)
            losses.legend(fontsize=SMALL - 1, frameon=False)
            if len(timeline):
                shown = [Patch(color="#cccccc", label="dominant"), Patch(color="#009e73", label="≥ 85 % of energy")]
                neurons.legend(handles=shown, fontsize=SMALL - 1, frameon=False)
    return drawn.figure


def comparison(rows: pd.DataFrame) -> Figure:
    """A panel a quantity: mean and 95 % interval over the seeds of each cell; open marks where the seed decides."""
    require(rows, ("cell", "p", "quantity", "n", "mean", "lo", "hi", "consistent"), "grokking_comparison")
    known = [
        q for q in QUANTITIES if (rows["quantity"] == q).any() and rows.loc[rows["quantity"] == q, "mean"].notna().any()
    ]
    cells = list(rows.sort_values(["p", "cell"])["cell"].unique())
    p = rows.drop_duplicates("cell").set_index("cell")["p"]
    columns = min(3, max(1, len(known)))
    lines = -(-max(1, len(known)) // columns)
    title = (
        "Moduli and cells compared",
        "mean and 95 % t interval over seeds; filled: sd / |mean| < .25 over 3 or more seeds",
    )
    size = (2.7 * columns + 0.6, lines * (0.75 + 0.24 * len(cells)))
    drawn = canvas(size, (lines, columns), len(known), title, sharey=True)
    for axes, quantity in zip(drawn.axes, known, strict=True):
        own = rows[rows["quantity"] == quantity].set_index("cell")
        for y, cell in enumerate(cells):
            if cell not in own.index or pd.isna(own.loc[cell, "mean"]):
                continue
            row = own.loc[cell]
            if pd.notna(row["lo"]):
                axes.plot([row["lo"], row["hi"]], [y, y], color=GREY, lw=1)
            steady = bool(row["consistent"]) if pd.notna(row["consistent"]) else False
            axes.plot(row["mean"], y, "o", ms=5, color="#0072b2", mfc="#0072b2" if steady else "white")
        head(axes, quantity.replace("_", " "), 2.5)
        axes.set_yticks(range(len(cells)), [f"p = {int(p[c])} ({_short(c)})" for c in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
    return drawn.figure


def _short(cell: str) -> str:
    return cell if len(cell) <= 26 else f"…{cell[-25:]}"


def sentences(rows: pd.DataFrame) -> str:
    """`grokking_comparison` as text: what is consistent over seeds, what the seed decides, and what differs by p."""
    lines = ["# What is consistent, and what the seed decides", ""]
    for (p, cell), own in rows.groupby(["p", "cell"], sort=True):
        judged = own[own["consistent"].notna()]
        steady = judged["consistent"].astype(bool)
        lines += [f"## p = {int(p)}: {cell}", ""]
        if not len(judged):
            lines += [f"No quantity has 3 or more seeds (at most {int(own['n'].max())}): nothing is said.", ""]
            continue
        for words, part in (("Consistent", judged[steady]), ("Decided by the seed", judged[~steady])):
            said = ", ".join(f"{r.quantity} {r.mean:.4g} ± {r.sd:.2g} (n = {r.n})" for r in part.itertuples())
            lines += [f"- {words} ({len(part)} of {len(judged)}): {said or 'none'}"]
        lines.append("")
    if rows["p"].nunique() > 1:
        wide = rows[rows["quantity"].isin(QUANTITIES)].pivot_table(index="quantity", columns="p", values="mean")
        lines += [
            "## Across p (means over cells)",
            "",
            "| quantity | " + " | ".join(f"p = {int(c)}" for c in wide) + " |",
        ]
        lines.append("|" + " --- |" * (len(wide.columns) + 1))
        lines += [
            f"| {q} | " + " | ".join("" if np.isnan(v) else f"{v:.4g}" for v in values) + " |"
            for q, values in zip(wide.index, wide.to_numpy(), strict=True)
        ]
        lines.append("")
    return "\n".join(lines)
