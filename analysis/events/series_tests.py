"""One calibrated test per series of a trial, with the candidates it holds and the transient it begins with."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import OF_SIBLINGS, AnalysisInput, analysis
from ndt_ray.analysis.detection.profile import Event, Judged, Profile, judge
from ndt_ray.analysis.detection.surrogates import NULLS
from ndt_ray.analysis.detection.transient import find
from ndt_ray.analysis.events.cases import MEASURES, VELOCITIES, Case, cases, measured
from ndt_ray.analysis.events.described import Deletions, Run, blocks
from ndt_ray.analysis.events.siblings import Siblings, is_sibling, siblings_of
from ndt_ray.analysis.events.tables import EVENT_CANDIDATES, SERIES_TESTS, TRANSIENTS
from ndt_ray.analysis.phases import phase_bin
from ndt_ray.analysis.series import Clock, clock
from ndt_ray.errors import SpecError, did_you_mean

SIBLINGS = "siblings"
FEWEST_SIBLINGS = 3
ERRORS = 3.0
"""Paired standard errors that a change must reach, where they are known."""


@analysis(
    name="series_tests",
    reads=(
        "trials",
        "measurements",
        "velocity",
        "scalars",
        "curvature",
        "spectra",
        "confirmations",
        "confirmation_spectra",
        "confirmation_blocks",
        *OF_SIBLINGS,
    ),
    writes=(SERIES_TESTS, EVENT_CANDIDATES, TRANSIENTS),
    per="trial",
)
def series_tests(
    data: AnalysisInput,
    *,
    measures: Sequence[str] = MEASURES,
    velocities: Sequence[str] = VELOCITIES,
    nulls: Sequence[str] = ("ar_sieve",),
    grid: str = "linear",
    n_surrogates: int = 500,
    most_surrogates: int = 4000,
    least_relative: float = 0.01,
    confirm_within: float = 0.1,
    branch_step: int | None = None,
) -> dict[str, pd.DataFrame]:
    """Whether each series holds an event beyond a smooth trend and its own noise: one max-statistic p a series.

    Candidates must change the level by `least_relative`, and by three paired standard errors where those are known.
    Sizes on the confirm probe come from checkpoints at most `confirm_within` of the run apart. The null `siblings`
    takes those that branch off at `branch_step`, by default the first at which any do.
    """
    for null in nulls:
        if null not in (*NULLS, SIBLINGS):
            raise SpecError(f"unknown null '{null}'{did_you_mean(null, (*NULLS, SIBLINGS))}")
    rows = data.frame("measurements")
    moves = data.frame("velocity")
    if not rows.empty and (lacking := [m for m in measures if m not in (there := measured(rows))]):
        data.notes.append(f"no series of {', '.join(lacking)} - there are: {', '.join(there)} (--set measures=[...])")
    trial = clock(data.frame("trials"), rows if not rows.empty else moves)
    run = Run(
        scalars=data.frame("scalars"),
        curvature=data.frame("curvature"),
        confirmations=data.frame("confirmations"),
        detect=blocks(data.tables["spectra"]),
        confirm=Deletions(data.frame("confirmation_blocks"), blocks(data.tables["confirmation_spectra"])),
        steps=trial.steps,
    )
    tests: list[dict[str, Any]] = []
    candidates: list[dict[str, Any]] = []
    transients: list[dict[str, Any]] = []
    series = partial(cases, measures=measures, velocities=velocities, grid=grid, every=trial.every)
    siblings = None
    if SIBLINGS in nulls:
        branches, their_moves = (data.frame(name) for name in OF_SIBLINGS)
        siblings = siblings_of(branches, their_moves, series, branch_step)
        if is_sibling(data.frame("trials")):  # a draw of the null, which has none of its own
            nulls = [null for null in nulls if null != SIBLINGS]
    for case in series(rows, moves):
        for null in nulls:
            found, why = _judged(case, null, siblings, trial, n_surrogates, most_surrogates)
            identity = _identity(case, null, trial)
            kept = [
                row
                for event in found.events
                if (row := _candidate(event, found, case, trial, run, least_relative, confirm_within)) is not None
            ]
            tests.append(identity | _test(found, case, grid, trial) | why | {"candidates": len(kept)})
            candidates += [identity | row for row in kept]
        if nulls:
            transients.append(_transient(found, case, trial))
    return {
        "series_tests": pd.DataFrame(tests),
        "event_candidates": pd.DataFrame(candidates),
        "transients": pd.DataFrame(transients),
    }


def _judged(
    case: Case, null: str, siblings: Siblings | None, trial: Clock, n_surrogates: int, most: int
) -> tuple[Judged, dict[str, str]]:
    """A series with its verdict, and what its row says instead of that where there is none."""
    steps = case.series.steps
    skip = int(steps.size > 0 and steps[0] == 0)
    continuations = None
    if null == SIBLINGS:
        continuations = np.zeros((0, len(steps))) if siblings is None else siblings.of(case)
        if siblings is None or len(continuations) < FEWEST_SIBLINGS:
            return Judged("short", len(steps), transient=find(case.values)), {"kind": "few_siblings"}
        skip = int(np.searchsorted(steps, siblings.step, side="right"))
    found = judge(
        case.values,
        f"{trial.trial_id} {case.key}",
        shape=case.shape,
        null=null,
        continuations=continuations,
        n_surrogates=n_surrogates,
        most=most,
        skip=skip,
    )
    return found, {}


def _identity(case: Case, null: str, trial: Clock) -> dict[str, Any]:
    s = case.series
    return {
        "trial_id": trial.trial_id,
        "layer": s.layer,
        "layer_index": s.layer_index,
        "view": s.view,
        "measure": s.measure,
        "detector": Profile.name,
        "null": null,
    }


def _test(found: Judged, case: Case, grid: str, trial: Clock) -> dict[str, Any]:
    steps = case.series.steps
    return {
        "grid_start": int(steps[min(found.first, len(steps) - 1)]) if steps.size else 0,
        "grid_every": trial.every * found.stride if grid == "linear" or case.shape == "rate" else 0,
        "n": found.n,
        "n_missing": case.series.n_missing,
        "phi": _number(found.phi),
        "noise_sd": _number(found.noise_sd),
        "kind": found.kind,
        "calibrated": found.calibrated,
        "statistic": _number(found.statistic),
        "p": _number(found.p),
        "n_surrogates": found.n_surrogates,
        "p_attainable": found.p_attainable,
        "tail": found.tail,
        "null_candidates": _number(found.null_candidates),
    }


def _candidate(
    event: Event, found: Judged, case: Case, trial: Clock, run: Run, least_relative: float, confirm_within: float
) -> dict[str, Any] | None:
    """The row of a candidate; None where it is too small to count."""
    s = case.series
    before, after = int(s.steps[event.before]), int(s.steps[event.after])
    level = float(np.median(s.values[max(event.before - 2, 0) : event.before + 1]))
    size = event.size if case.shape == "level" else level * float(np.expm1(event.size))
    relative = size / abs(level) if level != 0 else None
    if relative is not None and abs(relative) < least_relative:
        return None
    snr = run.snr(s.layer_index, s.view, s.measure, before, after, size)
    if snr is not None and snr < ERRORS:
        return None
    location = float(np.interp(event.location, np.arange(len(s.steps)), s.steps))
    distance = float(s.steps[event.after] - s.steps[event.before]) / max(event.after - event.before, 1)
    since = int(s.steps[found.first])
    phase = min(before / trial.steps, 1.0) if trial.steps else 0.0
    confirmed, sure, source = run.confirmed(s.layer_index, s.view, s.measure, before, after, since, confirm_within)
    return {
        "step_before": before,
        "step_after": after,
        "step_location": location,
        "width": event.width * distance,
        "kind": event.kind,
        "scale": event.scale,
        "direction": "increase" if size > 0 else "decrease",
        "size": size,
        "relative_size": relative,
        "snr": sure if snr is None else snr,
        "snr_from": source if snr is None else "detect",
        "statistic": event.statistic,
        "p_event": event.p,
        "phase": phase,
        "phase_bin": str(phase_bin(np.array([phase]))[0]),
        **run.around(before, after),
        **confirmed,
    }


def _transient(found: Judged, case: Case, trial: Clock) -> dict[str, Any]:
    s, known = case.series, found.transient
    row: dict[str, Any] = {
        "trial_id": trial.trial_id,
        "layer": s.layer,
        "layer_index": s.layer_index,
        "view": s.view,
        "measure": s.measure,
        **dict.fromkeys(("amplitude", "relative_amplitude", "half_life", "ends", "r2")),
    }
    if known is None or known.flag is not None or case.shape == "rate":
        return row | {"flag": "none" if known is None or known.flag is None else known.flag}
    steps = s.steps[:: found.stride]
    return row | {
        "amplitude": known.amplitude,
        "relative_amplitude": known.amplitude / known.settled if known.settled else None,
        "half_life": _number(float(np.interp(known.half_life, np.arange(len(steps)), steps)) - float(steps[0])),
        "ends": int(steps[min(known.ends, len(steps) - 1)]),
        "r2": _number(known.r2),
        "flag": None,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
