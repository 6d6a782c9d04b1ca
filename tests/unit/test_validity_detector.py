"""The detector on a tenth of the scorecard, with exact bounds; `make validate` is it all.

Series are the first of every family, so that a result here is a result there: 3,500 that a requirement is asked of. A
bound is crossed where the requirement itself would give so bad a count in less than 1 of 1,000 draws. For time, the
families of which half the series have an event are a twentieth of the scorecard's, and rates a fortieth.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from ndt_ray.analysis import detection
from ndt_ray.analysis.validity import families
from ndt_ray.analysis.validity.scorecard import LEVEL, SLACK, Bar, Row, scorecard
from ndt_ray.analysis.validity.subject import Found, for_rates, subject
from ndt_ray.analysis.validity.tasks import QUICK, SMALL_BATCHES, Task, plan, plan_rates, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RARE = 1e-3
CURVES = 40
WITH_EVENTS = 500
"""Series with an event inside null families: 50 families of 4, and 25 of 20."""
RATES = 50
"""Series of each null family that are judged as rates: a fortieth."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Task, list[Found]]:
    folder: Path = tmp_path_factory.mktemp("validity")
    tasks = [task for task in plan(QUICK, required=True) if task.kind != "in_nulls" or task.first < WITH_EVENTS]
    return run(subject("profile", SMALL_BATCHES), tasks, folder)[0]


@pytest.fixture(scope="module")
def card(results: Mapping[Task, list[Found]], tmp_path_factory: pytest.TempPathFactory) -> Row:
    who = subject("profile", SMALL_BATCHES)
    twin = for_rates(who)
    assert twin is not None
    rates = run(twin, plan_rates(replace(QUICK, marked=RATES)), tmp_path_factory.mktemp("rates"))[0]
    return scorecard(who, QUICK, results, rates=rates)


def too_many(k: int, n: int, rate: float) -> bool:
    """So many or more in n at this rate: rarer than `RARE`."""
    return bool(binom.sf(k - 1, n, rate) < RARE)


def test_it_meets_every_requirement(card: Row) -> None:
    """Calibration, false discoveries, one event among many, what is planted and where, ndtracker's battery."""
    bars = [Bar(**{name: value for name, value in bar.items() if name != "met"}) for bar in card["bars"]]
    assert len(bars) == 67 and sum(bar.counted for bar in bars) == 53
    assert [bar for bar in bars if bar.met is None] == []
    assert [bar for bar in bars if bar.refuted(RARE)] == []


@pytest.mark.parametrize("alpha", (0.01, 0.05))
def test_it_is_calibrated_on_all_null_families_together(card: Row, alpha: float) -> None:
    each = [row[f"p_{alpha}"] for row in [*card["nulls"], *card["rates"]] if not row["may_be_marked"]]
    k, n = (sum(row[name] for row in each) for name in ("k", "n"))
    assert n >= 2300 and not too_many(k, n, SLACK * alpha), f"{k} of {n} at {alpha}"


def test_schedules_and_slow_rises_are_trend() -> None:
    """Whole-run curves of 30 noise SDs, on which the scorecard requires nothing: at most twice the nominal slack."""
    who = subject("profile", SMALL_BATCHES)
    for name in ("half_cosine", "slow_sigmoid"):
        said = who.judge(families.null(name, CURVES), [f"null {name} {i}" for i in range(CURVES)])
        assert not too_many(sum(f.p <= 0.05 for f in said), CURVES, 2 * SLACK * 0.05), name


def test_p_values_say_where_they_come_from(results: Mapping[Task, list[Found]]) -> None:
    """p is in (0, 1], an event's p is not below its series' by chance alone, and the same series has the same p."""
    for task, said in results.items():
        for f in said:
            assert f.marked or 0 < f.p <= 1, task.id
            assert f.p_event is not None and len(f.p_event) == len(f.location)
    again = subject("profile", SMALL_BATCHES)
    task = Task("null", "iid", count=2)
    first = next(
        found[:2] for kept, found in results.items() if (kept.kind, kept.name, kept.first) == ("null", "iid", 0)
    )
    keys = [f"null iid {i}" for i in range(2)]
    assert [f.p for f in again.judge(task.series()[0], keys)] == [f.p for f in first]


@pytest.mark.parametrize(
    ("seed", "changes"), [(1234, (190, 404, 619, 810)), (0, (199, 404, 597, 808)), (1, (200, 401, 607, 799))]
)
def test_piecewise_constant_signals_of_ruptures(seed: int, changes: tuple[int, ...]) -> None:
    rpt = pytest.importorskip("ruptures", reason="ruptures is not installed (extra: changepoint)")
    signal, ends = rpt.pw_constant(1000, 1, 4, noise_std=1, seed=seed)
    assert tuple(ends[:-1]) == changes
    pelt = detection.make("pelt")(np.arange(1000), signal[:, 0])
    assert list(pelt.step_after) == pytest.approx(changes, abs=1)
    judged = detection.make("profile", SMALL_BATCHES).judge(signal[:, 0], f"pw_constant {seed}")
    found = [e.location + 0.5 for e in judged.events if e.p <= LEVEL]
    # The trend may be curved: it takes up levels that differ by little more than the noise's deviation.
    levels = np.array([part.mean() for part in np.split(signal[:, 0], changes)])
    large = [c for c, size in zip(changes, np.abs(np.diff(levels)), strict=True) if size > 2.5]
    assert all(min(abs(f - c) for c in changes) <= 1 for f in found)
    assert all(min(abs(f - c) for f in found) <= 1 for c in large)


def test_a_rule_that_is_not_calibrated_fails_here() -> None:
    """The bounds can be crossed: three standard deviations against fifty values are."""
    rule = subject("rolling_level", {"threshold": 3.0})
    for name in families.CALIBRATED:
        said = rule.judge(families.null(name, CURVES), [""] * CURVES)
        assert too_many(sum(len(f.location) > 0 for f in said), CURVES, SLACK * 0.05), name
    assert Bar("x", 0.0751, 0.075, True, 1).met is False
