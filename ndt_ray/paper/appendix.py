"""The appendix: summary statistics, jumps by architecture and the target runs, in LaTeX and as CSV with all digits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ndt_ray.architectures import family_of
from ndt_ray.paper import jumping
from ndt_ray.paper.latex import amount, between, cell, escape, longtable, percent
from ndt_ray.paper.macros import PREFIX, Macros
from ndt_ray.paper.results import PUBLISHED
from ndt_ray.paper.scale import OWN
from ndt_ray.report.event_claims import by_cell, candidates_of, tests_of
from ndt_ray.report.noise import rule_spoken
from ndt_ray.report.order import measure_spoken
from ndt_ray.report.source import Source, quoted
from ndt_ray.report.words import readable

SUMMARY = (
    "Architectures", "Datasets", "Cells", "Seeds", "Trials", "Finished", "Failed", "Diverged", "Running", "Controls",
    "Series", "MeasuredSteps", "Measurements", "AccuracyLowest", "AccuracyHighest", "GrowthRuns", "GrowthMean",
    "GrowthGood", "GrowthGoodShare", "Events", "EventsFalse", "Jumps", "JumpsWhite", "JumpsNoise", "BottomUp",
    "BottomUpNull", "Periods", "PeriodsNull",
)  # fmt: skip
"""Macros of table A.1; what a count is to be read beside follows it."""
COUNTED = ("mode", "rule", "measure", "grouping", "architecture")
GROUPINGS = ("kind", "architecture")
"""Of table A.2: mlp, cnn, transformer or other, as the founding table has it, then each architecture by name."""
TARGET = (
    "trial_id", "cell", "seed", "layers", "parameters", "steps", "accuracy", "jumps", "events", "growth_r2",
    "growth_alpha", "phenomenon", "why", "look_at",
)  # fmt: skip
LOOKED = 6
"""Steps that table A.3 names; the CSV has all."""


@dataclass(frozen=True)
class Appendix:
    """`tex`, and the same tables as CSV by file name."""

    tex: str
    csv: dict[str, str]


def appendix(source: Source, macros: Macros) -> Appendix:
    """Tables A.1 to A.3 of what is stored; a column that was not computed is empty, and its command is named below."""
    jumps, targets, steps = jump_table(source), target_table(source), step_table(source)
    tables = {"a1_summary.csv": summary_table(macros), "a2_jumps.csv": jumps, "a3_targets.csv": targets}
    if len(steps):
        tables["a3_steps.csv"] = steps[steps["trial_id"].isin(targets["trial_id"])]
    parts = [_summary(macros), _jumps(source, macros, jumps), _targets(source, macros, targets)]
    tex = "\n".join(["% Written by `ndt paper`: run it again for new numbers, and change nothing here.", *parts])
    return Appendix(tex, {name: str(table.to_csv(index=False)) for name, table in tables.items()})


# -- A.1 -----------------------------------------------------------------------------------------------------------


def summary_table(macros: Macros) -> pd.DataFrame:
    """macro, quantity, value and (where it was not computed) the command, of all macros."""
    rows = [
        {
            "macro": PREFIX + m.name,
            "quantity": m.meaning,
            "value": m.value,
            "not computed": (m.absent.command or m.absent.reason) if m.absent else None,
        }
        for m in macros.known.values()
    ]
    return pd.DataFrame(rows, columns=["macro", "quantity", "value", "not computed"], dtype=object)


def _summary(macros: Macros) -> str:
    names = [*SUMMARY, *(name for name in PUBLISHED if macros.has(name))]
    rows = [(escape(macros.known[name].meaning), rf"\{PREFIX}{name}{{}}") for name in names]
    table = longtable(("Quantity", "Value"), rows, "Summary statistics.", "tab:summary", "p{0.62\\linewidth}r")
    return f"\\section{{Summary statistics}}\n{table}"


# -- A.2 -----------------------------------------------------------------------------------------------------------


def jump_table(source: Source) -> pd.DataFrame:
    """One row a mode, rule, measure and group: trials, jumps a trial, totals beside white and AR(1) noise.

    Groups are kinds of architecture (the founding table's), then architectures. Their calibrated events stand in the
    rows of the rule that is spoken of, mode default; where it was not run, in rows of their own.
    """
    columns = [
        *COUNTED, "trials", "mean_jumps", "max_jumps", "share_with_jumps", "observed", "white", "white_lo", "white_hi",
        "ar1", "ar1_lo", "ar1_hi", "verdict", "events", "false_events",
    ]  # fmt: skip
    found = _counted(source)
    events = event_table(source)
    if not found or (events is not None and not any(row["spoken"] for row in found)):
        found += [row for grouping in GROUPINGS for row in _uncounted(source, grouping)]
    if events is not None:
        for row in found:
            if row["spoken"]:
                row |= events.get((row["grouping"], row["architecture"]), {"events": 0, "false_events": 0.0})
    return pd.DataFrame(found).reindex(columns=columns)


def _group(models: "pd.Series[str]", grouping: str) -> "pd.Series[str]":
    """To which group of a grouping trials of these models belong."""
    names = models.astype(str)
    return names.map(family_of) if grouping == "kind" else names


def _uncounted(source: Source, grouping: str) -> Iterator[dict[str, Any]]:
    own = source.trials[source.trials["control"].fillna("none") == "none"]
    for name, rows in own.groupby(_group(own["model"], grouping)):
        trials = rows["trial_id"].nunique()
        yield {"grouping": grouping, "architecture": str(name), "trials": trials, "spoken": True}


def _counted(source: Source) -> list[dict[str, Any]]:
    if not source.has("jump_counts"):
        return []
    counts = jumping.counts(source).rows
    own = jumping.spoken(source, counts)
    chosen = ("default", rule_spoken(own), str(own["measure"].iloc[0])) if len(own) else None
    rows = []
    for grouping in GROUPINGS:
        for one in jumping.statistics(counts.assign(name=_group(counts["model"], grouping))):
            t = one.total
            row: dict[str, Any] = dict(zip(COUNTED, (*one.key, grouping, t.name), strict=True))
            row |= {"trials": t.trials, "mean_jumps": one.mean, "max_jumps": one.most}
            row |= {"share_with_jumps": one.with_jumps / t.trials, "observed": t.observed, "verdict": t.words}
            for name, null in (("white", t.white), ("ar1", t.ar1)):
                if null is not None:
                    row |= {name: null.expected, f"{name}_lo": null.low, f"{name}_hi": null.high}
            rows.append(row | {"spoken": one.key == chosen})
    return rows


def event_table(source: Source) -> dict[tuple[str, str], dict[str, Any]] | None:
    """Calibrated events and the false ones expected among them, by grouping and group; None where none were sought."""
    family = source.family
    if family is None:
        return None
    cells = by_cell(source, family, candidates_of(source, family).rows, tests_of(source, family).rows)
    if cells.empty:
        return {}
    models = cells["name"].map(dict(zip(source.trials["name"], source.trials["model"], strict=True)))
    return {
        (grouping, str(name)): {"events": int(own["events"].sum()), "false_events": float(own["null_events"].sum())}
        for grouping in GROUPINGS
        for name, own in cells.groupby(_group(models, grouping))
    }


def _jumps(source: Source, macros: Macros, table: pd.DataFrame) -> str:
    parts = [r"\section{Jump statistics by architecture}"]
    header = ("Architecture", "Trials", "Mean", "Most", "With", "Jumps", "White noise", "AR(1) noise", "Events (false)")
    modes = table["mode"].astype(object).where(table["mode"].notna(), "")
    for mode, own in table.groupby(modes, sort=True):
        first = own[own["events"].notna()] if mode == "default" and own["events"].notna().any() else own
        if mode and first is own:
            spoken = jumping.spoken(source, own.rename(columns={"rule": "detector"}), str(mode))
            first = own.loc[spoken.index]
        rule, measure = (str(first[c].iloc[0]) for c in ("rule", "measure")) if mode else ("", "")
        caption = f"Jumps by the rule {escape(readable(rule))} on {escape(readable(measure))}" if mode else "Jumps"
        caption += ", as published" if mode == "original" else ""
        caption += ": a trial (mean, most, share of trials with one), and in all beside the count of the same rule in "
        caption += "noise, with its 95\\,\\% interval; calibrated events, in brackets those expected to be false."
        label = "tab:jumps" if not parts[1:] else f"tab:jumps-{mode}"
        body = [_jump_row(row) for row in first.to_dict("records")]
        kinds = int((first["grouping"] == "kind").sum())
        body[kinds] = [r"\midrule " + body[kinds][0], *body[kinds][1:]]
        parts.append(longtable(header, body, caption, label, "lrrrrrrrr"))
    parts += _notes(source, macros, ("Jumps", "Events"))
    return "\n".join(parts)


def _jump_row(row: dict[str, Any]) -> list[str]:
    known = {k: v for k, v in row.items() if v == v and v is not None}
    events = "--" if "events" not in known else f"{amount(known['events'])} ({amount(known['false_events'], 2)})"
    noise = [
        f"{amount(known[n])} {between(known[f'{n}_lo'], known[f'{n}_hi'])}" if n in known else "--"
        for n in ("white", "ar1")
    ]
    middle = [cell(known.get(c)) for c in ("trials", "mean_jumps", "max_jumps")]
    middle += [percent(known.get("share_with_jumps")), cell(known.get("observed"))]
    name = escape(row["architecture"])
    return [f"all {name}" if row["grouping"] == "kind" else name, *middle, *noise, events]


# -- A.3 -----------------------------------------------------------------------------------------------------------


def target_table(source: Source) -> pd.DataFrame:
    """One trial a cell, that with the median number of events (else the first seed), and what its plan looks at."""
    found = _runs(source)
    if found.empty:
        return found.reindex(columns=list(TARGET))
    chosen = []
    for name in source.cells:
        own = found[found["cell"] == name]
        ended = own[own["status"] == "finished"]
        own = (ended if len(ended) else own).sort_values(["events", "seed", "trial_id"], na_position="last")
        known = own[own["events"].notna()]
        chosen.append(own.iloc[(len(known) - 1) // 2 if len(known) else 0])
    return pd.DataFrame(chosen).reindex(columns=list(TARGET)).reset_index(drop=True)


def _runs(source: Source) -> pd.DataFrame:
    """Columns of `TARGET` for every trial that is no control; null where a table is not there."""
    own = source.trials[source.trials["control"].fillna("none") == "none"]
    rows = own[["trial_id", "cell", "seed", "n_parameters", "steps", "final_accuracy", "status"]].rename(
        columns={"n_parameters": "parameters", "final_accuracy": "accuracy"}
    )
    asked = []
    if source.has("measurements"):
        asked.append(
            "SELECT m.trial_id, count(DISTINCT m.layer) AS layers FROM measurements m JOIN trials t "
            f"USING (sweep, trial_id) WHERE sweep = $sweep AND {OWN} GROUP BY 1"
        )
    if source.has("growth", "alpha", "r2", "at_bound", "mode", "measure"):
        asked.append(
            "SELECT trial_id, CASE WHEN coalesce(at_bound, '') = '' THEN alpha END AS growth_alpha, r2 AS growth_r2 "
            "FROM growth WHERE sweep = $sweep AND mode = 'default' "
            f"AND measure = {quoted(measure_spoken(source, 'growth', 'default'))}"
        )
    if source.has("investigations", "phenomenon", "why", "mode"):
        asked.append("SELECT trial_id, phenomenon, why FROM investigations WHERE sweep = $sweep AND mode = 'default'")
    for sql in asked:
        rows = rows.merge(source.ask(sql).rows, on="trial_id", how="left")
    if source.has("jump_counts"):
        spoken = jumping.spoken(source, jumping.counts(source).rows)
        rows = rows.merge(
            spoken.groupby("trial_id")["observed"].sum().rename("jumps").reset_index(), on="trial_id", how="left"
        )
    if source.family is not None:
        found = candidates_of(source, source.family).rows
        events = found[found["significant"].astype(bool)].groupby("trial_id").size()
        rows = rows.assign(events=rows["trial_id"].map(events).fillna(0).astype(int))
    steps = step_table(source)
    if len(steps):
        looked = steps.groupby("trial_id")["step"].agg(lambda s: " ".join(str(v) for v in dict.fromkeys(s)))
        rows = rows.merge(looked.rename("look_at").reset_index(), on="trial_id", how="left")
    return rows.reindex(columns=[*TARGET, "status"])


def step_table(source: Source) -> pd.DataFrame:
    """The plan of investigation of every trial, in its order; empty where none was made."""
    if not source.has("investigation_steps"):
        return pd.DataFrame()
    return source.ask(
        "SELECT trial_id, place, step, role, layer, event_step, analyses, look_for FROM investigation_steps "
        "WHERE sweep = $sweep ORDER BY trial_id, place"
    ).rows


def _targets(source: Source, macros: Macros, table: pd.DataFrame) -> str:
    header = ("Run", "Layers", "Weights", "Accuracy", "Jumps", "Events", r"Growth R\textsuperscript{2}", r"$\alpha$",
              "Dynamics", "Steps to look at")  # fmt: skip
    body = [_target_row(source, row) for row in table.to_dict("records")]
    caption = (
        "Target runs: of each cell the trial with the median number of events, or its first seed where these are not "
        "known. Jumps by the founding rule, in all layers; growth rate per step of the logistic fit, unless that ended "
        "at a bound."
    )
    made = longtable(header, body, caption, "tab:targets", "p{0.2\\linewidth}rrrrrrrlp{0.14\\linewidth}")
    notes = _notes(source, macros, ("Jumps", "Events", "GrowthRuns", "RunsSmooth"))
    return "\n".join([r"\section{Target experiments}", made, *notes, ""])


def _target_row(source: Source, row: dict[str, Any]) -> list[str]:
    known = {k: v for k, v in row.items() if v == v and v is not None}
    name = source.label(row["cell"]) + (f", seed {int(known['seed'])}" if "seed" in known else "")
    steps = str(known.get("look_at", "")).split()
    looked = ", ".join(amount(int(s)) for s in steps[:LOOKED]) + (", \\ldots" if len(steps) > LOOKED else "")
    middle = [cell(known.get(c)) for c in ("layers", "parameters")] + [percent(known.get("accuracy"))]
    middle += [cell(known.get(c)) for c in ("jumps", "events", "growth_r2", "growth_alpha", "phenomenon")]
    return [escape(name), *middle, looked or "--"]


def _notes(source: Source, macros: Macros, names: tuple[str, ...]) -> list[str]:
    """Markers of what a table has no values of."""
    texts = [macros.known[name].text for name in names if not macros.has(name)]
    return [f"\\par\\noindent {' '.join(dict.fromkeys(texts))}"] if texts else []
