"""Lanes that something is done to at a step: the untouched trial until then, what was asked for from there on."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_train import Memory, assert_same_rows, pack, run, trial

from ndt_ray.errors import SpecError
from ndt_ray.lanes import make_engine
from ndt_ray.lanes.batches import Batches
from ndt_ray.lanes.interventions import Lesions, chosen_units, damaged
from ndt_ray.spec import Control, Trial
from ndt_ray.train import continue_trial

LR_FORMS = ["lr:0.1@3", "lr:3@3-9", "schedule:0@200", "ablate:a@600*0.5~400", "frozen:a@3-9~0", "damage:flip@0-9~0"]
FORMS = [
    *LR_FORMS,
    "none",
    "lr0",
    "frozen:a.0",
    "frozen:a.0@10-20",
    "ablate:a@400*0.25",
    "reinit:a@3",
    "perturb:a@4*0.5",
]
LAYER = "network.2"
LR_ARMS = [
    "lr:0.1@11-20",
    "lr:3@11",
    "schedule:0@11",
    "schedule:25@11",
    f"ablate:{LAYER}@11~3",
    "damage:blur@11-15~0",
]
INTERVENTIONS = [
    f"ablate:{LAYER}@11",
    f"ablate:{LAYER}@11*0.5",
    f"reinit:{LAYER}@11",
    f"perturb:{LAYER}@11",
    f"frozen:{LAYER}@11-20",
    "damage:blur@11-20",
    "damage:flip@11-20",
    "damage:noise@11-20",
    "damage:labels@11-20",
    "reorder:1@11",
    "reorder:2@11",
]


@pytest.mark.parametrize("text", [*FORMS, "damage:blur@0-400", "reorder:3@0"])
def test_controls_read_as_they_are_written(text: str) -> None:
    control = Control.model_validate(text)
    assert str(control) == text
    assert Control.model_validate(control.model_dump(mode="json")) == control


def test_trials_without_an_intervention_keep_their_ids() -> None:
    for text, dumped in (("none", {"kind": "none", "layer": None}), ("frozen:a", {"kind": "frozen", "layer": "a"})):
        assert Control.model_validate(text).model_dump() == dumped


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ablate:a", "ablate:LAYER@FROM"),
        ("ablate:a@3-5", "ablate:LAYER@FROM"),
        ("frozen", "frozen:LAYER"),
        ("frozen:a@5", "frozen:LAYER"),
        ("lr0:a", "written lr0"),
        ("damage:blur@5", "-UNTIL"),
        ("damage:blur@5-5", "ends after it began"),
        ("damage:fog@1-2", "blur"),
        ("reinit:a@3*0.5", "dose goes with"),
        ("lr:fast@3", "no number"),
        ("lr:1@3", "changes nothing"),
        ("lr:0.1@3~5", "lr:FACTOR@FROM"),
        ("schedule:4", "schedule:STEP@FROM"),
        ("frozen:a~4", "frozen:LAYER"),
        ("ablate:a@3*2", "less than or equal to 1"),
        ("reorder:1", "reorder:BRANCH@FROM"),
        ("reorder:a@3", "whole number"),
        ("reorder:0@3", "greater than 0"),
    ],
)
def test_what_is_not_a_control(text: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Control.model_validate(text)


def losses(memory: Memory, t: Trial) -> list[float]:
    return [r["loss"] for k, r in sorted(memory.tables["losses"].items()) if k[0] == t.trial_id]


def arms(engine: str = "stack") -> list[Trial]:
    return [trial(3, engine=engine, control=c) for c in INTERVENTIONS]


@pytest.mark.slow
def test_until_its_step_a_lane_is_the_untouched_trial_and_its_neighbours_always_are() -> None:
    untouched = trial(3)
    alone, together = run([untouched]), run([untouched, *arms()])
    assert_same_rows(alone, together, {untouched.trial_id})
    base = losses(alone, untouched)
    for arm in arms():
        mine = losses(together, arm)
        assert mine[:11] == base[:11] and mine[11:] != base[11:], str(arm.control)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "stop"), [("loop", 15), ("stack", 11)])  # after the intervention, and at it
def test_an_intervened_lane_is_the_same_in_any_company_and_after_any_stop(engine: str, stop: int) -> None:
    together = run(arms(engine))
    first = run(arms(engine), stop_at=stop)
    assert_ends_alike(run(arms(engine), resume=first.stopped), together, arms(engine))
    for arm in arms(engine)[::3]:
        assert_ends_alike(run([arm]), together, [arm])


def assert_ends_alike(a: Memory, b: Memory, trials: list[Trial]) -> None:
    for t in trials:
        end = b.checkpoints[t.trial_id, 30]
        assert all(np.array_equal(v, end[k]) for k, v in a.checkpoints[t.trial_id, 30].items()), str(t.control)


@pytest.mark.slow
@pytest.mark.parametrize("control", INTERVENTIONS[::3])
def test_a_checkpoint_continues_through_the_intervention(control: str) -> None:
    mine = trial(3, control=control)
    sink = run([mine])
    engine = continue_trial(pack([mine]), sink.checkpoints[mine.trial_id, 0], 0, 30)
    end = sink.checkpoints[mine.trial_id, 30]
    assert all(np.array_equal(v, end[k]) for k, v in engine.lane_state(0).items())


def at_the_step(control: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """States at step 11, where checkpoints are planned: with the intervention, without it, and at the start."""
    mine, untouched = trial(3, control=control), trial(3)
    sink = run([mine, untouched])
    states = sink.checkpoints
    return states[mine.trial_id, 11], states[untouched.trial_id, 11], states[untouched.trial_id, 0]


def changed(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> set[str]:
    return {k for k in a if not np.array_equal(a[k], b[k])}


@pytest.mark.slow
def test_ablation_zeroes_the_weights_of_a_share_of_units_and_nothing_else() -> None:
    weight = f"model.{LAYER}.weight"
    moments = {f"exp_avg.{LAYER}.weight", f"exp_avg_sq.{LAYER}.weight"}
    after, before, _ = at_the_step(f"ablate:{LAYER}@11")
    assert changed(after, before) == {weight, *moments} and not after[weight].any()
    half, _, _ = at_the_step(f"ablate:{LAYER}@11*0.5")
    zero = ~half[weight].any(axis=1)
    assert zero.sum() == 16 and np.array_equal(half[weight][~zero], before[weight][~zero])


@pytest.mark.parametrize("at", [0, 11, 37, 45])  # digits: 37 updates an epoch of batches of 32
def test_a_branch_draws_anew_what_is_left_of_its_epoch_and_sees_every_sample_once(at: int) -> None:
    trials = [trial(3, batch=32, control=c) for c in ("none", f"reorder:1@{at}", f"reorder:2@{at}")]
    batches = pack([trials[0]]).data
    order = np.array([Batches(trials, batches, torch.device("cpu")).indices(update) for update in range(74)])
    assert len(batches.train_y) // 32 == 37 and (order[:at] == order[:at, :1]).all()
    for epoch in (order[:37], order[37:]):
        for lane in range(3):
            seen = epoch[:, lane].ravel()
            assert len(set(seen)) == len(seen)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        same = (order[at:, a] == order[at:, b]).mean()
        assert same < 0.01
    inputs = batches.train_x[torch.from_numpy(order[60, 1])]
    assert torch.equal(Batches(trials, batches, torch.device("cpu")).get(60)[0][1], inputs)


def test_smaller_doses_are_part_of_larger_ones() -> None:
    slots = {s.name: s for s in make_engine([trial(0)], pack([trial(0)]).build, torch.device("cpu")).arena.layout}
    slot = slots[f"{LAYER}.weight"]
    chosen = [set(chosen_units(trial(0), slot, d).tolist()) for d in (0, 0.25, 0.5, 1)]
    assert [len(c) for c in chosen] == [0, 8, 16, 32] and all(a <= b for a, b in zip(chosen, chosen[1:], strict=False))


def test_reinitialising_puts_back_the_initial_layer_and_forgets_its_moments() -> None:
    after, before, start = at_the_step(f"reinit:{LAYER}@11")
    for name in (f"model.{LAYER}.weight", f"model.{LAYER}.bias"):
        assert np.array_equal(after[name], start[name]) and not np.array_equal(after[name], before[name])
    assert not after[f"exp_avg.{LAYER}.weight"].any()
    assert all(LAYER in name for name in changed(after, before))


def test_a_lesion_that_would_touch_nothing_is_refused() -> None:
    mine = trial(3, model="transformer_shallow", engine="loop", control="ablate:transformer.layers.0.norm1@5")
    with pytest.raises(SpecError, match="no weights to act on"):
        Lesions(make_engine([mine], pack([mine]).build, torch.device("cpu")), pack([mine]).build)


def test_a_random_direction_is_as_long_as_what_ablation_takes() -> None:
    weight = f"model.{LAYER}.weight"
    after, before, _ = at_the_step(f"perturb:{LAYER}@11")
    difference = after[weight] - before[weight]
    assert np.linalg.norm(difference) == pytest.approx(np.linalg.norm(before[weight]), rel=1e-5)
    cosine = (difference * before[weight]).sum() / np.linalg.norm(before[weight]) / np.linalg.norm(difference)
    assert abs(cosine) < 4 / np.sqrt(difference.size)


def test_a_layer_is_frozen_in_its_window_only() -> None:
    mine = trial(3, control=f"frozen:{LAYER}@11-20")
    start = run([mine]).checkpoints[mine.trial_id, 0]
    state = {until: continue_trial(pack([mine]), start, 0, until).lane_state(0) for until in (11, 15, 20, 25)}
    name = f"model.{LAYER}.weight"
    assert np.array_equal(state[11][name], state[15][name]) and np.array_equal(state[15][name], state[20][name])
    assert not np.array_equal(state[20][name], state[25][name])
    assert not np.array_equal(state[11]["model.network.0.weight"], state[15]["model.network.0.weight"])


def test_what_damage_does_to_images() -> None:
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(damaged(images, "flip", 0, 0)[:, :, 0], images[:, :, -1])
    blurred = damaged(images, "blur", 0, 0)
    assert blurred.shape == images.shape and blurred.std() < 0.5 * images.std()
    noise = damaged(images, "noise", 0, 0)
    assert torch.equal(noise, damaged(images, "noise", 0, 0)) and not torch.equal(noise, damaged(images, "noise", 0, 1))
    assert abs(float(torch.corrcoef(torch.stack((noise.flatten(), images.flatten())))[0, 1])) < 0.15


def rates(memory: Memory, t: Trial) -> dict[int, float]:
    return {k[1]: r["lr"] for k, r in memory.tables["scalars"].items() if k[0] == t.trial_id}


@pytest.mark.slow
def test_learning_rates_are_those_that_were_asked_for() -> None:
    every = {"every": 1, "probe": 32}
    made = {
        c: Trial.model_validate({**trial(3, control=c).model_dump(), "measure": every}) for c in ("none", *LR_ARMS[:5])
    }
    found = {c: rates(run([t]), t) for c, t in made.items()}
    usual = found["none"]
    assert len({round(v, 9) for v in usual.values()}) > 25
    for control, mine in found.items():
        assert all(mine[step] == usual[step] for step in range(11)), control
    low, high = found["lr:0.1@11-20"], found["lr:3@11"]
    for step in range(11, 31):
        assert low[step] == pytest.approx(usual[step] * (0.1 if step < 20 else 1), rel=1e-12)
        assert high[step] == pytest.approx(usual[step] * 3, rel=1e-12)
        assert found["schedule:0@11"][step] == usual[step - 11]
        assert found["schedule:25@11"][step] == usual[min(step + 14, 30)]
        assert found[f"ablate:{LAYER}@11~3"][step] == usual[step - 8]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "stack"])
def test_changed_learning_rates_keep_the_contract(engine: str) -> None:
    untouched, mine = trial(3, engine=engine), [trial(3, engine=engine, control=c) for c in LR_ARMS]
    together, base = run([untouched, *mine]), None
    assert_same_rows(run([untouched]), together, {untouched.trial_id})
    base = losses(together, untouched)
    for arm in mine:
        own = losses(together, arm)
        # The loss of step 12 is the first that an update at another learning rate led to.
        assert own[:11] == base[:11] and own[13:] != base[13:], str(arm.control)
        assert_ends_alike(run([arm]), together, [arm])
    stopped = run(mine, stop_at=15).stopped
    assert_ends_alike(run(mine, resume=stopped), together, mine)
    first = mine[2]
    engine_ = continue_trial(pack([first]), together.checkpoints[first.trial_id, 11], 11, 30)
    end = together.checkpoints[first.trial_id, 30]
    assert all(np.array_equal(v, end[k]) for k, v in engine_.lane_state(0).items())


@pytest.mark.slow
def test_the_update_is_that_of_the_asked_learning_rate() -> None:
    """SGD without momentum: an update is the learning rate times the gradient."""
    given = {"optimizer": "sgd", "lr": 0.1}
    states = {}
    for control in ("none", "lr:0.25@11-20", "lr:0@11"):
        t = trial(3, control=control, **given)
        states[control] = continue_trial(pack([t]), run([t]).checkpoints[t.trial_id, 11], 11, 12).lane_state(0)
    name = f"model.{LAYER}.weight"
    start = states["lr:0@11"][name]
    whole, quarter = states["none"][name] - start, states["lr:0.25@11-20"][name] - start
    np.testing.assert_allclose(quarter, whole / 4, atol=1e-7)
    assert np.abs(whole).max() > 1e-4
