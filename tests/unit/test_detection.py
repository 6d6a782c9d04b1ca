"""The default detector finds what is planted, keeps quiet on noise, and says of what it cannot judge."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit

from ndt_ray.analysis.detection import make
from ndt_ray.analysis.detection.atoms import (
    MEMORIES,
    Memory,
    Shape,
    apart,
    atoms,
    bends,
    grid,
    log_scaling,
    trend,
    whiten,
    whitened,
)
from ndt_ray.analysis.detection.likelihood import (
    MANY,
    despiked,
    fit,
    local_scale,
    median_of_five,
    standardised,
)
from ndt_ray.analysis.detection.locate import Located, bracket, design, likelihood, search, settle
from ndt_ray.analysis.detection.maxtest import LEAST
from ndt_ray.analysis.detection.profile import LENGTHS, LONGEST, Judged, Profile, judge
from ndt_ray.analysis.detection.transient import find
from ndt_ray.analysis.validity import families
from ndt_ray.errors import SpecError

N = 240
Floats = NDArray[np.float64]


def ar1(phi: float, seed: int, n: int = N) -> Floats:
    """Marginal SD 1."""
    drawn = np.random.default_rng(seed).normal(size=n + 200) * np.sqrt(1 - phi * phi)
    out = np.zeros(n + 200)
    for i in range(1, n + 200):
        out[i] = phi * out[i - 1] + drawn[i]
    return out[200:]


def sigmoid(middle: float, width: float, n: int = N) -> Floats:
    return np.asarray(expit((np.arange(n) - middle) * 2 * np.log(9) / width), dtype=np.float64)


def quick(values: Floats, key: str = "a", **options: object) -> Judged:
    return judge(values, key, n_surrogates=200, most=400, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("phi", "seed"), [(0.0, 1), (0.5, 2)])
def test_a_step_is_found_where_it_is(phi: float, seed: int) -> None:
    values = ar1(phi, seed)
    values[140:] += 8
    found = quick(values)
    assert found.p < 1e-3 and len(found.events) == 1
    event = found.events[0]
    assert (event.before, event.after, event.kind, event.width) == (139, 140, "step", 1.0)
    assert event.location == 139.5 and abs(event.size - 8) < 2 and event.p >= found.p


@pytest.mark.slow
def test_a_change_of_slope_is_found_as_one() -> None:
    """In the middle of a run, where the trend explains nearly all of its energy."""
    found = quick(ar1(0.0, 6, 400) + np.maximum(0, np.arange(400) - 210) * (8 / 60))
    assert found.p < 0.01 and [e.kind for e in found.events] == ["kink"]
    assert found.events[0].location == pytest.approx(210, abs=15)


def test_a_wide_sigmoid_is_not_taken_for_a_change_of_slope() -> None:
    """The nearest corner of the grid gains more than the nearest sigmoid; refined, the sigmoid does."""
    found = quick(families.planted("sigmoid_60", 8.0, 0.5, 1, first=17).values[0])
    assert found.p < 0.01 and [e.kind for e in found.events] == ["sigmoid"]


@pytest.mark.parametrize("width", [20.0, 60.0])
def test_a_sigmoid_is_found_with_its_width(width: float) -> None:
    found = quick(ar1(0.5, 5, 400) - 8 * sigmoid(198, width, 400))
    assert found.p < 0.01 and len(found.events) == 1
    event = found.events[0]
    assert abs(event.location - 198) <= width / 4 and 0.5 * width < event.width < 2 * width
    assert event.size < -4 and event.kind == "sigmoid"
    assert event.after - event.before >= 0.5 * width


def test_up_and_down_again_are_two_events() -> None:
    values = ar1(0.0, 3)
    values[100:150] += 8
    found = quick(values)
    assert [(e.before, e.after, e.size > 0) for e in found.events] == [(99, 100, True), (149, 150, False)]


def test_noise_of_any_memory_rarely_has_an_event() -> None:
    p = [quick(ar1(phi, 10 * s), f"{phi} {s}").p for phi in (0.0, 0.5, 0.9) for s in range(4)]
    # Twelve series: two or more below 0.02 have probability 0.02 under the null.
    assert sum(x < 0.02 for x in p) < 2 and max(p) > 0.3


def test_trend_relaxation_and_shrinking_noise_are_no_events() -> None:
    t = np.arange(N) / N
    drift = quick(32 * t + ar1(0.0, 21))
    relaxing = quick(30 * np.exp(-t / 0.15) + ar1(0.0, 22))
    shrinking = quick(np.exp(-3 * t) * ar1(0.0, 23))
    assert all(x.p > 0.01 and x.kind == "calibrated" for x in (drift, relaxing, shrinking))


@pytest.mark.slow
def test_curves_of_the_whole_run_are_no_events_and_hide_none() -> None:
    """Half a cosine, and a sigmoid over 60 % of the run away from its middle; the same with a step on it."""
    t = np.arange(400) / 400
    curves = (15 * (1 + np.cos(np.pi * t)), 30 * sigmoid(180, 240, 400))
    for k, curve in enumerate(curves):
        noise = ar1(0.0, 24 + k, 400)
        quiet = quick(curve + noise)
        assert quiet.p > 0.01 and not any(e.p <= 0.01 for e in quiet.events)
        assert quick(curve + noise + 8.0 * (t > 0.6)).events[0].location == pytest.approx(240.5, abs=2)


def test_a_bent_trend_is_taken_where_it_explains_as_well_as_an_event() -> None:
    t, flat = np.arange(400) / 400, trend(400)
    scale = np.full(400, 1.0)
    noise = ar1(0.0, 26, 400)
    slow = search(30 * sigmoid(200, 240, 400) + noise, scale, "level", 32.0)
    assert not slow.events and slow.smooth.shape[1] == bends(400)[0].shape[1] + 1
    event = search(8 * sigmoid(200, 60, 400) + noise, scale, "level", 32.0)
    assert [e.kind for e in event.events] == ["sigmoid"] and np.array_equal(event.smooth, flat)
    # A trend that is given is kept.
    kept = search(15 * (1 + np.cos(np.pi * t)) + noise, scale, "level", 12.0, smooth=flat)
    assert kept.events and kept.smooth is flat


def test_p_depends_neither_on_units_nor_on_the_trend() -> None:
    values = ar1(0.5, 31)
    values[150:] += 3
    one = quick(values)
    other = quick(1e-6 * (values + 5 - 0.02 * np.arange(N)))
    assert one.p == pytest.approx(other.p, rel=1e-3) and one.statistic == pytest.approx(other.statistic, rel=1e-4)
    assert other.noise_sd == pytest.approx(1e-6 * one.noise_sd, rel=1e-3)
    again = quick(values)
    assert again == one and quick(values, "another").p != one.p


def test_a_smooth_transition_almost_without_noise_is_one_event() -> None:
    """As grokking looks in the participation ratio: 27 to 8 over a sixth of the run."""
    t = np.arange(N)
    noise = 0.02 * ar1(0.9, 41)
    values = 27.5 + 1.5 * np.exp(-t / 6) - 0.001 * t - 19 * sigmoid(130, 40) + noise
    found = quick(values)
    assert found.p < 1e-3 and len(found.events) == 1
    assert abs(found.events[0].location - 130) < 5 and found.events[0].size < -12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smooth_wander", "smoother_wander", "wander_under_noise"])
def test_noise_that_wanders_smoothly_is_no_event(name: str) -> None:
    """Curves of a stationary process: to noise of one root they are full of events (19 to 52 of 60 at 0.05)."""
    count = 24
    found = [quick(values, f"{name} {i}") for i, values in enumerate(families.null(name, count))]
    judged = [f.p for f in found if f.calibrated]
    assert len(judged) >= 0.6 * count
    assert sum(p <= 0.05 for p in judged) <= 4  # P(more | 0.05) < 0.01
    assert not any(e.p <= 0.01 for f in found for e in f.events)


def test_a_curve_without_noise_has_an_event_where_it_falls_once() -> None:
    """An asymmetric fall, which no sigmoid follows, on a slow bend: what is left of it is as smooth as the fall."""
    n = 400
    t = np.arange(n)
    for width, place in ((4.0, 150.0), (8.0, 150.0), (16.0, 200.0)):
        values = 9 + 0.1 * np.sin(t / 130) - 4 * np.exp(-np.exp(-(t - place) / width))
        found = quick(values)
        assert found.p < 1e-3 and [e.kind for e in found.events] == ["sigmoid"]
        assert abs(found.events[0].location - place) < 1.5 * width and found.events[0].size < -3


@pytest.mark.slow
def test_a_curve_that_turns_too_rarely_is_not_judged() -> None:
    t = np.arange(N) / N
    assert quick(np.sin(7 * t) + 0.3 * np.cos(11 * t)).kind == "wandering"
    wandering = [quick(v).kind == "wandering" for v in families.null("long_wander", 20)]
    assert np.mean(wandering) > 0.8


def test_the_turn_of_a_smooth_curve_is_no_spike() -> None:
    t = np.arange(N)
    smooth = np.sin(t / 4)[None]
    assert np.array_equal(despiked(smooth), smooth)
    spiked = smooth.copy()
    spiked[0, 100] += 3
    left = despiked(spiked)
    assert abs(left[0, 100] - smooth[0, 100]) < 0.3 and (left != spiked).sum() == 1


def test_the_initial_transient_is_no_event() -> None:
    t = np.arange(N)
    values = 10 + 6 * np.exp(-t / 5) + 0.1 * ar1(0.3, 51)
    transient = find(values)
    assert transient.flag is None and transient.amplitude == pytest.approx(6, rel=0.15)
    assert transient.half_life == pytest.approx(5 * np.log(2), rel=0.2)
    # Under 5 % is left after 3 time constants.
    assert 12 <= transient.ends <= 30 and transient.r2 > 0.95
    found = quick(values)
    assert transient.ends <= found.first < transient.ends + N // LENGTHS and not found.events
    assert (
        find(ar1(0.0, 52)).flag == "none" and find(np.ones(50)).flag == "constant" and find(np.ones(5)).flag == "short"
    )


def test_what_cannot_be_judged_is_said() -> None:
    assert quick(np.full(N, 3.0)).kind == "constant"
    assert quick(np.zeros(N)).kind == "constant"
    assert quick(3 + 1e-8 * ar1(0.0, 61)).kind == "constant"
    assert quick(np.array([1.0, 2.0])).kind == "short" and quick(np.zeros(0)).kind == "short"
    for found in (quick(np.full(N, 3.0)), quick(np.zeros(3))):
        assert np.isnan(found.p) and not found.events and not found.calibrated
    dead = ar1(0.0, 62)
    dead[60:] = dead[60]
    assert quick(dead).kind == "collapsing_variance"
    smooth = np.cumsum(np.cumsum(np.cumsum(ar1(0.0, 63))))
    assert quick(smooth).kind in ("unit_root", "wandering")


def test_one_quantum_is_no_event() -> None:
    values = np.full(N, 40.0)
    values[120:] = 41.0
    values[[30, 90, 200, 220]] += np.array([1.0, 1.0, -1.0, 1.0])
    assert not quick(values).events
    larger = np.rint(40 + 0.75 * ar1(0.3, 71))
    larger[120:] += 6
    assert [(e.before, e.after) for e in quick(larger).events] == [(119, 120)]


@pytest.mark.slow
def test_enormous_series_are_thinned_by_selection() -> None:
    n = 3 * LONGEST - 5
    values = np.random.default_rng(0).normal(size=n)
    values[2000:] += 8
    found = judge(values, "long", n_surrogates=100, most=100)
    assert found.stride == 3 and len(found.events) == 1
    event = found.events[0]
    assert event.before <= 1999 and event.after >= 2000 and event.after - event.before == 3


def test_as_a_detector_it_reports_true_steps() -> None:
    values = ar1(0.0, 81)
    values[100:] += 10
    found = Profile(n_surrogates=200, most=200)(np.arange(N) * 5 + 5, values)
    assert found.step_before.tolist() == [500] and found.step_after.tolist() == [505]
    assert found.direction.tolist() == [1] and found.magnitude[0] == pytest.approx(10, abs=1) and found.p < 0.001
    assert found.location.tolist() == [502.5] and found.width.tolist() == [5.0] and found.shapes == ("step",)
    assert found.scale.tolist() == [5.0] and found.p_attainable == LEAST
    nothing = make("profile", {"n_surrogates": 200})(np.arange(N), np.ones(N))
    assert len(nothing) == len(nothing.width) == 0 and np.isnan(nothing.p) and nothing.kind == "constant"
    with pytest.raises(SpecError, match="evenly spaced"):
        make("profile")(np.r_[0, 1, np.arange(2, 2 * N, 2)], np.ones(N + 1))
    with pytest.raises(SpecError, match="not finite"):
        make("profile")(np.arange(3), np.array([1.0, np.nan, 2.0]))
    with pytest.raises(SpecError, match="n_surrogates"):
        make("profile", {"n_surrogates": 5})


def test_velocity_has_bursts() -> None:
    values = ar1(0.3, 91)
    values[120] += 12
    found = quick(values, shape="rate")
    assert [(e.kind, e.before, e.after) for e in found.events] == [("bump", 119, 120)]
    assert quick(values).p > 0.01  # a level that comes back at once has not changed


def test_the_gain_is_that_of_least_squares() -> None:
    """One memory, one event: the residual energy by the dictionary is the one that lstsq leaves."""
    n = 80
    seen, _ = standardised(ar1(0.4, 7, n)[None], "level")
    found = fit(seen, "level", 1)
    known = atoms(n, "level")
    best = -np.inf
    for memory in MEMORIES:
        columns, white = whiten(trend(n).T, memory).T, whiten(seen[0], memory)
        allowed = np.flatnonzero(np.abs(whitened(n, "level", memory).units).sum(axis=0) > 0)
        for a in allowed:
            x = np.column_stack([columns, whiten(known.values[:, a], memory)])
            rest = white - x @ np.linalg.lstsq(x, white, rcond=None)[0]
            best = max(best, log_scaling(memory) - n * np.log(rest @ rest / n))
    none = likelihood(seen[0], design(trend(n), []), MEMORIES)[0]
    assert found.gain[0, 0] == pytest.approx(best - none, abs=1e-3)


def test_what_the_likelihood_loses_without_a_column_is_what_it_is_without_it() -> None:
    seen = ar1(0.7, 9) + 9 * sigmoid(90, 12) + 9 * sigmoid(150, 30)
    columns = design(trend(N), [Located("sigmoid", 90, 12), Located("sigmoid", 150, 30)])
    whole, *without = likelihood(seen, columns, MEMORIES, without=2)
    assert whole == pytest.approx(likelihood(seen, columns, MEMORIES)[0])
    for k, level in zip((2, 1), without, strict=True):
        (left,) = likelihood(seen, np.delete(columns, -k, axis=1), MEMORIES)
        assert level == pytest.approx(left) and whole - level > 10


def test_all_memories_whiten_at_once() -> None:
    """As one after the other; and the transpose is the transpose: <W x, y> = <x, W' y>."""
    x, y = np.random.default_rng(4).normal(size=(2, 3, 60))
    at_once = grid(MEMORIES).whiten(x)
    back = grid(MEMORIES).transposed(np.broadcast_to(y, at_once.shape))
    for j, memory in enumerate(MEMORIES):
        assert np.allclose(at_once[j], whiten(x, memory), rtol=1e-12)
        assert np.einsum("in,in->", at_once[j], y) == pytest.approx(np.einsum("in,in->", x, back[j]))


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_noise_of_a_memory_is_whitened_with_its_likelihood(memory: Memory) -> None:
    """Innovations of a filtered series come back white, and the density is that of the covariance that they imply."""
    n = 60
    rng = np.random.default_rng(1)
    white = rng.normal(size=4000)
    seen = lfilter(np.atleast_1d(np.poly(memory.moving)), np.poly(memory.roots), white)
    assert np.allclose(whiten(seen, memory)[80:], white[80:], atol=1e-6)  # the moving average forgets the beginning
    inverse = whiten(np.eye(n), memory).T
    assert 2 * np.linalg.slogdet(inverse)[1] == pytest.approx(log_scaling(memory))


def test_memories_that_explain_a_null_series_far_worse_change_nothing() -> None:
    """What is left out of the search in null series is what no null series would choose."""
    for phi in (0.0, 0.5, 0.9):
        drawn = np.stack([ar1(phi, seed, 200) for seed in range(40)])
        seen, _ = standardised(drawn, "level")
        assert np.allclose(fit(seen).statistic, fit(seen, null_series=True).statistic, atol=2e-3)


@pytest.mark.parametrize("shape", ["level", "rate"])
def test_few_series_gain_what_many_do(shape: Shape) -> None:
    """All memories at once in double precision, and one after the other in single: the same events and gains."""
    seen, _ = standardised(np.stack([ar1(0.6, seed, 150) for seed in range(MANY)]), shape)
    seen[::2, 70:] += 4 * np.linspace(0, 2, len(seen[::2]))[:, None]
    free = np.ones(len(atoms(150, shape).kind), np.float32)
    free[::3] = 0
    many = fit(seen, shape, events=3, free=free)
    for i, one in enumerate(seen):
        few = fit(one[None], shape, events=3, free=free)
        assert np.array_equal(few.memory[0], many.memory[i]) and np.array_equal(few.atom[0], many.atom[i])
        assert np.allclose(few.gain[0], many.gain[i], atol=2e-3)


def test_scale_follows_the_noise_and_not_slopes_or_steps() -> None:
    rng = np.random.default_rng(3)
    ramp = np.linspace(4, 1, 400)
    quiet = local_scale(rng.normal(size=(1, 400)) * ramp)[0]
    assert 2.4 < quiet[:100].mean() / quiet[300:].mean() < 4.2
    noise = rng.normal(size=400)
    shifted = noise + 20 * (np.arange(400) > 200) + 0.5 * np.arange(400)
    assert np.abs(local_scale(shifted[None]) / local_scale(noise[None]) - 1).max() < 0.15


def test_a_running_median_of_five_is_the_median() -> None:
    values = np.random.default_rng(4).normal(size=(3, 20))
    expected = [[np.median(row[i - 2 : i + 3]) for i in range(2, 18)] for row in values]
    assert np.allclose(median_of_five(values)[:, 2:-2], expected)


def test_events_that_overlap_are_one() -> None:
    known, separate = atoms(N, "level"), apart(N, "level")
    assert (np.diag(separate) == 0).all() and (separate == separate.T).all()
    far = np.abs(known.location[:, None] - known.location) > 100
    assert (separate[far & (known.width[:, None] + known.width < 200)] == 1).all()


def test_brackets_lie_outside_the_rise() -> None:
    assert bracket(Located("step", 9.5, 0.0), 50) == (9, 10)
    assert bracket(Located("sigmoid", 20.0, 8.0), 50) == (16, 24)
    assert bracket(Located("sigmoid", 2.0, 20.0), 50) == (0, 12)
    assert bracket(Located("bump", 20.0, 1.0), 50) == (19, 20)
    assert bracket(Located("kink", 20.0, 0.0), 50) == (19, 21)


def test_a_small_event_in_the_shadow_of_a_large_one_is_none() -> None:
    values = 0.05 * ar1(0.0, 9)
    values[100:] += 20
    values[120:] += 0.8
    both = [Located("step", 99.5, 0.0), Located("step", 119.5, 0.0)]
    assert len(settle(values, np.full(N, 0.05), both, Memory((0.0,)), 20.0, trend(N)).events) == 2
    wide = 20 * sigmoid(100, 30) + 0.8 * (np.arange(N) > 130) + 0.05 * ar1(0.0, 9)
    sought = [Located("sigmoid", 100, 30.0), Located("step", 130.5, 0.0)]
    left = settle(wide, np.full(N, 0.05), sought, Memory((0.0,)), 20.0, trend(N))
    assert [e.kind for e in left.events] == ["sigmoid"]
