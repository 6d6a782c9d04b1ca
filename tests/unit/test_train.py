"""The training loop with a list for a sink: rows, resuming, neutrality of measuring, lanes that go wrong."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ndt_ray import registry
from ndt_ray.data import load
from ndt_ray.errors import CheckpointError
from ndt_ray.models import build
from ndt_ray.spec import Trial
from ndt_ray.train import Pack, continue_trial, train_pack

CPU = torch.device("cpu")


class Memory:
    """A sink that keeps everything; `stop_at` asks to stop at that step, as Ctrl-C would."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.tables: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
        self.checkpoints: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self.stop_at = stop_at
        self.stopped: tuple[int, dict[str, np.ndarray]] | None = None
        self.finished = False

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        n = len(columns["trial_id"])
        into = self.tables.setdefault(table, {})
        for i in range(n):
            row = {name: values[i] for name, values in columns.items()}
            own = ("block",) if "block" in row else ()
            key = tuple(row.get(k) for k in ("trial_id", "step", "layer", "view", "parameter", *own))
            assert key not in into, f"{table} {key} given twice"
            into[key] = row

    def checkpoint(self, trial_id: str, step: int, tensors: Mapping[str, np.ndarray], reason: str) -> None:
        self.checkpoints[trial_id, step] = {k: v.copy() for k, v in tensors.items()}

    def heartbeat(
        self, step: int, state: Callable[[], Mapping[str, np.ndarray]], progress: Mapping[str, float]
    ) -> bool:
        if self.stop_at is not None and step >= self.stop_at:
            self.stopped = step, {k: np.array(v) for k, v in state().items()}
            return True
        return False

    def commit(self, step: int, state: Callable[[], Mapping[str, np.ndarray]], finished: bool) -> None:
        self.finished = finished


@pytest.fixture(autouse=True)
def _every_step_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndt_ray.train.HEARTBEAT_SECONDS", 0.0)


MEASURE = {"every": 7, "dense_until": 3, "probe": 64, "coarse": 15}


def trial(
    seed: int,
    model: str = "mlp_narrow",
    engine: str = "stack",
    control: str = "none",
    measure: Mapping[str, Any] = MEASURE,
    **train: Any,
) -> Trial:
    return Trial(
        model=model,  # type: ignore[arg-type]
        data="digits",  # type: ignore[arg-type]
        train={"steps": 30, "schedule": {"name": "cosine", "warmup": 3}, **train},  # type: ignore[arg-type]
        measure=measure,  # type: ignore[arg-type]
        evaluate={"every": 12, "size": 100},  # type: ignore[arg-type]
        checkpoint={"at": [0, 11], "fractions": [1.0]},  # type: ignore[arg-type]
        seed=seed,  # type: ignore[arg-type]
        control=control,  # type: ignore[arg-type]
        engine=engine,  # type: ignore[arg-type]
    )


def pack(trials: list[Trial]) -> Pack:
    data = load("digits", {})

    def make(t: Trial) -> nn.Module:
        return build(registry.resolve("model", t.model.name), data.inputs, t.model.params, t.seed.init)

    return Pack(trials, make, data, CPU, [t.cell for t in trials], "test")


def run(trials: list[Trial], stop_at: int | None = None, resume: Any = None) -> Memory:
    sink = Memory(stop_at)
    ended = train_pack(pack(trials), sink, resume)
    assert ended == (sink.stopped is None)
    return sink


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is not None and b is not None and np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
    if isinstance(a, float | np.floating) and isinstance(b, float | np.floating):
        return bool(a == b or (np.isnan(a) and np.isnan(b)))
    return bool(a == b)


def assert_same_rows(a: Memory, b: Memory, trials: set[str] | None = None, skip: tuple[str, ...] = ()) -> None:
    assert a.tables.keys() == b.tables.keys()
    for table in a.tables:
        left = {k: v for k, v in a.tables[table].items() if trials is None or k[0] in trials}
        right = {k: v for k, v in b.tables[table].items() if trials is None or k[0] in trials}
        assert left.keys() == right.keys(), table
        for key, row in left.items():
            for column, value in row.items():
                assert column in skip or same(value, right[key][column]), (table, key, column)


@pytest.mark.slow
def test_every_table_and_the_scheduled_steps() -> None:
    sink = run([trial(0), trial(1)])
    assert sink.finished
    steps = sorted({k[1] for k in sink.tables["measurements"]})
    assert steps == [0, 1, 2, 3, 7, 14, 21, 28, 30]
    assert sorted({k[1] for k in sink.tables["evaluations"]}) == [0, 12, 24, 30]
    assert (
        sorted({k[1] for k in sink.tables["confirmations"]}) == [0, 11, 30] == sorted({s for _, s in sink.checkpoints})
    )
    assert sorted({k[1] for k in sink.tables["curvature"]}) == [0, 15, 30]
    assert len(sink.tables["losses"]) == 2 * 30
    from ndt_ray.store.schema import TABLES

    for table, rows in sink.tables.items():
        known = {c.name for c in TABLES[table].columns}
        assert all(set(row) <= known for row in rows.values()), table
        if table not in ("checkpoints",):
            assert set(next(iter(rows.values()))) == known, table


def test_scalars_are_what_they_say() -> None:
    sink = run([trial(0)])
    t = trial(0).trial_id
    scalars = {k[1]: v for k, v in sink.tables["scalars"].items()}
    assert np.isnan(scalars[0]["grad_norm"]) and scalars[0]["init_distance"] == 0
    start, end = sink.checkpoints[t, 0], sink.checkpoints[t, 30]
    moved = sum(float(((end[k] - start[k]).astype(np.float64) ** 2).sum()) for k in start if k.startswith("model."))
    assert scalars[30]["init_distance"] == pytest.approx(np.sqrt(moved), rel=1e-6)
    layers = [v for k, v in sink.tables["dynamics"].items() if k[1] == 30]
    assert np.sqrt(sum(float(v["weight_norm"]) ** 2 for v in layers)) == pytest.approx(
        scalars[30]["weight_norm"], rel=1e-6
    )
    assert scalars[7]["batch_loss"] == sink.tables["losses"][t, 7, None, None, None]["loss"]
    assert scalars[2]["lr"] == pytest.approx(1e-3) and scalars[0]["lr"] == pytest.approx(1e-3 / 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "engine"), [("mlp_narrow", "stack"), ("mlp_narrow", "loop"), ("cnn_shallow", "loop")]
)
def test_resumed_equals_undisturbed(model: str, engine: str) -> None:
    make = functools.partial(trial, model=model, engine=engine)
    trials = [make(0), make(1, control="lr0"), make(2, control="shuffled_labels")]
    whole = run(trials)
    first = run(trials, stop_at=9)
    second = run(trials, stop_at=22, resume=first.stopped)
    third = run(trials, resume=second.stopped)
    joined = Memory()
    for part in (first, second, third):
        for table, rows in part.tables.items():
            overlap = joined.tables.setdefault(table, {}).keys() & rows.keys()
            assert not overlap
            joined.tables[table] |= rows
        joined.checkpoints |= part.checkpoints
    assert_same_rows(whole, joined)
    assert whole.checkpoints.keys() == joined.checkpoints.keys()
    for key, tensors in whole.checkpoints.items():
        assert all(np.array_equal(v, joined.checkpoints[key][name]) for name, v in tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["stack", "loop"])
def test_rows_of_a_lane_do_not_depend_on_its_pack(engine: str) -> None:
    alone = run([trial(3, engine=engine)])
    packed = run([trial(1, engine=engine), trial(2, engine=engine, lr=3e-3), trial(3, engine=engine)])
    assert_same_rows(alone, packed, {trial(3, engine=engine).trial_id}, skip=("lane",))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn_shallow", "transformer_narrow"])
def test_further_views_have_the_bits_of_a_trial_in_them_alone_and_change_no_other_table(model: str) -> None:
    def seen(**views: Any) -> Trial:
        known = trial(0, model=model, engine="loop", steps=8, measure={"every": 4, "probe": 32, "views": views})
        return known.model_copy(update={"checkpoint": known.checkpoint.model_copy(update={"at": ()})})

    def of(sink: Memory, table: str) -> dict[tuple[Any, ...], dict[str, Any]]:
        return {k[1:4]: {n: v for n, v in row.items() if n != "trial_id"} for k, row in sink.tables[table].items()}

    alone = run([seen()])
    both = run([seen(positions=("positions", "gap", "flat"), tokens=("tokens", "mean"))])
    assert both.tables.keys() - alone.tables.keys() == {"other_views"} and "other_views" not in alone.tables
    for table in ("measurements", "spectra", "velocity", "confirmations"):
        left, right = of(alone, table), of(both, table)
        assert left.keys() == right.keys()
        assert all(same(value, right[k][n]) for k, row in left.items() for n, value in row.items()), table
    further = of(both, "other_views")
    expected = {"cnn_shallow": {"gap", "flat"}, "transformer_narrow": {"mean"}}[model]
    assert {view for _, _, view in further} == expected and {step for step, _, _ in further} == {0, 4, 8}
    for view in expected:
        own = of(run([seen(positions=view) if model == "cnn_shallow" else seen(tokens=view)]), "measurements")
        mine = {k: row for k, row in further.items() if k[2] == view}
        assert mine and all(same(value, own[k][n]) for k, row in mine.items() for n, value in row.items()), view


@pytest.mark.slow
def test_measuring_changes_nothing() -> None:
    t = trial(0, model="transformer_narrow", engine="loop", steps=6)
    bare = t.model_copy(
        update={
            "measure": t.measure.model_copy(update={"every": 100, "dense_until": 0, "velocity": False, "coarse": None})
        }
    )
    a, b = run([t.model_copy(update={"checkpoint": bare.checkpoint.model_copy(update={"at": ()})})]), None
    bare = bare.model_copy(update={"checkpoint": bare.checkpoint.model_copy(update={"at": ()})})
    b = run([bare])
    one, other = (next(iter(m.checkpoints.values())) for m in (a, b))
    assert all(np.array_equal(v, other[k]) for k, v in one.items())
    assert [r["loss"] for r in a.tables["losses"].values()] == [r["loss"] for r in b.tables["losses"].values()]


def test_any_checkpoint_gives_the_same_trajectory() -> None:
    t = trial(5)
    sink = run([t, trial(6)])
    end = sink.checkpoints[t.trial_id, 30]
    for step in (0, 11):
        engine = continue_trial(pack([t]), sink.checkpoints[t.trial_id, step], step, 30)
        assert all(np.array_equal(v, end[k]) for k, v in engine.lane_state(0).items())
    with pytest.raises(CheckpointError, match="not of"):
        continue_trial(pack([trial(5, model="mlp_wide")]), end, 0, 1)


def test_zero_learning_rate_is_exactly_constant() -> None:
    sink = run([trial(0, control="lr0")])
    by_layer: dict[str, set[float]] = {}
    for row in sink.tables["measurements"].values():
        by_layer.setdefault(row["layer"], set()).add(float(row["participation_ratio"]))
    assert all(len(values) == 1 for values in by_layer.values()) and len(by_layer) == 5
    moved = [float(r["velocity"]) for k, r in sink.tables["velocity"].items() if k[1] > 0]
    assert max(abs(m) for m in moved) == 0


def test_a_diverging_lane_is_told_and_harms_nobody() -> None:
    wild = trial(0, lr=1e30)
    alone, both = run([trial(3)]), run([wild, trial(3)])
    assert_same_rows(alone, both, {trial(3).trial_id}, skip=("lane",))
    outcome = next(v for k, v in both.tables["outcomes"].items() if k[0] == wild.trial_id)
    assert outcome["status"] == "diverged" and outcome["last_step"] < 30 and outcome["final_loss"] is None
    assert max(k[1] for k in both.tables["measurements"] if k[0] == wild.trial_id) < outcome["last_step"]


class Fragile(nn.Module):
    """Raises at its seventh training step."""

    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.linear, self.breaks, self.calls = nn.Linear(64, 10), breaks, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.breaks and self.calls == 7:
            raise RuntimeError("the seventh call")
        out: torch.Tensor = self.linear(nn.functional.dropout(x.flatten(1), 0.3, self.training))
        return out


def test_a_lane_that_raises_fails_alone() -> None:
    def of(trials: list[Trial], breaking: int | None) -> Memory:
        data = load("digits", {})

        def make(t: Trial) -> nn.Module:
            return build(lambda inputs: Fragile(t.seed.init == breaking), data.inputs, {}, t.seed.init)

        own = [t.model_copy(update={"source": "own"}) for t in trials]
        sink = Memory()
        train_pack(Pack(own, make, data, CPU, [t.cell for t in own], "test"), sink)
        return sink

    alone = of([trial(1, engine="loop")], None)
    both = of([trial(0, engine="loop"), trial(1, engine="loop")], 0)
    fine = trial(1, engine="loop").model_copy(update={"source": "own"}).trial_id
    assert_same_rows(alone, both, {fine}, skip=("lane",))
    outcomes = {v["status"]: v for v in both.tables["outcomes"].values()}
    assert outcomes.keys() == {"finished", "failed"} and "seventh call" in outcomes["failed"]["error"]
