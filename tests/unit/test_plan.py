"""Plans: resolving, identity, packs, claims, checks, estimates, and the plan file."""

import io
import itertools
import json
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from fake_catalogue import FakeCatalogue

from ndt_ray.errors import DataError, SpecError, StoreError
from ndt_ray.plan import Pack, Plan, auto_lanes, make_plan, pack_id
from ndt_ray.plan.estimate import Estimate, Layer, makespan, pack_estimate
from ndt_ray.plan.file import plan_from_value, plan_lines, plan_value, read_plan, write_plan
from ndt_ray.schedule import measured_steps
from ndt_ray.spec import Trial
from ndt_ray.spec.axes import Sweep, make_sweep

BASE: dict[str, Any] = {"model": "mlp", "data": "digits", "train": {"steps": 100}, "measure": {"probe": 64}}


def sweep(axes: list[dict[str, Any]] | None = None, base: dict[str, Any] | None = None, **more: Any) -> Sweep:
    axes = [{"path": "seed", "range": 6}] if axes is None else axes
    return make_sweep({"name": "t", "base": {**BASE, **(base or {})}, "axes": axes, **more})


def plan(axes: list[dict[str, Any]] | None = None, base: dict[str, Any] | None = None, **more: Any) -> Plan:
    return make_plan(sweep(axes, base, **more), FakeCatalogue(), workers=2)


def refused(axes: list[dict[str, Any]] | None = None, base: dict[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(SpecError) as caught:
        plan(axes, base, **more)
    return str(caught.value)


# -- resolving -------------------------------------------------------------------------------------------------------


def test_trials_are_resolved_and_named_by_the_hash_of_all_of_them() -> None:
    made = plan([{"path": "model", "values": ["mlp", {"name": "vit", "depth": 2}]}, {"path": "seed", "range": 2}])
    found = {lane.trial_id: trial for pack in made.packs for lane, trial in zip(pack.lanes, pack.trials, strict=True)}
    assert len(found) == made.n_trials == 4
    for trial_id, trial in found.items():
        assert trial.trial_id == trial_id
        assert Trial.model_validate_json(trial.model_dump_json()).trial_id == trial_id
    assert {(t.model.name, t.engine) for t in found.values()} == {("mlp", "stack"), ("vit", "loop")}
    assert {json.dumps(t.model.params) for t in found.values()} == {'{"hidden": [32]}', '{"depth": 2, "width": 64}'}


def test_a_default_said_or_unsaid_is_the_same_trial() -> None:
    unsaid = plan([{"path": "seed", "range": 2}])
    said = plan(
        [{"path": "seed", "range": 2}], {"model": {"name": "mlp", "hidden": [32]}, "train": {"steps": 100, "lr": 1e-3}}
    )
    assert unsaid.packs[0].trial_ids == said.packs[0].trial_ids
    assert unsaid.packs[0].pack_id == said.packs[0].pack_id


def test_duplicates_collapse_with_a_notice() -> None:
    made = plan(
        [{"path": "model", "values": ["mlp", {"name": "mlp", "hidden": [32]}, "mlp"]}, {"path": "seed", "range": 2}]
    )
    assert made.n_trials == 2
    assert "4 duplicate trials collapsed: 2 are left" in made.notices


def test_a_changed_model_file_is_another_trial() -> None:
    catalogue = FakeCatalogue()
    ids = []
    for source in ("a" * 64, "b" * 64):
        catalogue.sources["mlp"] = source
        (pack,) = make_plan(sweep(), catalogue).packs
        assert pack.first.source == source
        ids.append(pack.trial_ids[0])
    assert ids[0] != ids[1]


def test_where_may_ask_for_a_trial_by_its_id() -> None:
    wanted = plan().packs[0].trial_ids[3]
    made = plan(where=f"trial_id = '{wanted}' and engine = stack")
    assert [pack.trial_ids for pack in made.packs] == [[wanted]]


# -- packs -----------------------------------------------------------------------------------------------------------


def test_what_can_be_stacked_trains_together() -> None:
    axes = [
        {"path": "train.lr", "values": [1e-3, 1e-2]},
        {"path": "control", "values": ["none", "lr0", "frozen:network.0"]},
        {"path": "train.weight_decay", "values": [0, 0.1]},
    ]
    (pack,) = plan(axes).packs
    assert len(pack.lanes) == 12
    for lane, trial in zip(pack.lanes, pack.trials, strict=True):
        assert (lane.lr, lane.weight_decay, lane.control) == (
            trial.train.lr,
            trial.train.weight_decay,
            str(trial.control),
        )
    assert {lane.cell for lane in pack.lanes} == {
        f"mlp/digits lr={lr} weight_decay={wd}" for lr, wd in itertools.product(("0.001", "0.01"), ("0", "0.1"))
    }


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("train.steps", [10, 20]),
        ("train.batch", [8, 16]),
        ("train.optimizer", ["adam", "sgd"]),
        ("measure.every", [1, 2]),
        ("checkpoint.at", [[1], [2]]),
        ("engine", ["loop", "stack"]),
        ("data", ["digits", "mnist"]),
    ],
)
def test_what_cannot_be_stacked_does_not(path: str, values: list[Any]) -> None:
    assert len(plan([{"path": path, "values": values}, {"path": "seed", "range": 2}]).packs) == 2


def test_packs_are_no_larger_than_pays_and_evenly_filled() -> None:
    assert [len(p.lanes) for p in plan([{"path": "seed", "range": 40}]).packs] == [14, 13, 13]
    assert [len(p.lanes) for p in plan(run={"lanes": 4}).packs] == [3, 3]
    assert [len(p.lanes) for p in plan(run={"lanes": 1}).packs] == [1] * 6
    large = make_plan(sweep([{"path": "seed", "range": 9}]), FakeCatalogue(n_parameters=5_000_000))
    assert [len(p.lanes) for p in large.packs] == [3, 3, 3]
    assert [auto_lanes(n, "cpu") for n in (10_000, 900_000, 5_000_000)] == [16, 8, 4]
    assert [auto_lanes(n, "cuda") for n in (10_000, 900_000, 10**8)] == [256, 32, 4]


@pytest.mark.parametrize(("workers", "packs"), [(1, 1), (2, 2), (4, 4), (16, 6)])
def test_an_expensive_cell_makes_no_fewer_packs_than_there_are_workers(workers: int, packs: int) -> None:
    made = make_plan(sweep(base={"train": {"steps": 2000}}), FakeCatalogue(step=0.05), workers=workers)
    assert len(made.packs) == packs
    cheap = make_plan(sweep(), FakeCatalogue(step=1e-4, measure=1e-4), workers=workers)
    assert len(cheap.packs) == 1


def test_cells_that_keep_all_workers_busy_are_not_split() -> None:
    axes = [{"path": "measure.every", "values": list(range(1, 21))}, {"path": "seed", "range": 6}]
    assert len(make_plan(sweep(axes, {"train": {"steps": 2000}}), FakeCatalogue(step=0.05), workers=2).packs) == 20


def test_a_pack_is_named_by_its_members_whatever_their_order() -> None:
    (pack,) = plan().packs
    assert pack.pack_id == pack_id(pack.trial_ids) == pack_id(reversed(pack.trial_ids))
    assert pack.pack_id != pack_id(pack.trial_ids[1:])


# -- claims ----------------------------------------------------------------------------------------------------------


def test_an_extended_axis_keeps_claimed_packs_and_makes_new_ones_of_the_rest() -> None:
    first = plan().packs
    grown = make_plan(sweep([{"path": "seed", "range": 9}]), FakeCatalogue(), claimed=first)
    assert grown.packs[0].trial_ids == first[0].trial_ids
    assert [pack.claimed for pack in grown.packs] == [True, False]
    assert [[lane.seed[0] for lane in pack.lanes] for pack in grown.packs] == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    assert grown.n_trials == 9


def test_a_claimed_pack_runs_whole_where_part_of_it_is_asked_for() -> None:
    first = plan().packs
    part = make_plan(sweep(where="seed < 2"), FakeCatalogue(), claimed=first)
    assert [pack.trial_ids for pack in part.packs] == [first[0].trial_ids]
    assert "4 trials outside of this grid run along" in part.notices[0]


def test_claimed_packs_of_another_grid_stay_on_record() -> None:
    first = plan().packs
    other = make_plan(sweep(base={"train": {"steps": 7}}), FakeCatalogue(), claimed=first)
    assert other.outside == tuple(replace(p, claimed=True) for p in first)
    assert not set(other.packs[0].trial_ids) & set(first[0].trial_ids)
    back = make_plan(sweep(), FakeCatalogue(), claimed=[*other.packs, *other.outside])
    assert back.packs[0].trial_ids == first[0].trial_ids
    assert back.packs[0].claimed


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ({"model": "mpl"}, "unknown model 'mpl' - did you mean 'mlp'?"),
        ({"data": "digit"}, "unknown data 'digit' - did you mean 'digits'?"),
        ({"model": {"name": "mlp", "hiden": [3]}}, "unknown parameter 'hiden' - did you mean 'hidden'?"),
        (
            {"model": "cnn_deep"},
            "use cnn_shallow - or leave the pair out with exclude: [{model: cnn_deep, data: digits}]",
        ),
        ({"measure": {"probe": 300}}, "the test split of digits has 600 samples, but got probe=300, confirm=300"),
        ({"measure": {"probe": 200}, "evaluate": {"size": 300}}, "use a probe of at most 150"),
        ({"measure": {"probe": 64, "layers": ["netwrk.*"]}}, "no layer of mlp matches 'netwrk.*'"),
        ({"control": "frozen:network.1"}, "mlp has no layer 'network.1' with weights - did you mean 'network"),
        ({"checkpoint": {"at": [50, 101]}}, "checkpoint.at: 101 is behind the last step (steps=100)"),
        ({"train": {"steps": 9, "batch": 2000}}, "there are 1,197 training samples, but got 2,000: use at most 1197"),
        ({"train": {"steps": 9, "batch": 64, "subset": 32}}, "there are 32 training samples, but got 64"),
        ({"train": {"steps": 9, "subset": 5000}}, "digits has 1,197 training samples, but got 5,000"),
        ({"train": {"steps": 9, "momentum": 0.9}}, "is sgd's, but the optimizer is adam"),
        ({"train": {"steps": 9, "betas": [0.9, 1.0]}}, "0 <= beta < 1 must hold"),
        ({"train": {"steps": 9, "schedule": {"warmup": 10}}}, "longer than training (warmup=10, steps=9)"),
    ],
)
def test_what_does_not_fit_is_said_before_any_worker_starts(base: dict[str, Any], told: str) -> None:
    assert told in refused(base=base)


def test_full_batches_and_frozen_layers_that_exist_fit() -> None:
    base = {
        "train": {"steps": 5, "batch": "full"},
        "control": "frozen:network",
        "measure": {"probe": 64, "layers": ["*.2"]},
    }
    assert plan(base=base).n_trials == 6


def test_everything_wrong_is_listed_once() -> None:
    axes = [{"path": "model", "values": ["mpl", "cnn_deep", "mlp"]}, {"path": "seed", "range": 50}]
    told = refused(axes, {"measure": {"probe": 300}}, analyses=["jmps"])
    assert len(told.splitlines()) == 4
    assert "unknown analysis 'jmps' - did you mean 'jumps'?" in told


def test_very_much_wrong_is_cut() -> None:
    told = refused([{"path": "model", "values": [f"x{i}" for i in range(40)]}])
    assert told.endswith("… and perhaps more") and len(told.splitlines()) == 21


def test_data_that_cannot_be_had_is_its_own_error() -> None:
    with pytest.raises(DataError, match="train-images is missing"):
        plan(base={"data": {"name": "mnist", "missing": True}})


def test_an_empty_grid_says_what_emptied_it() -> None:
    told = refused(where="model = mpl", exclude=[{"seed": 0}])
    assert "no trial is left of 6 points after exclude=[{'seed': 0}] and where='model = mpl'" in told
    assert "seed: 0, 1, 2, 3, 4, 5" in told


def test_an_exclude_that_matches_nothing_is_noticed() -> None:
    assert "exclude[0] ({'model': 'cnn'}) matches no trial" in plan(exclude=[{"model": "cnn"}]).notices


# -- estimates -------------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_sum_of_its_single_things() -> None:
    (pack,) = plan(base={"checkpoint": {"at": [0, 100]}, "evaluate": {"every": 50}}).packs
    estimate = pack.estimate
    assert estimate is not None
    n_measured = len(measured_steps(pack.first.measure, 100)) + 2
    assert estimate.train == pytest.approx(100 * 6e-3)
    assert estimate.measure == pytest.approx(n_measured * 12e-3)
    assert estimate.evaluate == pytest.approx(3 * 0.06)
    assert estimate.seconds == pytest.approx(estimate.train + estimate.measure + estimate.evaluate + estimate.start)
    assert estimate.overhead == pytest.approx(n_measured * 12e-3 / 0.6)
    assert estimate.calibrated
    # Two checkpoints of six trials: weights and both moments of 10,000 parameters.
    assert estimate.disk["checkpoint files"] == pytest.approx(6 * 2 * 120_000, rel=0.05)


def test_fewer_eigenvalues_take_less_room_and_tables_that_are_off_none() -> None:
    full, top, none = (
        plan(base={"measure": {"probe": 64, "spectra": s}}).total.disk["spectra"] for s in ("full", 4, "none")
    )
    assert full > top > none
    off = plan(base={"measure": {"probe": 64, "velocity": False, "dynamics": False}}).total.disk
    assert "velocity" not in off and "dynamics" not in off and "weight_spectra" not in off
    assert "weight_spectra" in plan(base={"measure": {"probe": 64, "coarse": 10}}).total.disk


def test_total_and_wall_time_of_a_plan() -> None:
    made = plan(run={"lanes": 1})
    assert made.total.seconds == pytest.approx(sum(pack.seconds for pack in made.packs))
    assert made.wall_seconds < made.total.seconds / 2 + 7
    assert made.total.memory == max(p.estimate.memory for p in made.packs if p.estimate)
    assert [p.seconds for p in made.longest_first()] == sorted((p.seconds for p in made.packs), reverse=True)
    rows = list(made.rows())
    assert len(rows) == 6
    assert rows[2] | {"trial_id": "", "pack_id": "", "seconds": 0} == {
        "trial_id": "",
        "pack_id": "",
        "lane": 0,
        "cell": "mlp/digits",
        "model": "mlp",
        "data": "digits",
        "seed": 2,
        "control": "none",
        "engine": "stack",
        "steps": 100,
        "seconds": 0,
    }


def test_makespan_known_answers() -> None:
    assert makespan([3, 3, 2, 2, 2], 2) == 7  # what taking the longest gives; 6 would be best
    assert makespan([5], 4) == 5
    assert makespan([], 3) == 0


def test_matrices_of_views() -> None:
    conv, tokens, units = Layer("a", "positions", (8, 4, 5)), Layer("b", "tokens", (7, 16)), Layer("c", "units", (9,))
    assert conv.matrix("positions", 10) == (200, 8)
    assert conv.matrix("gap", 10) == (10, 8)
    assert conv.matrix("flat", 10) == (10, 160)
    assert tokens.matrix("tokens", 10) == (70, 16)
    assert tokens.matrix("mean", 10) == (10, 16)
    assert units.matrix("units", 10) == (10, 9)
    assert [tokens.eigenvalues("tokens", 10), conv.eigenvalues("flat", 10)] == [16, 10]
    assert Layer("b", "tokens", (7, 16), rank=5).eigenvalues("tokens", 10) == 5


def test_a_pack_twice_as_wide_writes_twice_as_much() -> None:
    (pack,) = plan().packs
    catalogue = FakeCatalogue()
    model, data = catalogue.model(pack.first.model, pack.first.data), catalogue.data(pack.first.data)
    one, two = (
        pack_estimate(pack.first, lanes, model, data, catalogue.cost(pack.first, lanes, "cpu")) for lanes in (10, 20)
    )
    assert two.disk["spectra"] == pytest.approx(2 * one.disk["spectra"], rel=0.05)
    assert (one + two).seconds == pytest.approx(one.seconds + two.seconds)
    assert Estimate().overhead == 0


# -- the plan file ---------------------------------------------------------------------------------------------------


def test_a_plan_reads_back_equal_in_either_layout() -> None:
    first = plan().packs
    axes = [{"path": "control", "values": ["none", "lr0"]}, {"path": "seed", "range": 20}]
    made = make_plan(sweep(axes, {"train": {"steps": 7, "lr": 1}}), FakeCatalogue(), workers=3, claimed=first)
    assert made.outside
    file = io.StringIO()
    write_plan(made, file)
    rounded = read_plan(io.StringIO(file.getvalue()))
    assert rounded.packs[0].trials == made.packs[0].trials
    assert [replace(p, estimate=None) for p in rounded.packs] == [replace(p, estimate=None) for p in made.packs]
    assert (rounded.sweep, rounded.workers, rounded.notices) == (made.sweep, 3, made.notices)
    assert rounded.total.seconds == pytest.approx(made.total.seconds, rel=1e-3)
    assert json.loads(file.getvalue()) == json.loads(json.dumps(plan_value(made)))
    assert plan_from_value(json.loads(json.dumps(plan_value(made)))) == rounded
    assert read_plan(json.dumps(plan_value(made), indent=1).splitlines(keepends=True)) == rounded


def test_damaged_plan_files_are_refused() -> None:
    lines = list(plan_lines(plan(run={"lanes": 2})))
    other = lines[1].replace('"steps": 100', '"steps": 99')
    for bad, told in [
        (lines[:-1], "cut short"),
        ([], "not a plan"),
        (["{}"], "not a plan"),
        (["[1]"], "not a plan"),
        (["nonsense"], "not a plan"),
        ([lines[0], lines[1][:50], *lines[2:]], "not a plan, or damaged"),
        ([lines[0], other, *lines[2:]], "does not hold the trials"),
        ([lines[0].replace('"spec_version": 1', '"spec_version": 99'), *lines[1:]], "written by another version"),
    ]:
        with pytest.raises(StoreError, match=told):
            read_plan(bad)


# -- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_grid_is_announced_planned_and_small_in_memory() -> None:
    # 3,000 trials here; a million took 65 s and 0.7 GB more than a small one (one core).
    said: list[str] = []
    large = make_sweep({"name": "t", "base": BASE, "axes": [{"path": "seed", "range": 1_000_000}]})
    with pytest.raises(KeyboardInterrupt):
        make_plan(
            large, FakeCatalogue(), notify=lambda text: (_ for _ in ()).throw(KeyboardInterrupt(said.append(text)))
        )
    assert "a grid of 1,000,000 points: planning takes about 60 s and 0.7 GB" in said
    tracemalloc.start()
    began = time.process_time()
    made = make_plan(sweep([{"path": "seed", "range": 3_000}]), FakeCatalogue(), workers=2)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.n_trials == 3_000
    assert peak < 3_000 * 1_500 + 5e6
    assert seconds < 30


def test_packs_make_their_trials_anew() -> None:
    (pack,) = plan().packs
    assert isinstance(pack, Pack)
    assert pack.trials[0] is not pack.trials[0]
    assert [t.seed.init for t in pack.trials] == list(range(6))
