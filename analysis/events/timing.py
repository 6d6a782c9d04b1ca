"""What drives the timing of events: can they be foretold from gradient, loss, update, learning rate or mini-batches?

A discrete-time hazard model: at each measurement of a run, the log-odds that an event begins before the next one, from
what was known by then: the mini-batches in between too, whose order was settled before the run began. Events grow rarer
while everything else changes too, so the question is what a driver adds to the *phase* of training: the gain in AUC on
held-out seeds. AUC is taken within each run: that one architecture has more events than another is not timing. Null:
within a cell, seeds exchange their drivers and keep their events, which keeps the common course of both exactly.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from scipy.stats import rankdata
from scipy.stats import t as student

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.blocks import arrangements, codes, shuffles
from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.events.batches import STATISTICS, Drawn, drawn_again
from ndt_ray.analysis.events.significant import primary, replicates
from ndt_ray.analysis.nulls import generator
from ndt_ray.store.schema import Column, Table

FEWEST = 20
"""Events under which nothing is fitted."""
CONTROLS = 20
"""Event-free measurements kept for each event when a model is fitted; all are kept when it is judged."""

PHASE = ("phase", "log_step")
DRIVERS = ("grad_norm", "loss_velocity", "batch_loss", "update_norm", "lr", "epoch_boundary", *STATISTICS)

TIMING_MODELS = Table(
    "timing_models",
    "How well the onset of events is foretold in runs whose seed the model has not seen.",
    (
        Column("model", "string", "phase (of training alone), all (phase and every driver), or phase and one driver"),
        Column("features", "string", "comma-separated"),
        Column("n_rows", "int32", "measurements at which an event could begin"),
        Column("n_events", "int32", "of these, measurements at which one began"),
        Column("n_trials", "int32", "trials with an event: those over which AUC is meaned"),
        Column("n_folds", "int32", "held-out groups: seeds, or trials where there is one seed"),
        Column("grouped_by", "string", "seed or trial"),
        Column("auc", "float64", "mean over held-out trials of the AUC within the trial; .5 is chance"),
        Column("lo", "float64", "95 % interval over folds (t)"),
        Column("hi", "float64", "upper end of it"),
        Column("gain", "float64", "auc - that of phase alone"),
        Column("p", "float64", "of the gain: drivers exchanged between seeds of a cell"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
        Column("flag", "string", "few_events, one_run or no_drivers: nothing was fitted; null otherwise"),
    ),
    ("model",),
)

TIMING_EFFECTS = Table(
    "timing_effects",
    "What each driver does to the odds of an event, the others and the phase held fixed.",
    (
        Column("feature", "string", "driver or phase term"),
        Column("log_odds", "float64", "change of the log-odds of an event for one standard deviation within a run"),
        Column("lo", "float64", "95 % interval, leaving out one fold at a time (jackknife)"),
        Column("hi", "float64", "upper end of it"),
        Column("n_events", "int32", "events it rests on"),
    ),
    ("feature",),
)


@dataclass(frozen=True)
class Panel:
    """Rows of all runs: features [rows, features], onset or not, and the places of each row's trial and fold."""

    phase: Floats
    drivers: Floats
    names: tuple[str, ...]
    onset: Floats
    trial: Ints
    fold: Ints
    cell_of_trial: Ints
    grouped_by: str


@analysis(
    name="timing",
    reads=("trials", "outcomes", "evaluations", "scalars", "events", "event_families"),
    writes=(TIMING_MODELS, TIMING_EFFECTS),
    per="sweep",
)
def timing(data: AnalysisInput, *, permutations: int = 99) -> dict[str, pd.DataFrame]:
    """Whether events are foretold by gradient, loss, lr or mini-batches beyond the phase, on held-out seeds.

    `batch_classes`, `batch_inputs`: how far the mini-batches up to the next measurement are from the training data.
    """
    trials, scalars = replicates(data), data.frame("scalars")
    if scalars.empty or trials.empty or trials["untrained"].all():
        return {"timing_models": pd.DataFrame(), "timing_effects": pd.DataFrame()}
    learned, events = trials[~trials["untrained"]], primary(data.frame("events"), data.frame("event_families"))
    made = panel(learned, scalars, events, drawn_again(learned, data.notes))
    flag = _why_not(made)
    if made is None or flag:
        row: dict[str, Any] = dict.fromkeys(c.name for c in TIMING_MODELS.columns)
        row |= {"model": "phase", "features": ",".join(PHASE), "flag": flag}
        row |= {
            "n_rows": 0 if made is None else len(made.onset),
            "n_events": 0 if made is None else int(made.onset.sum()),
        }
        return {"timing_models": pd.DataFrame([row]), "timing_effects": pd.DataFrame()}
    return {
        "timing_models": pd.DataFrame(_models(made, permutations, data.sweep)),
        "timing_effects": pd.DataFrame(_effects(made)),
    }


def _why_not(made: Panel | None) -> str | None:
    if made is None or made.onset.sum() < FEWEST:
        return "few_events"
    if made.fold.max() < 1:
        return "one_run"
    return None if made.names else "no_drivers"


def panel(
    trials: pd.DataFrame, scalars: pd.DataFrame, events: pd.DataFrame, drawn: Drawn | None = None
) -> Panel | None:
    """One row a trial and measurement (all but the first two and the last); None where no trial has any.

    `drawn`: what the mini-batches between measurements were like, a driver where it is given.
    """
    onsets = set(zip(events["trial_id"], events["step_before"], strict=True)) if len(events) else set()
    rows_of = dict(tuple(scalars.groupby("trial_id")))
    parts, phases, marks, place = [], [], [], []
    ordered = trials[trials["trial_id"].isin(list(rows_of))].sort_values("trial_id", ignore_index=True)
    for k, trial in enumerate(ordered.to_dict("records")):
        rows = rows_of[trial["trial_id"]].sort_values("step")
        rows = rows[rows["step"] > 0]
        seen = [] if drawn is None else [drawn(trial, rows["step"].to_numpy(np.int64)).iloc[:-1]]
        rows = rows.iloc[:-1]
        steps = rows["step"].to_numpy(np.float64)
        total = float(trial["steps"]) if not pd.isna(trial["steps"]) else float(steps.max(initial=1.0))
        parts.append(pd.concat([drivers(rows).reset_index(drop=True), *seen], axis=1))
        phases.append(np.column_stack([steps / total, np.log(steps)]) if len(steps) else np.zeros((0, 2)))
        marks.append(np.array([(trial["trial_id"], int(s)) in onsets for s in steps], dtype=np.float64))
        place.append(np.full(len(rows), k, np.int64))
    if not parts:
        return None
    table = pd.concat(parts, ignore_index=True)
    trial_of, onset = np.concatenate(place), np.concatenate(marks)
    known = [c for c in DRIVERS if c in table and table[c].notna().mean() > 0.5 and table[c].std() > 1e-9]
    whole = table[known].notna().all(axis=1).to_numpy() if known else np.ones(len(table), dtype=bool)
    seeds = codes(ordered, ("seed",)) if "seed" in ordered and ordered["seed"].notna().all() else np.zeros(len(ordered))
    by_seed = len(np.unique(seeds)) > 1
    fold = (seeds.astype(np.int64) if by_seed else np.arange(len(ordered)))[trial_of]
    values = table[known].to_numpy(np.float64)[whole]
    cells = codes(ordered, ("cell",))
    return Panel(
        np.concatenate(phases)[whole],
        _within(values, trial_of[whole]),
        tuple(known),
        onset[whole],
        trial_of[whole],
        fold[whole],
        cells,
        "seed" if by_seed else "trial",
    )


def drivers(rows: pd.DataFrame) -> pd.DataFrame:
    """What was known at each measurement: logs of norms and loss, log speed of the loss, log lr, epoch boundary."""
    table = pd.DataFrame(index=rows.index)
    for name in ("grad_norm", "batch_loss", "update_norm", "lr"):
        if name in rows:
            values = rows[name].astype(np.float64)
            table[name] = np.log(values.where(values > 0))
    if "probe_loss" in rows and rows["probe_loss"].notna().any():
        speed = rows["probe_loss"].astype(np.float64).diff().abs() / rows["step"].diff()
        table["loss_velocity"] = np.log(speed.where(speed > 0))
    if "epoch_boundary" in rows:
        table["epoch_boundary"] = rows["epoch_boundary"].astype(np.float64)
    return table


def _within(values: Floats, trial: Ints) -> Floats:
    """Columns with mean 0 and SD 1 within each trial; constant ones become 0.

    The mean and SD are the whole run's: what is foretold is when in a run, once its scale is known, not how often.
    """
    found = np.zeros_like(values)
    for k in np.unique(trial):
        own = values[trial == k]
        spread = own.std(axis=0)
        found[trial == k] = np.divide(own - own.mean(axis=0), spread, out=np.zeros_like(own), where=spread > 1e-12)
    return found


def fit(features: Floats, onset: Floats, ridge: float = 1.0, rounds: int = 25) -> Floats:
    """Logistic regression with a ridge on all but the intercept (Newton's method): coefficients, intercept first."""
    design = np.column_stack([np.ones(len(features)), features])
    penalty = ridge * np.eye(design.shape[1])
    penalty[0, 0] = 1e-6
    beta = np.zeros(design.shape[1])
    share = float(np.clip(onset.mean(), 1e-6, 1 - 1e-6)) if len(onset) else 0.5
    beta[0] = np.log(share / (1 - share))
    for _ in range(rounds):
        p = expit(design @ beta)
        gradient = design.T @ (onset - p) - penalty @ beta
        change = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design + penalty, gradient)
        beta = beta + np.clip(change, -5, 5)
        if float(np.abs(change).max()) < 1e-8:
            break
    return beta


def auc(scores: Floats, onset: Floats) -> float:
    """Probability that an onset is ranked above a measurement without one; ties count half. NaN without both."""
    n1 = int(onset.sum())
    n0 = len(onset) - n1
    if not n1 or not n0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[onset > 0].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def held_out(features: Floats, made: Panel) -> tuple[Floats, int]:
    """Mean AUC within trials of each fold, by a model of the other folds; and how many trials had an event."""
    found, counted = [], 0
    for fold in np.unique(made.fold):
        rest = made.fold != fold
        train = np.flatnonzero(rest)
        if made.onset[train].sum() < 2:
            continue
        beta = fit(features[kept := train[_balanced(made.onset[train])]], made.onset[kept])
        scores = features @ beta[1:]
        within = [auc(scores[made.trial == t], made.onset[made.trial == t]) for t in np.unique(made.trial[~rest])]
        known = [a for a in within if np.isfinite(a)]
        counted += len(known)
        if known:
            found.append(float(np.mean(known)))
    return np.array(found), counted


def _balanced(onset: Floats) -> Ints:
    """Places of all onsets and of evenly spread measurements without one, CONTROLS for each."""
    events, rest = np.flatnonzero(onset > 0), np.flatnonzero(onset == 0)
    wanted = CONTROLS * len(events)
    if wanted < len(rest):
        rest = rest[np.linspace(0, len(rest) - 1, wanted).astype(np.int64)]
    return np.sort(np.concatenate([events, rest])).astype(np.int64)


def _standard(values: Floats) -> Floats:
    spread = values.std(axis=0)
    scaled: Floats = np.divide(values - values.mean(axis=0), spread, out=np.zeros_like(values), where=spread > 0)
    return scaled


def _models(made: Panel, permutations: int, sweep: str) -> list[dict[str, Any]]:
    base = _standard(made.phase)
    alone, trials = held_out(base, made)
    sets = {"phase": (), "all": tuple(range(len(made.names)))}
    sets |= {f"phase + {name}": (i,) for i, name in enumerate(made.names)} if len(made.names) > 1 else {}
    chosen = {name: list(columns) for name, columns in sets.items()}
    observed = {name: held_out(np.column_stack([base, made.drivers[:, c]]), made)[0] for name, c in chosen.items()}
    exchanged = _exchanged(made, permutations, generator("timing", sweep))
    null: dict[str, list[float]] = {name: [] for name in chosen if name != "phase"}
    for drawn in exchanged:
        for name in null:
            scores, _ = held_out(np.column_stack([base, drawn[:, chosen[name]]]), made)
            null[name].append(_mean(scores) - _mean(alone))
    ways = arrangements(np.arange(len(made.cell_of_trial)), made.cell_of_trial)
    rows = []
    for name, columns in chosen.items():
        scores = observed[name]
        gain = _mean(scores) - _mean(alone)
        half = (
            float(student.ppf(0.975, len(scores) - 1) * scores.std(ddof=1) / np.sqrt(len(scores)))
            if len(scores) > 1
            else np.nan
        )
        tested = name != "phase" and len(exchanged) > 0
        p = (1 + int(np.sum(np.array(null[name]) >= gain - 1e-12))) / (1 + len(exchanged)) if tested else None
        rows.append(
            {"model": name, "features": ",".join((*PHASE, *(made.names[i] for i in columns)))}
            | {"n_rows": len(made.onset), "n_events": int(made.onset.sum()), "n_trials": trials}
            | {"n_folds": len(scores), "grouped_by": made.grouped_by, "auc": _mean(scores)}
            | {"lo": _mean(scores) - half, "hi": _mean(scores) + half, "gain": gain, "p": p}
            | {"p_attainable": max(1 / ways, 1 / (1 + len(exchanged))) if tested else None, "flag": None}
        )
    return rows


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _exchanged(made: Panel, count: int, rng: np.random.Generator) -> list[Floats]:
    """Drivers with the trials of each cell exchanged, where their rows can be matched one to one."""
    rows = [np.flatnonzero(made.trial == t) for t in range(len(made.cell_of_trial))]
    lengths = np.array([len(r) for r in rows])
    blocks = codes(pd.DataFrame({"cell": made.cell_of_trial, "length": lengths}), ("cell", "length"))
    if arrangements(np.arange(len(rows)), blocks) < 1.5:
        return []
    found = []
    for order in shuffles(blocks, count, rng):
        drawn = np.empty_like(made.drivers)
        for place, source in enumerate(order):
            drawn[rows[place]] = made.drivers[rows[source]]
        found.append(drawn)
    return found


def _effects(made: Panel) -> list[dict[str, Any]]:
    """Coefficients of the model with every driver, on all rows, with intervals from leaving out one fold at a time."""
    features = np.column_stack([_standard(made.phase), made.drivers])
    beta = fit(features, made.onset)[1:]
    folds = np.unique(made.fold)
    left = np.array([fit(features[made.fold != f], made.onset[made.fold != f])[1:] for f in folds])
    error = np.sqrt((len(folds) - 1) / len(folds) * ((left - left.mean(axis=0)) ** 2).sum(axis=0))
    half = student.ppf(0.975, len(folds) - 1) * error
    return [
        {
            "feature": name,
            "log_odds": float(b),
            "lo": float(b - h),
            "hi": float(b + h),
            "n_events": int(made.onset.sum()),
        }
        for name, b, h in zip((*PHASE, *made.names), beta, half, strict=True)
    ]
