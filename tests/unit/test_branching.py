"""Branches: lanes that share steps train as one until then, and every row and bit is as if each had trained alone."""

import numpy as np
import pytest
from test_interventions import INTERVENTIONS
from test_online import WATCH, _changes  # noqa: F401  (a fixture)
from test_online import trial as watched_trial
from test_train import Memory, assert_same_rows, run, trial

from ndt_ray import train
from ndt_ray.branching import Stage, stages, trained_share
from ndt_ray.spec import Control, Trial

LATE = [f"ablate:network.2@{at}" for at in (1, 29)]


@pytest.fixture(autouse=True)
def _every_step_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndt_ray.train.HEARTBEAT_SECONDS", 0.0)


def alone(monkeypatch: pytest.MonkeyPatch, trials: list[Trial]) -> Memory:
    """Every lane from step 0 on its own."""
    lanes = tuple(range(len(trials)))
    with monkeypatch.context() as m:
        m.setattr(train, "stages", lambda t: [Stage(t[0].train.steps, lanes, lanes)])
        return run(trials)


def test_stages_follow_the_steps_of_the_interventions() -> None:
    trials = [trial(0), trial(0, control="ablate:a@11"), trial(0, control="damage:flip@20-25"), trial(1)]
    assert stages(trials) == [
        Stage(10, (0, 3), (0, 0, 0, 1)),
        Stage(19, (0, 1, 3), (0, 1, 0, 2)),
        Stage(30, (0, 1, 2, 3), (0, 1, 2, 3)),
    ]
    assert trained_share(trials) == pytest.approx((10 * 2 + 9 * 3 + 11 * 4) / 120)


def test_without_an_untouched_lane_the_most_patient_one_leads() -> None:
    trials = [trial(0, control="ablate:a@11"), trial(0, control="reinit:a@20"), trial(0, control="lr0")]
    assert stages(trials)[0] == Stage(10, (1, 2), (0, 0, 1))
    assert len(stages(trials)) == 2


@pytest.mark.parametrize("control", ["lr0", "frozen:a", "damage:blur@0-9", "ablate:a@1", "ablate:a@0"])
def test_what_shares_nothing_is_one_stage(control: str) -> None:
    trials = [trial(0), trial(0, control=control), trial(1)]
    assert [s.trained for s in stages(trials)] == [(0, 1, 2)] and trained_share(trials) == 1


def test_lanes_of_other_hyperparameters_or_seeds_are_never_joined() -> None:
    arm = "ablate:a@11"
    trials = [trial(0, control=arm), trial(1, control=arm), trial(0, lr=3e-3, control=arm)]
    assert len(stages(trials)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "stack"])
def test_branching_changes_no_row_and_no_bit(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = [trial(3, engine=engine), trial(4, engine=engine)]
    arms = [trial(3, engine=engine, control=c) for c in (*INTERVENTIONS[1::4], *LATE, "lr0")]
    trials = [untouched[0], *arms, untouched[1], trial(4, engine=engine, control="damage:labels@18-20")]
    trials = [t.model_copy(update={"measure": t.measure.model_copy(update={"coarse": None})}) for t in trials]
    assert trained_share(trials) < 0.75
    branched, reference = run(trials), alone(monkeypatch, trials)
    assert_same(branched, reference)


def assert_same(a: Memory, b: Memory) -> None:
    assert_same_rows(a, b)
    assert a.checkpoints.keys() == b.checkpoints.keys()
    for key, tensors in b.checkpoints.items():
        assert tensors.keys() == a.checkpoints[key].keys()
        assert all(np.array_equal(v, a.checkpoints[key][k]) for k, v in tensors.items()), key


@pytest.mark.slow
@pytest.mark.usefixtures("_changes")
@pytest.mark.parametrize(("model", "engine"), [("mlp_narrow", "stack"), ("cnn_shallow", "loop")])
def test_detectors_rings_and_anchors_branch_too_and_any_stop_is_survived(
    model: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = {"mlp_narrow": "network.2", "cnn_shallow": "conv_layers.0"}[model]
    controls = ["none", f"ablate:{layer}@57", f"perturb:{layer}@45*0.5", f"reinit:{layer}@57"]
    lanes = [(0, c) for c in controls] + [(1, "none")]
    trials = [watched_trial(s, model=model, engine=engine, at=[0], on_event=WATCH) for s, _ in lanes]
    trials = [
        t.model_copy(update={"control": Control.model_validate(c)}) for t, (_, c) in zip(trials, lanes, strict=True)
    ]
    reference = alone(monkeypatch, trials)
    assert any(k[1] < 57 for k in reference.tables["triggers"]), "nothing had triggered before the branches"
    assert_same(run(trials), reference)
    for stop in (43, 47, 56) if engine == "stack" else (47,):
        first = run(trials, stop_at=stop)
        assert_same(joined(first, run(trials, resume=first.stopped)), reference)


def joined(*parts: Memory) -> Memory:
    whole = Memory()
    for part in parts:
        for table, rows in part.tables.items():
            assert not whole.tables.setdefault(table, {}).keys() & rows.keys(), table
            whole.tables[table] |= rows
        whole.checkpoints |= part.checkpoints
    return whole


@pytest.mark.slow
def test_lanes_that_diverge_before_they_branch_all_end_so(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [trial(0, lr=1e30, control=c) for c in ("none", "ablate:network.2@25", "reinit:network.2@28")]
    branched = run(trials)
    assert {r["status"] for r in branched.tables["outcomes"].values()} == {"diverged"}
    assert_same(branched, alone(monkeypatch, trials))


def test_packs_hold_the_arms_of_a_seed_together_and_are_planned_by_what_they_compute() -> None:
    from fake_catalogue import FakeCatalogue

    from ndt_ray.plan import make_plan
    from ndt_ray.spec.axes import make_sweep

    def plan(controls: list[str]):
        axes = [{"path": "control", "role": "compare", "values": controls}, {"path": "seed", "range": 4}]
        base = {"model": "mlp", "data": "digits", "train": {"steps": 100, "batch": 10}}
        sweep = {"name": "x", "base": base, "axes": axes, "run": {"lanes": 4}}
        return make_plan(make_sweep(sweep), FakeCatalogue()).packs

    packs = plan(["none", "ablate:network.0@50", "ablate:network.0@60", "reinit:network.0@90"])
    assert [len({lane.seed for lane in p.lanes}) for p in packs] == [1, 1, 1, 1]
    assert [len({lane.seed for lane in p.lanes}) for p in plan(["none", "lr0"])] == [4, 4]
    whole = plan(["none", "lr0", "frozen:network.0", "shuffled_labels"])[0].estimate
    assert packs[0].estimate.train == pytest.approx(whole.train * (49 + 2 * 10 + 3 * 30 + 4 * 11) / 400)
