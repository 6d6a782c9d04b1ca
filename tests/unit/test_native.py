"""The compiled kernels against LAPACK and torch, against themselves in other company, and where they cannot be had."""

import ctypes
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ndt_ray import native, train, worker
from ndt_ray.lanes.numerics import fingerprint
from ndt_ray.measurement import grams, spectra
from ndt_ray.measurement.rows import rows as measurement_rows
from ndt_ray.native import build
from ndt_ray.native.library import Kernels
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.reader import Store, open_store

SIDES = (1, 2, 3, 8, 10, 31, 32, 33, 64)

kernel_only = pytest.mark.skipif(
    not native.active(),
    reason=f"the compiled kernels are not used here ({native.status()}); they need a C compiler",
)


@pytest.fixture
def anew() -> Iterator[None]:
    """What is known of the kernel is forgotten before and after."""
    native._kernels.cache_clear()
    yield
    native._kernels.cache_clear()


def hard(n: int, seed: int = 0) -> np.ndarray:
    """Symmetric matrices `[k, n, n]`: full, zero, identity, rank one, graded both ways, repeated, huge, tiny."""
    rng = np.random.default_rng(seed)
    x, v = rng.normal(size=(2 * n, n)), rng.normal(size=n)
    q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    low = rng.normal(size=(2 * n, max(1, n // 3))) @ rng.normal(size=(max(1, n // 3), n))
    path = np.diag(np.ones(n - 1), 1)
    spectra = [
        np.logspace(0, -30, n),
        np.logspace(0, -300, n),
        np.repeat([1.0, 2.0], [n // 2, n - n // 2]),
        np.r_[1.0, np.full(n - 1, 1e-9)],
        np.r_[np.ones(n // 2), np.zeros(n - n // 2)],
    ]
    made = [
        x.T @ x,
        np.zeros((n, n)),
        np.eye(n),
        np.outer(v, v),
        *((q * s) @ q.T for s in spectra),
        np.diag(np.logspace(0, -300, n)),
        np.diag(np.logspace(-300, 0, n)),
        x.T @ x * 1e300,
        x.T @ x * 1e-300,
        low.T @ low,
        np.eye(n) + 1e-14 * x.T @ x,
        np.ones((n, n)),
        path + path.T,
        -(x.T @ x),
    ]
    return np.stack([(m + m.T) / 2 for m in made])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


@kernel_only
@pytest.mark.parametrize("n", SIDES)
def test_it_agrees_with_lapack_on_hard_matrices(n: int) -> None:
    for seed in range(3):
        matrices = hard(n, seed)
        unit = matrices / np.maximum(np.abs(matrices).max((1, 2), keepdims=True), np.finfo(float).tiny)
        norm = np.maximum(np.linalg.norm(unit, 2, (1, 2)), np.finfo(float).tiny)[:, None]
        expected = np.linalg.eigvalsh(unit)[:, ::-1]
        found, _ = native.kernels().eigen(unit)
        assert (np.diff(found) <= 0).all()
        assert (np.abs(found - expected) <= 1e-14 * norm).all()
        scaled = (
            native.kernels().eigen(matrices)[0]
            / np.maximum(np.abs(matrices).max((1, 2), keepdims=False), np.finfo(float).tiny)[:, None]
        )
        assert (np.abs(scaled - expected) <= 1e-14 * norm).all()


@kernel_only
@pytest.mark.parametrize("n", SIDES)
def test_leading_vectors_are_orthonormal_eigenvectors(n: int) -> None:
    matrices, leading = hard(n)[:-1], min(5, n)
    matrices = matrices / np.maximum(np.abs(matrices).max((1, 2), keepdims=True), np.finfo(float).tiny)
    norm = np.maximum(np.linalg.norm(matrices, 2, (1, 2)), np.finfo(float).tiny)[:, None, None]
    values, vectors = native.kernels().eigen(matrices, leading)
    assert same_bits(values, native.kernels().eigen(matrices)[0])
    left = matrices @ vectors - vectors * values[:, None, :leading]
    assert (np.abs(left) <= 1e-14 * norm).all()
    np.testing.assert_allclose(
        np.swapaxes(vectors, 1, 2) @ vectors, np.tile(np.eye(leading), (len(values), 1, 1)), atol=2e-14
    )


@kernel_only
@pytest.mark.parametrize("n", [1, 5, 32])
def test_a_matrix_gives_the_same_bits_in_any_company(n: int) -> None:
    matrices, leading = hard(n), min(3, n)
    values, vectors = native.kernels().eigen(matrices, leading)
    order = np.random.default_rng(1).permutation(len(matrices))
    shuffled = native.kernels().eigen(matrices[order], leading)
    assert same_bits(shuffled[0], values[order]) and same_bits(shuffled[1], vectors[order])
    for i, matrix in enumerate(matrices):
        alone = native.kernels().eigen(matrix[None], leading)
        assert same_bits(alone[0][0], values[i]) and same_bits(alone[1][0], vectors[i])
    assert native.kernels().eigen(matrices[:0])[0].shape == (0, n)


@kernel_only
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_nan_and_leaves_the_others_alone(value: float) -> None:
    matrices = np.stack([hard(10)[0]] * 11)
    expected = native.kernels().eigen(matrices, 2)
    matrices[4, 2, 7] = matrices[4, 7, 2] = value
    values, vectors = native.kernels().eigen(matrices, 2)
    others = np.arange(11) != 4
    assert np.isnan(values[4]).all() and not vectors[4].any()
    assert same_bits(values[others], expected[0][others]) and same_bits(vectors[others], expected[1][others])


@kernel_only
def test_too_many_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="leading=4, n=3"):
        native.kernels().eigen(np.zeros((2, 3, 3)), 4)


@pytest.mark.slow
@kernel_only
@pytest.mark.parametrize("flags", [[], ["-O0"], ["-O3"], ["-mavx2"], ["-mavx2", "-mfma", "-O3"]], ids=" ".join)
def test_its_bits_are_the_source_s_alone(flags: list[str], tmp_path: Path) -> None:
    if "-mavx2" in flags and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    library = build._compile(build._compiler(), [*build.FLAGS, *flags], tmp_path / "kernels.so")
    assert Kernels(ctypes.CDLL(str(library))).bits() == native.KNOWN_BITS


@kernel_only
@pytest.mark.parametrize("shape", [(128, 32), (100, 10), (35, 33), (17, 3), (9, 2)], ids=str)
def test_gram_sums_are_those_of_torch(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    n, f = shape
    x = (np.random.default_rng(n).normal(size=(3, n, f)) * np.logspace(0, -3, f) + 2.0).astype(np.float32)
    exact = x.astype(np.float64)
    # Products of float32 are exact in float64, and so is each sum of them, taken in this order.
    expected = np.zeros((3, f, f))
    for row in exact.swapaxes(0, 1):
        expected += row[:, :, None] * row[:, None, :]
    assert same_bits(native.kernels().gram(x), expected)
    assert same_bits(native.kernels().gram(x[1:2].copy()), expected[1:2])
    stack = torch.from_numpy(x)[:, :, None]
    found = grams.sums([stack[:1], stack[1:]])
    monkeypatch.setattr(native, "LARGEST", 0)
    for name, other in vars(grams.sums([stack])).items():
        mine = getattr(found, name)
        assert mine.shape == other.shape, name
        np.testing.assert_allclose(mine, other, rtol=1e-11, atol=1e-12 * float(other.abs().max()), err_msg=name)


@kernel_only
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("shape", [(64, 49, 32), (35, 70, 33), (32, 5, 64), (16, 196, 1), (9, 2, 3)], ids=str)
def test_sums_over_stimuli_of_many_rows_are_those_of_torch(
    shape: tuple[int, int, int], across: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, n, f = shape
    x = (np.random.default_rng(n).normal(size=(3, p, n, f)) * np.logspace(0, -3, f) + 2.0).astype(np.float32)
    stack = torch.from_numpy(x.swapaxes(2, 3).copy()).mT if across else torch.from_numpy(x)
    found = grams.sums([stack[:1], stack[1:]])
    alone = grams.sums([stack[2:]])
    monkeypatch.setattr(native, "LARGEST", 0)
    for name, other in vars(grams.sums([stack])).items():
        mine = getattr(found, name)
        assert mine.shape == other.shape, name
        np.testing.assert_allclose(mine, other, rtol=1e-9, atol=1e-11 * float(other.abs().max()), err_msg=name)
        assert same_bits(np.asarray(mine[2:]), np.asarray(getattr(alone, name))), name


@kernel_only
@pytest.mark.parametrize("shape", [(128, 32, 10), (100, 10, 64), (35, 33, 7), (9, 1, 1)], ids=str)
def test_inner_products_of_kernels_are_those_of_numpy_in_any_company(shape: tuple[int, int, int]) -> None:
    n, d, e = shape
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, n, d)).astype(np.float32), rng.normal(size=(5, n, e)).astype(np.float32)
    found = native.kernels().cross(x, y)
    wide, other = x.astype(np.float64), y.astype(np.float64)
    kernels = np.einsum("kad,kbd->kab", wide, wide), np.einsum("kae,kbe->kab", other, other)
    np.testing.assert_allclose(found, np.einsum("kab,kab->k", *kernels), rtol=1e-5)
    for i in range(5):
        assert same_bits(native.kernels().cross(x[i : i + 1], y[i : i + 1]), found[i : i + 1])
        assert same_bits(native.kernels().cross(x, y[i])[i : i + 1], found[i : i + 1])


@kernel_only
def test_sums_of_squares_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    grads, before, weights, start = rng.normal(size=(4, 3, 1000)).astype(np.float32)
    chosen, starts = np.array([2, 0]), np.array([0, 7, 64, 64, 1000])
    found = native.kernels().squares(grads, before, weights, start, chosen, starts)
    exact = [x.astype(np.float64)[chosen] for x in (grads, weights, start, before)]
    sides = np.stack([exact[0], exact[1] - exact[3], exact[1], exact[1] - exact[2]], 1)
    expected = [(sides[..., a:b] ** 2).sum(-1) for a, b in zip(starts, starts[1:], strict=False)]
    np.testing.assert_allclose(found, np.stack(expected, -1), rtol=1e-14)
    none = native.kernels().squares(None, None, weights, start, chosen[:1], starts)
    assert np.isnan(none[:, :2]).all() and same_bits(none[:, 2:], found[:1, 2:])


def measured(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(3, *shape)).astype(np.float32))
    x = x @ torch.linspace(1.5, 0.1, shape[-1]).diag() + 0.3
    layers = [spectra.Layer("a", 0, "units", "units")]
    found = spectra.measure_layers({"a": x}, layers, with_directions=True)
    rows = measurement_rows(found)
    listed = {name: np.stack(rows.spectra[name]) for name in ("eigenvalues", "delete_block_pr")}
    numbers = {name: v for name, v in rows.measurements.items() if isinstance(v, np.ndarray) and v.dtype == np.float64}
    directions = found[0].stimuli.directions.vectors  # type: ignore[union-attr]
    return {**numbers, **listed, "directions": (directions @ directions.mT).numpy()}


@kernel_only
@pytest.mark.parametrize("shape", [(128, 32), (48, 64), (64, 10)], ids=str)
def test_without_the_kernel_the_measures_are_the_same(
    shape: tuple[int, ...], anew: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_kernel, mark = measured(shape), native.mark()
    native._kernels.cache_clear()
    monkeypatch.setenv(native.VARIABLE, "0")
    assert not native.active() and native.mark() == "" and "NDT_NATIVE=0" in native.status()
    assert mark not in fingerprint(torch.device("cpu"))
    without = measured(shape)
    assert with_kernel.keys() == without.keys()
    for name, values in with_kernel.items():
        np.testing.assert_allclose(values, without[name], rtol=2e-6, atol=1e-12, err_msg=name)
    np.testing.assert_array_equal(with_kernel["energy_90"], without["energy_90"])


@kernel_only
def test_a_trial_goes_on_with_what_measured_it() -> None:
    mark = fingerprint(torch.device("cpu"))
    assert mark.endswith(native.mark()) and native.mark() == f" native:{native.KNOWN_BITS[:8]}"
    before = mark.removesuffix(native.mark())
    with native.as_recorded(f"loop {before}"):
        assert not native.active() and fingerprint(torch.device("cpu")) == before
    for wish in (f"loop {mark}", "", None):
        with native.as_recorded(wish):
            assert fingerprint(torch.device("cpu")) == mark


def test_without_a_compiler_lapack_solves_and_nothing_is_said(
    anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NDT_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert not native.active() and "no C compiler: 'no-such-compiler'" in native.status()
    with pytest.raises(RuntimeError, match="no compiled kernels here: no C compiler"):
        native.kernels().eigen(np.eye(3)[None])
    assert spectra.eigenvalues(np.eye(3)[None]).values.tolist() == [[1.0, 1.0, 1.0]]
    assert not caplog.records


@pytest.mark.parametrize("fault", ["compiler", "bits"])
def test_an_unexpected_failure_is_said_once(
    fault: str, anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "compiler":
        monkeypatch.setenv("NDT_CACHE", str(tmp_path))
        monkeypatch.setenv("CC", f"{sys.executable} -c 'import sys; sys.exit(\"error: no space left\")'")
        said = "no space left"
    elif not native.active():
        pytest.skip(f"the compiled kernels are not used here: {native.status()}")
    else:
        native._kernels.cache_clear()
        monkeypatch.setattr(native, "KNOWN_BITS", "0" * 64)
        said = "fail their test"
    with caplog.at_level(logging.WARNING):
        assert not native.active() and not native.active()
    assert [said in record.message for record in caplog.records] == [True]
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
@kernel_only
def test_a_home_that_cannot_be_written_is_no_hindrance(
    anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NDT_CACHE", str(tmp_path / "file"))
    assert native.active() and not caplog.records


@pytest.mark.slow
@kernel_only
def test_a_library_that_was_cut_short_is_built_again(
    anew: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NDT_CACHE", str(tmp_path))
    flags = [*build.FLAGS, *build.VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])]
    broken = tmp_path / "native" / build._name(flags)
    broken.parent.mkdir()
    broken.write_bytes(b"\x7fELF")
    assert native.active() and broken.stat().st_size > 4
    assert [p.name for p in broken.parent.iterdir()] == [broken.name]


@pytest.mark.slow
@kernel_only
def test_processes_that_build_at_once_do_not_meet(tmp_path: Path) -> None:
    code = "from ndt_ray import native; print(native.active())"
    environment = {**os.environ, "NDT_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0] for p in running] == ["True\n"] * 2
    assert len(list((tmp_path / "native").iterdir())) == 1


SPEC = """
name: small
base:
  model: mlp_narrow
  data: digits
  train: {steps: 12, batch: 32}
  measure: {every: 3, probe: 32}
  evaluate: {size: 50}
axes:
  - {path: seed, range: 2}
analyses: []
"""


@kernel_only
@pytest.mark.slow
def test_a_pack_begun_without_kernels_goes_on_without_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def trained(folder: str) -> Store:
        run_sweep(parse_sweep(SPEC), tmp_path / folder, Options(executor="inline"))
        return open_store(tmp_path / folder)

    def table(store: Store, name: str) -> list[dict[str, object]]:
        return store.sql(f"SELECT * FROM {name} ORDER BY ALL").drop(columns=["pack"]).to_dict("records")

    monkeypatch.setattr(train, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.0)
    with native.as_recorded("no kernels"):
        whole = trained("whole")
        with monkeypatch.context() as patched:
            patched.setattr(worker, "_should_stop", lambda folder: True)
            trained("parts")
    parts = open_store(tmp_path / "parts")
    assert parts.sql("SELECT max(step) AS step FROM losses")["step"].item() < 12
    trained("parts")
    assert parts.sql("SELECT max(step) AS step FROM losses")["step"].item() == 12
    for name in ("trials", "measurements", "spectra", "velocity", "dynamics"):
        assert str(table(parts, name)) == str(table(whole, name)), name
    fresh = trained("fresh")
    columns = "SELECT trial_id, fingerprint FROM trials ORDER BY trial_id"
    before, now = whole.sql(columns), fresh.sql(columns)
    assert (before["trial_id"] == now["trial_id"]).all()
    assert (before["fingerprint"] + native.mark() == now["fingerprint"]).all()
