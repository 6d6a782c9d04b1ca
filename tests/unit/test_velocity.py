"""Debiased CKA against its definition, planted turns, and a tracker that can stop and go on."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ndt_ray.measurement.spectra import Layer, measure_layers
from ndt_ray.measurement.velocity import VelocityTracker, debiased_cka
from ndt_ray.store.schema import TABLES

LABELS = np.arange(64) % 10
SIZES = [10, 32, 40, 100]
"""Features of 64 stimuli: kept as features, as features, as kernels of features, as kernels of rows."""


def hsic(k, l):
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return np.trace(k @ l) + middle - 2 / (n - 2) * one @ k @ l @ one


def cka(x, y):
    """By the definition (Song et al. 2012), from uncentred kernels."""
    k, l = x @ x.T, y @ y.T
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def spectra(x):
    """Of [S, P, f], or [S, P, m, f]."""
    kind = "units" if x.ndim == 3 else "tokens"
    return measure_layers({"a": torch.as_tensor(x, dtype=torch.float32)}, [Layer("a", 3, kind, kind)])


def follow(tracker, *representations, steps=None, lanes=None):
    columns = []
    for i, x in enumerate(representations):
        step = 10 * i if steps is None else steps[i]
        found = tracker.update(step, range(len(x)) if lanes is None else lanes, spectra(x))
        columns.append(found.columns)
    return columns


def random(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rotation(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def test_debiased_cka_is_its_definition():
    x, y = random((32, 64)) + 2, random((32, 20), 1) @ random((20, 20), 2) - 1
    assert debiased_cka(x, y) == pytest.approx(cka(x.astype(float), y.astype(float)), abs=1e-12)


@pytest.mark.parametrize("n", [32, 64, 256])
def test_independent_representations_are_not_alike(n):
    """The biased estimate would be 0.67, 0.50 and 0.20."""
    rng = np.random.default_rng(n)
    draws = [debiased_cka(rng.standard_normal((n, 64)), rng.standard_normal((n, 64))) for _ in range(300)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(300)


def test_cka_is_blind_to_axes_scale_and_mean():
    x = random((64, 30)).astype(float)
    assert debiased_cka(x, x @ rotation(30)) == pytest.approx(1, abs=1e-12)
    assert debiased_cka(x, 7 * x + 5) == pytest.approx(1, abs=1e-12)
    assert np.isnan(debiased_cka(x, np.ones((64, 3)))) and np.isnan(debiased_cka(x[:3], x[:3]))


@pytest.mark.parametrize("size", SIZES)
def test_a_rotation_at_constant_spectrum_is_seen_and_one_of_the_axes_is_not(size):
    x = random((64, size)).astype(float)
    x -= x.mean(0)
    left, values, right = np.linalg.svd(x, full_matrices=False)
    # The stimulus directions turn within the space of centred vectors; eigenvalues stay.
    mixed = left @ rotation(left.shape[1], 1) if size < 64 else rotation(64, 1) @ left
    mixed = mixed - mixed.mean(0) if size < 64 else mixed
    turned = (mixed * values) @ right
    axes = x @ rotation(size, 2)
    before, after, same = spectra(x[None]), spectra(turned[None]), spectra(axes[None])
    if size < 64:
        np.testing.assert_allclose(after[0].eigenvalues, before[0].eigenvalues, rtol=1e-5, atol=1e-5)
    _, seen = follow(VelocityTracker(LABELS), x[None], turned[None])
    _, unseen = follow(VelocityTracker(LABELS), x[None], axes[None])
    assert seen["velocity"][0] > 0.05 and seen["from_init"][0] == seen["velocity"][0]
    assert seen["angle_max"][0] > 0.5
    assert abs(unseen["velocity"][0]) < 1e-9 and unseen["angle_max"][0] < 1e-5
    np.testing.assert_allclose(same[0].eigenvalues, before[0].eigenvalues, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_values_are_those_of_the_definitions(size):
    series = [random((2, 64, size), seed) + 2 for seed in range(4)]
    series[1] = series[0] + 0.2 * series[1]
    found = follow(VelocityTracker(LABELS), *series, steps=[0, 3, 4, 5])
    exact = [s.astype(np.float64) for s in series]
    # Anchors are the first measurements at or after powers of two: 0, 3, 4 here.
    expected = {"velocity": [None, 0, 1, 2], "from_init": [0, 0, 0, 0], "from_anchor": [None, 0, 1, 2]}
    for name, earlier in expected.items():
        for now in range(4):
            for lane in range(2):
                if earlier[now] is None:
                    assert np.isnan(found[now][name][lane])
                else:
                    value = 1 - cka(exact[earlier[now]][lane], exact[now][lane])
                    assert found[now][name][lane] == pytest.approx(value, abs=1e-6), (name, now)
    one_hot = np.eye(10)[LABELS]
    for now in range(4):
        assert found[now]["label_alignment"][1] == pytest.approx(cka(exact[now][1], one_hot), abs=1e-6)
    assert [c["previous_step"][0] for c in found] == [None, 0, 3, 4]
    assert [c["anchor_step"][0] for c in found] == [None, 0, 3, 4]
    more = follow(VelocityTracker(), *series[:3], steps=[0, 8, 9])
    assert [c["anchor_step"][0] for c in more] == [None, 0, 8]
    assert np.isnan(more[2]["label_alignment"]).all()


def test_principal_angles_are_the_planted_ones():
    basis = rotation(63)
    # Orthonormal in the space orthogonal to the constant vector, so that centring leaves them alone.
    centred = np.linalg.qr(np.eye(64) - 1 / 64)[0][:, :63] @ basis
    strength = np.array([50, 40, 30, 20, 10, 0.01])
    first = centred[:, :6] * strength
    for planted in ([0.3, 0.2, 0.1, 0, 0], [1e-5, 0, 0, 0, 0], [1.5, 1.2, 0.5, 0.1, 0.01]):
        turned = centred[:, :5] * np.cos(planted) + centred[:, 10:15] * np.sin(planted)
        second = np.concatenate((turned * strength[:5], first[:, 5:]), 1)
        _, found = follow(VelocityTracker(), first[None], second[None])
        assert found["angle_mean"][0] == pytest.approx(np.mean(planted), abs=3e-7)
        assert found["angle_max"][0] == pytest.approx(np.max(planted), abs=3e-7)


def test_angles_of_representations_of_low_rank():
    basis = np.linalg.qr(np.eye(64) - 1 / 64)[0][:, :63]
    plane = basis[:, :2] * [3, 2]
    _, same = follow(VelocityTracker(), plane[None], plane[None] @ rotation(2))
    assert same["angle_max"][0] < 1e-6
    _, wider = follow(VelocityTracker(), np.pad(plane, ((0, 0), (0, 1)))[None], (basis[:, :3] * [3, 2, 1])[None])
    assert wider["angle_max"][0] < 1e-6
    _, other = follow(VelocityTracker(), plane[None], (basis[:, 2:4] * [3, 2])[None])
    assert other["angle_mean"][0] == pytest.approx(np.pi / 2)


def test_what_does_not_move_has_velocity_zero_exactly():
    for size in SIZES:
        x = random((2, 64, size))
        for now in follow(VelocityTracker(LABELS), x, x, x)[1:]:
            for name in ("velocity", "from_init", "from_anchor", "angle_mean", "angle_max"):
                assert (now[name] == 0).all(), (size, name)


@pytest.mark.parametrize("shape", [(64, 10), (64, 40), (64, 100), (50, 3), (32, 6, 9), (32, 9, 6)])
def test_a_lane_is_the_same_in_any_company(shape):
    series = [random((5, *shape), seed) for seed in range(3)]
    labels = np.arange(shape[0]) % 7
    together = follow(VelocityTracker(labels), *series)
    tracker = VelocityTracker(labels)
    # Lanes 4 and 2 are measured in another call of each step than lane 0.
    for i, x in enumerate(series):
        (one,) = follow(tracker, x[[4, 2]], steps=[10 * i], lanes=[4, 2])
        (other,) = follow(tracker, x[[0]], steps=[10 * i], lanes=[0])
        for name, values in together[i].items():
            if name not in ("layer", "layer_index"):
                expected = [values[4], values[2], values[0]]
                np.testing.assert_array_equal(np.array([*one[name], *other[name]], float), np.array(expected, float))


@pytest.mark.parametrize("size", SIZES)
def test_stopped_and_resumed_it_goes_on_bit_for_bit(size):
    series = [random((2, 64, size), seed) for seed in range(5)]
    whole = follow(VelocityTracker(LABELS), *series)
    first = VelocityTracker(LABELS)
    follow(first, *series[:3])
    state = {key: value.copy() for key, value in first.state().items()}
    assert all(isinstance(v, np.ndarray) and v.dtype.kind in "fi" for v in state.values())
    second = VelocityTracker(LABELS)
    second.load(state)
    for i, columns in enumerate(follow(second, *series[3:], steps=[30, 40])):
        for name, values in columns.items():
            assert list(values) == list(whole[3 + i][name]), name


def test_dead_and_broken_lanes_are_null():
    x = random((4, 64, 10))
    x[1], x[2], x[3, 0, 0] = 0, 3.0, np.nan
    for now in follow(VelocityTracker(LABELS), x, x):
        for name in ("from_init", "label_alignment"):
            assert list(np.isnan(now[name])) == [False, True, True, True]
    assert list(np.isnan(now["velocity"])) == list(np.isnan(now["angle_mean"])) == [False, True, True, True]


def test_the_initialisation_is_only_known_from_step_0():
    x = random((1, 64, 10))
    late = follow(VelocityTracker(LABELS), x, x, steps=[100, 110])
    assert np.isnan(late[1]["from_init"]).all() and (late[1]["velocity"] == 0).all()


def test_tokens_count_as_their_mean():
    x = random((1, 64, 5, 10))
    tokens = follow(VelocityTracker(LABELS), x, x + random((1, 64, 5, 10), 1))
    means = follow(VelocityTracker(LABELS), x.mean(2), x.mean(2) + random((1, 64, 5, 10), 1).mean(2))
    assert tokens[1]["velocity"][0] == pytest.approx(means[1]["velocity"][0], rel=1e-5)


def test_rows_are_the_columns_of_the_table():
    schema = TABLES["velocity"].arrow()
    tracker = VelocityTracker(LABELS)
    for step in (0, 10):
        found = tracker.update(step, [3, 7], spectra(random((2, 64, 10), step)))
        assert found.lane.tolist() == [3, 7]
        assert {"trial_id", "step", *found.columns} == set(schema.names)
        for name, values in found.columns.items():
            column = pa.array(values, type=schema.field(name).type, from_pandas=True)
            assert len(column) == 2
            assert step == 0 or column.null_count == 0, name


@pytest.mark.parametrize("size", [10, 40])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e15])
def test_a_small_change_at_any_scale(size, scale):
    """1 - CKA grows with the square of a change, so that products in float32 would drown it."""
    x = random((64, size)).astype(float)
    for change in (1e-4, 1e-2, 0.3):
        y = x + change * random((64, size), 1)
        now = [(scale * z).astype(np.float32).astype(float) for z in (x, y)]
        _, found = follow(VelocityTracker(), now[0][None], now[1][None])
        assert found["velocity"][0] == pytest.approx(1 - cka(now[0] / scale, now[1] / scale), rel=5e-3)


def test_layers_of_one_shape_are_followed_apart():
    data = {path: torch.from_numpy(random((2, 64, 10), seed)) for seed, path in enumerate("ab")}
    later = {
        path: x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9)) for path, x in data.items()
    }
    layers = [Layer(path, i, "units", "units") for i, path in enumerate("ab")]
    both = VelocityTracker(LABELS)
    both.update(0, [0, 1], measure_layers(data, layers))
    found = both.update(10, [0, 1], measure_layers(later, layers, with_directions=True)).columns
    for i, layer in enumerate(layers):
        one = VelocityTracker(LABELS)
        one.update(0, [0, 1], measure_layers(data, [layer]))
        alone = one.update(10, [0, 1], measure_layers(later, [layer])).columns
        for name in ("velocity", "from_init", "angle_max", "label_alignment"):
            np.testing.assert_allclose(found[name][2 * i : 2 * i + 2], alone[name], rtol=1e-6)
