"""Forks: the sweep that intervenes in another, its arms equal to the parent's trials until their step."""

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.api import Partition, conform
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.analysis.running.stored import StoredSweep, analyze
from ndt_ray.cli import main
from ndt_ray.errors import SpecError
from ndt_ray.fork import Question, fork
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec import Trial
from ndt_ray.spec.axes import make_sweep
from ndt_ray.spec.sweepfile import dump_sweep, parse_sweep
from ndt_ray.store.reader import open_store

PARENT = {
    "name": "parent",
    "base": {
        "model": "mlp_narrow",
        "data": "digits",
        "train": {"steps": 60, "batch": 32, "lr": 1e-2},
        "measure": {"every": 5, "probe": 64},
        "evaluate": {"every": 5, "size": 200},
    },
    "axes": [{"path": "seed", "role": "replicate", "range": 3}],
}


INLINE = Options(executor="inline")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    where = tmp_path_factory.mktemp("fork") / "store"
    assert run_sweep(make_sweep(PARENT), where, INLINE).ok
    return open_store(where)


FAMILY = {"family": "primary", "detector": "d", "null": "n"}


def planted(store, rows, sweep="parent"):
    """Puts events into the store as if they had been found."""
    empty = {c.name: None for c in EVENTS.columns}
    known = {"view": "units", "measure": "participation_ratio", "detector": "d", "null": "n", "family": "primary"}
    frame = pd.DataFrame([{**empty, **known, "significant": True, "relative_size": 0.1, **row} for row in rows])
    tables = StoredSweep(store, sweep)
    declared = pd.DataFrame([{c.name: None for c in EVENT_FAMILIES.columns} | {**FAMILY, "primary": True}])
    found = {"events": conform(EVENTS, frame), "event_families": conform(EVENT_FAMILIES, declared)}
    tables.commit("planted", [tables.write("planted", Partition(), "k", found, {})])


def controls(sweep):
    return [str(t.control) for t in sweep.trials() if t.seed.init == 0]


def test_a_fork_at_given_steps_has_the_parents_trials_and_an_arm_each(store):
    forked = fork(store, "parent", "f", Question(targets=["network.2"], steps=[30, 40], doses=[0, 0.5, 1]))
    assert controls(forked) == [
        "none",
        "ablate:network.2@30*0.5",
        "ablate:network.2@30",
        "ablate:network.2@40*0.5",
        "ablate:network.2@40",
    ]
    assert parse_sweep(dump_sweep(forked)) == forked
    ids = set(store.sql("SELECT trial_id FROM trials")["trial_id"])
    untouched = [t for t in forked.trials() if t.control.kind == "none"]
    assert {t.seed.init for t in untouched} == {0, 1, 2} and len(ids) == 3


@pytest.mark.slow
def test_the_fork_runs_and_its_untouched_lanes_are_the_parents_trials(store, tmp_path):
    forked = fork(store, "parent", "again", Question(targets=["network.2"], steps=[30]))
    assert run_sweep(forked, store, INLINE).ok
    parents = store.sql("SELECT trial_id FROM trials WHERE sweep = 'parent' ORDER BY 1")["trial_id"]
    same = store.sql("SELECT trial_id FROM trials WHERE sweep = 'again' AND control = 'none' ORDER BY 1")["trial_id"]
    assert list(parents) == list(same)
    query = (
        "SELECT a.step, a.loss AS arm, b.loss AS parent FROM losses a JOIN trials t USING (sweep, trial_id) "
        "JOIN trials p ON p.sweep = 'parent' AND p.seed = t.seed JOIN losses b ON b.sweep = 'parent' "
        "AND b.trial_id = p.trial_id AND b.step = a.step WHERE a.sweep = 'again' AND t.control <> 'none'"
    )
    losses = store.sql(query)
    before, after = losses[losses["step"] <= 30], losses[losses["step"] == 31]
    assert len(before) == 90 and (before["arm"] == before["parent"]).all()
    assert len(after) == 3 and (after["arm"] > after["parent"] + 0.1).all()
    assert analyze(store, "again", "recovery").ok
    rows = store.sql("SELECT * FROM recovery WHERE sweep = 'again'")
    assert len(rows) == 3 and (rows["impact"] > 0.2).all() and (rows["final"] < rows["impact"]).all()


def test_a_fork_at_the_events_that_most_seeds_share(store):
    ids = list(store.sql("SELECT trial_id FROM trials WHERE sweep = 'parent' ORDER BY 1")["trial_id"])
    shared = [
        {"trial_id": t, "layer": "network.2", "layer_index": 1, "step_before": b, "step_after": b + 5}
        for t, b in zip(ids, (20, 25, 20), strict=True)
    ]
    alone = {"trial_id": ids[0], "layer": "network.0", "layer_index": 0, "step_before": 40, "step_after": 45}
    planted(
        store,
        [
            *shared,
            {**alone, "relative_size": 0.9},
            {**alone, "step_before": 50, "step_after": 55, "significant": False},
        ],
    )
    one = fork(store, "parent", "f", Question(events=1, controls=0))
    assert controls(one) == ["none", "ablate:network.2@20"]
    assert "3 of 3 seeds" in one.about
    two = fork(store, "parent", "f", Question(events=2, controls=0, targets=["network.2", "network.0"]))
    assert {c.split("@")[1] for c in controls(two)[1:]} == {"20", "40"}
    assert [a.params for a in one.analyses] == [
        {"matched": [{"layer": "network.2", "event": 20, "trials": sorted(ids), "controls": []}]}
    ]
    both = Question(events=2, controls=0, targets=["network.0", "network.2"], steps=[55])
    assert set(controls(fork(store, "parent", "f", both))[1:]) == {
        "ablate:network.2@20", "ablate:network.2@55", "ablate:network.0@40", "ablate:network.0@55",
    }  # fmt: skip


LONG = {**PARENT, "name": "long"}
LONG["base"] = {
    **PARENT["base"],
    "train": {"steps": 400, "batch": 16, "lr": 1e-3},
    "measure": {"every": 100, "probe": 32},
    "evaluate": {"every": 40, "size": 100},
}
SHARED = ("network.2", 200, 204)
ALONE = (("network.2", 212, 216, 1), ("network.0", 184, 188, 2), ("network.0", 100, 104, 0))
"""Layer, bracket and seed of events that one seed has."""


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    where = tmp_path_factory.mktemp("fork-long") / "store"
    assert run_sweep(make_sweep(LONG), where, INLINE).ok
    opened = open_store(where)
    ids = list(opened.sql("SELECT trial_id FROM trials ORDER BY seed")["trial_id"])
    shared = [(*SHARED, seed) for seed in range(3)]
    planted(opened, [
        {"trial_id": ids[seed], "layer": layer, "layer_index": layer == "network.2", "step_before": a, "step_after": b}
        | {"relative_size": 0.5 if layer == "network.0" else 0.1}
        for layer, a, b, seed in (*shared, *ALONE)
    ], "long")  # fmt: skip
    return opened


GRID = np.arange(0, 401, 4)


@pytest.fixture
def moves(long, monkeypatch):
    """Puts movement in the place of the store's: the same in all seeds, but for a third more from 220 on in seed 0."""
    ids = list(long.sql("SELECT trial_id FROM trials WHERE sweep = 'long' ORDER BY seed")["trial_id"])
    rows = []
    for seed, trial in enumerate(ids):
        update = np.where((GRID >= 220) & (seed == 0), 0.0133, 0.01)
        rows.append(pd.DataFrame({"trial_id": trial, "step": GRID, "update_norm": update, "weight_norm": 2.0}))
    scalars = pd.concat(rows, ignore_index=True).assign(lr=1e-3)
    dynamics = pd.concat([scalars.assign(layer=f"network.{i}", layer_index=i) for i in (0, 2)])
    monkeypatch.setattr("ndt_ray.fork._movement", lambda store, sweep: (dynamics, scalars))


def matched(sweep):
    return [(e["layer"], e["event"], e["controls"]) for e in sweep.analyses[0].params["matched"]]


def test_controls_of_a_fork_are_windows_of_the_chosen_event_in_every_seed(long, moves):
    """The larger event of another layer, at 100, has windows of its own: none of them is taken for the one at 200.
    From 180 on (5 % of the run), not near 200 itself or seed 1's event at 212, up to 220, where seed 0 moves more."""
    forked = fork(long, "long", "f", Question(events=1, controls=9))
    assert matched(forked) == [("network.2", 200, [192, 188, 184, 180])]
    two = fork(long, "long", "f", Question(events=1, controls=2))
    assert controls(two) == ["none", *(f"ablate:network.2@{step}" for step in (188, 192, 200))]
    assert "200 of network.2 (3 of 3 seeds); windows matched in all seeds at 192, 188" in two.about
    assert parse_sweep(dump_sweep(two)) == two
    others = fork(long, "long", "f", Question(events=3, controls=1))
    own = [entry for entry in matched(others) if entry[0] == "network.0"]
    assert own == [("network.0", 100, [92]), ("network.0", 184, [176])]  # no window is used for two events
    assert set(controls(others)[1:]) == {
        f"ablate:{layer}@{step}" for layer, event, windows in matched(others) for step in (event, *windows)
    }


def test_what_is_done_to_the_whole_network_keeps_clear_of_the_events_of_all_layers(long, moves):
    asked = {"kind": "damage", "targets": ["blur"], "events": 1, "controls": 5}
    near = fork(long, "long", "f", Question(**asked, length=4))
    assert matched(near) == [("network.2", 200, [192])]  # seed 2 has one of network.0 at 184: near are 180 to 192
    assert controls(near) == ["none", "damage:blur@192-196", "damage:blur@200-204"]
    none = fork(long, "long", "f", Question(**asked, length=100))
    assert matched(none) == [("network.2", 200, [])] and "in all seeds at none" in none.about
    assert controls(none) == ["none", "damage:blur@200-300"]


@pytest.mark.slow
def test_a_fork_tells_recovery_which_arms_are_at_the_event_and_which_are_matched_to_it(long, moves):
    forked = fork(long, "long", "beside", Question(events=1, controls=2))
    assert run_sweep(forked, long, INLINE).ok
    rows = long.sql("SELECT * FROM recovery WHERE sweep = 'beside'")
    assert rows.groupby("role").size().to_dict() == {"control": 6, "event": 3}
    assert (rows["event_at"] == 200).all() and (rows["event_layer"] == "network.2").all()
    contrasts = long.sql("SELECT * FROM recovery_contrasts WHERE sweep = 'beside' AND against = 'matched'")
    assert set(contrasts["at"]) == {200} and (contrasts["n"] <= 3).all()


def test_siblings_are_arms_that_nothing_is_done_to(store):
    forked = fork(store, "parent", "f", Question(siblings=3, steps=[30]))
    assert controls(forked) == ["none", "reorder:1@30", "reorder:2@30", "reorder:3@30"]
    assert [a.name for a in forked.analyses] == ["series_tests", "events"] and "3 siblings" in forked.about
    assert parse_sweep(dump_sweep(forked)) == forked
    with pytest.raises(SpecError, match="at least 3"):
        fork(store, "parent", "f", Question(siblings=2, steps=[30]))
    with pytest.raises(SpecError, match="needs steps"):
        fork(store, "parent", "f", Question(siblings=3))


@pytest.mark.slow
def test_siblings_of_a_sweep_that_ran_are_the_null_of_its_events(tmp_path):
    parent = {**PARENT, "base": {**PARENT["base"], "measure": {"every": 1, "probe": 32}}}
    parent["axes"] = [{"path": "seed", "role": "replicate", "range": 2}]
    assert run_sweep(make_sweep(parent), tmp_path / "store", INLINE).ok
    there = open_store(tmp_path / "store")
    forked = fork(there, "parent", "sib", Question(siblings=4, steps=[20]))
    assert run_sweep(forked, there, INLINE).ok
    own = set(there.sql("SELECT trial_id FROM trials WHERE sweep = 'parent'")["trial_id"])
    for row in there.sql("SELECT trial_id, control, spec FROM trials WHERE sweep = 'sib'").itertuples():
        losses = there.sql("SELECT loss FROM losses WHERE sweep = 'sib' AND trial_id = ? ORDER BY step", [row.trial_id])
        untouched = Trial.model_validate_json(row.spec).untouched.trial_id
        same = there.sql("SELECT loss FROM losses WHERE sweep = 'parent' AND trial_id = ? ORDER BY step", [untouched])
        assert untouched in own and (losses["loss"][:20] == same["loss"][:20]).all()
        assert (row.control == "none") == (losses["loss"] == same["loss"]).all()
    tests = there.sql("SELECT * FROM series_tests WHERE sweep = 'sib'")
    assert set(tests["trial_id"]) == own and set(tests["null"]) == {"siblings"}
    judged = tests[tests["calibrated"]]
    assert len(judged) and (judged["n_surrogates"] == 4).all() and (judged["p"] >= 0.2).all()
    assert (judged["grid_start"] > 20).all()
    families = there.sql("SELECT * FROM event_families WHERE sweep = 'sib' AND \"primary\"")
    assert families["null"].tolist() == ["siblings"] and families["q_attainable"][0] >= 0.2
    assert analyze(there, "parent", "series_tests", parameters={"nulls": ["siblings"]}).ok
    none = there.sql("SELECT * FROM series_tests WHERE sweep = 'parent'")
    assert set(none["kind"]) == {"few_siblings"} and none["p"].isna().all()


def test_what_cannot_be_forked(store, capsys, tmp_path):
    for question, says in (
        (Question(), "needs steps"),
        (Question(steps=[10]), "needs something to act on"),
        (Question(steps=[10], targets=["network.2"], kind="explode"), "cannot intervene"),
        (Question(steps=[10], targets=["fog"], kind="damage"), "cannot intervene"),
    ):
        with pytest.raises(SpecError, match=says):
            fork(store, "parent", "f", question)
    with pytest.raises(SpecError, match="no cell"):
        fork(store, "parent", "f", Question(steps=[10], targets=["a"]), cell="mlp_narow/digits")
    with pytest.raises(SystemExit) as end:
        main(["fork", "parent", "--name", "f", "--store", store.location.root])
    assert end.value.code == 2 and "--step" in capsys.readouterr().err


def test_the_command_writes_a_file_and_never_over_another(store, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["fork", "parent", "--name", "f", "--store", store.location.root]
    arguments += ["--target", "network.2", "--step", "30"]
    for code in (0, 2):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert (end.value.code or 0) == code
    assert "exists already" in capsys.readouterr().err
    assert controls(parse_sweep((tmp_path / "f.yaml").read_text())) == ["none", "ablate:network.2@30"]


def test_arms_with_other_learning_rates_and_lanes_with_nothing_else(store):
    asked = Question(targets=["network.2"], steps=[30, 40], lr_matched=True, restart=True)
    with pytest.raises(SpecError, match="constant"):
        fork(store, "parent", "f", asked)
    falling = {**PARENT, "name": "falling"}
    falling["base"] = {**PARENT["base"], "train": {"steps": 60, "batch": 32, "schedule": {"name": "cosine"}}}
    falling["axes"] = [{"path": "seed", "role": "replicate", "range": 1}]
    assert run_sweep(make_sweep(falling), store, INLINE).ok
    assert controls(fork(store, "falling", "f", asked)) == [
        "none",
        "ablate:network.2@30",
        "ablate:network.2@40",
        "schedule:0@30",
        "ablate:network.2@30~0",
        "schedule:0@40",
        "ablate:network.2@40~0",
        "schedule:30@40",
        "ablate:network.2@40~30",
    ]
    windowed = Question("damage", ["flip"], steps=[10, 30], length=5, lr_matched=True)
    assert controls(fork(store, "falling", "f", windowed))[3:] == ["schedule:15@35", "damage:flip@30-35~15"]
