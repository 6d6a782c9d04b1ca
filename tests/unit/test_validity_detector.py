"""The default detector on a piece of the scorecard, with exact binomial bounds; `make validate` is the whole.

Series are the first of every family, so that a result here is a result there. A bound is crossed where the requirement
itself would give so bad a count in less than 1 of 1,000 draws.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from ndt_ray.analysis import detection
from ndt_ray.analysis.validity import battery, families
from ndt_ray.analysis.validity.scorecard import LEVEL, MIN_RECALL, SLACK, Bar, events, scorecard
from ndt_ray.analysis.validity.subject import Found, subject
from ndt_ray.analysis.validity.tasks import BAR_SNR, Size, Task, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RARE = 1e-3
SIZE = Size(nulls=40, marked=12, others=2, planted=1, bars=12, families=8, needles=1)
SHAPES = [name for name, shape in families.PLANTED.items() if shape.bar]


def tasks() -> list[Task]:
    """Those of the whole scorecard that its requirements need, at one SNR."""
    marked = {name: SIZE.marked if null.may_be_marked else SIZE.nulls for name, null in families.NULLS.items()}
    wanted = [Task("battery"), Task("in_nulls", count=32)]
    wanted += [Task("null", name, count=count) for name, count in marked.items()]
    return wanted + [Task("planted", s, BAR_SNR, phi, count=SIZE.bars) for s in SHAPES for phi in families.PHIS]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Task, list[Found]]:
    folder: Path = tmp_path_factory.mktemp("validity")
    return run(subject("profile", {"n_surrogates": 100}), tasks(), folder)[0]


def too_many(k: int, n: int, rate: float) -> bool:
    """So many or more in n at this rate: rarer than `RARE`."""
    return bool(binom.sf(k - 1, n, rate) < RARE)


@pytest.mark.parametrize("alpha", (0.01, 0.05))
def test_it_is_calibrated_on_every_null_family(results: Mapping[Task, list[Found]], alpha: float) -> None:
    small = total = 0
    for name, null in families.NULLS.items():
        (said,) = (found for task, found in results.items() if (task.kind, task.name) == ("null", name))
        below = sum(not f.marked and f.p <= alpha for f in said)
        assert not too_many(below, len(said), SLACK * alpha), f"{name}: {below} of {len(said)} at {alpha}"
        if not null.may_be_marked:
            assert not any(f.marked for f in said), f"{name}: {[f.marked for f in said if f.marked]}"
            small, total = small + below, total + len(said)
    assert not too_many(small, total, SLACK * alpha), f"{small} of {total} at {alpha}"


def test_schedules_and_slow_rises_are_trend() -> None:
    """Whole-run curves of 30 noise SDs, on which the scorecard requires nothing: at most twice the nominal slack."""
    who = subject("profile", {"n_surrogates": 100})
    for name in ("half_cosine", "slow_sigmoid"):
        said = who.judge(families.null(name, SIZE.bars), [f"null {name} {i}" for i in range(SIZE.bars)])
        assert not too_many(sum(f.p <= 0.05 for f in said), SIZE.bars, 2 * SLACK * 0.05), name


def test_p_values_say_where_they_come_from(results: Mapping[Task, list[Found]]) -> None:
    """p is in (0, 1], an event's p is not below its series' by chance alone, and the same series has the same p."""
    for task, said in results.items():
        for f in said:
            assert f.marked or 0 < f.p <= 1, task.id
            assert f.p_event is not None and len(f.p_event) == len(f.location)
    again = subject("profile", {"n_surrogates": 100})
    task = Task("null", "iid", count=2)
    (first,) = (found[:2] for kept, found in results.items() if (kept.kind, kept.name) == ("null", "iid"))
    keys = [f"null iid {i}" for i in range(2)]
    assert [f.p for f in again.judge(task.series()[0], keys)] == [f.p for f in first]


def test_it_finds_what_is_planted_and_where(results: Mapping[Task, list[Found]]) -> None:
    hits = total = 0
    for task in (t for t in results if t.kind == "planted"):
        truths = task.planted().truths
        errors = []
        for i, found in enumerate(results[task]):
            places = events(found, LEVEL)
            distance = np.abs(places - truths.location[i, 0]) if len(places) else np.array([math.inf])
            if distance.min() <= truths.tolerance[i, 0]:
                errors.append(distance.min())
        missed = task.count - len(errors)
        assert not too_many(missed, task.count, 1 - MIN_RECALL), f"{task.id}: {missed} missed"
        limit = truths.width[0, 0] / 4 or 1.0
        assert np.median(errors) <= limit, f"{task.id}: median error {np.median(errors)}"
        hits, total = hits + len(errors), total + task.count
    assert not too_many(total - hits, total, 1 - MIN_RECALL)


def test_false_discoveries_in_families_of_series(results: Mapping[Task, list[Found]]) -> None:
    """8 families of 40 with 10 % true events: 0.05 lies not below the mean by more than 2 standard errors."""
    who = subject("profile", {"n_surrogates": 100})
    (row,) = (row for row in scorecard(who, SIZE, {**results, **fillers(results)})["fdr"] if row["share"] == 0.1)
    assert row["families"] == 8
    for of in ("events", "series"):
        assert row[f"mean_fdp_{of}"] <= 0.05 + 2 * row[f"se_fdp_{of}"], row
    assert row["power"] >= 0.75  # an eighth of them lies in AR(1) of φ = 0.9


def fillers(results: Mapping[Task, list[Found]]) -> dict[Task, list[Found]]:
    """True series beyond those judged: nothing found in them; the families of 10 % need none of these."""
    (judged,) = (task for task in results if task.kind == "in_nulls")
    silent = Found(np.zeros(0), 1.0, np.zeros(0))
    return {Task("in_nulls", first=judged.count, count=128): [silent] * 128}


def test_ndtrackers_battery_is_passed(results: Mapping[Task, list[Found]]) -> None:
    said = dict(zip((f.name for f in battery.fixtures()), results[Task("battery")], strict=True))
    verdict = battery.run(lambda _, name: events(said[name], LEVEL))
    assert verdict.passed
    assert verdict.recall == 1.0
    assert all(s.false_positives == 0 for s in verdict.scores.values())


@pytest.mark.parametrize(
    ("seed", "changes"), [(1234, (190, 404, 619, 810)), (0, (199, 404, 597, 808)), (1, (200, 401, 607, 799))]
)
def test_piecewise_constant_signals_of_ruptures(seed: int, changes: tuple[int, ...]) -> None:
    rpt = pytest.importorskip("ruptures", reason="ruptures is not installed (extra: changepoint)")
    signal, ends = rpt.pw_constant(1000, 1, 4, noise_std=1, seed=seed)
    assert tuple(ends[:-1]) == changes
    pelt = detection.make("pelt")(np.arange(1000), signal[:, 0])
    assert list(pelt.step_after) == pytest.approx(changes, abs=1)
    judged = detection.make("profile", {"n_surrogates": 100}).judge(signal[:, 0], f"pw_constant {seed}")
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
        said = rule.judge(families.null(name, SIZE.nulls), [""] * SIZE.nulls)
        assert too_many(sum(len(f.location) > 0 for f in said), SIZE.nulls, SLACK * 0.05), name
    assert Bar("x", 0.0751, 0.075, True, 1).met is False
