"""Spectra against the SVD, sums against their definitions, and a lane's bits against the lanes beside it."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ndt_ray.errors import SpecError
from ndt_ray.layer_views import view_of, views_of
from ndt_ray.measurement import grams
from ndt_ray.measurement import spectra as spectra_module
from ndt_ray.measurement.measures import GRAM_SUMS, all_measures
from ndt_ray.measurement.rows import rows
from ndt_ray.measurement.spectra import Layer, LinearInput, as_matrix, measure_layers
from ndt_ray.store.schema import TABLES

# (stimuli, rows a stimulus, features): all three ways of forming the sums, odd and even numbers of stimuli.
SHAPES = [
    (64, 1, 32), (250, 1, 10), (37, 1, 7), (1024, 1, 16), (40, 1, 100), (10, 1, 40), (16, 1, 16), (300, 1, 4),
    (33, 5, 8), (33, 12, 8), (64, 49, 16), (20, 3, 100), (5, 2, 64), (16, 16, 16), (64, 8, 40),
]  # fmt: skip


def activations(shape, lanes=1, seed=0):
    """Float32 [S, P, m, f] (no axis of rows for one) with a mean and dependent rows; lanes differ."""
    rng = np.random.default_rng(seed)
    p, m, f = shape
    x = rng.standard_normal((lanes, p, m, f)) + 2 * rng.standard_normal((lanes, p, 1, f)) + 3 * rng.standard_normal(f)
    x = torch.from_numpy(x.astype(np.float32))
    return x[:, :, 0] if m == 1 else x


def layer(shape, path="a", index=0):
    kind = "units" if shape[1] == 1 else "tokens"
    return Layer(path, index, kind, kind)


def measure(x, shape, **options):
    return measure_layers({"a": x}, [layer(shape)], **options)[0]


def singular(x):
    return np.linalg.svd(x, compute_uv=False) ** 2


def matrix(x, shape):
    return x.double().numpy().reshape(-1, shape[2])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_eigenvalues_are_squared_singular_values(shape):
    x = activations(shape)
    flat = matrix(x[0], shape)
    found = measure(x, shape)
    rank = min(flat.shape)
    centred = flat - flat.mean(0)
    assert found.eigenvalues.shape == found.eigenvalues_uncentred.shape == (1, rank)
    np.testing.assert_allclose(found.eigenvalues[0], singular(centred), atol=1e-13 * singular(centred)[0])
    np.testing.assert_allclose(found.eigenvalues_uncentred[0], singular(flat), atol=1e-13 * singular(flat)[0])
    assert found.trace[0] == pytest.approx((centred**2).sum(), rel=1e-12)
    assert found.trace_uncentred[0] == pytest.approx((flat**2).sum(), rel=1e-12)
    assert found.mean_norm[0] == pytest.approx(np.linalg.norm(flat.mean(0)), rel=1e-12)
    assert (found.shape.stimuli, found.shape.total, found.shape.features) == (shape[0], *flat.shape)
    cheap = measure(x, shape, centred=False, extras=False)
    np.testing.assert_allclose(cheap.eigenvalues_uncentred[0], singular(flat), atol=1e-13 * singular(flat)[0])
    assert cheap.eigenvalues is cheap.gram_sums is None
    assert (np.diff(found.eigenvalues) <= 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_and_replicates_are_what_they_say(shape):
    x = activations(shape)
    found = measure(x, shape)
    p, m, f = shape
    part = x[0].double().numpy().reshape(p, m, f)
    part = part - part.mean((0, 1))
    second, mean = np.einsum("aif,aig->afg", part, part) / m, part.mean(1)
    t, k, total = np.trace(second, axis1=1, axis2=2), (mean**2).sum(1), second.sum(0)
    kernel = mean @ mean.T
    sums = {
        "t": t.sum(), "tt": t @ t, "k": k.sum(), "kk": k @ k, "kt": k @ t,
        "k_k": (kernel**2).sum(), "m_m": (total**2).sum(), "w": (second**2).sum(),
        "u": np.einsum("af,afg,ag", mean, second, mean), "q": np.einsum("af,fg,ag", mean, total, mean),
    }  # fmt: skip
    np.testing.assert_allclose(found.gram_sums[0], [sums[name] for name in GRAM_SUMS], rtol=1e-10)
    for block in range(16):
        keep = np.arange(p) % 16 != block
        if keep.all():
            assert np.isnan(found.delete_block_pr[0, block])
            continue
        rest = part[keep].reshape(-1, f)
        values = singular(rest - rest.mean(0))
        assert found.delete_block_pr[0, block] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    held, order = found.stimuli.values[0], grams.order(p)
    kernel = kernel[order][:, order]
    assert found.stimuli.norm[0] == pytest.approx((kernel**2).sum(), rel=1e-10)
    np.testing.assert_allclose(held if found.stimuli.form == "kernel" else held @ held.T, kernel, atol=1e-12 * k.max())


@pytest.mark.parametrize("options", [{}, {"extras": False}, {"centred": False, "extras": False}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_lane_has_the_same_bits_in_any_company(shape, options):
    x = activations(shape, lanes=7)
    together = measure(x, shape, **options)
    for lanes in ([0], [6], [3, 1], [6, 5, 4, 2]):
        apart = measure([x[i].clone() for i in lanes], shape, **options)
        for name in ("eigenvalues", "eigenvalues_uncentred", "trace", "mean_norm", "gram_sums", "delete_block_pr"):
            mine, theirs = getattr(apart, name), getattr(together, name)
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert torch.equal(torch.from_numpy(mine).nan_to_num(), torch.from_numpy(theirs[lanes]).nan_to_num()), (
                    name
                )
        if apart.stimuli is not None:
            np.testing.assert_array_equal(apart.stimuli.values, together.stimuli.values[lanes])


def test_other_layers_do_not_change_a_layer():
    shapes = {"a": (64, 1, 32), "b": (64, 1, 10), "c": (64, 1, 32)}
    data = {path: activations(shape, lanes=3, seed=i) for i, (path, shape) in enumerate(shapes.items())}
    layers = [layer(shape, path, i) for i, (path, shape) in enumerate(shapes.items())]
    for together, alone in zip(measure_layers(data, layers), layers, strict=True):
        (apart,) = measure_layers(data, [alone])
        np.testing.assert_array_equal(together.eigenvalues, apart.eigenvalues)
        np.testing.assert_array_equal(together.eigenvalues_uncentred, apart.eigenvalues_uncentred)


@pytest.mark.parametrize("shape", [(64, 1, 32), (37, 1, 7), (64, 49, 16), (10, 1, 40)], ids=str)
def test_lanes_one_by_one_have_the_bits_of_all_at_once(shape, monkeypatch):
    """What is done where a batched product is seen to round otherwise."""
    x = activations(shape, lanes=3)
    together = measure(x, shape)
    monkeypatch.setattr(grams, "_batched_equals_single", lambda *_: False)
    apart = measure(x, shape)
    for name in ("eigenvalues", "gram_sums", "delete_block_pr"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))


def test_directions_that_come_with_a_spectrum_are_their_own():
    for shape in ((64, 1, 32), (10, 1, 40), (64, 5, 8)):
        spectrum = measure(activations(shape, lanes=2), shape, with_directions=True)
        flat = spectrum.stimuli.directions.vectors
        values = torch.from_numpy(spectrum.stimuli.values)
        kernel = values if spectrum.stimuli.form == "kernel" else values @ values.mT
        top = torch.linalg.eigh(kernel).eigenvectors[:, :, -5:].flip(2)
        np.testing.assert_allclose((flat.mT @ top).abs(), torch.eye(5, dtype=torch.float64).expand(2, 5, 5), atol=1e-6)


def test_a_large_matrix_taken_in_pieces(monkeypatch):
    shape = (64, 49, 16)
    x = activations(shape, lanes=2)
    whole = measure(x, shape), measure(x, shape, centred=False, extras=False)
    monkeypatch.setattr("ndt_ray.measurement.grams._PIECE", 5000)
    pieces = measure(x, shape), measure(x, shape, centred=False, extras=False)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a.eigenvalues_uncentred, b.eigenvalues_uncentred, rtol=1e-11)


@pytest.mark.parametrize(
    ("kind", "view", "shape", "expected", "per_stimulus"),
    [
        ("units", "units", (6, 5), lambda x: x, 1),
        ("positions", "positions", (6, 3, 4, 2), lambda x: x.transpose(0, 2, 3, 1).reshape(48, 3), 8),
        ("positions", "positions", (6, 3, 4), lambda x: x.transpose(0, 2, 1).reshape(24, 3), 4),
        ("positions", "gap", (6, 3, 4, 2), lambda x: x.mean((2, 3)), 1),
        ("positions", "flat", (6, 3, 4, 2), lambda x: x.reshape(6, 24), 1),
        ("tokens", "tokens", (6, 4, 5), lambda x: x.reshape(24, 5), 4),
        ("tokens", "mean", (6, 4, 5), lambda x: x.mean(1), 1),
    ],
)
def test_views(kind, view, shape, expected, per_stimulus):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, m = as_matrix(x, kind, view)
    assert m == per_stimulus
    np.testing.assert_allclose(found.double(), expected(x.double().numpy()), atol=1e-12)
    inputs = {"stacked": torch.stack([x, 2 * x]), "apart": [x, 2 * x]}
    layers = [Layer(path, 0, kind, view) for path in inputs]
    both = measure_layers(inputs, layers)
    np.testing.assert_array_equal(both[0].eigenvalues, both[1].eigenvalues)
    wanted = singular(expected(x.double().numpy()))
    np.testing.assert_allclose(both[0].eigenvalues_uncentred[0], wanted, atol=1e-12 * wanted[0])


def test_channels_last_is_the_same_matrix():
    x = torch.randn(8, 6, 5, 5)
    layers = [Layer("a", 0, "positions", "positions")]
    (plain,) = measure_layers({"a": x[None]}, layers)
    (last,) = measure_layers({"a": [x.to(memory_format=torch.channels_last)]}, layers)
    np.testing.assert_array_equal(plain.eigenvalues, last.eigenvalues)


def test_unknown_views_kinds_and_shapes_are_refused():
    assert view_of("positions") == "positions" and view_of("tokens", {"tokens": "mean"}) == "mean"
    several = {"positions": ("gap", "flat")}
    assert view_of("positions", several) == "gap" and views_of("positions", several) == ("gap", "flat")
    assert views_of("tokens", several) == ("tokens",)
    with pytest.raises(SpecError, match="measure.views.positions: unknown view 'flatt' - did you mean 'flat'"):
        views_of("positions", {"positions": ("gap", "flatt")})
    with pytest.raises(SpecError, match="did you mean 'gap'"):
        view_of("positions", {"positions": "gapp"})
    with pytest.raises(SpecError, match="did you mean 'tokens'"):
        view_of("positions", {"token": "mean"})
    with pytest.raises(SpecError, match="unknown kind"):
        view_of("pixels")
    with pytest.raises(SpecError, match="cannot have shape"):
        as_matrix(torch.zeros(3, 4, 5), "units", "units")
    with pytest.raises(SpecError, match="floating-point"):
        as_matrix(torch.zeros(3, 4, dtype=torch.int64), "units", "units")
    with pytest.raises(SpecError, match="no activations were captured for layer 'b'"):
        measure_layers({}, [Layer("b", 0, "units", "units")])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("view", ["tokens", "mean"])
def test_an_expanding_linear_is_measured_through_its_input(view, bias):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 32, 6, 9, generator=generator)
    weight, offset = torch.randn(3, 40, 9, generator=generator), torch.randn(3, 40, generator=generator)
    offset = offset if bias else torch.zeros_like(offset)
    outputs = torch.stack(
        [x.double() @ w.double().T + b.double() for x, w, b in zip(inputs, weight, offset, strict=True)]
    )
    tracked = [Layer("a", 0, "tokens", view)]
    (direct,) = measure_layers({"a": outputs}, tracked)
    linear = {"a": LinearInput(inputs, weight, offset if bias else None)}
    (reduced,) = measure_layers({}, tracked, linear=linear)
    assert reduced.eigenvalues.shape == (3, 10) and reduced.shape.features == 40
    scale = direct.eigenvalues_uncentred[:, :1]
    np.testing.assert_allclose(reduced.eigenvalues / scale, direct.eigenvalues[:, :10] / scale, atol=1e-13)
    np.testing.assert_allclose(
        reduced.eigenvalues_uncentred / scale, direct.eigenvalues_uncentred[:, :10] / scale, atol=1e-13
    )
    for name in ("trace", "mean_norm", "gram_sums", "delete_block_pr"):
        np.testing.assert_allclose(getattr(reduced, name), getattr(direct, name), rtol=1e-9, err_msg=name)
    one = {"a": LinearInput(inputs[1:2], weight[1:2], offset[1:2] if bias else None)}
    (alone,) = measure_layers({}, tracked, linear=one)
    np.testing.assert_array_equal(alone.eigenvalues[0], reduced.eigenvalues[1])


def test_a_linear_that_does_not_expand_is_measured_at_its_output():
    x, w = torch.randn(1, 64, 16), torch.randn(1, 17, 16)
    y = x @ w.mT
    (found,) = measure_layers({"a": y}, [Layer("a", 0, "units", "units")], linear={"a": LinearInput(x, w)})
    np.testing.assert_array_equal(found.eigenvalues, measure(y, (64, 1, 17)).eigenvalues)


@pytest.mark.parametrize(("n", "d_out"), [(64, 9), (12, 40), (64, 17)])
def test_a_linear_known_only_by_its_input(n, d_out):
    x, w, b = torch.randn(2, n, 16).double(), torch.randn(2, d_out, 16).double(), torch.randn(2, d_out).double()
    (found,) = measure_layers({}, [Layer("a", 0, "units", "units")], linear={"a": LinearInput(x, w, b)})
    direct = measure(x @ w.mT + b[:, None], (n, 1, d_out))
    size = direct.eigenvalues.shape[1]
    assert found.shape == direct.shape
    for name in ("eigenvalues", "eigenvalues_uncentred"):
        np.testing.assert_allclose(getattr(found, name)[:, :size], getattr(direct, name), atol=1e-10)
        assert getattr(found, name).shape[1] == min(n, 17, d_out)
    np.testing.assert_allclose(found.gram_sums, direct.gram_sums, rtol=1e-9)


def test_precision_against_a_float64_svd():
    """PERFORMANCE 3.3: 2e-6 on every measure, also where the layer is numerically rank-deficient."""
    generator = torch.Generator().manual_seed(0)
    for rank, spread in ((64, 1.0), (5, 1.0), (64, 1e-5)):
        scale = torch.logspace(0, np.log10(spread), rank)
        x = (torch.randn(256, rank, generator=generator) * scale) @ torch.randn(rank, 64, generator=generator) + 1
        found = all_measures(measure(x[None], (256, 1, 64)).eigenvalues)
        exact = x.double().numpy()
        for name, value in all_measures(singular(exact - exact.mean(0))).items():
            if name != "power_law_alpha":
                assert found[name][0] == pytest.approx(float(value), rel=2e-6), (name, rank, spread)


def test_centred_measures_do_not_see_the_mean():
    x = activations((512, 1, 32))
    plain, moved = measure(x, (512, 1, 32)), measure(x + 1000, (512, 1, 32))
    for name, value in all_measures(plain.eigenvalues).items():
        # Adding 1000 in float32 rounds the activations themselves by 3e-5.
        np.testing.assert_allclose(
            all_measures(moved.eigenvalues)[name], value, rtol=1e-4 if name == "power_law_alpha" else 1e-5
        )
    exact = measure(x.double() + 1000, (512, 1, 32))
    for name in ("stable_rank", "participation_ratio", "energy_90", "nuclear_norm_ratio"):
        np.testing.assert_allclose(
            all_measures(exact.eigenvalues)[name], all_measures(plain.eigenvalues)[name], rtol=1e-9
        )


@pytest.mark.parametrize("shape", [(64, 1, 8), (20, 1, 50), (32, 9, 4), (32, 4, 9)], ids=str)
def test_dead_constant_and_broken_lanes_are_null_and_say_why(shape):
    good = activations(shape)[0]
    nan, inf = good.clone(), good.clone()
    nan.view(-1)[3], inf.view(-1)[3] = torch.nan, torch.inf
    constant = torch.full_like(good, 0.1) * torch.arange(1, shape[2] + 1)
    lanes = torch.stack([good, torch.zeros_like(good), constant, nan, inf, good])
    spectrum = measure(lanes, shape)
    assert spectrum.flags == (None, "dead", "dead", "nonfinite", "nonfinite", None)
    table = rows([spectrum])
    for name in ("stable_rank", "energy_90", "participation_ratio_corrected", "rankme"):
        assert list(np.isnan(table.measurements[name])) == [False, True, True, True, True, False], name
    assert list(np.isnan(table.measurements["stable_rank_uncentred"])) == [False, True, False, True, True, False]
    assert table.measurements["stable_rank_uncentred"][2] == pytest.approx(1)
    assert np.isnan(spectrum.delete_block_pr[1:5]).all() and not np.isnan(spectrum.delete_block_pr[[0, 5]]).any()
    np.testing.assert_array_equal(spectrum.eigenvalues[0], measure(good[None], shape).eigenvalues[0])
    cheap = measure(lanes, shape, centred=False, extras=False)
    assert cheap.flags == (None, "dead", None, "nonfinite", "nonfinite", None)


def test_broken_weights_of_an_expanding_linear():
    x, w = torch.randn(2, 64, 4), torch.randn(2, 20, 4)
    w[1, 0, 0] = torch.nan
    (found,) = measure_layers({}, [Layer("a", 0, "units", "units")], linear={"a": LinearInput(x, w)})
    assert found.flags == (None, "nonfinite")


@pytest.mark.parametrize("error", [1e-6, np.nan])
def test_a_solver_that_errs_is_caught(error, monkeypatch):
    honest = spectra_module._descending

    def faulty(matrices, leading):
        values, vectors = honest(matrices, leading)
        values = values.copy()
        values[1] *= 1 + error
        return values, vectors

    monkeypatch.setattr(spectra_module, "_descending", faulty)
    found = measure(activations((64, 1, 8), lanes=3), (64, 1, 8), centred=False, extras=False)
    assert found.flags == (None, "solver", None)
    assert np.isnan(found.eigenvalues_uncentred[1]).all()
    monkeypatch.setattr(spectra_module, "SOLVED", 1.0)
    let_pass = (None, None if np.isfinite(error) else "solver", None)
    assert measure(activations((64, 1, 8), lanes=3), (64, 1, 8), centred=False, extras=False).flags == let_pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_type(dtype):
    x = activations((64, 1, 8)).to(dtype)
    found = measure(x, (64, 1, 8))
    flat = x[0].double().numpy()
    np.testing.assert_allclose(found.eigenvalues[0], singular(flat - flat.mean(0)), rtol=1e-10)


def test_activations_are_left_as_they_were():
    x = activations((20, 3, 100), lanes=2).double().requires_grad_()
    before = x.detach().clone()
    found = measure(x, (20, 3, 100))
    assert torch.equal(x.detach(), before) and x.grad is None
    assert isinstance(found.eigenvalues, np.ndarray)


def test_rows_are_the_columns_of_the_tables():
    shapes = {"net.0": (64, 1, 32), "net.2": (64, 4, 8)}
    data = {path: activations(shape, lanes=3, seed=i) for i, (path, shape) in enumerate(shapes.items())}
    layers = [layer(shape, path, i) for i, (path, shape) in enumerate(shapes.items())]
    found = rows(measure_layers(data, layers))
    assert found.lane.tolist() == [0, 1, 2, 0, 1, 2]
    for table, columns in (("measurements", found.measurements), ("spectra", found.spectra)):
        schema = TABLES[table].arrow()
        assert {"trial_id", "step", *columns} == set(schema.names)
        for name, values in columns.items():
            column = pa.array(values, type=schema.field(name).type, from_pandas=True)
            # A power law needs a rank of 28, which the second layer does not have.
            expected = 6 if name == "flag" else 3 if "alpha" in name else 0
            assert (len(column), column.null_count) == (6, expected), name
    assert found.measurements["layer"] == ["net.0"] * 3 + ["net.2"] * 3
    assert found.spectra["n_rows"].tolist() == [64] * 3 + [256] * 3
    assert found.measurements["flag"] == [None] * 6
    assert [len(v) for v in found.spectra["eigenvalues"]] == [32] * 3 + [8] * 3
    assert all(len(v) == len(GRAM_SUMS) for v in found.spectra["gram_sums"])
    direct = all_measures(measure_layers(data, layers)[1].eigenvalues)
    np.testing.assert_array_equal(found.measurements["participation_ratio"][3:], direct["participation_ratio"])


def test_rows_keep_as_many_eigenvalues_as_asked():
    spectrum = measure(activations((64, 1, 32), lanes=2), (64, 1, 32))
    assert [len(v) for v in rows([spectrum], 5).spectra["eigenvalues"]] == [5, 5]
    assert [len(v) for v in rows([spectrum], "none").spectra["eigenvalues_uncentred"]] == [0, 0]
    np.testing.assert_array_equal(
        rows([spectrum], 5).measurements["rankme"], rows([spectrum], "full").measurements["rankme"]
    )
    cheap = rows([measure(activations((64, 1, 32)), (64, 1, 32), centred=False, extras=False)])
    assert np.isnan(cheap.measurements["stable_rank"]).all() and list(cheap.spectra["eigenvalues"]) == [None]
    assert not np.isnan(cheap.measurements["stable_rank_uncentred"]).any()
    assert rows([]).measurements["layer"] == []


def test_turning_the_features_changes_no_spectrum():
    x = activations((64, 1, 16)).double()
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    plain, turned = measure(x, (64, 1, 16)), measure(x @ turn, (64, 1, 16))
    np.testing.assert_allclose(turned.eigenvalues, plain.eigenvalues, rtol=1e-10)
    np.testing.assert_allclose(turned.gram_sums, plain.gram_sums, rtol=1e-10)


def test_correction_and_jackknife_recover_what_a_small_probe_misses():
    """A population of known participation ratio: corrected is near it, and blocks give an error of the right size."""
    scale = torch.arange(1.0, 65) ** -0.3
    true = float((scale**2).sum() ** 2 / (scale**4).sum())
    corrected, naive, spread = [], [], []
    for seed in range(40):
        x = torch.randn(1, 96, 64, generator=torch.Generator().manual_seed(seed)) * scale + 3
        spectrum = measure(x, (96, 1, 64))
        found = rows([spectrum]).measurements
        corrected.append(found["participation_ratio_corrected"][0])
        naive.append(found["participation_ratio"][0])
        blocks = spectrum.delete_block_pr[0]
        spread.append(np.sqrt(15 / 16 * ((blocks - blocks.mean()) ** 2).sum()))
    assert np.mean(naive) < 0.75 * true
    assert np.mean(corrected) == pytest.approx(true, rel=0.03)
    assert 0.5 < np.mean(spread) / np.std(naive) < 2
