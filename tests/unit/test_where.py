"""Filters on trials: the grammar, what each operator does, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndt_ray.errors import SpecError
from ndt_ray.spec import Trial
from ndt_ray.spec.where import Where, field

TRIAL = Trial.model_validate(
    {
        "model": {"name": "cnn_deep", "width": 64},
        "data": "mnist",
        "train": {"steps": 100, "lr": 1e-3, "batch": "full"},
        "seed": 3,
        "control": "frozen:network.0",
        "checkpoint": {"at": [0, 5]},
    }
)
PARAMS = {"model": ["width", "depth"], "data": ["n"]}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("model = cnn_deep", True),
        ("model == 'cnn_deep'", True),
        ('model != "cnn_deep"', False),
        ("model.name = cnn_deep", True),
        ("train.lr < 1e-2", True),
        ("lr <= 0.001", True),
        ("lr > 1e-3", False),
        ("lr >= 1e-3", True),
        ("seed = 3", True),
        ("seed.order = 3 and seed.data = 3", True),
        ("model.width = 64", True),
        ("width = 64", True),
        ("width in [32, 64]", True),
        ("model.depth = null", True),
        ("model.depth < 3", False),
        ("model in [mlp, cnn_deep]", True),
        ("model not in (mlp, cnn_deep)", False),
        ("model in []", False),
        ("model ~ cnn_*", True),
        ("model ~ mlp_*", False),
        ("not model = mlp", True),
        ("not (model = cnn_deep or data = x)", False),
        ("model = x or data = mnist and seed = 4", False),
        ("(model = x or data = mnist) and seed = 3", True),
        ("control = frozen:network.0", True),
        ("batch = full", True),
        ("batch < 100", False),
        ("checkpoint.at in [0]", False),
        ("loss_dtype = float32 AND NOT seed = 1", True),
        ("velocity = true", True),
        ("velocity = 1", False),
        (f"trial_id = '{TRIAL.trial_id}'", True),
        ("  model=cnn_deep  ", True),
    ],
)
def test_what_holds(text: str, holds: bool) -> None:
    assert Where(text, PARAMS)(TRIAL) is holds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a field"),
        ("modle = x", "unknown field 'modle' - did you mean 'model'?"),
        ("lrs < 1", "did you mean 'train.lr'?"),
        ("every = 3", "'every' may be any of measure.every, evaluate.every, checkpoint.every"),
        ("model.heads = 3", "unknown field"),
        ("model cnn", "expected one of ="),
        ("model =", "expected a value at the end"),
        ("model = cnn data = x", "expected 'and', 'or' or the end at 'data' (character 13)"),
        ("model = cnn and", "expected a field"),
        ("(model = cnn", "expected ')'"),
        ("model in cnn", "expected a list"),
        ("model in [cnn dnn]", "expected ',' or ']'"),
        ("model not cnn", "expected 'in' after 'not'"),
        ("1e-3 < lr < 1", "unknown field '1e-3'"),
        ("model = cnn; import os", "cannot read ';"),
        ("__import__('os')", "unknown field '__import__'"),
        ("model = 'cnn", "cannot read"),
        ("(" * 60 + "seed = 1" + ")" * 60, "nested more than 50 deep"),
        ("not " * 60 + "seed = 1", "nested more than 50 deep"),
        ("seed = 1 or " * 2000 + "seed = 1", "longer than 10,000"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        Where(text, PARAMS)
    assert told in str(caught.value)


@given(st.text(alphabet="model=<>()[],~'\" andornti1e-3", max_size=40))
def test_any_text_is_a_filter_or_an_error_for_users(text: str) -> None:
    try:
        assert isinstance(Where(text, PARAMS)(TRIAL), bool)
    except SpecError:
        pass


def test_what_only_the_plan_knows_is_told_apart() -> None:
    assert Where("trial_id = x").needs_resolved
    assert Where("seed = 1 and engine = stack").needs_resolved
    assert not Where("seed = 1").needs_resolved


def test_seeds_that_differ_have_no_common_number() -> None:
    other = TRIAL.model_copy(update={"seed": TRIAL.seed.model_copy(update={"data": 9})})
    assert field("seed")[1](other) is None
    assert field("seed.data")[1](other) == 9
