"""Variance by seed source: unbiased, covering, honest about what only varied together."""

from typing import Any

import numpy as np
import pytest
from inference_tables import given, trial_row

from ndt_ray.analysis.inference.components import components, grouped_sources, total
from ndt_ray.analysis.inference.variance_sources import variance_sources


def crossed(rng: np.random.Generator, sizes: tuple[int, int], sd: tuple[float, float, float]) -> tuple[Any, Any]:
    first, second = np.divmod(np.arange(sizes[0] * sizes[1]), sizes[1])
    effects = sd[0] * rng.normal(size=sizes[0])[first] + sd[1] * rng.normal(size=sizes[1])[second]
    return effects + sd[2] * rng.normal(size=len(first)), {"init": first, "order": second}


def test_components_are_the_anova_estimates_of_a_balanced_design() -> None:
    y, codes = crossed(np.random.default_rng(0), (4, 5), (1.0, 0.5, 0.5))
    table = y.reshape(4, 5)
    rest = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    ms_rest = (rest**2).sum() / 12
    ms_init = 5 * table.mean(1).var(ddof=1)
    found = {c.source: c for c in components(y, codes, np.random.default_rng(1)) or []}
    assert found["rest"].variance == pytest.approx(ms_rest)
    assert found["init"].variance == pytest.approx((ms_init - ms_rest) / 5)
    assert found["init"].levels == 4 and found["init"].lo < found["init"].variance < found["init"].hi


@pytest.mark.slow
def test_estimates_are_unbiased_intervals_cover_and_p_holds_its_level() -> None:
    """150 designs of 4 x 5: SE of a coverage 2 %; init has no effect, so that its p rejects in 5 %."""
    hits: dict[str, list[bool]] = {"init": [], "order": [], "rest": []}
    variances: dict[str, list[float]] = {"init": [], "order": [], "rest": []}
    p = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        y, codes = crossed(rng, (4, 5), (0.0, 1.0, 0.5))
        for c, truth in zip(components(y, codes, rng) or [], (0.0, 1.0, 0.25), strict=True):
            hits[c.source].append(c.lo <= truth <= c.hi)
            variances[c.source].append(c.variance)
            if c.source == "init":
                p.append(c.p)
    assert min(np.mean(h) for h in hits.values()) >= 0.88
    assert [np.mean(v) for v in variances.values()] == pytest.approx([0.0, 1.0, 0.25], abs=0.2)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_missing_trials_and_designs_that_cannot_be_told_apart() -> None:
    y, codes = crossed(np.random.default_rng(2), (5, 5), (2.0, 0.1, 0.3))
    keep = np.random.default_rng(3).permutation(25)[:20]
    found = {
        c.source: c for c in components(y[keep], {k: v[keep] for k, v in codes.items()}, np.random.default_rng(4)) or []
    }
    assert found["init"].variance > 10 * max(found["order"].variance, found["rest"].variance) and found["init"].p < 0.05
    assert components(y, {"a": np.arange(25)}, np.random.default_rng(0)) is None
    assert components(y[:2], {"a": np.array([0, 1])}, np.random.default_rng(0)) is None
    assert np.isnan(total(y[:1]).variance) and total(y).lo < np.var(y, ddof=1) < total(y).hi
    groups = grouped_sources(
        {"a": np.array([5, 5, 7]), "b": np.array([1, 1, 0]), "c": np.zeros(3, int), "d": np.arange(3)}
    )
    assert list(groups) == ["a+b", "d"]


def run(trials: list[dict[str, Any]], values: dict[str, float]) -> Any:
    outcomes = [{"trial_id": t, "status": "finished", "final_accuracy": v} for t, v in values.items()]
    found = variance_sources(given(variance_sources.reads, trials=trials, outcomes=outcomes), measures=())
    return found["variance_sources"].to_pandas()


def test_a_common_seed_gives_a_total_and_honest_nulls() -> None:
    trials = [trial_row("m", s) for s in range(6)]
    rows = run(trials, {t["trial_id"]: 0.5 + 0.01 * i for i, t in enumerate(trials)}).set_index("source")
    whole = "init+order+dropout+data"
    assert rows.loc[whole].variance == pytest.approx(np.var(0.01 * np.arange(6), ddof=1)) and rows.loc[whole].share == 1
    assert rows.loc["total"].variance == rows.loc[whole].variance and rows.loc["total"].lo < rows.loc["total"].variance
    for source in ("init", "order", "dropout", "data"):
        assert np.isnan(rows.loc[source].variance) and rows.loc[source].reason == f"varied together: {whole}"


def test_axes_of_their_own_are_told_apart() -> None:
    trials = [trial_row("m", {"init": i, "order": o, "dropout": 0, "data": 0}) for i in range(4) for o in range(4)]
    rng = np.random.default_rng(5)
    effect = rng.normal(size=4)
    values = {t["trial_id"]: 0.5 + 0.1 * effect[t["seed_init"]] + 0.001 * rng.normal() for t in trials}
    rows = run(trials, values).set_index("source")
    assert rows.loc["init"].share > 0.95 and rows.loc["init"].p < 0.05 and rows.loc["order"].share < 0.05
    assert rows.loc["dropout"].reason == rows.loc["data"].reason == "did not vary"
    assert set(rows.index) == {"init", "order", "rest", "total", "dropout", "data"}


def test_bad_input() -> None:
    assert run([], {}).empty
    one = run([trial_row("m", 0)], {trial_row("m", 0)["trial_id"]: 0.5}).set_index("source")
    assert one.loc["total"].reason == "one trial" and np.isnan(one.loc["total"].variance)
    trials = [trial_row("m", s) for s in range(3)]
    constant = run(trials, {t["trial_id"]: 0.5 for t in trials}).set_index("source")
    assert constant.loc["total"].variance == 0
    assert run(trials, {t["trial_id"]: float("nan") for t in trials}).empty
