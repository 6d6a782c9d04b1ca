"""When in training events fall, per architecture and data set, what the loss did then, and the claims that follow.

Counts are per phase, beside what is expected where there is nothing, and per layer-series, for a network with more
layers has more events of any kind. Verdicts are computed: planting one late event flips them.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.coupling import finite_mean, strongest_early
from ndt_ray.analysis.events.significant import primary, primary_family, replicates, tests_of, with_names
from ndt_ray.analysis.phases import BINS, EDGES, phase_bin, published_phase_bin
from ndt_ray.architectures import family_of
from ndt_ray.store.schema import Column, Table

_MODE = Column(
    "mode", "string", "default: significant events; original: published jumps and phases; corrected: in true steps"
)
_GROUP = (
    Column("grouping", "string", "all, family (mlp, cnn, transformer, other), model or data"),
    Column("group", "string", "which one; all for all"),
)

EVENT_PHASES = Table(
    "event_phases",
    "Events early, mid and late in training.",
    (
        _MODE,
        *_GROUP,
        Column("phase_bin", "string", "early [0, .1), mid [.1, .5), late [.5, 1]; dropped: phase 0, as published"),
        Column("n", "int32", "events; over the bins of a group they sum to all of its events"),
        Column("percent", "float64", "of the group's events"),
        Column("null_n", "float64", "events expected in this bin where there is nothing"),
        Column("n_series", "int32", "layer-series of the group that were judged"),
        Column("per_series", "float64", "events a layer-series"),
        Column("n_loss", "int32", "events with a change of the loss"),
        Column("loss_change", "float64", "mean change of the loss over the event", "nats"),
        Column("loss_excess", "float64", "the same beyond windows of the same length nearby", "nats"),
        Column("loss_improving", "float64", "share of events over which the loss fell"),
        Column("loss_improving_expected", "float64", "the same of windows of the same length nearby"),
    ),
    ("mode", "grouping", "group", "phase_bin"),
)

PHASE_VERDICTS = Table(
    "phase_verdicts",
    "The founding study's claims about timing, judged from these tables.",
    (
        _MODE,
        *_GROUP,
        Column(
            "claim",
            "string",
            "initialisation_escape, late_capability, coupling_strongest_early, two_phases or early_share_rank",
        ),
        Column("rule", "string", "how the verdict follows from the value"),
        Column(
            "value",
            "float64",
            "share of events before half time; late events; difference of shares; velocity ratio; rank",
        ),
        Column("lo", "float64", "95 % interval over trials of differences and velocity ratios (t on logs); else null"),
        Column("hi", "float64", "upper end of it"),
        Column("n_events", "int32", "events it rests on"),
        Column("n_trials", "int32", "trials it rests on"),
        Column("p", "float64", "two-sided, of differences of shares: early and mid exchanged within trials; else null"),
        Column("p_attainable", "float64", "smallest p any outcome could have had"),
        Column(
            "verdict",
            "string",
            "supported, not_supported, not_excluded, undecided, no_events or no_data; of a rank null",
        ),
    ),
    ("mode", "claim", "grouping", "group"),
)


@analysis(
    name="event_phases",
    reads=(
        "trials",
        "outcomes",
        "evaluations",
        "events",
        "event_families",
        "series_tests",
        "event_windows",
        "jumps",
        "jump_counts",
        "critical_series",
    ),
    writes=(EVENT_PHASES, PHASE_VERDICTS),
    per="sweep",
)
def event_phases(data: AnalysisInput) -> dict[str, pd.DataFrame]:
    """Events by phase, architecture and data set with the loss over them, and computed verdicts on their timing."""
    trials = replicates(data)
    if trials.empty:
        return {"event_phases": pd.DataFrame(), "phase_verdicts": pd.DataFrame()}
    phases: list[dict[str, Any]] = []
    verdicts: list[dict[str, Any]] = []
    speeds = data.frame("critical_series")
    learners = set(trials.loc[~trials["untrained"], "trial_id"])  # verdicts are about learning; counts are of all
    for mode, events, series in _cases(data, trials):
        for grouping, name, own, judged in _groups(events, series):
            phases += [row | {"mode": mode, "grouping": grouping, "group": name} for row in _counted(own, judged)]
            identity = {"mode": mode, "grouping": grouping, "group": name}
            learned = own[own["trial_id"].isin(learners)]
            verdicts += [identity | v for v in (*timing_verdicts(learned), strongest_early(learned))]
        verdicts += [{"mode": mode} | v for v in _ranks(events[events["trial_id"].isin(learners)])]
    if len(speeds):
        for mode, group in speeds[speeds["trial_id"].isin(learners)].groupby("mode", sort=True):
            for grouping, name, own, _ in _groups(with_names(group, trials), None):
                verdicts.append({"mode": mode, "grouping": grouping, "group": name} | two_phases(own))
    return {"event_phases": pd.DataFrame(phases), "phase_verdicts": pd.DataFrame(verdicts)}


def _cases(data: AnalysisInput, trials: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Mode, events (trial_id, phase_bin, names, loss columns), judged series (trial_id, names, null events)."""
    windows = data.frame("event_windows")
    key = ["trial_id", "layer", "view", "measure", "step_before"]
    loss = ["loss_change", "loss_expected", "loss_fell_expected"]
    tests, families = data.frame("series_tests"), data.frame("event_families")
    if len(tests):
        events = primary(data.frame("events"), families)
        rows = pd.DataFrame(columns=[*key, "phase"]) if events.empty else events[[*key, "phase"]]
        rows = rows.assign(phase_bin=phase_bin(rows["phase"].to_numpy(np.float64)))
        alpha = float(families["alpha"].iloc[0]) if "alpha" in families and len(families) else 0.05
        own = _primary_tests(tests, families, events)
        yield (
            "default",
            _joined(rows, windows, "default", key, loss, trials),
            with_names(own.assign(null=alpha * len(rows) / max(len(own), 1)), trials),
        )
    jumps, counts = data.frame("jumps"), data.frame("jump_counts")
    if len(jumps) and len(counts):
        rule = jumps[(jumps["mode"] == "original") & (jumps["detector"] == "difference_z")]
        judged = counts[(counts["mode"] == "original") & (counts["detector"] == "difference_z")]
        judged = with_names(judged.assign(null=judged["null_white_mean"].fillna(0.0)), trials)
        if len(judged):
            steps = rule["trial_id"].map(trials.set_index("trial_id")["steps"]).astype(np.float64)
            for mode, bins in (
                ("original", published_phase_bin(rule["phase"])),
                ("corrected", phase_bin(rule["step_before"] / steps)),
            ):
                rows = rule[key].assign(phase_bin=bins)
                yield mode, _joined(rows, windows, "original", key, loss, trials), judged


def _primary_tests(tests: pd.DataFrame, families: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """The series among which the primary family's events were sought."""
    first = primary_family(families)
    if first is not None:
        return tests_of(tests, first)
    own = tests[tests["measure"].isin(events["measure"])] if len(events) else tests
    return own.drop_duplicates(["trial_id", "layer", "view", "measure"])


def _joined(
    rows: pd.DataFrame, windows: pd.DataFrame, mode: str, key: list[str], loss: list[str], trials: pd.DataFrame
) -> pd.DataFrame:
    if len(windows):
        rows = rows.merge(windows[windows["mode"] == mode][[*key, *loss]], on=key, how="left")
    else:
        rows = rows.assign(**dict.fromkeys(loss, np.nan))
    return with_names(rows, trials)


def _groups(events: pd.DataFrame, series: pd.DataFrame | None) -> Iterator[tuple[str, str, pd.DataFrame, pd.DataFrame]]:
    """All, families, models, data sets: those with judged series (or rows), the events of each and its series."""
    judged = events if series is None else series
    for grouping in ("all", "family", "model", "data"):
        names, own = _names(judged, grouping), _names(events, grouping)
        for name in sorted(names.unique()):
            yield grouping, str(name), events[own == name], judged[names == name]


def _names(rows: pd.DataFrame, grouping: str) -> pd.Series:
    """To which group of a grouping each row belongs."""
    if grouping == "all":
        return pd.Series("all", index=rows.index)
    if grouping == "family":
        return rows["model"].astype(str).map(family_of)
    return rows[grouping].astype(str)


def _counted(events: pd.DataFrame, series: pd.DataFrame) -> list[dict[str, Any]]:
    bins = events["phase_bin"].astype(object).where(events["phase_bin"].notna(), "dropped")
    names = (*BINS, "dropped") if (bins == "dropped").any() else BINS
    share = dict(zip(BINS, np.diff([0.0, *EDGES, 1.0]), strict=True))
    rows: list[dict[str, Any]] = []
    for name in names:
        own = events[bins == name]
        change = own["loss_change"].to_numpy(np.float64, na_value=np.nan)
        known = np.isfinite(change)
        expected = own["loss_expected"].to_numpy(np.float64, na_value=np.nan)
        fell = own["loss_fell_expected"].to_numpy(np.float64, na_value=np.nan)
        rows.append(
            {"phase_bin": name, "n": len(own), "percent": 100 * len(own) / len(events) if len(events) else np.nan}
            | {"null_n": float(series["null"].sum()) * share[name] if name in share else np.nan}
            | {"n_series": len(series), "per_series": len(own) / len(series) if len(series) else np.nan}
            | {
                "n_loss": int(known.sum()),
                "loss_change": finite_mean(change),
                "loss_excess": finite_mean(change - expected),
            }
            | {
                "loss_improving": finite_mean(np.where(known, change < 0, np.nan)),
                "loss_improving_expected": finite_mean(fell),
            }
        )
    total = sum(int(r["n"]) for r in rows)
    assert total == len(events), (names, total, len(events))
    return rows


def timing_verdicts(events: pd.DataFrame) -> list[dict[str, Any]]:
    """H1 and H2 of the founding study for one group of events (columns trial_id, phase_bin)."""
    n = len(events)
    late = int((events["phase_bin"] == "late").sum()) if n else 0
    base = {"lo": np.nan, "hi": np.nan, "n_events": n, "n_trials": events["trial_id"].nunique() if n else 0}
    escape = "no_events" if n == 0 else "supported" if late == 0 else "not_supported"
    capability = "no_events" if n == 0 else "not_supported" if late == 0 else "not_excluded"
    return [
        base
        | {"claim": "initialisation_escape", "rule": "supported if every event falls in the first half"}
        | {"value": 1 - late / n if n else np.nan, "verdict": escape},
        base
        | {
            "claim": "late_capability",
            "rule": "not supported if no event falls in the second half; events there do not prove it",
        }
        | {"value": float(late), "verdict": capability},
    ]


def two_phases(series: pd.DataFrame) -> dict[str, Any]:
    """Is movement faster in the first tenth? Median ratio a trial, interval over trials (t on logs)."""
    ratio = series[series["velocity_ratio"] > 0].groupby("trial_id")["velocity_ratio"].median()
    logs = np.log(ratio.to_numpy(np.float64))
    mean = float(logs.mean()) if logs.size else np.nan
    half = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))) if len(logs) > 1 else np.nan
    low, high = np.exp(mean - half), np.exp(mean + half)
    verdict = (
        "undecided" if not np.isfinite(half) else "supported" if low > 1 else "not_supported" if high < 1 else None
    )
    return {
        "claim": "two_phases",
        "rule": "supported if the interval of (mean |velocity| in the first tenth / rest) lies above 1",
        "value": float(np.exp(mean)),
        "lo": float(low),
        "hi": float(high),
        "n_events": 0,
        "n_trials": len(logs),
        "verdict": verdict or "undecided",
    }


def _ranks(events: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Families by their share of early events, 1 the largest; ties share the better rank."""
    if events.empty:
        return
    family = events["model"].astype(str).map(family_of)
    early = (events["phase_bin"] == "early").groupby(family).mean()
    for name, rank in early.rank(ascending=False, method="min").items():
        own = events[family == name]
        yield {
            "grouping": "family",
            "group": str(name),
            "claim": "early_share_rank",
            "rule": "families by share of early events, 1 is the largest",
            "value": float(rank),
            "lo": np.nan,
            "hi": np.nan,
            "n_events": len(own),
            "n_trials": own["trial_id"].nunique(),
            "verdict": None,
        }
