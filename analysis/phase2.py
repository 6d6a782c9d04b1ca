"""The founding study's `Phase2Infrastructure` under its names: the moments around an experiment's largest events.

A view of what a store holds, and no analysis of its own. Where there are no checkpoints a comparison has what the
measurements say; with checkpoints it has weights too, with PyTorch attention and activations.
"""

import importlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ndt_ray.analysis.events.families import declared_family
from ndt_ray.analysis.events.significant import primary_family
from ndt_ray.analysis.events.sought import Sought, sought
from ndt_ray.analysis.mechanisms.tools import MeasurementTools
from ndt_ray.analysis.running.stored import StoredSweep, declared_parameters
from ndt_ray.errors import CheckpointError, DataError, SpecError, did_you_mean
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.sweep import open_sweep

if TYPE_CHECKING:
    from ndt_ray.analysis.mechanisms.context import Contexts, ProbeContext

log = logging.getLogger(__name__)

KINDS = ("before", "during", "after")
TRAINED = ("loop", "stack")
"""Engines of trials that can be replayed; imported and tracked ones have others, or none."""
LOSSES = ("probe_loss", "batch_loss")
"""The first that a trial has: on the fixed probe, else on the training batches, as the founding study kept it."""


@dataclass(frozen=True)
class CriticalMoment:
    """A step before, during or after an event; `jump` counts events from the largest, `magnitude` is its |size|."""

    experiment: str
    trial_id: str
    jump: int
    kind: str
    step: int
    layer: str
    magnitude: float
    checkpoint: int | None
    """Step of the checkpoint that stands for it; null without one before (or after, for `after`) the step."""


@dataclass(frozen=True)
class AnalysisResult:
    """What differs between two moments. `measurements`: step, loss and dimensionality by layer, with the names of what
    these are (`loss_is`, `measure`), and where they could be had weights, attention and activations; `missing`: why any
    of these is not there."""

    experiment: str
    measurements: dict[str, Any]
    missing: dict[str, str] = field(default_factory=dict)


class Phase2Infrastructure:
    """Events of experiments and what changed at them: `Phase2Infrastructure(Path("store"))`.

    An experiment is a cell, written `model_data` as the founding study did or `model/data`, of which the trial of
    `seed` is looked at (by default its first one), or a trial id. `measure`: which dimensionality; by default that of
    the sweep's primary family of events. `jumps`: what counts as one, of `events.sought.SOURCES`; by default calibrated
    events, and uncalibrated jumps where no events were sought. StoreError where there is no store, SpecError for an
    unknown sweep or experiment; what was not computed gives empty results, which say so.
    """

    def __init__(
        self,
        experiments: str | Path,
        *,
        sweep: str | None = None,
        seed: int | None = None,
        measure: str | None = None,
        jumps: str | None = None,
    ) -> None:
        self.store: Store = open_store(experiments)
        self.seed, self.measure, self.jumps = seed, measure, jumps
        trials = self._table("trials")
        known = sorted(trials["sweep"].unique()) if len(trials) else []
        if sweep is not None and sweep not in known:
            raise SpecError(f"no sweep '{sweep}' in {self.store.location.uri}{did_you_mean(sweep, known)}")
        self.trials = trials[trials["sweep"] == sweep] if sweep is not None else trials
        self._contexts: dict[str, Contexts] = {}

    @property
    def experiments(self) -> list[str]:
        """Names of the experiments, `model_data`; control lanes are none."""
        own = self._uncontrolled()
        return sorted(set(own["model"] + "_" + own["data"])) if len(own) else []

    def get_experiment_summary(self, name: str) -> dict[str, Any]:
        """`experiment`, `num_jumps`, `jump_summary` (mean_magnitude, mean_speed: size a step, phases) and
        `critical_periods`, a dict each. Without jumps the means are NaN.

        `jumps_are`: what was counted, or, where `num_jumps` is None, the command that looks for some;
        `expected_on_noise`: how many an uncalibrated rule flags on white and AR(1) noise.
        """
        trial = self._trial(name)
        found = self._jumps(trial)
        jumps = pd.DataFrame() if found.rows is None else found.rows
        length = (jumps["step_after"] - jumps["step_before"]).clip(lower=1) if len(jumps) else []
        periods = self._of_trial("critical_periods", trial)
        columns = ["layer", "measure", "step_first", "step_last", "phase", "ratio", "p"]
        return {
            "experiment": name,
            "trial_id": str(trial["trial_id"]),
            "num_jumps": None if found.rows is None else len(jumps),
            "jumps_are": found.words,
            "expected_on_noise": found.expected,
            "jump_summary": {
                "mean_magnitude": float(jumps["size"].abs().mean()) if len(jumps) else math.nan,
                "mean_speed": float((jumps["size"].abs() / length).mean()) if len(jumps) else math.nan,
                "phases": [float(p) for p in jumps["phase"]] if len(jumps) else [],
            },
            "critical_periods": periods[columns].to_dict("records") if len(periods) else [],
        }

    def identify_moments(self, name: str, num_jumps: int = 5) -> list[CriticalMoment]:
        """Before, during and after each of the `num_jumps` largest events, the largest first: moments 0 and 2 are
        before and after it. Whether they are calibrated is logged where they are not. SpecError for a negative number.
        """
        if num_jumps < 0:
            raise SpecError(f"a number of events cannot be negative, but got ({num_jumps=})")
        trial = self._trial(name)
        what = self._jumps(trial)
        if what.source != "events":
            noise = ", ".join(f"{mean:.1f} on {kind} noise" for kind, mean in what.expected.items())
            counted = f"{len(what.rows)} " if what.rows is not None else ""
            log.warning("%s: %s%s%s", name, counted, what.words, f" (expected: {noise})" if noise else "")
        jumps = what.rows
        if jumps is None or jumps.empty:
            return []
        size = jumps["size"].abs()
        by = ["magnitude", "step_before"]
        ranked = jumps.assign(magnitude=size).sort_values(by, ascending=[False, True], kind="stable")
        saved = sorted(int(s) for s in self._of_trial("checkpoints", trial).get("step", []))
        measured = sorted({int(s) for s in self._of_trial("scalars", trial).get("step", [])})
        found = []
        for number, jump in enumerate(ranked.head(num_jumps).itertuples()):
            first, last = int(jump.step_before), int(jump.step_after)
            middle = float(jump.step_location) if pd.notna(jump.step_location) else (first + last) / 2
            inside = [s for s in measured if first < s < last]
            steps = (first, min(inside, key=lambda s: abs(s - middle)) if inside else round(middle), last)
            states = _states(saved, steps)
            for kind, step, state in zip(KINDS, steps, states, strict=True):
                where = str(trial["trial_id"]), number, kind, step, str(jump.layer), float(jump.magnitude)
                found.append(CriticalMoment(name, *where, state))
        return found

    def compare_representations(self, m0: CriticalMoment, m2: CriticalMoment) -> AnalysisResult:
        """What differs at `m2` from `m0`: loss, dimensionality of every layer, and whatever of the networks there is.

        SpecError for moments of different trials.
        """
        if m0.trial_id != m2.trial_id:
            raise SpecError(f"moments are compared within a trial, but got {m0.trial_id} and {m2.trial_id}")
        trial = self._trial(m0.trial_id)
        kind, loss = self._losses(trial, (m0.step, m2.step))
        measurements: dict[str, Any] = {
            "step_before": m0.step,
            "step_after": m2.step,
            "loss_is": kind,
            "loss_before": loss[0],
            "loss_after": loss[1],
            "loss_change": loss[1] - loss[0],
            "measure": self._measure(trial),
            "layer_changes": self._layer_changes(trial, m0.step, m2.step),
        }
        more, missing = self._networks(trial, m0, m2)
        if kind is None:
            missing["loss"] = f"none of {', '.join(LOSSES)} was recorded"
        if not measurements["layer_changes"]:
            missing["layer_changes"] = f"nothing measured has {measurements['measure']}: say another with measure=..."
        return AnalysisResult(m0.experiment, measurements | more, missing)

    # -- what the tables say -----------------------------------------------------------------------------------------

    def _table(self, name: str) -> pd.DataFrame:
        return self.store.table(name) if name in self.store.names() else pd.DataFrame()

    def _of_trial(self, name: str, trial: "pd.Series[Any]") -> pd.DataFrame:
        if name not in self.store.names():
            return pd.DataFrame()
        query = f'SELECT * FROM "{name}" WHERE sweep = ? AND trial_id = ?'
        return self.store.sql(query, [trial["sweep"], trial["trial_id"]])

    def _uncontrolled(self) -> pd.DataFrame:
        return self.trials[self.trials["control"].fillna("none") == "none"] if len(self.trials) else self.trials

    def _trial(self, name: str) -> "pd.Series[Any]":
        if len(self.trials) and name in set(self.trials["trial_id"]):
            return self.trials[self.trials["trial_id"] == name].iloc[0]
        own = self._uncontrolled()
        if len(own):
            either = [own["model"] + by + own["data"] == name for by in "_/"]
            own = own[either[0] | either[1] | (own["cell"] == name)]
        if self.seed is not None and len(own):
            own = own[own["seed"] == self.seed]
        if own.empty:
            of = "" if self.seed is None else f" with seed {self.seed}"
            raise SpecError(f"no experiment '{name}'{of}{did_you_mean(name, self.experiments)}")
        return own.sort_values(["seed", "sweep", "trial_id"], kind="stable").iloc[0]

    def _families(self, trial: "pd.Series[Any]") -> pd.DataFrame:
        families = self._table("event_families")
        return families[families["sweep"] == trial["sweep"]] if len(families) else families

    def _measure(self, trial: "pd.Series[Any]") -> str:
        """The one asked for, else that of the sweep's primary family: as computed, or else as declared."""
        if self.measure is not None:
            return self.measure
        family = primary_family(self._families(trial))
        if family is not None:
            return str(family["measure"])
        declared = declared_parameters(open_sweep(self.store, str(trial["sweep"]))).get("events", {})
        return declared_family(declared.get("primary", {}))["measure"]

    def _jumps(self, trial: "pd.Series[Any]") -> Sought:
        events, jumps, counts = (self._of_trial(name, trial) for name in ("events", "jumps", "jump_counts"))
        families = self._families(trial)
        return sought(self.jumps, self._measure(trial), str(trial["sweep"]), events, families, jumps, counts)

    def _losses(self, trial: "pd.Series[Any]", steps: tuple[int, int]) -> tuple[str | None, list[float]]:
        """The first of LOSSES that was recorded, and its last values until the steps; NaN where there is none."""
        rows = self._of_trial("scalars", trial)
        for kind in LOSSES:
            if len(rows) and rows[kind].notna().any():
                series = rows.sort_values("step").set_index("step")[kind]
                return kind, [_at(series, step) for step in steps]
        return None, [math.nan for _ in steps]

    def _layer_changes(self, trial: "pd.Series[Any]", first: int, last: int) -> dict[str, dict[str, float]]:
        rows = self._of_trial("measurements", trial)
        if rows.empty:
            return {}
        measure = self._measure(trial)
        if measure not in rows:
            raise SpecError(f"no measure '{measure}'{did_you_mean(measure, rows.columns)}")
        if rows[measure].isna().all():
            return {}
        found = {}
        for layer, own in rows.sort_values(["layer_index", "view", "step"]).groupby("layer", sort=False):
            series = own[own["view"] == own["view"].iloc[0]].set_index("step")[measure]
            before, after = (_at(series, step) for step in (first, last))
            change = after - before
            relative = change / abs(before) if before else math.nan
            found[str(layer)] = {"before": before, "after": after, "change": change, "relative_change": relative}
        return found

    # -- what the networks say ---------------------------------------------------------------------------------------

    def _networks(
        self, trial: "pd.Series[Any]", m0: CriticalMoment, m2: CriticalMoment
    ) -> tuple[dict[str, Any], dict[str, str]]:
        parts = ("weights", "attention", "activations")
        if m0.checkpoint is None or m2.checkpoint is None:
            replay = (
                ": `ndt replay` makes one"
                if trial["engine"] in TRAINED
                else ", and what did not run here has no replay"
            )
            return {}, dict.fromkeys(parts, f"no checkpoint at or around these steps{replay}")
        if m0.checkpoint == m2.checkpoint:
            return {}, dict.fromkeys(parts, f"one checkpoint, of step {m0.checkpoint}, stands for both")
        steps = m0.checkpoint, m2.checkpoint
        found: dict[str, Any] = {"checkpoint_before": steps[0], "checkpoint_after": steps[1]}
        try:
            found["weights"] = self._weights(trial, steps)
        except CheckpointError as error:
            return found, dict.fromkeys(parts, str(error))
        if not _torch():
            return found, dict.fromkeys(parts[1:], "PyTorch is not installed")
        try:
            before, after = (self._context(trial, step) for step in steps)
        except (CheckpointError, DataError) as error:
            return found, dict.fromkeys(parts[1:], str(error))
        found["activations"] = _activations(before, after)
        patterns = {path: (before.attention[path], after.attention[path]) for path in before.attention}
        if not patterns:
            return found, {"attention": f"{trial['model']} has no attention"}
        tools = MeasurementTools
        found["attention"] = {
            path: {
                "entropy_before": tools.attention_entropy(a),
                "entropy_after": tools.attention_entropy(b),
                "entropy_change": tools.attention_entropy(b) - tools.attention_entropy(a),
                "specialization_before": tools.attention_specialization(a)["specialization_index"],
                "specialization_after": tools.attention_specialization(b)["specialization_index"],
            }
            for path, (a, b) in patterns.items()
        }
        return found, {}

    def _weights(self, trial: "pd.Series[Any]", steps: tuple[int, int]) -> dict[str, dict[str, float]]:
        """`weight_change_magnitude` by parameter: needs no PyTorch."""
        before, after = (self.store.checkpoint(trial["trial_id"], step, trial["sweep"])[0] for step in steps)
        names = [key for key in before if key.startswith("model.")]
        change = MeasurementTools.weight_change_magnitude
        return {key.removeprefix("model."): change(before[key], after[key]) for key in names}

    def _context(self, trial: "pd.Series[Any]", step: int) -> "ProbeContext":
        from ndt_ray.analysis.mechanisms.context import Contexts

        sweep = str(trial["sweep"])
        if sweep not in self._contexts:
            self._contexts[sweep] = Contexts(StoredSweep(self.store, sweep))
        return self._contexts[sweep](str(trial["trial_id"]), step)


def _torch() -> bool:
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError:
        return False
    return True


def _states(saved: Sequence[int], steps: tuple[int, int, int]) -> tuple[int | None, int | None, int | None]:
    """Checkpoints that stand for before (the last one until then), during (one inside) and after (the first since)."""
    first, middle, last = steps
    inside = [s for s in saved if first < s < last]
    return (
        max((s for s in saved if s <= first), default=None),
        min(inside, key=lambda s: abs(s - middle), default=None),
        min((s for s in saved if s >= last), default=None),
    )


def _at(series: "pd.Series[Any]", step: int) -> float:
    """The last measurement until a step."""
    until = series[series.index <= step].dropna()
    return float(until.iloc[-1]) if len(until) else math.nan


def _activations(before: "ProbeContext", after: "ProbeContext") -> dict[str, dict[str, Any]]:
    """By layer: debiased CKA of the two, sparsity and mean class selectivity of each, on the confirm probe."""
    from ndt_ray.analysis.mechanisms.units import selectivity_index
    from ndt_ray.measurement.velocity import debiased_cka

    found: dict[str, dict[str, Any]] = {}
    for layer in before.layers:
        row: dict[str, Any] = {"cka": debiased_cka(before.stimuli(layer.path), after.stimuli(layer.path))}
        for when, context in (("before", before), ("after", after)):
            responses = context.stimuli(layer.path, rectified=True)
            row[f"sparsity_{when}"] = MeasurementTools.activation_sparsity(responses)
            index = selectivity_index(MeasurementTools.activation_selectivity(responses, context.labels))
            row[f"selectivity_{when}"] = float(pd.Series(index).mean())
        found[layer.path] = row
    return found
