"""Schedules: known answers, and properties that hold for all of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndt_ray.errors import SpecError
from ndt_ray.schedule import (
    checkpoint_steps,
    coarse_steps,
    evaluated_steps,
    log_spaced,
    lr_factor,
    measured_steps,
)
from ndt_ray.spec import Checkpoint, Evaluate, Measure, Schedule

STEPS = st.integers(1, 3000)


def test_measured_every_ten_with_the_end_and_a_dense_start() -> None:
    assert measured_steps(Measure(every=10), 25) == [0, 10, 20, 25]
    assert measured_steps(Measure(every=10, dense_until=3), 25) == [0, 1, 2, 3, 10, 20, 25]
    assert measured_steps(Measure(every=10, dense_until=99), 5) == [0, 1, 2, 3, 4, 5]
    assert measured_steps(Measure(every=5), 2000) == list(range(0, 2001, 5))


def test_measured_log_spaced_adds_to_the_grid() -> None:
    assert measured_steps(Measure(every=1000, log=4), 1000) == [0, 1, 10, 100, 1000]


@given(every=st.integers(1, 500), dense=st.integers(0, 500), log=st.integers(0, 60), steps=STEPS)
def test_measured_steps_ascend_without_repeats_and_hold_both_ends(every: int, dense: int, log: int, steps: int) -> None:
    found = measured_steps(Measure(every=every, dense_until=dense, log=log), steps)
    assert found[0] == 0 and found[-1] == steps
    assert all(a < b for a, b in zip(found[:-1], found[1:], strict=True))
    assert set(range(0, steps, every)) <= set(found)
    assert set(log_spaced(log, steps)) <= set(found)


@given(n=st.integers(0, 400), steps=STEPS)
def test_log_spaced_gives_that_many_different_steps(n: int, steps: int) -> None:
    found = log_spaced(n, steps)
    assert len(found) == len(set(found)) == min(n, steps)
    assert found == sorted(found)
    assert all(1 <= step <= steps for step in found)
    assert not found or found[-1] == steps
    assert n < 2 or found[0] == 1


def test_log_spaced_known_answers() -> None:
    assert log_spaced(3, 100) == [1, 10, 100]
    assert log_spaced(1, 7) == [7]
    assert log_spaced(0, 7) == []
    assert log_spaced(9, 4) == [1, 2, 3, 4]


def test_evaluated_steps() -> None:
    assert evaluated_steps(Evaluate(), 300) == [0, 300]
    assert evaluated_steps(Evaluate(every=100), 250) == [0, 100, 200, 250]


def test_checkpoints_from_all_four_sources() -> None:
    plan = Checkpoint(at=(0, 7), fractions=(0.5, 0.75, 1.0), every=40, log=3)
    assert checkpoint_steps(plan, 100) == [0, 1, 7, 10, 40, 50, 75, 80, 100]
    assert checkpoint_steps(Checkpoint(), 100) == []
    assert checkpoint_steps(Checkpoint(fractions=(0.5,)), 5) == [3]


def test_checkpoint_behind_the_end_is_refused() -> None:
    with pytest.raises(SpecError, match="400 is behind the last step"):
        checkpoint_steps(Checkpoint(at=(400,)), 300)


def test_coarse_steps_are_off_by_default() -> None:
    assert coarse_steps(Measure(), 100) == []
    assert coarse_steps(Measure(coarse=40), 100) == [0, 40, 80, 100]


def test_lr_constant_and_warm_up() -> None:
    assert lr_factor(Schedule(), 17, 100) == 1.0
    warm = Schedule(warmup=4)
    assert [lr_factor(warm, s, 10) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert lr_factor(Schedule(warmup=10), 4, 5) == 0.5


def test_lr_cosine_known_answers() -> None:
    half = Schedule(name="cosine", final=0.1)
    assert lr_factor(half, 0, 100) == 1.0
    assert lr_factor(half, 50, 100) == pytest.approx(0.55)
    assert lr_factor(half, 100, 100) == pytest.approx(0.1)
    assert lr_factor(Schedule(name="cosine"), 25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2)


def test_lr_out_of_training_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="step=11"):
        lr_factor(Schedule(), 11, 10)


@given(
    name=st.sampled_from(["constant", "cosine"]),
    warmup=st.integers(0, 60),
    final=st.floats(0, 1),
    steps=st.integers(1, 200),
)
def test_lr_factor_rises_to_one_then_falls_and_stays_within_bounds(name, warmup, final, steps) -> None:  # type: ignore[no-untyped-def]
    schedule = Schedule(name=name, warmup=warmup, final=final)
    factors = [lr_factor(schedule, step, steps) for step in range(steps)]
    rise, fall = factors[:warmup], factors[warmup:]
    assert all(a < b for a, b in zip(rise[:-1], rise[1:], strict=True))
    assert all(a >= b for a, b in zip(fall[:-1], fall[1:], strict=True))
    assert all(0 < f <= 1 for f in rise)
    assert all(final - 1e-12 <= f <= 1 for f in fall)
    assert not fall or fall[0] == 1.0
