"""What changes while a network leaves its initialisation: the battery at step 0, where layers settle, and at the end.

A layer leaves its initialisation by the end of its initial transient (`transients`), which is no event: what changes
there is told here. Much changes early because everything does; so a change is compared with an even course, in which
the part of it that is done is the part of the run that is over. Similarity to the first or last network is left out: it
is 1 there by definition, so that of a network which only jitters it falls at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.before_after import BATTERY, DEARER, panel_of
from ndt_ray.analysis.mechanisms.changes import metric_test, with_q
from ndt_ray.analysis.mechanisms.matching import arms
from ndt_ray.analysis.mechanisms.tables import WHOLE
from ndt_ray.errors import SpecError
from ndt_ray.store.schema import Column, Table

NO_TRANSIENT, NO_CHECKPOINT, FEW_TRIALS, CONSTANT = "no_transient", "no_checkpoint", "few_trials", "constant"

ESCAPE = Table(
    "escape",
    "What changes while layers leave their initialisation, against an even course over the run; by cell.",
    (
        Column("cell", "string", "everything but seeds and controls, short, and the control where there is one"),
        Column("layer", "string", "module path; * for the network, which settles with the median of its layers"),
        Column("metric", "string", "name of the metric"),
        Column("n_trials", "int32", "trials with a value at all three steps: the unit"),
        Column("settled", "float64", "mean step at which the layer's initial transient ends", "steps"),
        Column("step", "float64", "mean step of the first checkpoint from there on", "steps"),
        Column("initial", "float64", "mean value at step 0"),
        Column("after", "float64", "mean value at that checkpoint"),
        Column("final", "float64", "mean value at the last checkpoint"),
        Column("share", "float64", "(after - initial) / (final - initial); null where the ends are equal"),
        Column("time_share", "float64", "step / last step: what the share would be if change were even"),
        Column("excess", "float64", "mean over trials of the change until `step` - that of an even course"),
        Column("lo", "float64", "95 % interval of it, t over trials"),
        Column("hi", "float64", "upper end of it"),
        Column("effect", "float64", "the same mean / its SD over trials (Cohen's d_z)"),
        Column("p", "float64", "t test over trials; null for under 3"),
        Column("p_sign", "float64", "exact sign flips of trials; at least 2 / 2^trials"),
        Column("q", "float64", "Benjamini-Hochberg q of p over all rows of the sweep"),
        Column("flag", "string", "no_transient, no_checkpoint, few_trials or constant where there is no p"),
    ),
    ("cell", "layer", "metric"),
)


@dataclass(frozen=True)
class Escape:
    """One metric of one trial: its values at step 0, at the first network after the transient, and at the last one."""

    settled: float
    step: float
    initial: float
    after: float
    final: float
    last: float

    @property
    def excess(self) -> float:
        """Change until `step`, less the part of the whole change that an even course would have made by then."""
        return (self.after - self.initial) - (self.final - self.initial) * self.step / self.last


@analysis(
    name="escape",
    reads=("trials", "transients", *(table.name for table in BATTERY)),
    writes=(ESCAPE,),
    per="sweep",
    optional=tuple(table.name for table in DEARER),
)
def escape(data: AnalysisInput, *, measure: str = "participation_ratio") -> dict[str, pd.DataFrame]:
    """What changes while layers leave their initialisation, beyond an even course: the battery until they settle.

    A layer has settled where the initial transient of `measure` ends in the last of its views. Where there is none, or
    no network between its end and that of the run (see `checkpoint` in the sweep), a metric is named, and untested.
    """
    trials, transients = data.frame("trials"), data.frame("transients")
    panel = panel_of([data.frame(table.name) for table in (*BATTERY, *DEARER)], pd.DataFrame())
    if trials.empty or transients.empty or not panel:
        return {ESCAPE.name: pd.DataFrame()}
    known = set(transients["measure"])
    if measure not in known:
        raise SpecError(f"measure: no transients of '{measure}' were sought, only of {', '.join(sorted(known))}")
    settled = settling(transients[transients["measure"] == measure])
    cells = dict(zip(trials["trial_id"], arms(trials), strict=True))
    groups: dict[tuple[str, str, str], dict[str, Escape | str]] = {}
    for (trial, layer, metric), values in panel.items():
        if trial in cells and len(values) > 1 and 0 in values:
            # Attention and its like are no measured layers: they settle with the network.
            found = _escape(values, settled.get((trial, layer), settled.get((trial, WHOLE), np.nan)))
            groups.setdefault((cells[trial], layer, metric), {})[trial] = found
    return {ESCAPE.name: with_q(pd.DataFrame(_rows(groups)))}


def settling(transients: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Step at which each (trial, layer) has settled, the last of its views; (trial, *): the median of its layers.

    0 without any transient; NaN for a layer that is constant or has too few measurements to tell.
    """
    ends = transients["ends"].astype(np.float64).where(transients["flag"].isna())
    ends = ends.mask(transients["flag"] == "none", 0.0)
    by_layer = ends.groupby([transients["trial_id"], transients["layer"]]).max()
    whole = by_layer.groupby(level="trial_id").median()
    return {**by_layer.to_dict(), **{(trial, WHOLE): step for trial, step in whole.items()}}


def _escape(values: Mapping[int, float], settled: float) -> Escape | str:
    """None of it, with the reason, where the layer has no transient or no network between its end and the last."""
    if not settled > 0:
        return NO_TRANSIENT
    steps = sorted(values)
    between = [step for step in steps[:-1] if step >= settled]
    if not between:
        return NO_CHECKPOINT
    step, last = between[0], steps[-1]
    return Escape(settled, step, values[0], values[step], values[last], last)


def _rows(groups: Mapping[tuple[str, str, str], Mapping[str, Escape | str]]) -> Iterator[dict[str, Any]]:
    for (cell, layer, metric), by_trial in groups.items():
        found = {trial: one for trial, one in by_trial.items() if isinstance(one, Escape)}
        row: dict[str, Any] = dict.fromkeys(c.name for c in ESCAPE.columns)
        row |= {"cell": cell, "layer": layer, "metric": metric, "n_trials": len(found)}
        if not found:
            yield row | {"flag": next(str(reason) for reason in by_trial.values())}
            continue
        mean = {f.name: float(np.mean([getattr(one, f.name) for one in found.values()])) for f in fields(Escape)}
        whole, last = mean["final"] - mean["initial"], mean.pop("last")
        test = metric_test({trial: [one.excess] for trial, one in found.items()})
        row |= mean | {"time_share": mean["step"] / last, "excess": test.mean}
        row["share"] = (
            (mean["after"] - mean["initial"]) / whole if abs(whole) > 1e-12 * abs(mean["initial"]) else np.nan
        )
        row |= {name: getattr(test, name) for name in ("lo", "hi", "effect", "p", "p_sign")}
        if not np.isfinite(test.p):
            row["flag"] = FEW_TRIALS if len(found) < 3 else CONSTANT
        yield row
