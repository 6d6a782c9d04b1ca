"""Types of events by phase, and what the loss did over them: does a type belong to a time, and pay off more?

The founding study had "late jumps show stronger loss improvement" as a sentence. Here it is a contrast of changes of
the loss beyond windows of the same length nearby, because the loss falls fastest early whatever happens. Layers that
change together share one loss and one phase: what is exchanged are these moments, among those of one trial.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.blocks import between_groups, codes, permuted
from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.analysis.events.significant import primary_family, replicates
from ndt_ray.analysis.nulls import generator
from ndt_ray.analysis.phases import BINS, EDGES
from ndt_ray.store.schema import Column, Table

_MODE = Column("mode", "string", "default: significant events; original: published jumps")

TYPE_PHASES = Table(
    "taxonomy_phases",
    "Events of each type by phase of training, with the change of the loss over them.",
    (
        _MODE,
        Column("type", "int32", "number of the type; 0: all"),
        Column("label", "string", "its name; null where it has none"),
        Column("phase_bin", "string", "early, mid, late, all, or dropped (original, phase 0)"),
        Column("n", "int32", "events"),
        Column("null_n", "float64", "of all types, expected where there is nothing; a type's own cannot be told: null"),
        Column("percent_of_type", "float64", "of the type's events"),
        Column("percent_of_phase", "float64", "of the phase's events: how the founding study gave its clusters"),
        Column("n_loss", "int32", "events with a change of the loss"),
        Column("loss_change", "float64", "mean change of the loss over the event", "nats"),
        Column("loss_excess", "float64", "the same beyond windows of the same length nearby", "nats"),
        Column("loss_improving", "float64", "share of events over which the loss fell"),
    ),
    ("mode", "type", "phase_bin"),
)

TYPE_TESTS = Table(
    "taxonomy_phase_tests",
    "Does the change of the loss go with the type, and do late events improve it more?",
    (
        _MODE,
        Column("claim", "string", "loss_by_type, phase_by_type or late_improves_more"),
        Column("statistic", "string", "what the value is"),
        Column("value", "float64", "eta squared, Cramér's V, or a difference in nats"),
        Column("n_events", "int32", "events compared"),
        Column("n_moments", "int32", "times they are at: events of a trial whose steps overlap are one"),
        Column("n_trials", "int32", "trials they are of"),
        Column("p", "float64", "losses (or phases) exchanged among the moments of a trial; late: one-sided"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
        Column("verdict", "string", "supported, not_shown or no_data"),
    ),
    ("mode", "claim"),
)
_KEY = ["trial_id", "layer", "view", "measure", "step_before"]


@analysis(
    name="taxonomy_phases",
    reads=(
        "trials",
        "outcomes",
        "evaluations",
        "event_types",
        "event_windows",
        "event_families",
        "jump_counts",
    ),
    writes=(TYPE_PHASES, TYPE_TESTS),
    per="sweep",
)
def taxonomy_phases(data: AnalysisInput, *, permutations: int = 1999, alpha: float = 0.05) -> dict[str, pd.DataFrame]:
    """Event types by phase, the change of the loss by type, and whether late events improve the loss more."""
    empty = {t.name: pd.DataFrame() for t in (TYPE_PHASES, TYPE_TESTS)}
    trials, types, windows = replicates(data), data.frame("event_types"), data.frame("event_windows")
    if trials.empty or types.empty or windows.empty:
        return empty
    types = types[types["trial_id"].isin(trials["trial_id"])]
    rows = types.merge(windows.drop(columns=["layer_index"]), on=["mode", *_KEY], how="left")
    counted: list[dict[str, Any]] = []
    tested: list[dict[str, Any]] = []
    for mode, own in rows.groupby("mode", sort=True):
        counted += [{"mode": mode} | row for row in crossed(own, _expected(str(mode), own, data))]
        learners = own[own["trial_id"].isin(trials.loc[~trials["untrained"], "trial_id"])]  # counts are of all
        tested += [{"mode": mode} | row for row in tests(learners, permutations, alpha, data.sweep, str(mode))]
    return {TYPE_PHASES.name: pd.DataFrame(counted), TYPE_TESTS.name: pd.DataFrame(tested)}


def _expected(mode: str, events: pd.DataFrame, data: AnalysisInput) -> float:
    """Events of all types expected where there is nothing: false ones at the family's rate, or jumps of white noise."""
    if mode == "default":
        family = primary_family(data.frame("event_families"))
        return float("nan") if family is None else float(family.get("alpha", np.nan)) * len(events)
    counts = data.frame("jump_counts")
    if counts.empty:
        return float("nan")
    own = counts[(counts["mode"] == mode) & (counts["detector"] == "difference_z")]
    return float(own.loc[own["trial_id"].isin(events["trial_id"]), "null_white_mean"].sum())


def crossed(events: pd.DataFrame, null: float) -> Iterator[dict[str, Any]]:
    """Rows of `taxonomy_phases` but the mode: every type × phase, the margins included, empty cells too.

    `null`: events of all types expected where there is nothing, evenly over the run.
    """
    share = dict(zip(BINS, np.diff([0.0, *EDGES, 1.0]), strict=True)) | {"all": 1.0}
    bins = events["phase_bin"].astype(object).where(events["phase_bin"].notna(), "dropped")
    names = [*BINS, *(["dropped"] if (bins == "dropped").any() else []), "all"]
    labels = events.drop_duplicates("type").set_index("type")["label"]
    for kind in [*sorted(int(t) for t in events["type"].unique()), 0]:
        of_type = events["type"] == kind if kind else pd.Series(True, index=events.index)
        for name in names:
            of_bin = bins == name if name != "all" else pd.Series(True, index=events.index)
            own = events[of_type & of_bin]
            change, excess = _loss(own)
            known = np.isfinite(change)
            yield {
                "type": kind,
                "label": labels.get(kind),
                "phase_bin": name,
                "n": len(own),
                "null_n": null * share[name] if not kind and name in share else np.nan,
                "percent_of_type": 100 * len(own) / int(of_type.sum()) if of_type.any() else np.nan,
                "percent_of_phase": 100 * len(own) / int(of_bin.sum()) if of_bin.any() else np.nan,
                "n_loss": int(known.sum()),
                "loss_change": _mean(change),
                "loss_excess": _mean(excess),
                "loss_improving": _mean(np.where(known, change < 0, np.nan)),
            }


def tests(events: pd.DataFrame, permutations: int, alpha: float, *key: str) -> Iterator[dict[str, Any]]:
    """Rows of `taxonomy_phase_tests` but the mode."""
    excess = _loss(events)[1]
    known, values = events[np.isfinite(excess)], excess[np.isfinite(excess)]
    at = _moments(known)
    moments = pd.DataFrame({"at": at, "excess": values}).groupby("at").mean()["excess"].to_numpy(np.float64)
    first = known.assign(at=at).sort_values("step_before", kind="stable").drop_duplicates("at").sort_values("at")
    blocks = codes(first, ("trial_id",))
    types, n = _types(known), np.arange(len(moments))
    explained = _explained(types, moments, at)
    enough = len(np.unique(types)) > 1 and np.ptp(moments[at]) > 0
    found = permuted(explained, n, blocks, permutations, _rng("type", key)) if enough else None
    statistic = {"statistic": "eta squared of the type on the change of the loss beyond nearby windows"}
    yield {"claim": "loss_by_type"} | statistic | _row(found, known, at, alpha)

    binned = events[events["phase_bin"].notna()]
    seen = _moments(binned)
    own = binned.assign(at=seen).sort_values("step_before", kind="stable").drop_duplicates("at").sort_values("at")
    phase, kinds = pd.factorize(own["phase_bin"], sort=True)[0].astype(np.int64), _types(binned)
    enough = len(np.unique(phase)) > 1 and len(np.unique(kinds)) > 1
    associated = _cramers_v(kinds, seen)
    own_blocks = codes(own, ("trial_id",))
    found = permuted(associated, phase, own_blocks, permutations, _rng("phase", key)) if enough else None
    yield {"claim": "phase_by_type", "statistic": "Cramér's V of type and phase"} | _row(found, binned, seen, alpha)

    late = (first["phase_bin"] == "late").to_numpy(np.int64)
    found = None
    if 0 < late.sum() < len(late):
        found = permuted(_late_less(moments), late, blocks, permutations, _rng("late", key))
    statistic = {"statistic": "how much further the loss falls at late moments than at others, beyond nearby windows"}
    yield {"claim": "late_improves_more"} | statistic | _row(found, known, at, alpha)


def _moments(events: pd.DataFrame) -> Ints:
    """A number for each event `[n]`: those of one trial whose steps overlap, one after the other, have the same."""
    order = events.reset_index(drop=True).sort_values(["trial_id", "step_before"], kind="stable")
    found, number, until, trial = np.zeros(len(order), np.int64), -1, 0, None
    columns = (order[name] for name in ("trial_id", "step_before", "step_after"))
    for place, whose, begins, ends in zip(order.index, *columns, strict=True):
        if whose != trial or begins >= until:
            number, until, trial = number + 1, ends, whose
        until = max(until, ends)
        found[place] = number
    return found


def _types(events: pd.DataFrame) -> Ints:
    return np.asarray(pd.factorize(events["type"], sort=True)[0], np.int64)


def _rng(what: str, key: tuple[str, ...]) -> np.random.Generator:
    return generator("taxonomy phases", what, *key)


def _row(found: Any, events: pd.DataFrame, moments: Ints, alpha: float) -> dict[str, Any]:
    value, p, least = (found.statistic, found.p, found.p_attainable) if found else (np.nan,) * 3
    verdict = "no_data" if not np.isfinite(p) else "supported" if p <= alpha else "not_shown"
    who = {
        "n_events": len(events),
        "n_moments": len(np.unique(moments)),
        "n_trials": events["trial_id"].nunique(),
    }
    return who | {"value": value, "p": p, "p_attainable": least, "verdict": verdict}


def _loss(events: pd.DataFrame) -> tuple[Floats, Floats]:
    """(change, change beyond nearby windows) of each event; NaN where it is not known."""
    change = events["loss_change"].to_numpy(np.float64, na_value=np.nan)
    return change, change - events["loss_expected"].to_numpy(np.float64, na_value=np.nan)


def _late_less(values: Floats) -> Any:
    def statistic(late: Ints) -> Floats:
        n = late.sum(axis=1)
        inside = late @ values
        return np.asarray((values.sum() - inside) / (late.shape[1] - n) - inside / n)

    return statistic


def _explained(types: Ints, moments: Floats, at: Ints) -> Any:
    """Eta squared of the types of events on the values of the moments they are at, which are given in another order."""

    def statistic(order: Ints) -> Floats:
        values = moments[order][:, at]
        total = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        between = np.array([between_groups(row)(types[None, :])[0] for row in values])
        return np.asarray(between / np.where(total > 0, total, 1.0))

    return statistic


def _cramers_v(types: Ints, at: Ints) -> Any:
    """Of the types of events and the phases of the moments they are at."""
    kinds = int(types.max(initial=0)) + 1

    def statistic(phases: Ints) -> Floats:
        names = int(phases.max()) + 1
        found = np.zeros(len(phases))
        for i, row in enumerate(phases[:, at]):
            table = np.zeros((kinds, names))
            np.add.at(table, (types, row), 1)
            expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
            chi2 = float(((table - expected) ** 2 / np.where(expected > 0, expected, 1)).sum())
            found[i] = np.sqrt(chi2 / (table.sum() * (min(kinds, names) - 1)))
        return found

    return statistic


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
