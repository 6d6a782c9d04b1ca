"""What was trained and how well: completeness of trials and data, accuracy over seeds, cells that never learned."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from ndt_ray.analysis.inference.sample import cell_word, trained
from ndt_ray.analysis.inference.seeds import interval, recommended
from ndt_ray.figures.charts import curves
from ndt_ray.report.data_sets import data_sets, sentences
from ndt_ray.report.parts import Claim, Figure, Plate, Section, Sheet
from ndt_ray.report.source import MINIMUM, NAME, Answer, Source
from ndt_ray.report.words import count, fixed, listed, number, span
from ndt_ray.report.words import interval as ends

MOST_POINTS = 60
"""Evaluations of a curve that are drawn; more are thinned evenly."""


def learning(source: Source) -> Section:
    """The section; its sentences, curves and tables hold the trials that are not controls apart from those that are."""
    section = Section("learning", "What was trained, and how well", short="Training")
    cells = by_cell(source)
    section.claims += [*_completeness(source), *_data(source), *_accuracy(source, cells), *_never(source, cells)]
    answer = _evaluations(source)
    if len(answer.rows):
        section.plates += list(_curves(source, answer.rows))
    else:
        section.missing.append(("No held-out evaluation is stored", "set evaluate in the sweep file"))
    if len(cells):
        section.sheets.append(_cell_sheet(source, cells))
    if len(source.trials) or source.waiting:
        section.sheets.append(trial_sheet(source))
    return section


# -- numbers -------------------------------------------------------------------------------------------------------


def by_cell(source: Source) -> pd.DataFrame:
    """One row a name: trials by how they ended (the counts add up to those planned), accuracy with its interval."""
    trials, rows = source.trials, []
    chance, judged = _chance(source), _trained(source)
    status = (
        source.ask("SELECT * FROM cell_status WHERE sweep = $sweep").rows
        if source.has("cell_status", "cell", "status")
        else None
    )
    waiting = pd.Series([ln.cell if ln.control == "none" else f"{ln.cell} {ln.control}" for ln in source.waiting])
    known = {*source.labels, *waiting}
    for name in [*source.labels, *sorted(set(waiting) - set(source.labels))]:
        own = trials[trials["name"] == name]
        ended = own["status"].value_counts()
        done = own[own["status"] == "finished"]
        accuracy, loss = done["final_accuracy"].dropna(), done["final_loss"].dropna()
        ci, loss_ci = interval(accuracy), interval(loss)
        row = {
            "name": name, "label": source.label(name), "planned": len(own) + int((waiting == name).sum()),
            **{how: int(ended.get(how, 0)) for how in ("finished", "failed", "diverged")},
            "running": int(own["status"].isna().sum()), "waiting": int((waiting == name).sum()),
            "n": len(accuracy), "accuracy": _mean(accuracy),
            "low": float(np.clip(ci.lo, 0, 1)), "high": float(np.clip(ci.hi, 0, 1)),
            "loss": _mean(loss), "loss_low": loss_ci.lo, "loss_high": loss_ci.hi,
            "chance": chance.get(name, math.nan),
            "data": own["data"].iloc[0] if len(own) else None,
            "completeness": own["data_completeness"].iloc[0] if len(own) else None,
            "parameters": own["n_parameters"].iloc[0] if len(own) else None,
            "control": own["control"].iloc[0] if len(own) else "none",
        }  # fmt: skip
        parts = sum(int(row[how]) for how in ("finished", "failed", "diverged", "running", "waiting"))
        assert parts == row["planned"], (name, row)
        row["learned"] = _learned(name, judged[judged.index.isin(done["trial_id"])], status)
        rows.append(row)
    assert len(rows) == len(known)
    return pd.DataFrame(rows)


def _seeds(numbers: list[int]) -> str:
    return "1 seed" if set(numbers) == {1} else f"{span(numbers)} seeds"


def _mean(values: "pd.Series[float]") -> float:
    return float(values.mean()) if len(values) else math.nan


def _chance(source: Source) -> dict[str, float]:
    """1 / classes by name, where accuracy by class is stored."""
    found = source.ask(
        f"SELECT {NAME} AS name, max(len(e.class_accuracy)) AS classes FROM evaluations e "
        "JOIN trials t USING (sweep, pack, trial_id) WHERE sweep = $sweep GROUP BY 1"
    ).rows.dropna()
    return {str(n): 1 / int(k) for n, k in zip(found["name"], found["classes"], strict=True) if k}


def _trained(source: Source) -> "pd.Series[bool]":
    """By trial: whether its last evaluation is above chance; None where that cannot be said."""
    rows = source.ask(
        "SELECT trial_id, step, accuracy, n, class_accuracy FROM evaluations WHERE sweep = $sweep "
        "QUALIFY row_number() OVER (PARTITION BY trial_id ORDER BY step DESC) = 1"
    ).rows
    return trained(source.trials["trial_id"], rows).set_index("trial_id")["trained"]


def _learned(name: str, judged: "pd.Series[bool]", status: pd.DataFrame | None) -> str:
    """yes, partly (not in every seed), no, or unknown: as `cell_status` says, else by the same rule."""
    stored = list(status.loc[status["cell"] == name, "status"]) if status is not None else []
    said = str(stored[0]) if stored else cell_word(judged)
    return {"trained": "yes", "never_trained": "no", "partly": "partly"}.get(said, "unknown")


# -- sentences -----------------------------------------------------------------------------------------------------


def _completeness(source: Source) -> Iterator[Claim]:
    trials = source.trials
    sql = source.ask(
        "SELECT coalesce(o.status, 'unfinished') AS status, count(*) AS trials FROM trials t LEFT JOIN outcomes o "
        "USING (sweep, pack, trial_id) WHERE sweep = $sweep GROUP BY 1 ORDER BY 1"
    )
    ended = dict(zip(sql.rows["status"], sql.rows["trials"].astype(int), strict=True))
    planned, done = len(trials) + len(source.waiting), ended.get("finished", 0)
    if not planned:
        yield Claim("Nothing is committed yet.", "caution", sql.sql, headline=True)
        return
    seeds = trials[trials["control"].fillna("none") == "none"].groupby("name")["trial_id"].nunique()
    words = f"{done:,} of {count(planned, 'planned trial')} finished"
    if len(seeds):
        words += f": {count(len(seeds), 'cell')} with {_seeds(list(seeds))} each"
    steps = trials["steps"].dropna()
    words += f", {span(list(steps))} steps" if len(steps) else ""
    yield Claim(words + ".", "described" if done == planned else "caution", sql.sql)
    for how, said in (("failed", "failed"), ("diverged", "diverged (a loss or weight that is not finite)")):
        own = trials[trials["status"] == how]
        if len(own):
            cells = own.groupby("name").size()
            where = listed(f"{n} in {source.label(name)}" for name, n in cells.items())
            text = f"{count(len(own), 'trial')} {said}: {where}. Accuracies leave them out; maps and series tests hold "
            text += "what they had measured until then."
            yield Claim(text, "caution", sql.sql, headline=True)
    open_ = ended.get("unfinished", 0) + len(source.waiting)
    if open_:
        text = f"{count(open_, 'trial')} {'is' if open_ == 1 else 'are'} not finished: what follows is of "
        yield Claim(text + "what is committed so far, and may change.", "caution", sql.sql, headline=True)
    few = [source.label(name) for name, n in seeds.items() if n < MINIMUM]
    if few:
        which = "every cell" if len(few) == len(seeds) else listed(few)
        text = f"Descriptive only, with fewer than {MINIMUM} seeds: {which}."
        yield Claim(text, "caution", headline=True)
    if trials["fingerprint"].nunique() > 1:
        n = trials["fingerprint"].nunique()
        yield Claim(f"Trials ran under {n} different numerics fingerprints (see provenance).", "caution")


def _data(source: Source) -> Iterator[Claim]:
    answer = source.ask(
        "SELECT data, data_completeness, n_train, count(*) AS trials FROM trials WHERE sweep = $sweep GROUP BY ALL "
        "ORDER BY ALL"
    )
    for text, limits in sentences(data_sets(answer.rows)):
        yield Claim(text, "caution" if limits else "described", answer.sql, headline=limits)


def _accuracy(source: Source, cells: pd.DataFrame) -> Iterator[Claim]:
    own = cells[(cells["n"] > 0) & (cells["control"] == "none") & (cells["learned"] != "no")] if len(cells) else cells
    sql = source.ask(
        f"SELECT {NAME} AS name, o.trial_id, o.final_accuracy FROM outcomes o JOIN trials t "
        "USING (sweep, pack, trial_id) WHERE sweep = $sweep AND o.status = 'finished' ORDER BY 1, 2"
    ).sql
    for data, group in own.groupby("data", sort=False) if len(own) else []:
        best = group.sort_values("accuracy", ascending=False)
        said = [f"{r.label} {fixed(r.accuracy, 3)} {ends(r.low, r.high, 3)}".strip() for r in best.itertuples()]
        of = f" on {data}" if own["data"].nunique() > 1 else ""
        n = _seeds(list(group["n"]))
        kind = recommended(int(group["n"].min()))
        how = f"95 % {kind} interval over seeds" if group["low"].notna().any() else "no interval: too few seeds"
        text = f"Held-out accuracy at the last step{of}, mean of {n} [{how}]: {listed(said, 6)}."
        yield Claim(text, "described", sql)


def _never(source: Source, cells: pd.DataFrame) -> Iterator[Claim]:
    """Cells that cannot be told from chance stay out of claims about learning, and are named."""
    partly = cells.loc[(cells["learned"] == "partly") & (cells["control"] == "none"), "label"] if len(cells) else []
    if len(partly):
        text = f"Not every seed learned in {listed(partly)}: the last evaluation of some is not above chance."
        yield Claim(text, "caution", headline=True)
    for row in cells[(cells["learned"] == "no") & (cells["control"] == "none")].itertuples() if len(cells) else []:
        beside = f" (chance {number(row.chance)})" if math.isfinite(row.chance) else ""
        text = f"{row.label} never trained: its held-out accuracy {fixed(row.accuracy, 3)} "
        text += f"{ends(row.low, row.high, 3)}{beside} is above chance in no seed."
        text += " It is kept out of claims about learning."
        yield Claim(text.replace("  ", " "), "caution", headline=True)


# -- charts and tables ---------------------------------------------------------------------------------------------


def _evaluations(source: Source) -> Answer:
    return source.ask(
        f"SELECT {NAME} AS name, t.data, e.trial_id, e.step, e.accuracy, e.loss FROM evaluations e JOIN trials t "
        "USING (sweep, pack, trial_id) WHERE sweep = $sweep ORDER BY 1, 3, 4"
    )


def band(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """By step: mean over the trials that have a value, its 95 % interval (null where seeds allow none), and n."""
    made = []
    steps = np.sort(rows["step"].unique())
    kept = steps[:: max(1, math.ceil(len(steps) / MOST_POINTS))]
    wanted = set(kept.tolist()) | {int(steps[-1])} if len(steps) else set()
    for step, group in rows[rows["step"].isin(wanted)].groupby("step", sort=True)[value]:
        values = group.to_numpy(np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            ci = interval(values) if len(values) >= MINIMUM else None
            low, high = (ci.lo, ci.hi) if ci and math.isfinite(ci.lo) and math.isfinite(ci.hi) else (math.nan, math.nan)
            made.append({"step": step, "mean": float(values.mean()), "low": low, "high": high, "n": len(values)})
    return pd.DataFrame(made, columns=["step", "mean", "low", "high", "n"])


def _curves(source: Source, rows: pd.DataFrame) -> Iterator[Plate]:
    figures = []
    for data, group in rows.groupby("data", sort=False):
        of = f" on {data}" if rows["data"].nunique() > 1 else ""
        for value, title, log in (("accuracy", "held-out accuracy", False), ("loss", "held-out loss (nats)", True)):
            parts = []
            for name in [n for n in source.labels if n in set(group["name"])]:
                parts.append(band(group[group["name"] == name], value).assign(name=source.label(name)))
            frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
            if frame.empty:
                continue
            names = list(dict.fromkeys(frame["name"]))
            last = max(source.horizon(n) for n in source.labels if source.label(n) in names)
            spec = curves(frame, names, last, title, log=log)
            ends_at = frame.sort_values("step").groupby("name", sort=False)["mean"].last()
            said = listed((f"{n} {number(v)}" for n, v in ends_at.items()), 8)
            figures.append(
                Figure(f"{title[0].upper()}{title[1:]}{of}", spec, f"{title}{of} by step; at the end: {said}")
            )
    if figures:
        note = "Line: mean over seeds; band: 95 % interval of that mean, where there are three seeds or more."
        yield Plate("Held-out accuracy and loss", tuple(figures), note)


CELL_DOCS = {
    "cell": "architecture × data set, without its seeds; controls apart",
    "data": "data set, and whether it is complete, a subset, a surrogate or generated",
    "planned": "trials of the plan; the next columns say what became of them",
    "accuracy": "held-out, at the last step: mean over the finished trials",
    "95 % from": "interval of that mean over seeds: studentised from five seeds on, else Student's t",
    "learned": "above chance: by `cell_status` where that was computed, else by the interval over three seeds or more",
}


def _cell_sheet(source: Source, cells: pd.DataFrame) -> Sheet:
    data = [
        f"{d} ({c})" if isinstance(c, str) else d for d, c in zip(cells["data"], cells["completeness"], strict=True)
    ]
    table = pd.DataFrame({"cell": cells["label"], "data": data, "parameters": cells["parameters"]})
    for how in ("planned", "finished", "failed", "diverged", "running", "waiting"):
        if how in ("planned", "finished") or cells[how].sum():
            table[how] = cells[how]
    table = table.assign(**{
        "accuracy": cells["accuracy"], "95 % from": cells["low"], "to": cells["high"], "chance": cells["chance"],
        "loss": cells["loss"], "learned": cells["learned"],
    })  # fmt: skip
    sql = source.ask("SELECT * FROM trials LEFT JOIN outcomes USING (sweep, pack, trial_id) WHERE sweep = $sweep").sql
    return Sheet("Accuracy by cell", table, CELL_DOCS, sql)


def trial_sheet(source: Source) -> Sheet:
    """One row a planned trial: how far it is and how it ended."""
    own = source.trials
    table = pd.DataFrame({
        "trial": own["trial_id"], "cell": [source.label(n) for n in own["name"]], "seed": own["seed"],
        "status": own["status"].fillna("unfinished"), "steps done": own["last_step"], "of": own["steps"],
        "accuracy": own["final_accuracy"], "loss": own["final_loss"], "error": own["error"],
    })  # fmt: skip
    late = [{"trial": ln.trial_id, "cell": source.label(ln.cell), "seed": ln.seed[0], "status": "not begun"}
            for ln in source.waiting]  # fmt: skip
    if late:
        table = pd.concat([table, pd.DataFrame(late)], ignore_index=True)
    table = table.drop(columns=[c for c in ("error",) if table[c].isna().all()])
    docs = {"error": "first line of the error of a failed trial", "trial": "hash of everything that defines the trial"}
    sql = source.ask(
        "SELECT trial_id, cell, seed, control, status, last_step, final_accuracy, final_loss, error FROM trials "
        "LEFT JOIN outcomes USING (sweep, pack, trial_id) WHERE sweep = $sweep ORDER BY cell, seed"
    ).sql
    return Sheet("Trials", table, docs, sql)
