"""Found events against true ones: one to one, nearest first, with the field's scores."""

import math

import numpy as np
import pytest

from ndt_ray.analysis.validity.matching import Score, covering, hausdorff, match, rand_index, score, together
from ndt_ray.errors import SpecError

TRUE, FOUND, N = [100, 200], [105, 115, 350, 400], 500


def test_known_answers() -> None:
    """SCIENCE's reference: true [100, 200, 500], found [105, 115, 350, 400, 500], margin 10 (the last is the end)."""
    scored = score(FOUND, TRUE, 10, N)
    assert (scored.precision, scored.recall) == (0.25, 0.5)
    assert scored.f1 == pytest.approx(1 / 3)
    assert scored.false_per_1000 == 6.0
    assert scored.errors == (5.0,)
    assert hausdorff(FOUND, TRUE) == 200
    assert rand_index(FOUND, TRUE, N) == pytest.approx(0.662725, abs=1e-6)


def test_scores_agree_with_ruptures() -> None:
    metrics = pytest.importorskip("ruptures.metrics", reason="ruptures is not installed (extra: changepoint)")
    rng = np.random.default_rng(0)
    for _ in range(30):
        true, found = (sorted(rng.choice(np.arange(10, 490, 30), size, replace=False)) for size in (3, 5))
        found = [int(f) + int(rng.integers(-8, 9)) for f in found]
        ends = [int(x) for x in [*true, N]], [*sorted(found), N]
        scored = score(found, true, 9, N)
        assert metrics.precision_recall(*ends, margin=10) == pytest.approx((scored.precision, scored.recall))
        assert metrics.hausdorff(*ends) == hausdorff(found, true)
        assert metrics.randindex(*ends) == pytest.approx(rand_index(found, true, N))


def test_each_event_is_matched_once_and_as_many_as_can_be() -> None:
    # The nearer pair alone would leave one true event without a partner.
    i, j = match([104, 96], [100, 108], 8)
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert score([99, 100, 101], [100], 5, 400).matched == 1
    assert score([99, 100, 101], [100], 5, 400).errors == (0.0,)
    assert score([100], [90, 110], [20, 5], 400).errors == (10.0,)


def test_the_tolerance_is_inclusive_and_of_the_true_event() -> None:
    assert score([105], [100], 5, 400).matched == 1
    assert score([105.5], [100], 5, 400).matched == 0
    assert score([60, 140], [100, 200], [5, 60], 400).errors == (-60.0,)
    with pytest.raises(SpecError, match="tolerance"):
        match([1], [1], -1)
    with pytest.raises(SpecError, match="tolerance"):
        match([1], [1], math.inf)


def test_nothing_found_nothing_true() -> None:
    empty = score([], [], 5, 400)
    assert math.isnan(empty.precision) and math.isnan(empty.recall) and math.isnan(empty.f1)
    assert math.isnan(empty.median_error) and math.isnan(empty.median_signed_error)
    assert (score([], [100], 5, 400).recall, score([5], [], 5, 400).precision) == (0.0, 0.0)
    assert math.isnan(hausdorff([], [100]))
    assert math.isnan(rand_index([], [], 1))
    assert (rand_index([], [], 10), covering([], [], 10)) == (1.0, 1.0)
    assert math.isnan(covering([], [], 0))


def test_scores_add_up() -> None:
    pooled = together([score([101], [100], 5, 400), score([50, 98], [100], 5, 400)])
    assert pooled == Score(3, 2, 2, 800, (1.0, -2.0))
    assert (pooled.median_error, pooled.median_signed_error) == (1.5, -0.5)
    assert together([]) == Score(0, 0, 0, 0)


def test_covering() -> None:
    assert covering([100], [100], 200) == 1.0
    assert covering([99.5], [100], 200) == 1.0  # a change at k - 0.5 cuts before measurement k
    assert covering([], [100], 200) == 0.5
    assert covering([50], [100], 200) == pytest.approx(0.5 * 0.5 + 0.5 * 100 / 150)
