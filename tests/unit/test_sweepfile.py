"""Sweep files: packaged and own, checkpoint plans, overrides, the JSON schema, and what no file may do."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ndt_ray.errors import SpecError
from ndt_ray.spec.loader import load_yaml
from ndt_ray.spec.sweepfile import (
    checkpoint_plan,
    dump_sweep,
    load_sweep,
    packaged_sweeps,
    parse_sweep,
    sweep_schema,
    with_overrides,
)

SHIPPED = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))
TEXT = """
name: t
base: {model: mlp_narrow, data: mnist, train: {steps: 400, lr: 1e-3}, checkpoint: {at: [7]}}
axes:
  - {path: model, values: [mlp_narrow, cnn_deep]}
  - {path: seed, range: 2}
"""


def test_a_sweep_by_name_by_path_and_neither(tmp_path: Path) -> None:
    assert "digits" in packaged_sweeps()
    assert load_sweep("digits").name == "digits"
    for name in ("own sweep.yaml", "a'b\".yml"):
        (tmp_path / name).write_text(TEXT)
        assert load_sweep(tmp_path / name).name == "t"
        assert load_sweep(str(tmp_path / name)).name == "t"
    with pytest.raises(SpecError, match="no sweep is called 'digit' - did you mean 'digits'?"):
        load_sweep("digit")
    with pytest.raises(SpecError, match=r"gone\.yaml: there is no such file"):
        load_sweep(tmp_path / "gone.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read as text"):
        load_sweep(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SpecError, match="larger than"):
        load_sweep(tmp_path / "large.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_sweep(tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_sweeps_load_dump_and_match_the_schema(path: Path) -> None:
    sweep = load_sweep(path)
    assert parse_sweep(dump_sweep(sweep)) == sweep
    jsonschema.validate(load_yaml(path.read_text(), path.name).value, sweep_schema())


@pytest.mark.slow
def test_the_schema_is_one_and_refuses_what_we_refuse() -> None:
    schema = sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    good = load_yaml(TEXT, "t").value
    jsonschema.validate(good, schema)
    changes: list[dict[str, Any]] = [
        {"base": {"modle": "x"}},
        {"base": {"train": {"lrr": 1}}},
        {"base": {"train": {"steps": 0}}},
        {"base": {"control": "frozn"}},
        {"base": {"seed": -1}},
        {"base": {"checkpoint": {"plan": 3}}},
        {"axes": [{"path": "seed"}]},
        {"axes": [{"path": "seed", "range": 1, "values": [1]}]},
        {"axes": [{"path": "seed", "role": "cmp", "range": 1}]},
        {"run": {"lanes": "many"}},
        {"wher": "x"},
    ]
    for change in changes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **change}, schema)
    for base in (
        {"model": {"name": "x", "n": 1}, "seed": 3, "control": "frozen:a"},
        {"seed": {"init": 1}, "engine": "loop"},
        {"checkpoint": {"plan": "plan.json", "on_event": True}},
    ):
        jsonschema.validate({**good, "base": base}, schema)
    assert (
        "plan-checkpoints"
        in schema["properties"]["base"]["properties"]["checkpoint"]["properties"]["plan"]["description"]
    )


# -- checkpoint plans ------------------------------------------------------------------------------------------------


FOUNDING = {
    "cnn_deep_mnist": {"jumps": [{"type": 5, "step": 16, "checkpoints": [6, 16, 26]}], "checkpoint_steps": [26, 6, 16]},
    "transformer_deep_mnist": {"jumps": [], "checkpoint_steps": [101]},
}


def planned(tmp_path: Path, plan: Any, text: str = TEXT) -> Path:
    (tmp_path / "plan.json").write_text(plan if isinstance(plan, str) else json.dumps(plan))
    path = tmp_path / "s.yaml"
    path.write_text(text.replace("{at: [7]}", "{at: [7], plan: plan.json}"))
    return path


def test_a_founding_plan_becomes_the_steps_of_its_cells(tmp_path: Path) -> None:
    sweep = load_sweep(planned(tmp_path, FOUNDING))
    found = {t.model.name: t.checkpoint.at for t in sweep.trials()}
    assert found == {"mlp_narrow": (7,), "cnn_deep": (6, 7, 16, 26)}


def test_trial_ids_depend_on_the_steps_not_on_the_file(tmp_path: Path) -> None:
    by_file = [t.trial_id for t in load_sweep(planned(tmp_path, FOUNDING)).trials()]
    text = TEXT.replace("{at: [7]}", "{at: [7], plan: {cnn_deep_mnist: [6, 16, 26]}}")
    assert [t.trial_id for t in parse_sweep(text).trials()] == by_file
    assert by_file[:2] == [t.trial_id for t in parse_sweep(TEXT).trials()][:2]
    again = parse_sweep(dump_sweep(load_sweep(planned(tmp_path, FOUNDING))))
    assert [t.trial_id for t in again.trials()] == by_file


def test_a_plan_in_an_axis_is_a_contrast(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(FOUNDING))
    path = tmp_path / "s.yaml"
    path.write_text(TEXT + "  - {path: checkpoint, values: [{at: [1]}, {plan: plan.json}]}\n")
    found = [(t.model.name, t.checkpoint.at) for t in load_sweep(path).trials() if t.seed.init == 0]
    assert found == [("mlp_narrow", (1,)), ("mlp_narrow", (7,)), ("cnn_deep", (1,)), ("cnn_deep", (6, 7, 16, 26))]


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ("{", "plan.json:1:2: not JSON"),
        ("[1]", "but got list"),
        ("{}", "but got dict"),
        ({"x": {"jumps": []}}, "x: must be .* there is no list of steps"),
        ({"x": {"checkpoint_steps": [1.5]}}, "x: a step is a whole number from 0 on, but got 1.5"),
        ({"x": {"checkpoint_steps": [-1]}}, "but got -1"),
        ({"x": [True]}, "but got True"),
    ],
)
def test_a_bad_plan_file_is_told_with_its_place(tmp_path: Path, plan: Any, told: str) -> None:
    with pytest.raises(SpecError, match=rf"s\.yaml:3:\d+: checkpoint\.plan: .*{told}"):
        load_sweep(planned(tmp_path, plan))


def test_a_plan_file_that_is_not_there(tmp_path: Path) -> None:
    path = planned(tmp_path, FOUNDING)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(SpecError, match=r"plan\.json: there is no such file"):
        load_sweep(path)


def test_steps_from_either_form() -> None:
    assert checkpoint_plan({"a": [3, 1, 3]}, "p") == {"a": [1, 3]}
    assert checkpoint_plan(FOUNDING, "p") == {"cnn_deep_mnist": [6, 16, 26], "transformer_deep_mnist": [101]}


# -- over a network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{at: [7]}", "{plan: plan.json}"),
        ("[mlp_narrow, cnn_deep]", "[mlp_narrow, 'evil.py:make']"),
        ("[mlp_narrow, cnn_deep]", "[mlp_narrow, {name: 'evil.py:make'}]"),
        ("model: mlp_narrow", "model: evil.py:make"),
        ("data: mnist", "data: {name: arrays, path: /etc/passwd}"),
        ("data: mnist", "data: evil.py:make"),
    ],
)
def test_a_text_without_a_folder_may_name_no_file(old: str, new: str) -> None:
    with pytest.raises(SpecError, match="file"):
        parse_sweep(TEXT.replace(old, new, 1))


# -- overrides -------------------------------------------------------------------------------------------------------


def test_set_changes_the_base_an_axis_or_the_run() -> None:
    made = with_overrides(
        parse_sweep(TEXT),
        ["train.lr=3e-4", "model=cnn_deep", "seed=[5, 6]", "data.n=9", "run.cpus=2", "name=other", "seed.data=1"],
    )
    assert [(t.model.name, t.seed.init, t.seed.data) for t in made.trials()] == [("cnn_deep", 5, 1), ("cnn_deep", 6, 1)]
    (trial, _) = made.trials()
    assert (trial.train.lr, trial.train.steps, trial.data.params) == (3e-4, 400, {"n": 9})
    assert (made.run.cpus, made.name) == (2, "other")


def test_a_part_of_what_an_axis_sets_wins_over_it() -> None:
    made = with_overrides(parse_sweep(TEXT), ["model.width=3"])
    assert {(t.model.name, t.model.params["width"]) for t in made.trials()} == {("mlp_narrow", 3), ("cnn_deep", 3)}


def test_where_adds_to_where() -> None:
    made = with_overrides(parse_sweep(TEXT + "where: seed = 0 or seed = 1\n"), [], ["model = cnn_deep", "seed = 1"])
    assert [(t.model.name, t.seed.init) for t in made.trials()] == [("cnn_deep", 1)]


@pytest.mark.parametrize(
    ("assignments", "where", "told"),
    [
        (["train.lr"], [], "must be path=value"),
        (["=3"], [], "must be path=value"),
        (["train.lrr=3"], [], "unknown path 'train.lrr' - did you mean 'train.lr'?"),
        (["train.lr=-3"], [], "base.train.lr: must be greater"),
        (["model=[a, 3]"], [], "axes[0].values[1]: must be a mapping"),
        (["seed=["], [], "--set seed: not a YAML value"),
        (["run.cpu=3"], [], "run.cpu: unknown key - did you mean 'cpus'?"),
        ([], ["modle = 3"], "unknown field 'modle'"),
    ],
)
def test_bad_overrides(assignments: list[str], where: list[str], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_overrides(parse_sweep(TEXT), assignments, where)
    assert told in str(caught.value)


def test_no_override_changes_nothing() -> None:
    sweep = parse_sweep(TEXT)
    assert with_overrides(sweep) == sweep
