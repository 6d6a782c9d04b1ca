"""Sweeps: axes, ranges, samplers, zip, exclude, where, what is refused and where, and the names of cells."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ndt_ray.errors import SpecError
from ndt_ray.spec import Trial
from ndt_ray.spec.axes import Grid, Sweep, cell_namer, find_problems, make_sweep
from ndt_ray.spec.axis import Axis
from ndt_ray.spec.sections import target
from ndt_ray.spec.sweepfile import parse_sweep

TEXT = """
name: digits
about: Does it?
base:
  model: mlp_narrow
  data: {name: digits}
  train: {steps: 300, batch: 64, lr: 1e-3}
  measure: {every: 10, dense_until: 20}
axes:
  - {path: model, role: compare, values: [mlp_narrow, {name: vit, depth: 4}]}
  - {path: train.lr, role: nuisance, values: [1e-3, 1e-2]}
  - {path: seed, range: 3}
run: {lanes: auto, cpus: 1, gpus: 0, retries: 3}
analyses: [jumps, {name: growth, window: 3}]
"""


def sweep(axes: list[dict[str, Any]], base: dict[str, Any] | None = None, **more: Any) -> Sweep:
    full = {"model": "m", "data": "d", "train": {"steps": 10}, **(base or {})}
    return make_sweep({"name": "t", "base": full, "axes": axes, **more})


def refused(axes: list[dict[str, Any]], base: dict[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(SpecError) as caught:
        sweep(axes, base, **more)
    return str(caught.value)


def test_the_grid_is_the_product_in_order_the_last_axis_fastest() -> None:
    made = parse_sweep(TEXT)
    trials = list(made.trials())
    found = [(t.model.name, t.train.lr, t.seed.init) for t in trials]
    assert found == list(itertools.product(["mlp_narrow", "vit"], [1e-3, 1e-2], range(3)))
    assert Grid(made).size == 12
    assert trials[-1].model.params == {"depth": 4}
    assert {a.path: a.role for a in made.axes} == {"model": "compare", "train.lr": "nuisance", "seed": "replicate"}
    assert [a.name for a in made.analyses] == ["jumps", "growth"]
    assert made.analyses[1].params == {"window": 3}


def test_trials_are_as_pydantic_would_make_them() -> None:
    for trial in parse_sweep(TEXT).trials():
        again = Trial.model_validate_json(trial.model_dump_json())
        assert again == trial
        assert again.trial_id == trial.trial_id


def test_the_grid_is_lazy() -> None:
    made = sweep([{"path": "seed", "range": 10_000_000}, {"path": "train.lr", "range": {"stop": 1, "step": 0.01}}])
    assert Grid(made).size == 1_000_000_000
    assert [t.train.lr for t in itertools.islice(made.trials(), 3)] == [0.0, 0.01, 0.02]


@pytest.mark.parametrize(
    ("given_", "values"),
    [
        ({"range": 3}, [0, 1, 2]),
        ({"range": [2, 5]}, [2, 3, 4]),
        ({"range": {"start": 1, "stop": 10, "step": 4}}, [1, 5, 9]),
        ({"range": {"start": 0.1, "stop": 0.5, "step": 0.1}}, [0.1, 0.2, 0.3, 0.4]),
        ({"values": [3, 1]}, [3, 1]),
    ],
)
def test_ranges(given_: dict[str, Any], values: list[float]) -> None:
    made = make_sweep(
        {
            "name": "t",
            "base": {"model": "m", "data": "d", "train": {"steps": 1}},
            "axes": [{"path": "model.n", **given_}],
        }
    )
    assert list(made.axes[0].points()) == values


def draw(kind: str, n: int, seed: int = 0, path: str = "train.lr", **more: Any) -> list[Any]:
    return list(Axis.model_validate({"path": path, "sample": {"kind": kind, "n": n, "seed": seed, **more}}).points())


def test_samplers_are_repeatable_grow_without_change_and_differ_by_axis_and_seed() -> None:
    few, many = (draw("log_uniform", n, low=1e-4, high=1e-1) for n in (4, 9))
    assert many[:4] == few
    assert draw("log_uniform", 4, low=1e-4, high=1e-1) == few
    assert draw("log_uniform", 4, seed=1, low=1e-4, high=1e-1) != few
    assert draw("log_uniform", 4, path="train.weight_decay", low=1e-4, high=1e-1) != few
    assert few == [0.0520242, 0.0358386, 0.0111174, 0.00669033]  # the same on every machine and in every version


@given(st.integers(0, 1000), st.sampled_from(["uniform", "log_uniform"]))
@settings(max_examples=40)
def test_draws_lie_within_their_bounds(seed: int, kind: str) -> None:
    values = draw(kind, 30, seed, low=0.003, high=0.7)
    assert all(0.003 <= v <= 0.7 for v in values)
    assert len(set(values)) == 30
    whole = draw(kind, 30, seed, low=1, high=9, integer=True)
    assert all(isinstance(v, int) and 1 <= v <= 9 for v in whole)


def test_log_uniform_is_uniform_in_the_logarithm() -> None:
    logs = [math.log10(v) for v in draw("log_uniform", 4000, low=1e-4, high=1.0)]
    shares = [sum(a <= v < a + 1 for v in logs) / 4000 for a in (-4, -3, -2, -1)]
    assert all(0.22 < share < 0.28 for share in shares)


def test_choice_draws_without_replacement() -> None:
    assert sorted(draw("choice", 5, values=[1, 2, 3, 4, 5])) == [1, 2, 3, 4, 5]
    assert draw("choice", 2, values=[1, 2, 3, 4, 5]) == draw("choice", 5, values=[1, 2, 3, 4, 5])[:2]
    with pytest.raises(SpecError, match="n=3 of 2 values"):
        draw("choice", 3, values=[1, 2])


def test_zipped_axes_advance_together() -> None:
    axes = [
        {"path": "model", "values": ["a", "b"]},
        {"path": "seed", "range": 2},
        {"path": "train.lr", "values": [0.1, 0.2]},
    ]
    made = sweep(axes, zip=[["model", "train.lr"]])
    found = [(t.model.name, t.train.lr, t.seed.init) for t in made.trials()]
    assert found == [("a", 0.1, 0), ("a", 0.1, 1), ("b", 0.2, 0), ("b", 0.2, 1)]
    assert Grid(made).size == 4


def test_what_zip_refuses() -> None:
    axes = [{"path": "model", "values": ["a", "b"]}, {"path": "seed", "range": 3}]
    assert "need as many values each, but model has 2, seed has 3" in refused(axes, zip=[["model", "seed"]])
    assert "no axis has the path 'modle' - did you mean 'model'?" in refused(axes, zip=[["modle", "seed"]])
    assert "already zipped" in refused(axes, zip=[["model", "model"]])


def test_seeds_expand_and_a_single_source_may_be_an_axis() -> None:
    made = sweep([{"path": "seed", "range": 2}, {"path": "seed.init", "values": [7, 8]}])
    found = [(t.seed.init, t.seed.order, t.seed.dropout, t.seed.data) for t in made.trials()]
    assert found == [(7, 0, 0, 0), (8, 0, 0, 0), (7, 1, 1, 1), (8, 1, 1, 1)]
    assert [a.role for a in made.axes] == ["replicate", "replicate"]
    assert [t.seed.order for t in sweep([], {"seed": 5}).trials()] == [5]


def test_parameters_by_either_path_whatever_the_order_of_the_axes() -> None:
    for path in ("model.width", "model.params.width"):
        axes = [{"path": path, "values": [1, 2]}, {"path": "model", "values": ["a", {"name": "b", "depth": 3}]}]
        found = [(t.model.name, t.model.params) for t in sweep(axes).trials()]
        assert found[0] == ("a", {"width": 1})
        assert found[-1] == ("b", {"depth": 3, "width": 2})


def test_a_section_as_a_whole_is_merged_into_the_base() -> None:
    axes = [{"path": "train", "values": [{"lr": 0.1, "batch": 8}, {"schedule": {"name": "cosine"}}]}]
    first, second = sweep(axes, {"train": {"steps": 5, "lr": 0.5, "schedule": {"warmup": 2}}}).trials()
    assert (first.train.steps, first.train.lr, first.train.batch) == (5, 0.1, 8)
    assert (second.train.lr, second.train.schedule.name, second.train.schedule.warmup) == (0.5, "cosine", 2)


def test_controls_and_engines_are_axes_too() -> None:
    axes = [
        {"path": "control", "values": ["none", "lr0", "frozen:network.0"]},
        {"path": "engine", "values": ["loop", "auto"]},
    ]
    found = [(str(t.control), t.engine) for t in sweep(axes).trials()]
    assert found == list(itertools.product(["none", "lr0", "frozen:network.0"], ["loop", "auto"]))


def test_exclude_by_partial_match() -> None:
    axes = [
        {"path": "model", "values": ["cnn", "mlp"]},
        {"path": "data", "values": ["text", "image"]},
        {"path": "train.lr", "values": [0.1, 0.2]},
    ]
    made = sweep(axes, exclude=[{"model": "cnn", "data": "text"}, {"train.lr": [0.2], "model": ["mlp", "x"]}])
    found = [(t.model.name, t.data.name, t.train.lr) for t in made.trials()]
    assert found == [
        ("cnn", "image", 0.1),
        ("cnn", "image", 0.2),
        ("mlp", "text", 0.1),
        ("mlp", "image", 0.1),
    ]
    assert "unknown field 'modle' - did you mean 'model'?" in refused(axes, exclude=[{"modle": "cnn"}])
    assert "excludes every trial" in refused(axes, exclude=[{}])


def test_where_keeps_what_holds() -> None:
    made = parse_sweep(TEXT.replace("run:", "where: model = vit and lr < 5e-3 and seed in [0, 2]\nrun:"))
    assert [(t.model.name, t.train.lr, t.seed.init) for t in made.trials()] == [("vit", 1e-3, 0), ("vit", 1e-3, 2)]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("lr: 1e-3", "lrr: 1e-3", "x.yaml:7:34: base.train.lrr: unknown key - did you mean 'lr'?"),
        ("steps: 300", "stpes: 300", "x.yaml:7:3: base.train.steps: missing"),
        ("model: mlp_narrow", "mdl: mlp_narrow", "x.yaml:5:3: base.mdl: unknown key - did you mean 'model'?"),
        ("  data: {name: digits}\n", "", "base.data: missing: say it here or make it an axis"),
        ("path: train.lr", "path: lr", "x.yaml:11:6: axes[1].path: unknown path 'lr' - did you mean 'train.lr'?"),
        ("path: train.lr", "path: trian.lr", "unknown path 'trian.lr' - did you mean 'train.lr'?"),
        ("path: train.lr", "path: width", "'width' is filled in by the plan"),
        ("path: train.lr", "path: model", "axes[1].path: 'model' is already axis 0"),
        ("1e-2]", "-1]", "x.yaml:11:53: axes[1].values[1]: must be greater than or equal to 0, but got -1"),
        ("1e-2]", "ten]", 'axes[1].values[1]: must be a number, but got "ten"'),
        ("values: [mlp_narrow", "values: [3", "axes[0].values[0]: must be a mapping, but got 3"),
        ("depth: 4}", "params: 4}", "axes[0].values[1].params: must be a mapping"),
        ("range: 3", "range: 0", "x.yaml:12:5: axes[2]: has no values"),
        ("range: 3", "range: [a, 2]", "axes[2].range[0]: must be an integer"),
        ("range: 3", "range: {strt: 1, stop: 2}", "axes[2].range.strt: unknown key - did you mean 'start'?"),
        ("range: 3", "range: {stop: 2, step: 0}", "step > 0 must hold"),
        ("range: 3", "range: 3, values: [1]", "needs one of values, range and sample, but got values and range"),
        (", range: 3", "", "needs one of values, range and sample, but got none"),
        ("range: 3", "sample: {kind: unifrm, low: 1, high: 2, n: 3}", "but got 'unifrm' - did you mean 'uniform'?"),
        ("range: 3", "sample: {kind: uniform, low: 2, high: 2, n: 3}", "low < high must hold"),
        ("range: 3", "sample: {kind: log_uniform, low: 0, high: 2, n: 3}", "low < high and 0 < low must hold"),
        ("role: compare", "role: cmp", "must be 'compare', 'replicate' or 'nuisance', but got 'cmp' - did you mean"),
        ("name: digits\n", "name: a/b\n", "x.yaml:2:1: name: must be usable as a file name"),
        ("name: digits\n", "name: CON\n", "must be usable as a file name"),
        ("name: digits\n", "name: ..\n", "must be usable as a file name"),
        ("retries", "retrys", "run.retrys: unknown key - did you mean 'retries'?"),
        ("lanes: auto", "lanes: 0", "run.lanes"),
        ("run:", "wher: 1\nrun:", "wher: unknown key - did you mean 'where'?"),
        ("run:", "where: modle = 3\nrun:", "x.yaml:13:1: where: unknown field 'modle' - did you mean 'model'?"),
        ("[jumps", "[3", "analyses[0]: must be a mapping, but got 3"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(old: str, new: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_sweep(TEXT.replace(old, new, 1), origin="x.yaml")
    assert told in str(caught.value)


def test_all_that_is_wrong_is_listed_at_once() -> None:
    text = TEXT.replace("lr: 1e-3}", "lrr: 1, optimizer: adm}").replace("every: 10", "evry: 10")
    with pytest.raises(SpecError) as caught:
        parse_sweep(text)
    assert len(str(caught.value).splitlines()) == 3


def test_a_bad_value_far_down_a_long_axis_is_found_when_its_trial_is_made() -> None:
    made = sweep([{"path": "train.lr", "values": [*([0.1] * 300), -1]}])
    with pytest.raises(SpecError, match=r"axes\[0\]\.values\[300\]: must be greater"):
        list(made.trials())


def test_paths_point_into_a_trial() -> None:
    assert target("data.n") == ("data", "params", "n")
    assert target("data.name") == ("data", "name")
    assert target("train.schedule.warmup") == ("train", "schedule", "warmup")
    for bad in ("model.params", "model.a.b", "train.steps.x", "", "seed.x"):
        with pytest.raises(SpecError, match="unknown path"):
            target(bad)


def test_cells_are_named_by_what_varies_but_seeds_and_controls() -> None:
    made = parse_sweep(TEXT)
    name = cell_namer(made)
    assert list(dict.fromkeys(name(t) for t in made.trials())) == [
        "mlp_narrow/digits lr=0.001",
        "mlp_narrow/digits lr=0.01",
        "vit(depth=4)/digits lr=0.001",
        "vit(depth=4)/digits lr=0.01",
    ]
    twice = sweep(
        [
            {"path": "measure.every", "values": [1]},
            {"path": "evaluate.every", "values": [2]},
            {"path": "control", "values": ["lr0"]},
            {"path": "train", "values": [{"batch": 8}]},
        ]
    )
    (trial,) = twice.trials()
    assert cell_namer(twice)(trial) == "m/d measure.every=1 evaluate.every=2 batch=8"


def test_a_direct_sweep_is_checked_by_find_problems() -> None:
    made = Sweep(name="t", base={"model": "m", "data": "d", "train": {"steps": 1}, "modle": 3})
    assert [p.path for p in find_problems(made)] == [("base", "modle")]
