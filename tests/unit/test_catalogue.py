"""The torch catalogue: signatures, shapes, what does not fit and the way out, engines, guesses; and calibrations."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ndt_ray.catalogue import TorchCatalogue, factory_parameters
from ndt_ray.catalogue.calibration import TARGET_SECONDS, Calibration, machine, pack_timer, quiet, time_parts
from ndt_ray.errors import SpecError
from ndt_ray.plan import make_plan
from ndt_ray.plan.estimate import Cost
from ndt_ray.schedule import coarse_steps, evaluated_steps, measured_steps
from ndt_ray.spec import Named, Trial
from ndt_ray.spec.axes import make_sweep


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> TorchCatalogue:
    return TorchCatalogue(cache=tmp_path_factory.mktemp("cache") / "calibration.json")


DIGITS = Named(name="digits")


def trial(model: str = "mlp_narrow", **changes: Any) -> Trial:
    return Trial.model_validate(
        {"model": model, "data": "digits", "train": {"steps": 50}, "measure": {"probe": 64}, **changes}
    )


# -- parameters ------------------------------------------------------------------------------------------------------


def test_defaults_are_filled_in_and_lists_stay_plain(catalogue: TorchCatalogue) -> None:
    assert catalogue.parameters("model", Named(name="mlp")) == {"hidden": [128, 64], "activation": "relu"}
    assert catalogue.parameters("model", Named(name="mlp", params={"hidden": [8]}))["hidden"] == [8]
    assert catalogue.parameters("data", DIGITS) == {}
    assert catalogue.parameters("data", Named(name="modular_addition"))["p"] == 113


@pytest.mark.parametrize(
    ("kind", "named", "told"),
    [
        ("model", {"name": "mlp_narow"}, "unknown model 'mlp_narow' - did you mean 'mlp_narrow'?"),
        ("data", {"name": "digit"}, "unknown data 'digit' - did you mean 'digits'?"),
        ("model", {"name": "mlp", "hiden": [3]}, "model 'mlp': unknown parameter 'hiden' - did you mean 'hidden'?"),
        ("model", {"name": "mlp_narrow", "width": 3}, "model 'mlp_narrow': unknown parameter 'width' - it has none"),
        ("model", {"name": "mlp", "hidden": "wide"}, "hidden: must be a list, but got 'wide'"),
        ("model", {"name": "mlp", "hidden": [True]}, "hidden: must be an integer, but got [True]"),
        ("model", {"name": "mlp", "activation": "swish"}, "activation: must be 'relu', 'gelu', 'tanh' or 'linear'"),
        ("model", {"name": "vit", "dropout": "0.1"}, "dropout: must be a number, but got '0.1'"),
        ("data", {"name": "modular_addition", "p": 1.5}, "data 'modular_addition': p"),
    ],
)
def test_parameters_that_do_not_fit(catalogue: TorchCatalogue, kind: str, named: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        catalogue.parameters(kind, Named.model_validate(named))
    assert told in str(caught.value)


def test_signatures_of_all_shapes() -> None:
    def plain(inputs: Any, *, width: int = 3, rate: float) -> None: ...
    def first(spec: Any, width: int = 3) -> None: ...
    def anything(inputs: Any, **more: Any) -> None: ...
    def undescribed(inputs: Any, width=3, on: "Unknown" = None) -> None: ...  # type: ignore[no-untyped-def,name-defined] # noqa: F821

    def odd(inputs: Any, dtype: torch.dtype = torch.float32) -> None: ...

    assert factory_parameters("m", plain, {"rate": 1}) == {"rate": 1.0, "width": 3}
    with pytest.raises(SpecError, match="parameter 'rate' is missing"):
        factory_parameters("m", plain, {})
    assert factory_parameters("m", first, {}) == {"width": 3}
    with pytest.raises(SpecError, match="unknown parameter 'spec'"):
        factory_parameters("m", first, {"spec": 1})
    assert factory_parameters("m", anything, {"x": [1]}) == {"x": [1]}
    assert factory_parameters("m", undescribed, {"width": "wide"}) == {"width": "wide", "on": None}
    assert factory_parameters("m", odd, {"dtype": "x"}) == {"dtype": "x"}


# -- facts -----------------------------------------------------------------------------------------------------------


def test_facts_of_data_and_models(catalogue: TorchCatalogue) -> None:
    data = catalogue.data(DIGITS)
    assert (data.n_train, data.n_test, data.inputs.shape, data.completeness) == (1197, 600, (1, 8, 8), "complete")
    facts = catalogue.model(Named(name="mlp_narrow"), DIGITS)
    by_hand = [(64, 32), (32, 32), (32, 32), (32, 32), (32, 10)]
    assert facts.n_parameters == sum(a * b + b for a, b in by_hand)
    assert [(layer.path, layer.kind, layer.shape) for layer in facts.layers][:2] == [
        ("network.0", "units", (32,)),
        ("network.2", "units", (32,)),
    ]
    assert facts.modules == tuple(f"network.{i}" for i in range(0, 10, 2))
    assert facts.flops == 2 * sum(a * b for a, b in by_hand)
    cnn = catalogue.model(Named(name="cnn_shallow"), DIGITS)
    assert [layer.kind for layer in cnn.layers] == ["positions", "positions", "units"]
    assert cnn.flops == 2 * (64 * 32 * 9 + 16 * 64 * 32 * 9 + 256 * 10)


def test_no_weight_is_allocated_for_a_registered_model(catalogue: TorchCatalogue) -> None:
    _, module = catalogue._model(Named(name="transformer_deep"), DIGITS)
    assert all(p.is_meta for p in module.parameters())


def test_a_model_that_the_data_cannot_feed_names_those_that_fit(catalogue: TorchCatalogue) -> None:
    with pytest.raises(SpecError) as caught:
        catalogue.model(Named(name="cnn_deep"), DIGITS)
    assert "leaves nothing of 8x8" in str(caught.value)
    assert "models that fit: cnn, cnn_medium, cnn_shallow" in str(caught.value)


def test_it_is_told_at_plan_time_with_the_way_out(catalogue: TorchCatalogue) -> None:
    base = {"data": "digits", "train": {"steps": 5}, "measure": {"probe": 64}}
    axes = [{"path": "model", "values": ["mlp_narrow", "cnn_deep"]}]
    with pytest.raises(SpecError, match=r"or leave the pair out with exclude: \[\{model: cnn_deep, data: digits\}\]"):
        make_plan(make_sweep({"name": "t", "base": base, "axes": axes}), catalogue)
    fits = make_sweep({"name": "t", "base": base, "axes": axes, "exclude": [{"model": "cnn_deep", "data": "digits"}]})
    (pack,) = make_plan(fits, catalogue).packs
    assert pack.first.engine == "stack"


USER = """
from torch import nn

class Odd(nn.Module):
    def __init__(self, features, classes, width):
        super().__init__()
        self.inner = nn.Linear(features, width)
        self.outer = nn.Linear(width, classes)
        self.register_buffer("seen", None)

    def forward(self, x):
        hidden = self.inner(x.flatten(1))
        return self.outer(hidden * float(hidden.abs().sum() >= 0))  # needs numbers

def make(inputs, width: int = 7):
    return Odd(inputs.features, inputs.classes, width)
"""


def test_a_users_own_file(catalogue: TorchCatalogue, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(USER)
    named = Named(name=f"{file}:make")
    assert catalogue.parameters("model", named) == {"width": 7}
    facts = catalogue.model(Named(name=named.name, params={"width": 7}), DIGITS)
    assert [layer.path for layer in facts.layers] == ["inner", "outer"]
    source = catalogue.source(named)
    file.write_text(USER + "\n")
    assert source is not None and len(source) == 64 and catalogue.source(named) != source
    assert catalogue.source(Named(name="mlp_narrow")) is None
    with pytest.raises(SpecError, match="there is no file"):
        catalogue.parameters("model", Named(name=f"{tmp_path}/gone.py:make"))


def test_engines(catalogue: TorchCatalogue) -> None:
    assert catalogue.engine(trial(), "cpu") == ("stack", 0)
    assert catalogue.engine(trial("cnn_shallow"), "cpu") == ("loop", 0)
    assert catalogue.engine(trial("transformer_shallow"), "cpu") == ("loop", 0)
    assert catalogue.engine(trial(engine="loop"), "cpu") == ("loop", 0)
    engine, width = catalogue.engine(trial(), "cuda")
    assert (engine, width) == ("stack", 256)


def test_an_engine_that_cannot_is_refused(catalogue: TorchCatalogue, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(USER.replace('"seen", None', '"seen", __import__("torch").zeros(1)'))
    with pytest.raises(SpecError, match="engine: stack cannot train"):
        catalogue.engine(trial(f"{tmp_path}/own.py:make", engine="stack"), "cpu")


def test_guesses_grow_with_what_they_stand_for(catalogue: TorchCatalogue) -> None:
    def guess(made: Trial, lanes: int = 1) -> Cost:
        return catalogue.guess(made.model_copy(update={"engine": catalogue.engine(made, "cpu")[0]}), lanes, "cpu")

    small, large = guess(trial()), guess(trial("mlp_verywide"))
    assert large.step > small.step and large.measure > small.measure and large.memory > small.memory
    assert guess(trial(), 16).step < 16 * small.step
    loop = [guess(trial("cnn_shallow"), lanes).step for lanes in (1, 4)]
    assert loop[1] == pytest.approx(4 * loop[0], rel=0.2)
    assert guess(trial(measure={"probe": 256})).measure > small.measure
    assert guess(trial(measure={"probe": 64, "velocity": False})).measure < small.measure


# -- calibration -----------------------------------------------------------------------------------------------------


def fake_timer(
    step: float, measure: float, evaluate: float, coarse: float = 0.0, start: float = 0.0
) -> Callable[..., float]:
    """A machine on which everything takes exactly so long, per lane."""

    def seconds(made: Trial, lanes: int, n: int) -> float:
        assert made.train.steps == n
        events = (n, len(measured_steps(made.measure, n)), len(evaluated_steps(made.evaluate, n)))
        each = sum(a * b for a, b in zip(events, (step, measure, evaluate), strict=True))
        return start + lanes * (each + len(coarse_steps(made.measure, n)) * coarse)

    return seconds


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.2])
@pytest.mark.parametrize("measure", [1e-3, 0.5])
def test_parts_are_told_apart_by_differences(step: float, measure: float) -> None:
    made = trial(measure={"probe": 64, "coarse": 10, "every": 3, "dense_until": 9, "log": 5}, evaluate={"every": 7})
    parts = time_parts(fake_timer(step, measure, 0.02, 0.05, 0.3), made, 2)
    assert parts["step"] == pytest.approx(2 * step, rel=1e-6)
    assert parts["measure"] == pytest.approx(2 * measure, rel=1e-6)
    assert parts["evaluate"] == pytest.approx(2 * 0.02, rel=1e-6)
    assert parts["coarse"] == pytest.approx(2 * 0.05, rel=1e-6)
    assert parts["start"] == pytest.approx(0.3, rel=1e-6)


def test_timed_runs_are_short() -> None:
    spent: list[float] = []
    timer = fake_timer(2e-4, 1e-3, 1e-3)
    time_parts(lambda *a: spent.append(timer(*a)) or spent[-1], trial(), 1)
    assert sum(spent) < 6 * TARGET_SECONDS


def test_a_quiet_trial_does_nothing_between_its_ends() -> None:
    made = quiet(trial(checkpoint={"every": 5}, train={"steps": 900, "schedule": {"warmup": 300}}), 40)
    assert measured_steps(made.measure, 40) == evaluated_steps(made.evaluate, 40) == [0, 40]
    assert made.checkpoint.every is None
    assert made.measure.probe == 64


GUESS = Cost(start=0.1, step=1e-3, measure=2e-3, evaluate=1e-2, coarse=0.1, memory=5e8, calibrated=False)


def test_what_was_measured_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "calibration.json"
    made = trial(engine="loop")
    measured = Calibration(fake_timer(3e-3, 4e-3, 5e-3), path=file).cost(made, 6, "cpu", "units", GUESS)
    assert measured.calibrated
    assert measured.step == pytest.approx(6 * 3e-3)

    def never(*_: object) -> float:
        raise AssertionError("measured again")

    again = Calibration(never, path=file).cost(made, 6, "cpu", "units", GUESS)
    assert again == measured
    assert Calibration(None, path=file).cost(made, 6, "cpu", "units", GUESS) == measured


def test_everything_a_time_depends_on_is_in_its_key(tmp_path: Path) -> None:
    kept = Calibration(None, path=tmp_path / "c.json")
    made = trial(engine="loop")
    changes = [
        trial("mlp_wide", engine="loop"),
        trial(engine="stack"),
        trial(engine="loop", train={"steps": 50, "batch": 32}),
        trial(engine="loop", measure={"probe": 128}),
        trial(engine="loop", data="modular_addition"),
        made.model_copy(update={"source": "a" * 64}),
    ]
    keys = {kept.key(t, 1, "cpu") for t in [made, *changes]} | {kept.key(made, 2, "cpu")}
    assert len(keys) == 8
    same = [
        trial(engine="loop", train={"steps": 9, "lr": 0.5}),
        trial(engine="loop", measure={"probe": 64, "every": 3}),
    ]
    assert {kept.key(t, 1, "cpu") for t in same} == {kept.key(made, 1, "cpu")}


def test_the_budget_is_kept_and_the_rest_is_corrected_by_what_was_measured(tmp_path: Path) -> None:
    kept = Calibration(fake_timer(3e-3, 4e-3, 5e-3), budget=1e-9, path=tmp_path / "c.json")
    first = kept.cost(trial(engine="stack"), 1, "cpu", "units", GUESS)
    assert first.calibrated and kept.budget < 0
    second = kept.cost(trial("mlp_wide", engine="stack"), 1, "cpu", "units", GUESS.scaled(2))
    assert not second.calibrated
    assert second.step == pytest.approx(2 * 3e-3)
    assert second.measure == pytest.approx(2 * 4e-3)
    unknown = Calibration(None, path=tmp_path / "none.json").cost(trial(), 1, "cpu", "units", GUESS)
    assert unknown == GUESS


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "entries": {"a": {"step": "x"}}}'])
def test_a_damaged_file_is_told_and_measured_again(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with caplog.at_level(logging.WARNING):
        kept = Calibration(fake_timer(1e-3, 1e-3, 1e-3), path=file)
    assert "cannot be used" in caplog.text
    assert kept.cost(trial(engine="loop"), 1, "cpu", "units", GUESS).calibrated
    assert len(json.loads(file.read_text())["entries"]) == 1


def test_entries_of_two_processes_are_both_kept(tmp_path: Path) -> None:
    one, two = (Calibration(fake_timer(1e-3, 1e-3, 1e-3), path=tmp_path / "c.json") for _ in range(2))
    one.cost(trial(engine="loop"), 1, "cpu", "units", GUESS)
    two.cost(trial("mlp_wide", engine="loop"), 1, "cpu", "units", GUESS)
    assert len(Calibration(None, path=tmp_path / "c.json").entries) == 2


def test_a_cache_that_cannot_be_written_does_not_stop_a_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        kept = Calibration(fake_timer(1e-3, 1e-3, 1e-3), path=tmp_path / "file" / "c.json")
        assert kept.cost(trial(engine="loop"), 1, "cpu", "units", GUESS).calibrated
    assert "cannot be written" in caplog.text


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDT_CACHE", str(tmp_path))
    assert Calibration().path == tmp_path / "calibration.json"
    monkeypatch.delenv("NDT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Calibration().path == tmp_path / "home" / ".cache" / "ndt-ray" / "calibration.json"


def test_a_timer_trains_so_many_seeds() -> None:
    ran: list[list[Trial]] = []
    ticks = iter(range(100))
    timer = pack_timer(ran.append, clock=lambda: float(next(ticks)))
    assert timer(trial(train={"steps": 4}), 3, 4) == 1.0
    assert [t.seed.init for t in ran[0]] == [0, 1, 2]
    assert machine("cpu") == machine("cpu")
    assert "torch" in machine("cpu")
