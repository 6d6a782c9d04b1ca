"""Mixed models on planted data: what they find, what they find in nothing, and what is said where they fail."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray.analysis.api import AnalysisInput, Partition, conform
from ndt_ray.analysis.hypotheses.verdicts import event_models
from ndt_ray.analysis.inference import mixed
from ndt_ray.analysis.inference.layer_models import EVENT_MODELS, LAYER_MODELS, layer_models
from ndt_ray.analysis.inference.mixed import Fit, fit, matrix
from ndt_ray.errors import SpecError

RNG = np.random.default_rng


def planted(rng, trials=24, per=5, effect=0.0, slope=0.0, sd=1.0, noise=0.5):
    """Values of `per` layers in each trial, half of the trials of another architecture."""
    arch = np.repeat(np.where(np.arange(trials) % 2, "mlp", "cnn"), per)
    trial, depth = np.repeat(np.arange(trials), per), np.tile(np.arange(per) / (per - 1), trials)
    y = effect * (arch == "mlp") + slope * depth + sd * rng.normal(size=trials)[trial]
    return y + noise * rng.normal(size=trials * per), pd.DataFrame({"arch": arch, "depth": depth}), trial


def by_name(found: Fit):
    return {(t.term, t.level): t for t in found.terms}


def test_a_balanced_design_has_the_closed_form():
    y, _, trial = planted(RNG(3), trials=30, per=4)
    found = fit(y, pd.DataFrame(index=range(len(y))), trial)
    by_trial = y.reshape(30, 4)
    between = 4 * by_trial.mean(1).var(ddof=1)
    within = ((by_trial - by_trial.mean(1, keepdims=True)) ** 2).sum() / (30 * 3)
    assert found.method == "mixed" and found.flag is None and (found.n, found.n_trials) == (120, 30)
    assert found.sd_residual == pytest.approx(np.sqrt(within), rel=1e-3)
    assert found.sd_trial == pytest.approx(np.sqrt((between - within) / 4), rel=1e-3)
    (mean,) = found.terms
    assert mean.estimate == pytest.approx(y.mean()) and mean.df == 29
    assert mean.se == pytest.approx(np.sqrt(between / 120), rel=1e-3)


@pytest.mark.parametrize("method", mixed.METHODS)
def test_planted_effects_are_found_at_their_size(method):
    found = by_name(fit(*planted(RNG(1), effect=2.0, slope=1.0), method=method, draws=499))
    arch, depth = found["arch", "mlp"], found["depth", "per SD"]
    assert arch.lo < 2 < arch.hi and arch.p < 1e-3 and arch.df == 22  # 24 trials, an intercept, an architecture
    assert depth.lo < np.std(np.arange(5) / 4) < depth.hi and depth.p < 1e-6 and depth.df == 120 - 24 - 1
    assert arch.se > 3 * depth.se  # what does not vary within trials is known from 24 of them only


@pytest.mark.slow
@pytest.mark.parametrize(("method", "sd"), [("mixed", 1.0), ("mixed", 0.0), ("cluster_bootstrap", 1.0)])
def test_layers_of_a_trial_are_no_replicates(method, sd):
    """Without an effect p <= .05 comes about as often as it says; layers counted as independent would give 40 %."""
    runs = [fit(*planted(RNG(i), trials=10, sd=sd), method=method, draws=199) for i in range(80)]
    p = np.array([[by_name(r)["arch", "mlp"].p, by_name(r)["depth", "per SD"].p] for r in runs])
    assert (p <= 0.05).mean(0).max() <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 80)
    flags = {r.flag for r in runs}
    assert (None in flags) == (method == "mixed" and sd > 0)


def test_where_trials_do_not_differ_it_says_so_and_falls_back():
    y, fixed, trial = planted(RNG(0), sd=0.0, effect=3.0)
    y = y - pd.Series(y).groupby(trial).transform("mean").to_numpy() + 3.0 * (fixed["arch"] == "mlp").to_numpy()
    found = fit(y, fixed, trial, draws=199)
    assert found.method == "cluster_bootstrap" and found.flag in ("boundary", "singular", "not_converged")
    assert np.isnan(found.sd_trial) and by_name(found)["arch", "mlp"].estimate == pytest.approx(3, abs=0.01)


def test_a_model_that_does_not_converge_is_flagged(monkeypatch):
    from statsmodels.regression.mixed_linear_model import MixedLM
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    usual = MixedLM.fit

    def warned(self, *args, **kwargs):
        import warnings

        warnings.warn("gradient optimization failed", ConvergenceWarning, stacklevel=2)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(MixedLM, "fit", warned)
    found = fit(*planted(RNG(0)), draws=99)
    assert (found.method, found.flag) == ("cluster_bootstrap", "not_converged")
    monkeypatch.setattr(MixedLM, "fit", lambda *a, **k: (_ for _ in ()).throw(np.linalg.LinAlgError("singular")))
    assert fit(*planted(RNG(0)), draws=99).flag == "singular"


def test_without_statsmodels_it_falls_back(monkeypatch):
    usual = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "statsmodels" else usual(name, *a)
    )
    found = fit(*planted(RNG(0)), draws=99)
    assert (found.method, found.flag) == ("cluster_bootstrap", "statsmodels_missing") and len(found.terms) == 3


def test_what_cannot_be_fitted():
    y, fixed, trial = planted(RNG(0))
    assert fit(y[:15], fixed[:15], trial[:15]).flag == "too_few_trials"
    assert fit(np.ones(120), fixed, trial).flag == "constant"
    assert fit(y, fixed.assign(same=fixed["arch"]), trial).flag == "confounded"
    assert fit(y[::5], fixed[::5], trial[::5], draws=99).flag == "one_value_a_trial"
    assert fit(np.full(120, np.nan), fixed, trial) == Fit("", "too_few_trials", 0, 0)
    each = pd.DataFrame({"cell": [f"c{t}" for t in trial]})
    assert fit(y, each, trial).flag == "too_few_trials"  # as many levels as trials
    with pytest.raises(SpecError, match="unknown method"):
        fit(y, fixed, trial, method="ols")
    with pytest.raises(SpecError, match="a row each"):
        fit(y[:3], fixed, trial)


def test_products_of_factors():
    fixed = pd.DataFrame({"a": ["x", "x", "y", "y"], "b": ["p", "q", "p", "q"], "one": ["z"] * 4, "n": [1, 2, 3, 4]})
    design, names = matrix(fixed, interaction=True)
    assert names == [("(intercept)", ""), ("a", "y"), ("b", "q"), ("n", "per SD"), ("a:b", "y:q")]
    np.testing.assert_array_equal(design[:, -1], [0, 0, 0, 1])


def stored(seeds=6, layers=4, effect=1.0):
    rng = RNG(0)
    trials, rows = [], []
    for model in ("cnn", "mlp"):
        for data in ("d1", "d2"):
            for seed in range(seeds):
                trial = f"{model}-{data}-{seed}"
                names = {f"seed_{s}": seed for s in ("init", "order", "dropout", "data")}
                common = {"trial_id": trial, "cell": f"{model}/{data}", "model": model, "data": data, "steps": 100}
                trials.append({**common, **names, "control": "none", "spec": json.dumps({"old": 1})})
                level = rng.normal(0, 0.3) + effect * (model == "mlp")
                for layer in range(layers):
                    for step in (0, 100):
                        value = np.exp(level + 0.5 * layer + rng.normal(0, 0.1)) if step else 1.0
                        key = {"trial_id": trial, "layer": f"l{layer}", "layer_index": layer, "view": "units"}
                        rows.append({**key, "step": step, "participation_ratio": value, "stable_rank": 2.0})
    return {"trials": pd.DataFrame(trials), "measurements": pd.DataFrame(rows)}


def analysed(tables, **parameters):
    given = {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in tables.items()}
    empty = {name: pa.table({}) for name in layer_models.reads if name not in given}
    found = layer_models(AnalysisInput("s", Partition(), {**given, **empty}), **parameters)["layer_models"]
    return found.to_pandas()


def test_layers_of_a_sweep_are_modelled_by_its_axes_and_depth():
    found = analysed(stored()).set_index(["outcome", "term", "level"])
    row = found.loc[("log participation_ratio", "model", "mlp")]
    assert row["lo"] < 1 < row["hi"] and row["q"] < 0.01 and row["method"] == "mixed" and row["n_trials"] == 24
    assert row["formula"] == "log participation_ratio ~ model * data + depth + (1 | seed:cell)"
    assert found.loc[("log participation_ratio", "depth", "per SD"), "p"] < 1e-9
    assert found.loc[("log participation_ratio", "model:data", "mlp:d2"), "p"] > 0.01
    constant = found.loc[("log stable_rank", "*", "")]
    assert constant["flag"] == "constant" and np.isnan(constant["estimate"]) and pd.isna(constant["method"])
    again = analysed(stored()).set_index(["outcome", "term", "level"])
    pd.testing.assert_frame_equal(found, again)


def test_nothing_gives_nothing_and_bad_parameters_are_refused():
    assert analysed({}).empty and analysed(stored() | {"measurements": pd.DataFrame()}).empty
    few = analysed(stored(seeds=1))
    assert set(few["flag"]) >= {"constant"} and len(few)
    with pytest.raises(SpecError, match="did you mean 'stable_rank'"):
        analysed(stored(), measures=["stable_rnk"])
    with pytest.raises(SpecError, match="unknown method"):
        analysed(stored(), method="mixd")


def test_events_are_modelled_within_their_trials():
    rng = RNG(0)
    rows = []
    for trial in range(16):
        own = rng.normal(0, 0.2)
        for event in range(4):
            size = rng.uniform(0.1, 1)
            common = {"trial_id": f"t{trial}", "arch_type": ("cnn", "mlp")[trial % 2], "jump_step": 100 * event}
            increase = own + 0.8 * size + rng.normal(0, 0.05)
            rows.append({**common, "jump_magnitude": size, "selectivity_increase": increase})
    table = pd.DataFrame(rows).assign(new_feature_types_after=np.nan, compositional_depth=2.0)
    found = event_models(table)
    conform(EVENT_MODELS, found)
    size = found[(found["outcome"] == "selectivity_increase") & (found["term"] == "jump_magnitude")].iloc[0]
    planted_slope = 0.8 * table["jump_magnitude"].std(ddof=0)
    assert size["method"] == "mixed" and size["lo"] < planted_slope < size["hi"] and size["q"] < 1e-6
    flags = found[found["term"] == "*"].set_index("outcome")["flag"]
    assert flags.to_dict() == {"new_feature_types_after": "too_few_trials", "compositional_depth": "constant"}
    assert event_models(pd.DataFrame()).empty
    assert LAYER_MODELS.columns == EVENT_MODELS.columns
