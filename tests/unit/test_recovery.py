"""Recovery after interventions: planted curves, planted differences between steps, null sweeps, odd input."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ndt_ray.analysis.api import AnalysisInput, Partition
from ndt_ray.analysis.inference.permutation import sign_flips
from ndt_ray.analysis.recovery import curve, recovery
from ndt_ray.errors import SpecError
from ndt_ray.spec import Control

STEPS, EVERY = 200, 10
GRID = np.arange(0, STEPS + 1, EVERY)


def sweep(deficits, seeds=6, noise=0.002, rng_seed=0):
    """`deficits`: control -> function of steps since its end. Accuracy .5 -> .9 plus noise of each evaluation."""
    rng = np.random.default_rng(rng_seed)
    trials, evaluations = [], []
    for seed in range(seeds):
        base = 0.9 - 0.4 * np.exp(-GRID / 50) + rng.normal(0, noise, len(GRID))
        for control, deficit in {"none": None, **deficits}.items():
            c = Control.model_validate(control)
            accuracy = base.copy()
            if deficit is not None:
                after = GRID >= c.at
                accuracy[after] -= deficit(np.maximum(GRID[after] - (c.until or c.at), 0))
                accuracy[after] += rng.normal(0, noise, after.sum())
            spec = {"seed": {"init": seed}, "control": c.model_dump(), "model": "m"}
            trial = f"{control}-{seed}"
            trials.append({"trial_id": trial, "cell": "m/d", "steps": STEPS, "spec": json.dumps(spec)})
            rows = {"trial_id": trial, "step": GRID, "accuracy": accuracy, "loss": 1 - accuracy}
            evaluations.append(pd.DataFrame(rows))
    return {"trials": pd.DataFrame(trials), "evaluations": pd.concat(evaluations)}


def analysed(tables, **parameters):
    given = {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in tables.items()}
    empty = {name: pa.table({}) for name in recovery.reads if name not in given}
    found = recovery(AnalysisInput("s", Partition(), {**given, **empty}), **parameters)
    return {name: table.to_pandas() for name, table in found.items()}


def heals(t):
    return 0.3 * np.exp(-t / 8)


def test_a_planted_curve_is_summed_up_as_it_is():
    t = np.arange(0, 101, 10.0)
    found = curve(t, 0.4 * 0.5 ** (t / 20), np.zeros(11))
    assert found["impact"] == pytest.approx(0.4) == found["deepest"]
    assert found["half_time"] == 20
    assert found["area"] == pytest.approx(0.4 * 20 / np.log(2) * (1 - 2**-5) / 100, rel=0.02)
    assert found["final"] == pytest.approx(np.mean(0.4 * 0.5 ** (t[t >= 80] / 20)))


def test_a_deficit_that_never_heals_has_no_half_time():
    assert np.isnan(curve([0, 10, 20], [0.2, 0.2, 0.19], [0, 0, 0])["half_time"])
    assert np.isnan(curve([0, 10], [0.0, 0.0], [0, 0])["half_time"])


def test_what_heals_and_what_does_not():
    found = analysed(sweep({"ablate:a@100": heals, "damage:blur@50-100": lambda t: 0.1 + 0 * t}, seeds=8))
    contrasts = found["recovery_contrasts"].set_index(["kind", "against", "measure"])
    healed = contrasts.loc[("ablate", "untouched", "area")]
    assert healed["finding"] == "healed" and healed["lo"] > 0 and healed["n"] == 8
    lasting = contrasts.loc[("damage", "untouched", "final")]
    assert lasting["finding"] == "lasting" and lasting["mean"] == pytest.approx(0.1, abs=0.01)
    assert healed["p"] == pytest.approx(2 / 256) == healed["p_attainable"]
    rows = found["recovery"].set_index("kind")
    assert (rows["horizon"] == 100).all() and rows.loc["ablate", "half_time"].eq(10).all()


def test_an_intervention_that_hurts_more_at_one_step_is_found_and_one_alike_is_not():
    arms = {f"ablate:a@{at}": (lambda t, s=size: s * heals(t)) for at, size in ((60, 1), (100, 2), (140, 1))}
    found = analysed(sweep(arms, seeds=8))["recovery_contrasts"]
    area = found[(found["measure"] == "area") & (found["against"] != "untouched")].set_index(["at", "against"])
    assert area.loc[(100, "@60"), "finding"] == "worse_than_other"
    assert area.loc[(140, "@100"), "finding"] == "milder_than_other"
    assert area.loc[(140, "@60"), "finding"] == "not_shown"
    assert area.loc[(60, "when"), "finding"] == "depends"
    assert (found["n"] == 8).all()


def test_when_an_intervention_happens_is_one_question_whatever_the_number_of_steps():
    """Six seeds and three steps: 15 pairs cannot reach q = 0.05 alone, the question itself can."""
    arms = {f"ablate:a@{at}": (lambda t, s=size: s * heals(t)) for at, size in ((40, 3), (80, 2), (120, 1))}
    arms |= {f"perturb:a@{at}": heals for at in (40, 80, 120)}
    found = analysed(sweep(arms))["recovery_contrasts"]
    area = found[found["measure"] == "area"].set_index(["kind", "against"])
    asked = area.loc[("ablate", "when")]
    assert asked["finding"] == "worse_early" and asked["p"] == asked["p_attainable"] == pytest.approx(6**-5)
    assert asked["at"] == 40 and asked["mean"] > 0 and asked["lo"] > 0
    assert area.loc[("perturb", "when"), "finding"] == "not_shown"
    assert area.loc["ablate"].drop("when")["q_attainable"].min() > 0.05


@pytest.mark.slow
def test_without_an_effect_few_contrasts_are_called_one():
    calls = []
    for i in range(30):
        found = analysed(sweep({"perturb:a@100": lambda t: 0 * t}, rng_seed=i))["recovery_contrasts"]
        calls.append((found["q"] <= 0.05).any())
    assert np.mean(calls) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 30) + 0.03  # three measures of one deficit a family each


def test_windows_of_different_length_are_not_compared():
    arms = {"damage:blur@0-50": heals, "damage:blur@0-100": heals, "damage:blur@50-100": heals}
    found = analysed(sweep(arms))["recovery_contrasts"]
    assert set(found["against"]) == {"untouched", "@0", "when"}
    assert set(found.loc[found["against"] == "@0", "at"]) == {50}


def test_events_of_the_untouched_lane_mark_the_step_in_their_layer():
    arms = ("ablate:a@100", "ablate:b@100", "ablate:a@150", "ablate:a@120", "damage:blur@50-90", "damage:blur@20-80")
    tables = sweep(dict.fromkeys(arms, heals), seeds=2)
    event = {"trial_id": "none-0", "layer": "a", "step_before": 95, "step_after": 105, "significant": True}
    event |= {"family": "primary", "layer_index": 0}
    tables["events"] = pd.DataFrame([event, {**event, "trial_id": "none-1", "significant": False}])
    near = analysed(tables)["recovery"].set_index("trial_id")["near_event"]
    assert near[near].index.tolist() == ["ablate:a@100-0", "damage:blur@50-90-0"]  # 85 to 115, of layer a


MATCHED = {"layer": "a", "event": 100, "controls": [80, 120]}


def test_arms_at_an_event_are_compared_with_the_windows_matched_to_it_alone():
    """Away from the event but unmatched, at 40, the same costs three times as much: it has no say."""
    sizes = {40: 3, 80: 1, 100: 2, 120: 1}
    arms = {f"ablate:a@{at}": (lambda t, s=size: s * heals(t)) for at, size in sizes.items()}
    arms |= {"ablate:b@100": lambda t: 0 * t}  # another layer: not at this event
    tables = sweep(arms, seeds=9)
    trials = [f"none-{i}" for i in range(8)]  # seed 8 has no event there
    found = analysed(tables, matched=[MATCHED | {"trials": trials}])
    rows = found["recovery"]
    roles = rows[rows["target"] == "a"].groupby("at")["role"].agg(lambda r: sorted(r.fillna("-").unique()))
    assert roles.to_dict() == {40: ["-"], 80: ["control"], 100: ["event", "other_seeds"], 120: ["control"]}
    assert rows.loc[rows["target"] == "b", "role"].isna().all()
    assert (rows.loc[rows["role"].notna(), "event_at"] == 100).all() and rows.loc[
        rows["at"] == 40, "event_at"
    ].isna().all()
    assert (rows["near_event"] == (rows["role"] == "event")).all()
    beside = found["recovery_contrasts"].query("against == 'matched'").set_index("measure")
    assert (beside["at"] == 100).all() and (beside["n"] == 8).all() and beside["target"].eq("a").all()
    assert beside.loc["area", "finding"] == "worse_than_other" and beside.loc["area", "q"] == pytest.approx(2 / 256)
    at = rows[(rows["target"] == "a") & (rows["trial_id"].str[-1] != "8")].groupby("at")["area"].mean()
    assert beside.loc["area", "mean"] == pytest.approx(at[100] - (at[80] + at[120]) / 2)
    assert "matched" not in set(analysed(tables)["recovery_contrasts"]["against"])


def test_a_control_that_turns_out_to_be_near_an_event_is_none():
    arms = {f"ablate:a@{at}": (lambda t, s=size: s * heals(t)) for at, size in {80: 9, 100: 2, 120: 1}.items()}
    tables = sweep(arms, seeds=6)
    event = {"layer": "a", "step_before": 76, "step_after": 84, "significant": True, "family": "primary"}
    tables["events"] = pd.DataFrame([event | {"trial_id": f"none-{i}", "layer_index": 0} for i in range(6)])
    found = analysed(tables, matched=[MATCHED])  # without `trials`: all have it
    at = found["recovery"].groupby("at")["area"].mean()
    beside = found["recovery_contrasts"].query("against == 'matched' and measure == 'area'")
    assert beside["mean"].item() == pytest.approx(at[100] - at[120]) and beside["n"].item() == 6


def test_what_is_matched_has_to_be_readable():
    with pytest.raises(SpecError, match="matched: an entry has layer"):
        analysed(sweep({"ablate:a@100": heals}, seeds=1), matched=[{"layer": "a"}])


def test_arms_without_an_untouched_lane_or_evaluations_say_so():
    tables = sweep({"ablate:a@100": heals}, seeds=2)
    tables["trials"] = tables["trials"][tables["trials"]["trial_id"] != "none-0"]
    tables["evaluations"] = tables["evaluations"][tables["evaluations"]["trial_id"] != "ablate:a@100-1"]
    found = analysed(tables)
    assert dict(zip(found["recovery"]["trial_id"], found["recovery"]["flag"], strict=True)) == {
        "ablate:a@100-0": "no_untouched",
        "ablate:a@100-1": "not_evaluated",
    }
    assert found["recovery_contrasts"].empty


def test_one_seed_finds_nothing_and_says_what_it_could():
    found = analysed(sweep({"ablate:a@100": heals}, seeds=1))["recovery_contrasts"]
    assert found["p"].isna().all() and (found["p_attainable"] == 1).all() and set(found["finding"]) == {"not_shown"}


def test_nothing_to_compare():
    assert analysed({})["recovery"].empty
    assert analysed(sweep({}, seeds=2))["recovery"].empty
    with pytest.raises(SpecError, match="horizon"):
        analysed(sweep({"ablate:a@100": heals}, seeds=1), horizon=0)


def test_sign_flips_are_exact():
    assert sign_flips([1.0, 2.0, 3.0]).p == 0.25
    assert sign_flips([1.0, -1.0]).p == 1.0
    assert np.isnan(sign_flips([]).p)
    rng = np.random.default_rng(1)
    p = np.array([sign_flips(rng.normal(size=8)).p for _ in range(400)])
    assert (p <= 0.05).mean() < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


LATER = "ablate:a@100~60"


def test_an_effect_of_the_learning_rate_vanishes_where_it_is_matched_and_one_of_the_step_does_not():
    def arms(of_step, of_rate):
        return {
            "ablate:a@60": lambda t: heals(t) * (1 + of_rate),
            "ablate:a@100": lambda t: heals(t) * (1 + of_step),
            LATER: lambda t: heals(t) * (1 + of_step + of_rate),
            "schedule:60@100": lambda t: 0 * t,
        }

    for of_step, of_rate, finding in ((0, -0.9, "not_shown"), (1, 0, "worse_than_other")):
        found = analysed(sweep(arms(of_step, of_rate), seeds=8))["recovery_contrasts"]
        area = found[found["measure"] == "area"].set_index(["at", "lr_from", "against"])
        assert area.loc[(100, 60, "lr@60"), "finding"] == finding
        assert (100, 60, "kept") in area.index and area.loc[(100, 60, "lr@60"), "n"] == 8
        plain = area[area.index.get_level_values("lr_from").isna()]
        assert plain.xs("@60", level="against")["finding"].item() == "worse_than_other"


def test_a_restarted_schedule_that_heals_is_told_from_one_that_does_not():
    lasting = {"damage:blur@20-60": lambda t: 0.1 + 0 * t, "schedule:0@60": lambda t: 0 * t}
    for left, finding in ((0.02, "milder_than_other"), (0.1, "not_shown")):
        both = analysed(sweep({**lasting, "damage:blur@20-60~0": lambda t, d=left: d + 0 * t}, seeds=8))
        row = both["recovery_contrasts"].query("against == 'kept' and measure == 'final'")
        assert row["finding"].item() == finding and row["lr_from"].item() == 0


def test_an_arm_with_another_schedule_needs_a_lane_with_nothing_else():
    found = analysed(sweep({"ablate:a@100": heals, LATER: heals}))["recovery"]
    assert found.loc[found["lr_from"] == 60, "flag"].eq("no_untouched").all()
    both = analysed(sweep({LATER: heals, "schedule:60@100": lambda t: 0.2 + 0 * t}))["recovery"]
    mine = both[both["kind"] == "ablate"]
    assert mine["untouched"].str.startswith("schedule:60@100").all()
    # Beside that lane, which is .2 below the untouched one, it is the better one in the end.
    assert mine["final"].mean() == pytest.approx(-0.2, abs=0.01)
    assert both.loc[both["kind"] == "schedule", "untouched"].str.startswith("none").all()
