"""Series whose truth is known: seeded one by one, with the spread, memory and places that they promise."""

import numpy as np
import pytest

from ndt_ray.analysis.detection.original import RollingLevel
from ndt_ray.analysis.nulls import robust_phi
from ndt_ray.analysis.validity import families
from ndt_ray.errors import SpecError


@pytest.mark.parametrize("name", [*families.NULLS, *families.OTHERS])
def test_a_series_is_the_same_however_many_are_asked_for(name: str) -> None:
    many = families.null(name, 12, 100)
    assert many.shape == (12, 100)
    assert np.isfinite(many).all()
    assert np.array_equal(families.null(name, 3, 100, first=5), many[5:8])
    assert families.null(name, 0, 100).shape == (0, 100)
    assert len(np.unique(many, axis=0)) == 12


def test_noise_has_the_memory_and_spread_that_it_is_named_for() -> None:
    for name, phi in (("iid", 0.0), ("ar1_mild", 0.5), ("ar1_strong", 0.9), ("random_walk", 1.0)):
        series = families.null(name, 200)
        measured = np.mean([robust_phi(s) for s in series])
        assert measured == pytest.approx(phi, abs=0.12), name  # clipped at 0.99: low for the walk
        if phi < 1:
            assert series.std() == pytest.approx(1.0, abs=0.05)
    assert families.null("student_t", 500).std() == pytest.approx(1.0, abs=0.1)
    falling = families.null("decaying_variance", 500).std(axis=0)
    assert falling[:20].mean() / falling[-20:].mean() == pytest.approx(np.exp(families.COLLAPSE * 0.95), rel=0.1)
    growing = families.null("growing_variance", 500).std(axis=0)
    assert growing[-20:].mean() / growing[:20].mean() == pytest.approx(families.GROWTH**0.95, rel=0.1)
    for name in ("ar2", "heavy_ar1", "near_unit_root"):
        assert families.null(name, 400).std() == pytest.approx(1.0, abs=0.1), name
    oscillating = families.null("ar2", 200)
    lag = [np.mean(oscillating[:, k:] * oscillating[:, : families.LENGTH - k]) for k in (1, 4)]
    assert lag == pytest.approx([0.8, -0.048], abs=0.05)  # a / (1 - b), and the recursion
    whole = families.null("quantised", 50)
    assert np.array_equal(whole, np.rint(whole))
    loss = families.null("loss_like", 400)
    spread = loss.std(axis=0) / loss.mean(axis=0)
    assert spread == pytest.approx(np.full(families.LENGTH, families.LOSS[-1]), rel=0.25)


def test_rolling_rules_raise_the_alarms_that_were_counted_before() -> None:
    """Counts of `BASELINE` within 20 %; 0.05 more, for the smallest of them was printed as 0.3."""
    for name, before in families.BASELINE.items():
        series = families.null(name, 300)
        for threshold, count in zip((2.0, 3.0), before, strict=False):
            here = float(RollingLevel(threshold=threshold).scores(series)[1].sum(axis=-1).mean())
            assert abs(here - count) <= 0.2 * count + 0.05, (name, threshold, here, count)


@pytest.mark.parametrize("name", families.PLANTED)
def test_planted_events_are_where_the_truths_say(name: str) -> None:
    """A quiet copy of the series: at an enormous SNR the noise does not count."""
    snr = 1e6
    made = families.planted(name, snr, 0.5, 6)
    again = families.planted(name, snr, 0.5, 2, first=3)
    assert np.array_equal(made.values[3:5], again.values)
    assert np.array_equal(made.truths.location[3:5], again.truths.location)
    n = families.LENGTH
    assert (made.truths.location >= families.MARGIN * n - 1).all()
    assert (made.truths.location <= (1 - families.MARGIN) * n).all()
    assert np.array_equal(np.abs(made.truths.size), np.full_like(made.truths.size, snr))
    for values, place, width, size in zip(
        made.values / snr, made.truths.location, made.truths.width, made.truths.size / snr, strict=True
    ):
        if len(place) == 1 and width[0] == 0:
            k = int(place[0] + 0.5)
            assert values[k] - values[k - 1] == pytest.approx(size[0], abs=1e-3)
            assert int(np.argmax(np.abs(np.diff(values)))) == k - 1
        elif name.startswith("sigmoid"):
            low, high = (int(round(place[0] + sign * width[0] / 2)) for sign in (-1, 1))
            assert abs(values[high] - values[low]) == pytest.approx(0.8, abs=0.02)  # its 10-90 % rise
        elif name == "kink":
            k = int(place[0])
            assert abs(values[k] - values[0]) < 1e-3
            assert abs(values[k + 61] - values[k + 1]) == pytest.approx(1.0, abs=0.01)
        elif name == "several":
            assert (np.diff(place) >= families.GAP - 1).all()
            steps = np.flatnonzero(np.abs(np.diff(values)) > 0.5)
            assert np.array_equal(steps + 0.5, place)
        else:
            assert place[1] - place[0] == pytest.approx(families.OVERLAP[1], abs=1)


def test_tolerances_are_half_a_width_and_five_for_steps() -> None:
    truths = families.planted("overlapping", 8, 0.0, 1).truths
    assert truths.tolerance.tolist() == [[30.0, 5.0]]
    assert families.planted("sigmoid_20", 8, 0.0, 1).truths.tolerance.tolist() == [[10.0]]


def test_a_louder_series_has_the_same_noise_and_places() -> None:
    quiet, loud = (families.planted("step", snr, 0.0, 2) for snr in (4.0, 8.0))
    assert np.array_equal(quiet.truths.location, loud.truths.location)
    rest = loud.values - 2 * quiet.values
    assert np.ptp(rest + (quiet.values - quiet.values)) > 0
    k = int(loud.truths.location[0, 0] + 0.5)
    assert np.allclose((loud.values - quiet.values)[0, k:], np.sign(loud.truths.size[0, 0]) * 4.0)


def test_events_in_nulls_are_eight_of_their_own_noise() -> None:
    made = families.in_nulls(16)
    assert np.array_equal(families.in_nulls(2, first=9).values, made.values[9:11])
    loss = families.CALIBRATED.index("loss_like")
    level = np.abs(made.truths.size[[loss, loss + 8], 0]) / (families.FAMILY_SNR * families.LOSS[-1])
    assert ((level > 0.2) & (level < 2.3)).all()
    plain = [i for i in range(16) if families.CALIBRATED[i % 8] not in ("loss_like", "quantised")]
    assert np.array_equal(np.abs(made.truths.size[plain, 0]), np.full(len(plain), 8.0))


@pytest.mark.parametrize("share", families.TRUE_SHARES)
def test_families_of_series_share_no_series(share: float) -> None:
    seen_nulls, seen_true = set(), set()
    for index in range(50):
        nulls, true = families.composition(share, index)
        assert len(nulls) + len(true) == families.FAMILY_SIZE
        assert len(true) == round(share * families.FAMILY_SIZE)
        assert not seen_nulls & set(nulls)
        assert not seen_true & set(true)
        seen_nulls |= set(nulls)
        seen_true |= set(true)
    assert {name for name, _ in seen_nulls} == set(families.CALIBRATED)
    assert max(i for _, i in seen_nulls) < families.BEYOND


def test_unknown_names_and_impossible_series_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'ar1_mild'"):
        families.null("ar1_mil", 1)
    with pytest.raises(SpecError, match="did you mean 'sigmoid_20'"):
        families.planted("sigmoid_2", 8, 0.0, 1)
    with pytest.raises(SpecError, match="-1 < phi < 1"):
        families.planted("step", 8, 1.0, 1)
    with pytest.raises(SpecError, match="at least 250"):
        families.planted("step", 8, 0.0, 1, n=100)
