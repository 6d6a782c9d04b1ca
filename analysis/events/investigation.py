"""What happened in a run, in one word by rule, and where to look next: steps, layers and analyses.

The founding study told three stories - cascades of jumps in CNNs, discrete transitions in transformers, smooth growth
in MLPs - from counts of an uncalibrated rule. Here each run is classed by its own calibrated events and growth curves,
and the architecture only decides which analyses apply. `original` classes the published runs by the published counts.
Dimensionality says when to look, never what changed or why: the plan names analyses that can, and they decide.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import primary, primary_family, tests_of
from ndt_ray.analysis.inference.sample import false_per_series, trained
from ndt_ray.analysis.series import clock
from ndt_ray.analysis.taxonomy.representatives import select
from ndt_ray.architectures import family_of
from ndt_ray.errors import SpecError
from ndt_ray.store.schema import Column, Table

CASCADE_EVENTS, CASCADE_SHARE = 3, 0.5
"""A cascade is at least this many early events in at least two layers, and at least this share of all events."""
PUBLISHED_CASCADE = 10
"""Points flagged by the published aggregate rule from which a published run counts as a cascade."""
GOOD_CURVE = 0.5

_STRATEGY: dict[str, tuple[tuple[str, ...], str]] = {
    "convolution": (
        ("features", "feature_changes", "filters", "similarity", "units"),
        "new kinds of features appear during the event, edges before textures before parts; early layers first",
    ),
    "attention": (
        ("attention", "head_ablation", "similarity"),
        "heads differentiate: entropy falls and patterns of heads move apart during the event",
    ),
    "dense": (
        ("units", "linear_probes", "similarity"),
        "units gain class selectivity and probes gain accuracy during the event",
    ),
}
_KINDS = {
    "cnn": "convolution",
    "transformer": "attention",
    "mlp": "dense",
}
_SMOOTH_ANALYSES = ("similarity", "linear_probes", "intrinsic_dimension")
_LOOK_FOR = {
    "new feature types": ("features", "feature_changes", "filters"),
    "changed activation patterns": ("similarity", "attention"),
    "specialised units or heads": ("units", "head_ablation"),
    "classes that can be read out": ("linear_probes",),
}
"""What the founding study looks for at a step, and one thing more, by the analyses that can see it."""

INVESTIGATIONS = Table(
    "investigations",
    "One row a trial: what kind of dynamics it shows, by rule, and how to look into it.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("mode", "string", "default: calibrated events; original: the published aggregate jumps"),
        Column("phenomenon", "string", "cascade, discrete, smooth, flat, untrained or unjudged"),
        Column("why", "string", "the rule that decided, with its numbers"),
        Column("trained", "bool", "held-out accuracy (mean over classes) above chance; null without evaluations"),
        Column("accuracy", "float64", "last held-out accuracy"),
        Column("n_events", "int32", "events of the trial"),
        Column("null_events", "float64", "of these, expected to be false; original: points flagged on white noise"),
        Column("n_layers", "int32", "layers that have one"),
        Column("early_share", "float64", "share of events in the first `early` (a tenth) of the run"),
        Column("early_gap", "float64", "mean distance of neighbouring onsets there", "steps"),
        Column("mean_gap", "float64", "the same over the run", "steps"),
        Column("n_later", "int32", "events after that"),
        Column("later_gap", "float64", "mean distance of neighbouring onsets after that", "steps"),
        Column("later_scatter", "float64", "the same / that of as many evenly spread: 1 scattered, 0 all at once"),
        Column("densest", "int32", "most events within `window` (a tenth) of the run"),
        Column("curve", "string", "growth curve with the smallest AICc"),
        Column("curve_r2", "float64", "its R²"),
        Column("kind", "string", "convolution, attention, dense or unknown: decides which analyses apply"),
        Column("analyses", "string", "recommended, comma-separated names of registered analyses"),
        Column("hypothesis", "string", "what these analyses should show if the event means what is supposed"),
        Column("n_steps", "int32", "distinct steps in investigation_steps", "steps"),
        Column("share_of_steps", "float64", "the same / measured steps: what need not be looked at is the gain"),
        Column("recall", "float64", "share of events with a planned step within reach before and after them"),
        Column("recall_uniform", "float64", "the same for as many evenly spaced steps"),
    ),
    ("trial_id", "mode"),
)

INVESTIGATION_STEPS = Table(
    "investigation_steps",
    "Where to look: steps and layers of a trial, in order.",
    (
        Column("trial_id", "string", "content hash of the trial"),
        Column("place", "int32", "place in the plan, from 1"),
        Column("step", "int32", "optimizer updates done", "steps"),
        Column("role", "string", "before, during or after an event; start or end of the run; early, mid or late"),
        Column("layer", "string", "module path of the event's layer; * for all layers"),
        Column("event_step", "int32", "onset of the event; null for steps that belong to none", "steps"),
        Column("analyses", "string", "to run there, comma-separated"),
        Column("look_for", "string", "comma-separated: new feature types, changed activation patterns, ..."),
    ),
    ("trial_id", "place"),
)


@analysis(
    name="investigation",
    reads=(
        "trials",
        "outcomes",
        "evaluations",
        "measurements",
        "events",
        "event_families",
        "event_types",
        "series_tests",
        "growth",
        "growth_models",
        "jumps",
        "jump_counts",
    ),
    writes=(INVESTIGATIONS, INVESTIGATION_STEPS),
    per="trial",
)
def investigation(
    data: AnalysisInput, *, most: int = 5, early: float = 0.1, window: float = 0.1
) -> dict[str, pd.DataFrame]:
    """Each run's dynamics by rule (cascade, discrete, smooth, flat), with the steps and analyses to look at next.

    A cascade: half of the events or more lie in the first `early` of the run, three or more of them in two or more
    layers, and so close that three of their mean gaps fit into `window` of the run. `early` 1 takes one anywhere.
    `most`: events of a run that are looked at, chosen as `representatives.select` does. SpecError for shares outside
    (0, 1].
    """
    for name, share in (("early", early), ("window", window)):
        if not 0 < share <= 1:
            raise SpecError(f"{name} is a share of the run, in (0, 1], but got ({name}={share})")
    trials, measured = data.frame("trials"), data.frame("measurements")
    if trials.empty:
        return {"investigations": pd.DataFrame(), "investigation_steps": pd.DataFrame()}
    trial = clock(trials, measured)
    kind = _KINDS.get(family_of(str(trials["model"].iloc[0])), "unknown") if "model" in trials else "unknown"
    models = data.frame("growth_models")
    rows: list[dict[str, Any]] = []
    plan: list[dict[str, Any]] = []
    steps = np.unique(measured["step"].to_numpy(np.int64)) if len(measured) else np.zeros(0, np.int64)
    base = {"trial_id": trial.trial_id, "kind": kind} | _trained(
        trial.trial_id, data.frame("evaluations"), data.frame("outcomes")
    )
    tests = data.frame("series_tests")
    if len(tests):
        families = data.frame("event_families")
        events = _typed(primary(data.frame("events"), families), data.frame("event_types"))
        known = base | _described(events, trial.steps, early, window) | _curve(models, "default")
        known |= _false(families, tests)
        calibrated = int(tests["calibrated"].astype(bool).sum()) if "calibrated" in tests else len(tests)
        known |= _phenomenon(known, calibrated, window * trial.steps / CASCADE_EVENTS)
        plan = _plan(known, select(events, most), steps, trial.trial_id)
        rows.append(known | {"mode": "default"} | _strategy(known) | _value(plan, events, steps))
    jumps = data.frame("jumps")
    if len(jumps) and len(data.frame("growth")) and (data.frame("growth")["mode"] == "original").any():
        told = _published(jumps, data.frame("jump_counts"), models, trial.steps, kind, early)
        rows.append(base | {"mode": "original"} | told)
    columns = [c.name for c in INVESTIGATIONS.columns]
    return {
        "investigations": pd.DataFrame(rows).reindex(columns=columns) if rows else pd.DataFrame(),
        "investigation_steps": pd.DataFrame(plan),
    }


def _trained(trial_id: str, evaluations: pd.DataFrame, outcomes: pd.DataFrame) -> dict[str, Any]:
    """Last held-out accuracy, and whether it is above chance; None where no accuracy per class was stored."""
    judged = trained([trial_id], evaluations).iloc[0]
    accuracy = judged["accuracy"]
    if accuracy is None and "final_accuracy" in outcomes and outcomes["final_accuracy"].notna().any():
        accuracy = float(outcomes["final_accuracy"].dropna().iloc[0])
    return {"trained": judged["trained"], "accuracy": accuracy}


def _typed(events: pd.DataFrame, types: pd.DataFrame) -> pd.DataFrame:
    """The events with the type that the taxonomy gave them, where it gave a stable one."""
    if events.empty or types.empty:
        return events
    key = ["trial_id", "layer", "view", "measure", "step_before"]
    own = types[(types["mode"] == "default") & types["label"].notna()][[*key, "type"]]
    return events.merge(own, on=key, how="left")


def _described(events: pd.DataFrame, steps: int, early: float, window: float) -> dict[str, Any]:
    """Numbers of the events that the rules read."""
    if events.empty:
        counts = dict.fromkeys(("n_events", "n_layers", "densest", "layers_early"), 0)
        return counts | _spread(np.zeros(0), steps, early)
    onset = events["step_before"].to_numpy(np.float64)
    inside = (onset >= onset[:, None]) & (onset <= onset[:, None] + window * steps)
    return {
        "n_events": len(events),
        "n_layers": events["layer"].nunique(),
        "densest": int(inside.sum(1).max()),
        "layers_early": events.loc[onset < early * steps, "layer"].nunique(),
    } | _spread(onset, steps, early)


def _spread(onset: Any, steps: int, early: float) -> dict[str, Any]:
    """How many onsets lie in the first `early` of the run and how many after it, and how far apart."""
    before, after = onset[onset < early * steps], onset[onset >= early * steps]
    later, even = _gap(after), (1 - early) * steps / (len(after) + 1)
    return {
        "early_share": len(before) / len(onset) if len(onset) else None,
        "early_gap": _gap(before),
        "mean_gap": _gap(onset),
        "n_later": len(after),
        "later_gap": later,
        "later_scatter": None if later is None else later / even,
    }


def _false(families: pd.DataFrame, tests: pd.DataFrame) -> dict[str, Any]:
    """How many of the trial's events are expected to be false, by its testable series; null where no family says."""
    family = primary_family(families)
    if family is None or "calibrated" not in tests:
        return {"null_events": None}
    return {"null_events": false_per_series(family) * int(tests_of(tests, family)["calibrated"].astype(bool).sum())}


def _gap(onset: Any) -> float | None:
    """Mean distance of neighbours; None with fewer than two."""
    return float(np.diff(np.sort(onset)).mean()) if len(onset) > 1 else None


def _curve(models: pd.DataFrame, mode: str) -> dict[str, Any]:
    """The growth curve with the smallest AICc of a mode; nulls where none was fitted."""
    best = models[(models["mode"] == mode) & models["best"].astype(bool)] if len(models) else models
    if best.empty:
        return {"curve": None, "curve_r2": None}
    return {"curve": str(best["model"].iloc[0]), "curve_r2": float(best["r2"].iloc[0])}


def _phenomenon(known: dict[str, Any], calibrated: int, widest: float) -> dict[str, Any]:
    """The word and why; `widest`: mean gap of early events in steps up to which they are a cascade."""
    n, r2, layers, gap = known["n_events"], known["curve_r2"], known.pop("layers_early"), known["early_gap"]
    if known["trained"] is False:
        return {"phenomenon": "untrained", "why": f"held-out accuracy {known['accuracy']:.3f} is at chance"}
    if calibrated == 0:
        return {"phenomenon": "unjudged", "why": "no series that the detector can judge"}
    early = n - known["n_later"]
    if n:
        why = f"{early} of {n} events early, in {layers} layers"
        why += f", {gap:.4g} steps apart" if gap is not None else ""
        many = early >= max(CASCADE_EVENTS, CASCADE_SHARE * n) and layers >= 2
        word = "cascade" if many and gap is not None and gap <= widest else "discrete"
        return {"phenomenon": word, "why": f"{why} (a cascade: at most {widest:.4g})" if many else why}
    if r2 is not None and r2 >= GOOD_CURVE and known["curve"] != "constant":
        return {"phenomenon": "smooth", "why": f"no event; a {known['curve']} curve explains {100 * r2:.0f} %"}
    return {"phenomenon": "flat", "why": "no event, and no curve explains half of what happens"}


def _strategy(known: dict[str, Any]) -> dict[str, Any]:
    analyses, hypothesis = _recommended(known)
    return {"analyses": ",".join(analyses), "hypothesis": hypothesis}


def _recommended(known: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """Analyses by architecture where something happened; gradual ones where it was smooth; none where nothing was."""
    if known["phenomenon"] in ("cascade", "discrete"):
        return _STRATEGY.get(known["kind"], (("similarity", "units"), "representations change faster than nearby"))
    if known["phenomenon"] == "smooth":
        return _SMOOTH_ANALYSES, "representations and probes change evenly over the run"
    return (), None


def _plan(known: dict[str, Any], chosen: pd.DataFrame, steps: Any, trial_id: str) -> list[dict[str, Any]]:
    """Before, during and after each chosen event with a start and an end; quarters of a smooth run."""
    analyses, _ = _recommended(known)
    if not analyses or not len(steps):
        return []
    rows: list[tuple[int, str, str, int | None]] = [
        (int(steps[0]), "start", "*", None),
        (int(steps[-1]), "end", "*", None),
    ]
    if known["phenomenon"] == "smooth":
        rows += [
            (_at(steps, share * float(steps[-1])), role, "*", None)
            for share, role in ((0.05, "early"), (0.3, "mid"), (0.75, "late"))
        ]
    for event in chosen.to_dict("records"):
        before, after = int(event["step_before"]), int(event["step_after"])
        reach = max(after - before, int(_number(event.get("width"), 0.0)))
        middle = _number(event.get("step_location"), (before + after) / 2)
        for role, step in (("before", middle - reach), ("during", middle), ("after", middle + reach)):
            edge = min(step, before) if role == "before" else max(step, after) if role == "after" else step
            rows.append((_at(steps, edge), role, str(event["layer"]), before))
    rows.sort(key=lambda r: (r[0], r[3] is not None, r[2]))
    look_for = ",".join(item for item, can in _LOOK_FOR.items() if set(can) & set(analyses))
    return [
        {"trial_id": trial_id, "place": i, "step": step, "role": role, "layer": layer, "event_step": event}
        | {"analyses": ",".join(analyses), "look_for": look_for}
        for i, (step, role, layer, event) in enumerate(rows, 1)
    ]


def _number(value: Any, otherwise: float) -> float:
    return otherwise if value is None or pd.isna(value) else float(value)


def _at(steps: Any, wanted: float) -> int:
    return int(steps[int(np.abs(steps - wanted).argmin())])


def _value(plan: Sequence[dict[str, Any]], events: pd.DataFrame, steps: Any) -> dict[str, Any]:
    """How much of the run the plan looks at, and how many events it brackets, against evenly spaced steps."""
    planned = np.unique([row["step"] for row in plan]) if plan else np.zeros(0)
    uniform = np.linspace(steps[0], steps[-1], len(planned)) if len(planned) and len(steps) else planned
    return {
        "n_steps": len(planned),
        "share_of_steps": len(planned) / len(steps) if len(steps) else None,
        "recall": bracketed(events, planned),
        "recall_uniform": bracketed(events, uniform),
    }


def bracketed(events: pd.DataFrame, planned: Any) -> float | None:
    """Share of events with a planned step at most twice their width before and after them; null without events."""
    if events.empty:
        return None
    hits = []
    for event in events.to_dict("records"):
        before, after = float(event["step_before"]), float(event["step_after"])
        reach = 2 * max(after - before, _number(event.get("width"), 0.0))
        left = ((planned <= before) & (planned >= before - reach)).any()
        hits.append(bool(left and ((planned >= after) & (planned <= after + reach)).any()))
    return float(np.mean(hits))


def _published(
    jumps: pd.DataFrame, counts: pd.DataFrame, models: pd.DataFrame, steps: int, kind: str, early: float
) -> dict[str, Any]:
    """The published story of a run, from the points its aggregate rule flagged."""
    own = jumps[(jumps["mode"] == "original") & (jumps["detector"] == "smoothed_gradient")]
    n = len(own)
    judged = (
        counts[(counts["mode"] == "original") & (counts["detector"] == "smoothed_gradient")] if len(counts) else counts
    )
    noise = float(judged["null_white_mean"].sum()) if len(judged) else None
    words = {True: "cascade", False: "discrete" if n else "smooth"}
    phenomenon = words[n >= PUBLISHED_CASCADE]
    known = {"phenomenon": phenomenon, "kind": kind}
    return (
        known
        | {"why": f"{n} points flagged by the published rule", "n_events": n, "n_layers": 0, "densest": 0}
        | {"null_events": noise}
        | _spread(own["step_before"].to_numpy(np.float64), steps, early)
        | _curve(models, "original")
        | _strategy(known)
        | {"n_steps": 0}
    )
