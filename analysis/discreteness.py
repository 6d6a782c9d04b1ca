"""Are capabilities discrete while representations are smooth? The largest step of each, beside that of a smooth rise.

How discrete a rise is: the share of it that falls between two neighbouring groups of measurements. Noise makes such
steps too, the larger the fewer stimuli a class has; so the same is measured on surrogates that rise smoothly, as
cubics through windows of the curve do, with the noise of counting correct answers (classes) or that of the measurements
(representations). A curve is discrete where its largest step is larger than theirs.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.signal import savgol_filter

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.capabilities import LEAST, _classes
from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.events.significant import replicates
from ndt_ray.analysis.inference.multiplicity import bh
from ndt_ray.analysis.inference.permutation import sign_flips
from ndt_ray.analysis.inference.seeds import interval
from ndt_ray.analysis.nulls import generator
from ndt_ray.store.schema import Column, Table

GROUP = 2
"""Measurements averaged on either side of a step."""
SMOOTH = 0.2
"""Width of these windows, as a share of the run: what is over faster counts as a step."""
FEWEST = 20
"""Measurements below which nothing can be said."""

DISCRETENESS = Table(
    "discreteness",
    "The largest step of each class's accuracy and of each layer's representation, beside that of a smooth rise.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("kind", "string", "capability (a class's accuracy) or representation (a layer's 1 - CKA to step 0)"),
        Column("name", "string", "class, or layer"),
        Column("n", "int32", "measurements"),
        Column("climb", "float64", "last tenth - first measurement"),
        Column("largest", "float64", "largest step / climb, of two measurements against the two before"),
        Column("smooth", "float64", "mean of the same over smooth surrogates"),
        Column("excess", "float64", "largest - smooth"),
        Column("p", "float64", "share of surrogates with a step as large"),
        Column("flag", "string", "short, or flat where nothing was learned or moved; else null"),
    ),
    ("trial_id", "kind", "name"),
)

DISCRETENESS_TESTS = Table(
    "discreteness_tests",
    "Is there a step where a smooth rise would do, in capabilities and not in representations? Over trials.",
    (
        Column("scope", "string", "cell, or * for all trials"),
        Column("n_trials", "int32", "trials with both kinds: the unit"),
        Column("capability_share", "float64", "share of classes with q <= alpha within their trial, mean over trials"),
        Column("representation_share", "float64", "the same of layers"),
        Column("capability_excess", "float64", "mean excess of the largest step over a smooth rise"),
        Column("representation_excess", "float64", "the same of layers"),
        Column("difference", "float64", "capability_excess - representation_excess"),
        Column("lo", "float64", "95 % interval of it over trials"),
        Column("hi", "float64", "upper end of it"),
        Column("p", "float64", "sign flips of trials"),
        Column("verdict", "string", "supported, both_discrete, not_supported, undecided or no_data"),
    ),
    ("scope",),
)


@analysis(name="discreteness", reads=("trials", "scalars", "velocity"), writes=(DISCRETENESS,), per="trial")
def discreteness(data: AnalysisInput, *, draws: int = 199) -> dict[str, pd.DataFrame]:
    """Largest step of every class's accuracy and every layer's representation, against rises without steps."""
    trials = data.frame("trials")
    if trials.empty:
        return {DISCRETENESS.name: pd.DataFrame()}
    trial, rows = str(trials["trial_id"].iloc[0]), []
    for kind, name, values, count in _series(data):
        rng = generator("discreteness", trial, kind, name)
        rows.append({"trial_id": trial, "kind": kind, "name": name} | step_of(values, count, rng, draws))
    return {DISCRETENESS.name: pd.DataFrame(rows)}


def _series(data: AnalysisInput) -> Iterator[tuple[str, str, Floats, int | None]]:
    """(kind, name, values, stimuli that a share is of); evenly spaced measurements only."""
    scalars, velocity = data.frame("scalars"), data.frame("velocity")
    if len(scalars) and "probe_class_accuracy" in scalars:
        ordered = _even(scalars.sort_values("step"))
        for label, values in _classes(ordered["probe_class_accuracy"]).items():
            known = values[np.isfinite(values)]
            moves = np.abs(np.diff(known))
            count = round(1 / moves[moves > 1e-6].min()) if (moves > 1e-6).any() else None
            yield "capability", str(label), known, count
    if len(velocity):
        for (_, layer), own in velocity.groupby(["layer_index", "layer"], sort=True):
            values = _even(own.sort_values("step"))["from_init"].to_numpy(np.float64, na_value=np.nan)
            yield "representation", str(layer), values[np.isfinite(values)], None


def _even(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows on the commonest spacing of steps: denser ones at the start would be steps of another length."""
    steps = rows["step"].to_numpy(np.int64)
    if len(steps) < 3:
        return rows
    lengths, counts = np.unique(np.diff(steps), return_counts=True)
    return rows[steps % int(lengths[counts.argmax()]) == 0]


def step_of(values: Floats, count: int | None, rng: np.random.Generator, draws: int = 199) -> dict[str, Any]:
    """Row of `discreteness` but its identity. `count`: stimuli of the class, for shares; None: any number."""
    row: dict[str, Any] = {"n": len(values), "climb": None, "largest": None, "smooth": None, "excess": None, "p": None}
    if len(values) < FEWEST:
        return row | {"flag": "short"}
    climb = float(values[-max(1, len(values) // 10) :].mean() - values[0])
    least = LEAST if count is not None else 1e-3
    if climb < least:
        return row | {"climb": climb, "flag": "flat"}
    curve = smoothed(values, round(SMOOTH * len(values)))
    if count is not None:
        null = rng.binomial(count, np.clip(curve, 0, 1), (draws, len(values))) / count
    else:
        # From second differences, whose median a step or a bend does not move; 6 = 1 + 4 + 1.
        second = np.diff(values, 2)
        sd = 1.4826 * float(np.median(np.abs(second - np.median(second)))) / math.sqrt(6)
        null = curve + sd * rng.standard_normal((draws, len(values)))
    found = float(_largest(values[None])[0]) / climb
    others = _largest(null) / climb
    p = (1 + int((others >= found - 1e-12).sum())) / (1 + draws)
    smooth = float(others.mean())
    found_row = {"climb": climb, "largest": found, "smooth": smooth, "excess": found - smooth, "p": p, "flag": None}
    return row | found_row


def smoothed(values: Floats, width: int) -> Floats:
    """Cubics through windows of so many values (Savitzky & Golay 1964): they follow a rise that is fastest at the
    beginning, which a running mean would flatten there."""
    odd = min(max(5, width | 1), (len(values) - 1) | 1)
    return np.asarray(savgol_filter(values, odd, 3, mode="interp"))


def _largest(series: Floats) -> Floats:
    """Largest rise of `[k, n]` from the mean of `GROUP` measurements to that of the next `GROUP`, [k]."""
    total = np.concatenate([np.zeros((len(series), 1)), np.cumsum(series, axis=1)], axis=1)
    means = (total[:, GROUP:] - total[:, :-GROUP]) / GROUP
    return np.asarray((means[:, GROUP:] - means[:, :-GROUP]).max(axis=1))


@analysis(
    name="discreteness_tests",
    reads=("trials", "outcomes", "evaluations", DISCRETENESS.name),
    writes=(DISCRETENESS_TESTS,),
    per="sweep",
)
def discreteness_tests(data: AnalysisInput, *, alpha: float = 0.05) -> dict[str, pd.DataFrame]:
    """Whether capabilities are discrete while representations are smooth, by cell and over all trials."""
    trials, rows = replicates(data), data.frame(DISCRETENESS.name)
    if trials.empty or rows.empty:
        return {DISCRETENESS_TESTS.name: pd.DataFrame()}
    learners = trials[~trials["untrained"]]
    known = rows[rows["flag"].isna() & rows["trial_id"].isin(learners["trial_id"])]
    cells = learners.set_index("trial_id")["cell"]
    table = _by_trial(known, alpha)
    found = [judged("*", table, alpha)]
    found += [judged(str(cell), own, alpha) for cell, own in table.groupby(table.index.map(cells), sort=True)]
    return {DISCRETENESS_TESTS.name: pd.DataFrame(found)}


def _by_trial(rows: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Share with q <= alpha and mean excess of both kinds, by trial; trials without one of them are left out."""
    parts: dict[str, dict[str, float]] = {}
    for (trial, kind), own in rows.groupby(["trial_id", "kind"]):
        q = bh(own["p"].to_numpy(np.float64))
        row = parts.setdefault(str(trial), {})
        row |= {f"{kind}_share": float((q <= alpha).mean()), f"{kind}_excess": float(own["excess"].mean())}
    columns = [f"{kind}_{what}" for kind in ("capability", "representation") for what in ("share", "excess")]
    return pd.DataFrame.from_dict(parts, orient="index").reindex(columns=columns).dropna()


def judged(scope: str, table: pd.DataFrame, alpha: float = 0.05) -> dict[str, Any]:
    """Row of `discreteness_tests` from one row a trial.

    supported: the interval of the difference lies above 0 and at most a tenth of the layers has a step; both_discrete:
    above 0, and more of them have; not_supported: below 0, or no class in twenty has a step; else undecided.
    """
    n = len(table)
    row: dict[str, Any] = {"scope": scope, "n_trials": n}
    row |= {name: float(table[name].mean()) if n else math.nan for name in table}
    difference = (table["capability_excess"] - table["representation_excess"]).to_numpy(np.float64)
    within = interval(difference) if n > 1 else None
    lo, hi = (within.lo, within.hi) if within else (math.nan, math.nan)
    row |= {"difference": float(difference.mean()) if n else math.nan, "lo": lo, "hi": hi}
    row["p"] = sign_flips(difference).p if n else math.nan
    if n < 3 or not math.isfinite(lo):
        verdict = "no_data"
    elif row["capability_share"] <= alpha or hi < 0:
        verdict = "not_supported"
    elif lo > 0:
        verdict = "supported" if row["representation_share"] <= 0.1 else "both_discrete"
    else:
        verdict = "undecided"
    return row | {"verdict": verdict}
