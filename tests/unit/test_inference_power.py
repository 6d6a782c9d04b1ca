"""Power and smallest attainable p, against SciPy and by enumeration, and what `ndt plan` says of a sweep."""

import itertools
import json

import numpy as np
import pytest
from fake_catalogue import FakeCatalogue
from scipy import stats

from ndt_ray.cli.show import power_lines
from ndt_ray.errors import SpecError
from ndt_ray.plan import make_plan, power
from ndt_ray.plan.design import planned_power
from ndt_ray.plan.file import plan_lines, read_plan
from ndt_ray.spec.axes import make_sweep


class Catalogue(FakeCatalogue):
    """The same with the analysis whose parameters declare the comparisons."""

    def names(self, kind: str) -> list[str]:
        return [*super().names(kind), *(["compare"] if kind == "analysis" else [])]


WIDE = {"name": "mlp", "hidden": [64]}
THREE = ["mlp", "vit", WIDE]


def sweep(models: list, seeds: int, analyses: list = [], data: list[str] = ["digits"]) -> object:  # noqa: B006
    return make_sweep(
        {
            "name": "t",
            "base": {"train": {"steps": 10, "batch": 8, "optimizer": "adam", "lr": 1e-3}},
            "axes": [
                {"path": "model", "values": models},
                {"path": "data", "values": data},
                {"path": "seed", "range": seeds},
            ],
            "analyses": analyses,
        }
    )


@pytest.mark.parametrize("df", [1, 2, 5, 10, 200])
def test_the_t_distributions_are_scipys(df: int) -> None:
    for alpha in (0.05, 0.05 / 3, 1e-4):
        assert power.t_critical(df, alpha) == pytest.approx(stats.t.ppf(1 - alpha / 2, df), rel=1e-6)
    for shift in (0.5, 2.0, 5.0):
        critical = power.t_critical(df, 0.05)
        assert power._t_above(critical, df, shift) == pytest.approx(stats.nct.sf(critical, df, shift), abs=1e-6)


def test_power_is_what_simulation_gives() -> None:
    """10,000 experiments of 6 + 6 Gaussian seeds one SD apart: SE 0.5 %."""
    rng = np.random.default_rng(0)
    p = stats.ttest_ind(rng.normal(1, 1, (10_000, 6)), rng.normal(0, 1, (10_000, 6)), axis=1).pvalue
    assert power.power(1.0, 6, 6, 0.05, paired=False) == pytest.approx(np.mean(p <= 0.05), abs=0.015)
    assert power.power(0.0, 6, 6, 0.05, paired=True) == pytest.approx(0.05, abs=1e-6)
    assert power.power(1.0, 1, 1, 0.05, paired=False) == 0
    assert power.power(power.detectable(6, 0.05, False), 6, 6, 0.05, paired=False) == pytest.approx(0.8, abs=0.01)


def test_smallest_p_by_enumeration() -> None:
    """The largest difference that regrouping 4 + 4 values (or 3 + 5) can give, and how often it is reached."""
    for n_a, n_b in ((4, 4), (3, 5), (1, 6)):
        values = np.concatenate([np.arange(n_a) + 100.0, np.arange(n_b) * 0.9])
        sums = [abs(values[list(c)].sum() / n_a - (values.sum() - values[list(c)].sum()) / n_b)
                for c in itertools.combinations(range(n_a + n_b), n_a)]  # fmt: skip
        assert power.smallest_p(n_a, n_b, paired=False) == pytest.approx(np.mean(np.array(sums) >= max(sums) - 1e-9))
    assert power.smallest_p(6, 6, paired=True) == pytest.approx(1 / 32)
    assert power.smallest_adjusted(6, 6, True, 2) == pytest.approx(1 / 16)
    assert power.smallest_adjusted(7, 7, True, 2) == pytest.approx(1 / 32)
    assert power.smallest_p(0, 0, True) == power.smallest_p(0, 3, False) == 1
    with pytest.raises(SpecError, match="as many seeds"):
        power.smallest_p(5, 6, paired=True)


def test_pairs_only_where_batches_are_shared_and_pairs_can_reach_alpha() -> None:
    assert power.choose_pairing(False, 20, 1) == (False, "batches are not shared")
    assert power.choose_pairing(True, 6, 1)[0] and not power.choose_pairing(True, 6, 2)[0]
    assert power.choose_pairing(True, 7, 2)[0]


def test_a_plan_says_what_its_seeds_can_show() -> None:
    made = make_plan(sweep(THREE, 6), Catalogue())
    (found,) = planned_power(made)
    assert (found.axis, found.levels, found.contrasts, found.seeds, found.paired) == ("model", 3, 3, 6, False)
    assert found.smallest_adjusted_p == pytest.approx(3 * 2 / 924) and found.warning is None
    assert found.smallest_adjusted_p_paired == pytest.approx(3 / 32) and 0.3 < found.power < 0.6
    head = json.loads("".join(plan_lines(made)))
    assert head["power"] == [found.to_json()] and read_plan(plan_lines(made)).packs == made.packs
    assert len(power_lines(made)) == 1 and "43 %" in power_lines(made)[0]


def test_a_plan_warns_where_no_outcome_could_pass() -> None:
    few = make_plan(sweep(THREE, 3), Catalogue())
    (found,) = planned_power(few)
    assert found.power == 0 and found.detectable is None and found.smallest_adjusted_p == pytest.approx(0.3)
    assert "5 seeds can" in str(found.warning) and power_lines(few)[1].startswith("! model: with 3 seeds")
    one = planned_power(make_plan(sweep(["mlp", "vit"], 1), Catalogue()))[0]
    assert one.smallest_adjusted_p == 1 and one.warning
    assert planned_power(make_plan(sweep(["mlp"], 3), Catalogue())) == []


def test_what_is_declared_in_the_sweep_counts() -> None:
    against = [{"name": "compare", "against": "mlp(hidden=32)", "effect": 2.0, "pairing": "unpaired"}]
    (found,) = planned_power(make_plan(sweep(THREE, 6, against), Catalogue()))
    assert (found.contrasts, found.effect, found.why) == (2, 2.0, "as declared")
    grouped = [{"name": "compare", "group": {"*=64)": "rest", "v*": "rest"}}]
    (found,) = planned_power(make_plan(sweep(THREE, 6, grouped), Catalogue()))
    assert (found.levels, found.contrasts, found.comparisons, found.paired) == (2, 1, 1, True)
    axes = planned_power(make_plan(sweep(THREE[:2], 6, data=["digits", "mnist"]), Catalogue()))
    assert [(f.axis, f.comparisons, f.why) for f in axes][1] == ("data", 2, "batches are not shared")


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 5}, {"effect": "big"}, {"pairing": "pared"}, {"confirmatory": "events_per_series"}, {"group": ["a"]}],
)
def test_declarations_that_make_no_sense_are_refused(wrong: dict) -> None:
    made = make_plan(sweep(THREE, 3, [{"name": "compare", **wrong}]), Catalogue())
    with pytest.raises(SpecError, match="analyses: compare: .*"):
        planned_power(made)
