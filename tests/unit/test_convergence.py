"""Layers that settle in a planted order are found in it; noise, constants and few layers prove nothing."""

import numpy as np
import pandas as pd
import pytest
from analysis_tables import measurements, partition
from phase1_frames import given, trials

from ndt_ray.analysis.convergence import convergence, label, null_bottom_up, order, published_settled, settled
from ndt_ray.analysis.convergence_tests import convergence_tests

STEPS = np.arange(0, 2001, 10)
RNG = np.random.default_rng(0)


def relaxing(until: float, noise: float = 0.05, seed: int = 0) -> np.ndarray:
    """20 → 10 with a half-life of an eighth of `until`."""
    rng = np.random.default_rng(seed)
    return 10 + 10 * 2 ** (-8 * STEPS / until) + rng.normal(0, noise, len(STEPS))


@pytest.mark.parametrize(("n", "known"), [(3, 0.167), (4, 0.167), (5, 0.117), (6, 0.087), (7, 0.083), (8, 0.057)])
def test_few_layers_look_bottom_up_by_chance_as_often_as_enumeration_says(n: int, known: float) -> None:
    assert null_bottom_up(n) == pytest.approx(known, abs=6e-4)


def test_a_curve_settles_where_it_enters_its_band_for_good() -> None:
    values = relaxing(800, noise=0.01)
    found = settled(values)
    assert found.flag is None and found.index is not None
    assert abs(values[found.index] - 10) <= found.tolerance
    # a tenth of the range is left after log2(10) half-lives of 100 steps; after that the slope must vanish too
    assert 330 <= STEPS[found.index] <= 1400


def test_faster_layers_settle_earlier() -> None:
    when = [settled(relaxing(u, seed=int(u))).index for u in (200, 400, 800, 1600)]
    assert all(w is not None for w in when) and when == sorted(when)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        (np.full(200, 3.0), "constant"),
        (np.zeros(200), "constant"),
        (np.arange(5.0), "short"),
        (np.arange(200.0), "never"),
        (10 + np.random.default_rng(1).normal(size=200), "noise"),
    ],
)
def test_what_does_not_settle_says_why(values: np.ndarray, flag: str) -> None:
    found = settled(values)
    assert found.index is None and found.flag == flag


def test_the_founding_rule_depends_on_the_scale() -> None:
    ramp = np.linspace(0, 10, 200)
    assert published_settled(ramp + 1000).index == 0 and published_settled(ramp).index is not None
    assert published_settled(ramp[:20]).flag == "short"


@pytest.mark.parametrize(
    ("when", "rho", "p"),
    [
        ([1, 2, 3, 4, 5], 1.0, 2 / 120),
        ([5, 4, 3, 2, 1], -1.0, 2 / 120),
        ([1, np.nan, np.nan, 2, 3], None, None),
    ],
)
def test_the_p_of_an_order_is_exact(when: list[float], rho: float | None, p: float | None) -> None:
    found, value, kind = order(np.arange(5), when)
    assert kind == "exact"
    if rho is not None:
        assert found == pytest.approx(rho) and value == pytest.approx(p)
    else:
        assert 0 < value <= 1 and -1 < found < 1


def test_many_layers_are_drawn_and_agree_with_what_is_known() -> None:
    rho, p, kind = order(np.arange(12), np.arange(12))
    assert (rho, kind) == (pytest.approx(1.0), "drawn") and p == pytest.approx(1e-4)
    assert order(np.arange(2), [1, 2])[2] == "none" and order(np.arange(5), [3] * 5)[2] == "none"


@pytest.mark.parametrize(("rho", "p", "word"), [
    (0.9, 0.01, "bottom_up"), (0.9, 0.2, "unclear"), (-0.9, 0.01, "top_down"), (0.1, 0.9, "simultaneous"),
    (np.nan, np.nan, "unclear"),
])  # fmt: skip
def test_labels(rho: float, p: float, word: str) -> None:
    assert label(rho, p) == word


@pytest.mark.parametrize(
    ("until", "rho", "word"),
    [
        ((200, 400, 600, 800, 1000, 1200), 1.0, "bottom_up"),
        ((1200, 1000, 800, 600, 400, 200), -1.0, "top_down"),
        ((600, 1000, 400, 800, 1200, 200), -0.143, "simultaneous"),
        ((400, 1000, 200, 600, 1200, 800), 0.429, "unclear"),  # in between
        ((400, 200, 1000, 600, 1200, 800), 0.657, "unclear"),  # as six layers in any order may be: p = 0.18
    ],
)
def test_a_planted_order_is_labelled(until: tuple[int, ...], rho: float, word: str) -> None:
    layers = {f"l{i}": relaxing(u, seed=i) for i, u in enumerate(until)}
    rows = measurements(layers, steps=STEPS, measure="participation_ratio", every=10)
    tables = convergence(partition(rows, steps=2000, every=10))
    (row,) = tables["convergence_order"].to_pylist()
    assert row["rho"] == pytest.approx(rho, abs=5e-4)
    assert row["label"] == word and row["n_settled"] == 6 and 0 < row["spread"] < 1
    assert tables["convergence"].to_pandas()["step"].notna().all()


def test_layers_of_noise_give_no_order_and_no_rows_give_none() -> None:
    layers = {f"l{i}": 10 + np.random.default_rng(i).normal(size=len(STEPS)) for i in range(5)}
    rows = measurements(layers, steps=STEPS, measure="participation_ratio", every=10)
    (row,) = convergence(partition(rows, steps=2000, every=10))["convergence_order"].to_pylist()
    assert row["rho"] is None and row["n_layers"] == 0 and row["label"] == "unclear"
    empty = convergence(partition(pd.DataFrame(), steps=100, every=10))
    assert all(t.num_rows == 0 for t in empty.values())


def _sweep(draw, models=("mlp_a", "cnn_b"), seeds=6, layers=5):  # type: ignore[no-untyped-def]
    """Tables of a sweep whose layers settle at `draw(model, rng)`."""
    names = trials(models, seeds)
    rng, series, orders = np.random.default_rng(3), [], []
    for t in names.to_dict("records"):
        when = draw(t["model"], rng)
        rho, p, _ = order(np.arange(layers), when)
        base = {"trial_id": t["trial_id"], "measure": "participation_ratio", "mode": "default"}
        orders.append(base | {"n_layers": layers, "rho": rho, "p": p})
        for i, w in enumerate(when):
            series.append(base | {"layer": str(i), "layer_index": i, "view": "units", "step": w, "flag": None})
    return {"trials": names, "convergence": pd.DataFrame(series), "convergence_order": pd.DataFrame(orders)}


def test_opposite_orders_differ_by_architecture_and_every_cell_has_one() -> None:
    def planted(model: str, rng: np.random.Generator) -> np.ndarray:
        return (np.arange(5.0) if model == "mlp_a" else -np.arange(5.0)) + rng.normal(0, 0.5, 5)

    out = convergence_tests(given(_sweep(planted), convergence_tests.reads), permutations=999)
    cells = out["convergence_cells"].to_pandas().set_index("model")
    assert (cells["q"] < 0.01).all() and cells.loc["mlp_a", "mean_rho"] > 0.8 > -0.8 > cells.loc["cnn_b", "mean_rho"]
    between = out["convergence_architectures"].to_pandas().set_index("factor")
    assert between.loc["model", "p"] <= 0.05 and between.loc["model", "p_attainable"] == pytest.approx(1 / 64)
    assert between.loc["family", "p_kruskal"] < 0.01
    ranking = out["convergence_ranking"].to_pandas()
    assert ranking["rank"].tolist() == [1, 2, 3, 4, 5] and ranking["cell"].str.startswith("mlp_a").all()
    assert (ranking["n_tried"] == 12).all()


@pytest.mark.slow
def test_random_orders_are_rejected_at_the_nominal_rate() -> None:
    rng, hits = np.random.default_rng(5), [0, 0]
    for k in range(30):
        tables = _sweep(lambda model, r: rng.permutation(5).astype(float))
        tables["trials"]["data"] = f"d{k}"  # another key, other permutations
        out = convergence_tests(given(tables, convergence_tests.reads), permutations=199)
        hits[0] += int((out["convergence_cells"].to_pandas()["p"] <= 0.05).sum())
        hits[1] += int((out["convergence_architectures"].to_pandas()["p"] <= 0.05).sum())
    assert hits[0] <= 9 and hits[1] <= 9, hits  # 60 at .05: 99.9 % below 10


def test_one_seed_one_model_and_nothing_are_survived() -> None:
    one = _sweep(lambda m, r: np.arange(5.0), models=("mlp_a",), seeds=1)
    out = convergence_tests(given(one, convergence_tests.reads), permutations=99)
    (row,) = out["convergence_architectures"].to_pandas().query("factor == 'model'").to_dict("records")
    assert np.isnan(row["p"]) and row["n_groups"] == 1
    (cell,) = out["convergence_cells"].to_pylist()
    assert cell["q_attainable"] == pytest.approx(2 / 120)  # of the orders of five layers
    assert all(t.num_rows == 0 for t in convergence_tests(given({}, convergence_tests.reads)).values())


def test_many_seeds_of_a_deep_network_have_more_orders_than_an_integer_holds() -> None:
    """12!^8 is 0 in 64 bits."""
    deep = _sweep(lambda m, r: np.arange(12.0) + r.normal(0, 0.5, 12), models=("mlp_a",), seeds=8, layers=12)
    (cell,) = convergence_tests(given(deep, convergence_tests.reads), permutations=99)["convergence_cells"].to_pylist()
    assert cell["n_trials"] == 8 and cell["p_attainable"] == cell["q_attainable"] == pytest.approx(1 / 100)


def test_cells_that_never_trained_are_shown_and_left_out_of_comparisons() -> None:
    tables = _sweep(lambda m, r: np.arange(5.0) + r.normal(0, 0.5, 5), models=("mlp_a", "cnn_b", "cnn_c"), seeds=4)
    names = tables["trials"]
    accuracy = np.where(names["model"] == "cnn_c", 0.5, 0.9)
    tables["evaluations"] = names[["trial_id"]].assign(
        step=100, accuracy=accuracy, n=200, class_accuracy=[[a, a] for a in accuracy]
    )
    out = {
        n: t.to_pandas() for n, t in convergence_tests(given(tables, convergence_tests.reads), permutations=99).items()
    }
    cells = out["convergence_cells"].set_index("model")
    assert cells["excluded"].to_dict() == {"mlp_a": False, "cnn_b": False, "cnn_c": True}
    assert np.isnan(cells.loc["cnn_c", "q"]) and np.isfinite(cells.loc["cnn_c", "p"])
    assert cells.loc["mlp_a", "q_attainable"] == pytest.approx(2 / 100) and np.isnan(cells.loc["cnn_c", "q_attainable"])
    assert out["convergence_architectures"].query("factor == 'model'")["n_groups"].tolist() == [2]
    assert not out["convergence_ranking"]["cell"].str.startswith("cnn_c").any()
