"""What an intervention costs and how it heals: each arm beside its own untouched lane, which is the same trial until
the intervention.

The deficit at a step is the untouched lane's held-out accuracy minus the arm's, at the same step and so at the same
learning rate and after as many updates. Two arms of one kind at different steps are compared over the same number of
steps after the intervention. Founding plan: a layer zeroed at 400, 500 and 600 steps and trained on for 100; deficits
in windows: Achille et al. (arXiv:1711.08856), whose confounds - learning rate at the end of the deficit, clean steps
left - are removed by arms: two steps of one intervention are compared over equally many steps after it (time-matched),
and, where the learning rate changes, once more with the later one followed by the learning rates of the earlier
(lr-matched, `~STEP`) or by a restarted schedule (`~0`). An arm whose learning rate is changed has its deficit against
a lane that nothing but this is done to (`schedule:STEP@FROM`).

At an event and away from one: a fork says which arms are at which event, in which trials, and which are at windows
that were matched to it (`matched`); only these are compared, for another step differs in phase, rate and movement too.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.significant import primary, reach
from ndt_ray.analysis.inference.multiplicity import attainable_q, bh
from ndt_ray.analysis.inference.permutation import sign_flips, within_blocks
from ndt_ray.analysis.inference.seeds import interval
from ndt_ray.errors import SpecError
from ndt_ray.spec import Control
from ndt_ray.store.schema import Column, Table

Floats = NDArray[np.float64]

_ARM = (
    Column("cell", "string", "architecture × data set"),
    Column("kind", "string", "ablate, reinit, perturb, frozen, damage, lr or schedule"),
    Column("target", "string", "layer, what the data suffered, or the factor of the learning rate"),
    Column("at", "int32", "step of the intervention", "steps"),
    Column("until", "int32", "end of its window; equal to `at` for a lesion", "steps"),
    Column("dose", "float64", "share of the layer's units"),
    Column("lr_from", "int32", "step whose learning rates follow the end: 0 is a restart; null: its own", "steps"),
)

RECOVERY = Table(
    "recovery",
    "One intervened lane beside its untouched one: deficits of held-out accuracy after the intervention.",
    (
        Column("trial_id", "string", "of the intervened lane"),
        Column("untouched", "string", "trial_id of the same trial with no more than the arm's change of schedule"),
        *_ARM,
        Column("horizon", "int32", "steps after the end of the intervention that were compared", "steps"),
        Column("n", "int32", "evaluations compared"),
        Column(
            "near_event",
            "bool",
            "a significant event of the untouched lane, of the target if that is a layer, lies within its own length "
            "of the intervention",
        ),
        Column("event_layer", "string", "layer of the event that the arm was put at, or whose matched window it is at"),
        Column("event_at", "int32", "step of that event; null: the arm is at a step of its own", "steps"),
        Column(
            "role",
            "string",
            "event: the untouched lane has that event; other_seeds: others have; control: a window matched to it",
        ),
        Column("impact", "float64", "deficit at the first evaluation after the intervention's end"),
        Column("deepest", "float64", "largest deficit within the horizon"),
        Column("area", "float64", "mean deficit over the horizon: area under the curve / steps"),
        Column("half_time", "float64", "steps until the deficit was first at most half the impact; null: not yet"),
        Column("final", "float64", "mean deficit over the last fifth of the horizon: what did not heal"),
        Column("area_loss", "float64", "the same area for the held-out loss, arm minus untouched", "nats"),
        Column("flag", "string", "why there is nothing: no_untouched, not_evaluated; null when all is well"),
    ),
    ("trial_id",),
)

CONTRASTS = Table(
    "recovery_contrasts",
    "Interventions over seeds: against the untouched lanes, and between two steps of the same intervention.",
    (
        *_ARM,
        Column(
            "against",
            "string",
            "untouched; @STEP: the same intervention at another step; lr@STEP: the same, followed by the same learning "
            "rates; matched: at an event, the mean of the same at the windows matched to it; kept: the same "
            "intervention without the change of the schedule; when: at all its steps, of which this is the first",
        ),
        Column("measure", "string", "column of `recovery`"),
        Column("n", "int32", "seeds (pairs of lanes)"),
        Column(
            "mean",
            "float64",
            "over seeds: of the deficit, or of the difference of two deficits (when: at the first step - at the last)",
        ),
        Column("lo", "float64", "95 % interval over seeds"),
        Column("hi", "float64", "upper end of it"),
        Column(
            "p", "float64", "two-sided, exact: all sign flips of the seeds; when: all orders of the steps within seeds"
        ),
        Column("p_attainable", "float64", "smallest p that so many seeds allow: 2 / 2^n; when: 1 / (steps!)^(n - 1)"),
        Column("q", "float64", "Benjamini-Hochberg over the contrasts of one measure against one kind of reference"),
        Column("q_attainable", "float64", "smallest q that it could have had, if it alone had an effect"),
        Column(
            "finding",
            "string",
            "lasting, healed; worse_than_other, milder_than_other; worse_early, worse_late, depends; or not_shown",
        ),
    ),
    ("cell", "kind", "target", "at", "until", "dose", "against", "measure"),
)

OWN = -1
"""As `lr_from`: the learning rates are the trial's own."""
COMPARED = ("impact", "area", "final")
SHARE_LEFT = 0.2
"""Part of the horizon, at its end, over which `final` is taken."""


@analysis(
    name="recovery",
    reads=("trials", "evaluations", "events", "event_families"),
    writes=(RECOVERY, CONTRASTS),
    per="sweep",
)
def recovery(
    data: AnalysisInput, *, horizon: int | None = None, alpha: float = 0.05, matched: list[dict[str, Any]] | None = None
) -> dict[str, pd.DataFrame]:
    """Deficits of intervened lanes, their recovery, and what holds over seeds.

    `horizon`: steps after an intervention's end that count; by default as many as every arm of a cell has. `matched`:
    of events, each with `layer`, step (`event`), the untouched `trials` that have it (none said: all) and the steps
    `controls` of windows matched to it; `ndt fork --events` writes it. SpecError where the horizon is not positive or
    `matched` cannot be read. A sweep without interventions gives empty tables.
    """
    if horizon is not None and horizon <= 0:
        raise SpecError(f"horizon is a number of steps, but got ({horizon=})")
    trials = data.frame("trials")
    if trials.empty:
        return {"recovery": pd.DataFrame(), "recovery_contrasts": pd.DataFrame()}
    arms = _arms(trials)
    if not arms:
        return {"recovery": pd.DataFrame(), "recovery_contrasts": pd.DataFrame()}
    curves = {str(t): rows.sort_values("step") for t, rows in data.frame("evaluations").groupby("trial_id")}
    near = _near_events(primary(data.frame("events"), data.frame("event_families")))
    common, roles = _horizons(arms, horizon), _matched(matched)
    rows = pd.DataFrame([_row(arm, curves, near, roles, common[arm["cell"]]) for arm in arms])
    contrasts = pd.DataFrame(list(_contrasts(rows, alpha)))
    return {"recovery": _said(rows.drop(columns="seed_key")), "recovery_contrasts": _said(contrasts)}


def _said(rows: pd.DataFrame) -> pd.DataFrame:
    """Null where an arm keeps its own learning rates, or is at no event."""
    for name in {"lr_from", "event_at"} & set(rows.columns):
        rows = rows.assign(**{name: rows[name].where(rows[name] != OWN).astype("Int32")})
    return rows


def _arms(trials: pd.DataFrame) -> list[dict[str, Any]]:
    """Intervened lanes with the untouched lane of the same trial."""
    found: list[tuple[str, str, int, Control, str, str]] = []
    untouched: dict[tuple[str, int, int], str] = {}
    """By trial, step from which the schedule differs, and step that it is read at there."""
    for row in trials.itertuples():
        spec = json.loads(str(row.spec))
        control = Control.model_validate(spec.pop("control", "none"))
        key = json.dumps(spec, sort_keys=True)
        if control.kind == "none":
            untouched[key, 0, OWN] = str(row.trial_id)
        elif control.intervenes:
            if control.kind == "schedule":
                untouched[key, int(control.at or 0), int(control.lr_from or 0)] = str(row.trial_id)
            seeds = json.dumps(spec.get("seed"), sort_keys=True)
            found.append((str(row.trial_id), str(row.cell), int(row.steps), control, key, seeds))
    out = []
    for trial_id, cell, steps, c, key, seeds in found:
        at = int(c.at or 0)
        end = at if c.until is None else min(c.until, steps)
        shifted = OWN if c.lr_from is None else c.lr_from
        beside = (key, 0, OWN) if c.kind == "schedule" or shifted == OWN else (key, end, shifted)
        arm: dict[str, Any] = {"trial_id": trial_id, "untouched": untouched.get(beside), "cell": cell, "kind": c.kind}
        target = c.layer or c.damage or ("schedule" if c.factor is None else f"{c.factor:g}")
        arm |= {"of_layer": c.layer is not None, "trial": untouched.get((key, 0, OWN))}
        arm |= {"target": target, "at": at, "until": end, "dose": c.dose, "lr_from": shifted, "steps": steps}
        out.append(arm | {"seed_key": seeds})
    order = ("cell", "kind", "target", "at", "dose", "lr_from", "trial_id")
    return sorted(out, key=lambda a: tuple(a[name] for name in order))


def _horizons(arms: list[dict[str, Any]], asked: int | None) -> dict[str, int]:
    """Steps after the end that all arms of a cell have, or those asked for where there are as many."""
    left: dict[str, int] = {}
    for arm in arms:
        left[arm["cell"]] = min(left.get(arm["cell"], arm["steps"]), arm["steps"] - arm["until"])
    return left if asked is None else {cell: min(asked, n) for cell, n in left.items()}


def _near_events(events: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Layers and windows (`start`, `end`) of each trial in which one is near an event."""
    if events.empty:
        return {}
    return {str(t): rows[["layer", "start", "end"]] for t, rows in reach(events).groupby("trial_id")}


@dataclass(frozen=True)
class Matched:
    """An event that arms are at, and the windows that others are at because they are like its own."""

    layer: str
    event: int
    trials: frozenset[str] | None
    controls: frozenset[int]

    def role(self, arm: Mapping[str, Any]) -> str | None:
        """What an arm is to it; None where it has nothing to do with it."""
        if arm["of_layer"] and arm["target"] != self.layer:
            return None
        if arm["at"] == self.event:
            return "event" if self.trials is None or arm["trial"] in self.trials else "other_seeds"
        return "control" if arm["at"] in self.controls else None


def _matched(given: Sequence[Mapping[str, Any]] | None) -> list[Matched]:
    found = []
    for entry in given or ():
        try:
            trials = None if entry.get("trials") is None else frozenset(map(str, entry["trials"]))
            controls = frozenset(int(step) for step in entry.get("controls", ()))
            found.append(Matched(str(entry["layer"]), int(entry["event"]), trials, controls))
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"matched: an entry has layer, event, trials and controls, but got {entry!r}") from error
    return found


def _near(arm: Mapping[str, Any], near: Mapping[str, pd.DataFrame]) -> bool:
    """By the target where it is a layer; the data and the learning rate are those of all layers."""
    windows = near.get(arm["trial"])
    if windows is None:
        return False
    own = windows[windows["layer"] == arm["target"]] if arm["of_layer"] else windows
    return bool(((arm["at"] < own["end"]) & (arm["until"] > own["start"])).any())


def _row(
    arm: dict[str, Any],
    curves: dict[str, pd.DataFrame],
    near: dict[str, pd.DataFrame],
    roles: Sequence[Matched],
    horizon: int,
) -> dict[str, Any]:
    row = {k: v for k, v in arm.items() if k not in ("steps", "of_layer", "trial")}
    row |= {"horizon": horizon, "n": 0, "near_event": None, "event_layer": None, "event_at": OWN, "role": None}
    row |= dict.fromkeys(("impact", "deepest", "area", "half_time", "final", "area_loss"), math.nan) | {"flag": None}
    if arm["untouched"] is None:
        return row | {"flag": "no_untouched"}
    for entry in roles:
        if (role := entry.role(arm)) is not None:
            row |= {"event_layer": entry.layer, "event_at": entry.event, "role": role}
            break
    row["near_event"] = row["role"] == "event" or _near(arm, near)
    mine, theirs = curves.get(arm["trial_id"]), curves.get(arm["untouched"])
    if mine is None or theirs is None:
        return row | {"flag": "not_evaluated"}
    both = theirs.merge(mine, on="step", suffixes=("_untouched", "_arm"))
    both = both[(both["step"] >= arm["until"]) & (both["step"] <= arm["until"] + horizon)]
    deficit = (both["accuracy_untouched"] - both["accuracy_arm"]).to_numpy(float)
    known = np.isfinite(deficit)
    if known.sum() < 2:
        return row | {"flag": "not_evaluated"}
    steps = both["step"].to_numpy(float)[known]
    loss = (both["loss_arm"] - both["loss_untouched"]).to_numpy(float)[known]
    return row | {"n": int(known.sum())} | curve(steps - arm["until"], deficit[known], loss)


def curve(after: ArrayLike, deficit: ArrayLike, loss: ArrayLike) -> dict[str, float]:
    """What a recovery curve is summed up to: steps since the intervention's end, deficits there, differences of loss.

    Areas by the trapezoidal rule over the steps, divided by their span.
    """
    t, d, x = (np.asarray(a, dtype=np.float64) for a in (after, deficit, loss))
    impact = float(d[0])
    healed = np.flatnonzero(d <= impact / 2) if impact > 0 else np.zeros(0, int)
    span = float(t[-1] - t[0])
    late = t >= t[-1] - SHARE_LEFT * span
    return {
        "impact": impact,
        "deepest": float(d.max()),
        "area": float(np.trapezoid(d, t) / span),
        "half_time": float(t[healed[0]]) if len(healed) else math.nan,
        "final": float(d[late].mean()),
        "area_loss": float(np.trapezoid(x, t) / span),
    }


def _contrasts(rows: pd.DataFrame, alpha: float) -> Iterator[dict[str, Any]]:
    arm = ["cell", "kind", "target", "at", "until", "dose", "lr_from"]
    found: list[dict[str, Any]] = []
    good = rows[rows["flag"].isna()]
    for key, group in good.groupby(arm, sort=True):
        for measure in COMPARED:
            values = group[measure].to_numpy(float)
            found.append(_contrast(dict(zip(arm, key, strict=True)), "untouched", measure, values))
    for _, same in good.groupby(["cell", "kind", "target", "dose"], sort=True):
        windows = {(int(a), int(u), int(f)) for a, u, f in zip(same["at"], same["until"], same["lr_from"], strict=True)}
        for mine, other, against in _pairs(sorted(windows)):
            own, others = (
                same[(same["at"] == w[0]) & (same["until"] == w[1]) & (same["lr_from"] == w[2])] for w in (mine, other)
            )
            joined = own.merge(others, on="seed_key", suffixes=("", "_other"))
            if joined.empty:
                continue
            name = {k: joined[k].iloc[0] for k in arm}
            for measure in COMPARED:
                values = (joined[measure] - joined[f"{measure}_other"]).to_numpy(float)
                found.append(_contrast(name, against, measure, values))
        found += _when(same, arm)
        found += _at_events(same, arm)
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found:
        reference = row["against"] if row["against"] in ("untouched", "when", "matched") else "another step"
        families.setdefault((row["measure"], reference), []).append(row)
    for family in families.values():
        for row, q in zip(family, bh([r["p"] for r in family]), strict=True):
            row["q"] = float(q)
            row["q_attainable"] = attainable_q(len(family), row["p_attainable"])
    finals = {tuple(r[k] for k in arm): r for r in found if r["measure"] == "final" and r["against"] == "untouched"}
    for row in found:
        yield row | {"finding": _finding(row, finals[tuple(row[k] for k in arm)], alpha)}


def _when(same: pd.DataFrame, arm: list[str]) -> Iterator[dict[str, Any]]:
    """Whether the step matters at all: one intervention in windows of one length, over the seeds that have them all."""
    own = same[same["lr_from"] == OWN]
    for _, windows in own.groupby(own["until"] - own["at"], sort=True):
        first = windows.sort_values("at").iloc[0]
        for measure in COMPARED:
            table = windows.pivot_table(index="seed_key", columns="at", values=measure).dropna()
            if table.shape[1] < 2 or table.empty:
                continue
            values = table.to_numpy(float)
            tested = within_blocks(values, str(first["cell"]), str(first["kind"]), str(first["target"]), measure)
            row = _contrast({k: first[k] for k in arm}, "when", measure, values[:, 0] - values[:, -1])
            yield row | {"p": tested.p, "p_attainable": tested.smallest}


def against_matched(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Rows at an event of their own trial with the mean of the same intervention at the windows matched to it, as
    `elsewhere`; controls near another event do not count, and who has none is left out.

    `rows` of one cell: the same trial, kind, target, dose, length and event make a comparison.
    """
    if not {"role", "event_at", "near_event"} <= set(rows.columns):
        return rows.iloc[:0].assign(elsewhere=np.zeros(0))
    same = ["untouched", "kind", "target", "dose", "length", "event_layer", "event_at"]
    own = rows.assign(length=rows["until"] - rows["at"])
    own = own[own[measure].notna()]
    away = own[(own["role"] == "control") & ~own["near_event"].astype(bool)]
    means = away.groupby(same, as_index=False)[measure].mean().rename(columns={measure: "elsewhere"})
    return own[own["role"] == "event"].merge(means, on=same)


def _at_events(same: pd.DataFrame, arm: list[str]) -> Iterator[dict[str, Any]]:
    """Each arm at an event beside the windows matched to it, over the seeds that have the event."""
    own = same[same["lr_from"] == OWN]
    for measure in COMPARED:
        for key, rows in against_matched(own, measure).groupby(arm, sort=True):
            values = (rows[measure] - rows["elsewhere"]).to_numpy(float)
            yield _contrast(dict(zip(arm, key, strict=True)), "matched", measure, values)


def _pairs(windows: list[tuple[int, int, int]]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], str]]:
    """Arms (at, until, lr_from) of one intervention that are compared, and what the first is compared with.

    Windows of one length only: a longer deficit is another intervention.
    """
    for first, other in itertools.combinations(windows, 2):
        if first[1] - first[0] == other[1] - other[0] and first[2] == other[2] and first[0] != other[0]:
            yield other, first, f"@{first[0]}"
    for mine in (w for w in windows if w[2] != OWN):
        for other in (w for w in windows if w[2] == OWN and w[1] - w[0] == mine[1] - mine[0]):
            if other[:2] == mine[:2]:
                yield mine, other, "kept"
            elif other[1] == mine[2]:
                yield mine, other, f"lr@{other[0]}"


def _contrast(name: dict[str, Any], against: str, measure: str, values: Floats) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    within = interval(known)
    row = name | {"against": against, "measure": measure, "n": len(known)}
    row |= {"mean": float(known.mean()) if len(known) else math.nan, "lo": within.lo, "hi": within.hi}
    tested = sign_flips(known)
    return row | {"p": tested.p, "p_attainable": tested.smallest if len(known) else math.nan}


def _finding(row: dict[str, Any], final: dict[str, Any], alpha: float) -> str:
    """What the numbers allow to be said, and no more."""
    clear = bool(row["q"] <= alpha)
    if row["against"] == "when":
        apart = row["lo"] > 0 or row["hi"] < 0
        early_or_late = "worse_early" if row["mean"] > 0 else "worse_late"
        return (early_or_late if apart else "depends") if clear else "not_shown"
    if row["against"] != "untouched":
        return ("worse_than_other" if row["mean"] > 0 else "milder_than_other") if clear else "not_shown"
    if final["q"] <= alpha and final["mean"] > 0:
        return "lasting"
    return "healed" if clear and row["mean"] > 0 else "not_shown"
