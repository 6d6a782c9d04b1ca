"""The strict loader: what it reads, what it refuses and where, and what it makes of pydantic's errors."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ndt_ray.errors import SpecError
from ndt_ray.spec import Checkpoint, Control, Measure, Named, Train, Trial
from ndt_ray.spec.loader import Document, Problem, dump_yaml, load_yaml, parse_scalar, parse_value, refuse, validated


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E+2", 100),
        ("2e3", 2000),
        ("2.0e3", 2000.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", 10),
        ("0x1f", 31),
        ("-7", -7),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("'3e-4'", "3e-4"),
        ('"true"', "true"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_scalars_are_read_as_people_mean_them(text: str, value: object) -> None:
    found = load_yaml(f"x: {text}", "f.yaml").value["x"]
    assert found == value
    assert type(found) is type(value)


def test_pyyaml_itself_still_reads_them_wrongly() -> None:
    assert yaml.safe_load("x: 3e-4")["x"] == "3e-4"
    assert yaml.safe_load("x: on")["x"] is True


def test_anchors_and_merge_keys() -> None:
    value = load_yaml("a: &a {p: 1, q: 2}\nb: [*a, *a]\nc: {<<: *a, p: 5}", "f").value
    assert value == {"a": {"p": 1, "q": 2}, "b": [{"p": 1, "q": 2}] * 2, "c": {"p": 5, "q": 2}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", r"f\.yaml:3:1: 'a' stands here a second time \(first in line 1\)"),
        ("x: {a: 1, a: 2}", r"f\.yaml:1:11: 'a' stands"),
        ("a: [1", r"f\.yaml:1:6: "),
        ("a:\n\t- 1", r"f\.yaml:2:1: .*indent with spaces"),
        ("- 1", "must be a mapping .* but got a list"),
        ("", "but got nothing"),
        ("a: 1\n---\nb: 2", r"f\.yaml:2:1: .*another document"),
        ("a: !!python/object:os.system x", r"f\.yaml:1:4: tags are not read"),
        ("a: !!map {}", None),
        ("a: !thing 3", "tags are not read"),
        ("a: !!str 3", "tags are not read"),
        ("a: &a [*a]", "an alias stands inside what it names"),
        ("a: *b", "undefined alias"),
        ("1: 2", r"f\.yaml:1:1: a key must be text, but got 1"),
        ("? [1]\n: 2", "a key must be text"),
        ("a: .inf", r"f\.yaml:1:4: a number must be finite"),
        ("a: .NaN", "must be finite"),
        ("a: 1e999", "must be finite"),
        ("a: \x00", r"f\.yaml:1:4: a character that is no text"),
        ("<<: 3", "merges mappings"),
        ("a: " + "[" * 3000, "."),
        ("a: " + "[" * 80 + "]" * 80, "nested more than 50 deep"),
        ("a: '" + "x" * 1_000_001 + "'", "larger than 1,000,000 bytes"),
    ],
)
def test_bad_text_is_one_error_with_its_place(text: str, told: str | None) -> None:
    if told is None:
        load_yaml(text, "f.yaml")
        return
    with pytest.raises(SpecError, match=told):
        load_yaml(text, "f.yaml")


def test_an_alias_bomb_costs_nothing() -> None:
    lines = ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]" for i in range(20)]
    with pytest.raises(SpecError, match="more than 200,000 values"):
        load_yaml("\n".join(lines), "f.yaml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        load_yaml(text, "f.yaml")
    except SpecError as error:
        assert str(error).startswith("f.yaml")


TEXT = st.text(st.characters(exclude_characters="\x85\u2028\u2029"))  # line ends to PyYAML's writer alone
PLAIN = st.none() | st.booleans() | st.integers() | TEXT | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(PLAIN, lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4), max_leaves=12)


@settings(max_examples=60)
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_dumped_reads_back_equal(value: dict[str, object]) -> None:
    try:
        text = dump_yaml(value)
        found = load_yaml(text, "f").value
    except SpecError as error:  # characters that YAML cannot hold
        assert "no text" in str(error)
        return
    assert found == value or _whole_floats_equal(found, value)


def _whole_floats_equal(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_whole_floats_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_whole_floats_equal, a, b))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=0, abs_tol=0) and isinstance(a, bool) == isinstance(b, bool)
    return a == b


def test_values_of_overrides() -> None:
    assert parse_value("3e-4", "--set train.lr") == 3e-4
    assert parse_value("[a, 1]", "--set x") == ["a", 1]
    assert parse_value("", "--set x") == ""
    with pytest.raises(SpecError, match="--set x: not a YAML value"):
        parse_value("[", "--set x")
    assert parse_scalar("frozen:network.0") == "frozen:network.0"


def test_unknown_keys_name_the_closest_one_with_their_path() -> None:
    _, problems = validated(Train, {"lrr": 1, "steps": 1}, ("base", "train"))
    assert problems == [Problem(("base", "train", "lrr"), "unknown key - did you mean 'lr'?")]


def test_all_problems_are_listed_with_file_line_and_column() -> None:
    document = load_yaml("base:\n  train:\n    steps: -1\n    lrr: 3\n", "x.yaml")
    _, problems = validated(Train, document.value["base"]["train"], ("base", "train"))
    with pytest.raises(SpecError) as caught:
        refuse(problems, document)
    assert str(caught.value).splitlines() == [
        "x.yaml:3:5: base.train.steps: must be greater than 0, but got -1",
        "x.yaml:4:5: base.train.lrr: unknown key - did you mean 'lr'?",
    ]


def test_what_is_missing_points_at_the_mapping_that_lacks_it() -> None:
    document = load_yaml("base:\n  train: {lr: 1}", "x.yaml")
    _, problems = validated(Train, document.value["base"]["train"], ("base", "train"))
    with pytest.raises(SpecError, match=r"^x\.yaml:2:3: base\.train\.steps: missing, and has no default"):
        refuse(problems, document)


def test_a_long_list_of_problems_is_cut() -> None:
    with pytest.raises(SpecError, match="and 5 more"):
        refuse([Problem(("a", i), "wrong") for i in range(25)], Document({}, "f"))
    refuse([], Document({}, "f"))


@pytest.mark.parametrize(
    ("model", "value", "told"),
    [
        (
            Train,
            {"steps": 1, "batch": "ful"},
            "batch: must be an integer or 'full', but got 'ful' - did you mean 'full'?",
        ),
        (Train, {"steps": True}, "steps: must be an integer, but got true"),
        (Train, {"steps": 2.5}, "steps: must be an integer, but got 2.5"),
        (Train, {"steps": 1, "lr": "3e-4"}, 'lr: must be a number, but got "3e-4"'),
        (Train, {"steps": 1, "optimizer": "adm"}, "optimizer: must be 'adam', 'adamw' or 'sgd', but got 'adm' - did"),
        (Train, {"steps": 1, "schedule": {"warm": 1}}, "schedule.warm: unknown key - did you mean 'warmup'?"),
        (Checkpoint, {"at": [1, -1]}, "at[1]: must be greater than or equal to 0, but got -1"),
        (Measure, {"views": {"token": "mean"}}, "views: unknown kind of layer 'token' - did you mean 'tokens'?"),
        (Measure, {"views": {"tokens": "gap"}}, "views: tokens: unknown view 'gap'"),
        (Measure, {"views": {"tokens": ["mean", "gap"]}}, "tokens: unknown view 'gap'"),
        (Measure, {"views": {"tokens": ["mean", "mean"]}}, "tokens: views are one or more, none twice"),
        (Measure, {"views": {"tokens": []}}, "tokens: views are one or more, none twice"),
        (Control, "lr1", "or 'schedule', but got 'lr1' - did you mean 'lr'?"),
        (Control, "frozen", "'frozen' is written frozen:LAYER"),
        (Named, {"params": {}}, "name: missing"),
        (Named, {"name": "x", "params": 3}, "params: must be a mapping, but got 3"),
        (Trial, {"model": "a", "data": "b", "train": {"steps": 1}, "seed": {"inti": 1}}, "seed.inti: unknown key"),
    ],
)
def test_messages_are_for_people(model: type, value: object, told: str) -> None:
    made, problems = validated(model, value)
    assert made is None
    with pytest.raises(SpecError) as caught:
        refuse(problems, Document({}, "f"))
    assert told in str(caught.value)
    assert "literal[" not in str(caught.value)


def test_lists_are_tuples_and_whole_numbers_floats_where_the_model_wants_them() -> None:
    train, problems = validated(Train, {"steps": 5, "lr": 1, "betas": [0.9, 1]})
    assert problems == []
    assert train is not None and train.betas == (0.9, 1.0) and isinstance(train.lr, float)
