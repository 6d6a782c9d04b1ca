"""The detector that watches while training, and the checkpoints that it asks for."""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_catalogue import FakeCatalogue
from test_train import Memory, assert_same_rows, pack

from ndt_ray import online, schedule
from ndt_ray.errors import SpecError
from ndt_ray.lanes import make_engine
from ndt_ray.online import SCALES, Watch, logarithm, threshold
from ndt_ray.plan.estimate import ring_bytes
from ndt_ray.plan.fit import LEAST_WATCHED, misfits
from ndt_ray.ring import Ring
from ndt_ray.spec import Named, OnEvent, Trial
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.reader import open_store
from ndt_ray.store.writer import PackWriter
from ndt_ray.train import train_pack
from ndt_ray.worker import StoreSink

Values = Callable[[int], np.ndarray]


def calibration() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "calibrate_online.py"
    spec = importlib.util.spec_from_file_location("calibrate_online", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIMULATION = calibration()


def watched(
    values: Values, lanes: int, series: int, n: int, false_alarms: float = 0.1
) -> list[tuple[int, int, online.Alarm]]:
    """(measurement, lane, alarm) of so many measurements."""
    watch, found = Watch(lanes, series, n, false_alarms), []
    for t in range(n):
        alarms = watch.update(t, values(t), range(lanes))
        found += [(t, lane, alarm) for lane, alarm in alarms.items()]
    return found


# -- calibration -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", SIMULATION.FAMILIES)
def test_no_more_false_alarms_than_asked_for(family: str) -> None:
    """1,000 lanes of 8 series, 150 measurements: the number is Poisson, with a mean of 0.1 a lane at most."""
    lanes, series, n, asked = 1_000, 8, 150, 0.1
    noise = SIMULATION.null(family, lanes * series, n, np.random.default_rng([7, *family.encode()]))
    alarms = watched(lambda t: next(noise).reshape(lanes, series), lanes, series, n, asked)
    expected = lanes * asked
    assert len(alarms) <= expected + 3.1 * math.sqrt(expected), (family, len(alarms))
    if family == "ar":  # the family the thresholds are for: not so high that nothing would ever be seen
        assert len(alarms) >= 0.2 * expected


def test_dependence_between_series_does_not_matter() -> None:
    """The bound is on an expectation: eight copies of one series alarm together, and count as one."""
    noise = SIMULATION.null("ar", 1_000, 150, np.random.default_rng(3))
    alarms = watched(lambda t: np.repeat(next(noise)[:, None], 8, axis=1), 1_000, 8, 150, 0.2)
    assert 1 <= len(alarms) <= 200 and all(alarm.together == 8 for *_, alarm in alarms)


@pytest.mark.parametrize("scale", SCALES, ids=lambda s: s.name)
def test_the_table_is_what_simulation_gives(scale: online.Scale) -> None:
    """One entry anew, of fewer series: a tenth of a threshold is a tenth of a decade of the rate."""
    again = max(SIMULATION.heights(scale, family, 400, 5_000)[1e-3] for family in ("iid", "ar"))
    assert again == pytest.approx(dict(online.THRESHOLDS[scale.name])[1e-3], abs=0.1)


def test_thresholds_grow_by_about_one_a_decade() -> None:
    for scale in SCALES:
        heights = [threshold(scale, rate) for rate in (1e-5, 1e-6, 1e-7)]
        assert heights[0] >= online.LOWEST and all(
            0.5 < b - a < 1.5 for a, b in zip(heights, heights[1:], strict=False)
        )
        assert threshold(scale, 0.01) == online.LOWEST  # two values never are an alarm


# -- power -----------------------------------------------------------------------------------------------------------


def planted(width: float, sds: float, phi: float, lanes: int, series: int, middle: int) -> Values:
    """AR(1) noise of 1 % in logarithms, with a change of the first series of every lane."""
    generator = np.random.default_rng(5)
    noise = generator.standard_normal((lanes, series))

    def at(t: int) -> np.ndarray:
        nonlocal noise
        noise = phi * noise + math.sqrt(1 - phi**2) * generator.standard_normal((lanes, series))
        values = 0.01 * noise
        # a logistic curve rises from 10 to 90 % within 4.39 of its scale
        rise = float(t >= middle) if not width else 1 / (1 + math.exp(-(t - middle) * 4.39 / width))
        values[:, 0] += 0.01 * sds * rise
        return values

    return at


@pytest.mark.parametrize(("width", "sds", "phi", "recall", "delay"), [(0, 8, 0.5, 0.95, 3), (20, 8, 0.5, 0.9, 12)])
def test_changes_are_seen_soon(width: float, sds: float, phi: float, recall: float, delay: int) -> None:
    lanes, series, n, middle = 200, 20, 300, 200
    alarms = watched(planted(width, sds, phi, lanes, series, middle), lanes, series, n)
    begins = middle - width
    seen = {lane: (t, a) for t, lane, a in reversed(alarms) if t >= begins and a.series == 0}
    assert len(seen) >= recall * lanes
    assert np.median([t - middle for t, _ in seen.values()]) <= delay
    assert all(a.rising and a.onset < t for t, a in seen.values())
    assert np.mean([a.onset < middle for _, a in seen.values()]) >= 0.95
    reach = OnEvent().keep * OnEvent().spacing
    assert np.mean([t - a.onset <= reach + width for t, a in seen.values()]) >= 0.9


def test_an_outlier_is_no_change() -> None:
    generator = np.random.default_rng(0)
    values = 0.01 * generator.standard_normal((120, 1, 1))
    values[80] += 10.0
    assert not [t for t, *_ in watched(lambda t: values[t], 1, 1, 120) if 80 <= t < 83]


def test_what_does_not_change_by_a_percent_or_at_all_is_silent() -> None:
    small = (
        1e-4 * np.random.default_rng(0).standard_normal((200, 1, 1)) + 0.005 * (np.arange(200) >= 100)[:, None, None]
    )
    assert not watched(lambda t: small[t], 1, 1, 200)
    assert not watched(lambda t: np.full((3, 4), 0.7), 3, 4, 200)
    # as large, but over a percent
    assert watched(lambda t: 4 * small[t], 1, 1, 200)


# -- state -----------------------------------------------------------------------------------------------------------


def test_a_lane_does_not_depend_on_its_neighbours_nor_on_interruptions() -> None:
    at = planted(0, 8, 0.0, 5, 3, 60)
    values = np.stack([at(t) for t in range(100)])
    values[40:43, 2, 1] = np.nan
    together, alone, resumed = Watch(5, 3, 100, 1.0), Watch(1, 3, 100, 1.0), Watch(5, 3, 100, 1.0)
    for t in range(100):
        a = together.update(t, values[t], range(5))
        b = alone.update(t, values[t, 2:3], [0])
        c = resumed.update(t, values[t], range(5))
        assert a == c and a.get(2) == b.get(0)
        kept = {k: v.copy() for k, v in resumed.state().items()}
        resumed = Watch(5, 3, 100, 1.0)
        resumed.load(kept)
    for scale, cusums in together.cusums.items():
        assert np.array_equal(cusums.state[:, 6:9], alone.cusums[scale].state)
        assert np.array_equal(cusums.state, resumed.cusums[scale].state)


def test_what_is_missing_is_left_out() -> None:
    values = np.random.default_rng(0).standard_normal((50, 1, 1))
    whole, holed = Watch(1, 1, 400, 1.0), Watch(1, 1, 400, 1.0)
    for t in range(50):
        whole.update(t, values[t], [0])
        holed.update(2 * t, values[t], [0])
        holed.update(2 * t + 1, np.full((1, 1), np.nan), [0])
    for one, other in zip(whole.cusums.values(), holed.cusums.values(), strict=True):
        assert np.array_equal(np.delete(one.state, online._ONSET, 0), np.delete(other.state, online._ONSET, 0))


def test_a_run_that_is_too_short_is_not_watched() -> None:
    watch = Watch(2, 3, 17, 0.1)
    assert watch.first(10) is None and not watch.update(0, np.zeros((2, 3)), [0, 1])
    assert Watch(2, 3, 18, 0.1).first(10) == 170 and list(Watch(2, 3, 18, 0.1).thresholds) == [SCALES[0]]
    assert list(Watch(2, 3, 61, 0.1).thresholds) == list(SCALES)
    first = next(t for t, *_ in watched(lambda t: np.full((1, 1), float(t % 2 if t < 17 else 99 * t)), 1, 1, 40))
    assert first >= 17
    assert SCALES[0].judged(LEAST_WATCHED) == 1  # fewer are refused when a sweep is planned


def test_a_plan_refuses_what_could_never_alarm() -> None:
    known, digits = FakeCatalogue(), Named(name="digits")
    data, model = known.data(digits), known.model(Named(name="mlp"), digits)

    def problems(steps: int, **measure: Any) -> list[str]:
        t = trial(0, steps, on_event=True)
        return list(misfits(t.model_copy(update={"measure": t.measure.model_copy(update=measure)}), data, model))

    assert not problems(34) and any("18 measurements" in p and "17" in p for p in problems(33))
    assert any("velocity" in p for p in problems(34, velocity=False))


def test_logarithms() -> None:
    found = logarithm("stable_rank", np.array([[math.e, 0.0], [-1.0, math.inf]]))
    assert found[0, 0] == 1.0 and np.isnan(found.ravel()[1:]).all()
    assert logarithm("velocity", np.array([0.0]))[0] == math.log(online.VELOCITY_FLOOR)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def trial(seed: int, steps: int = 60, model: str = "mlp_narrow", engine: str = "stack", **checkpoint: Any) -> Trial:
    return Trial.model_validate(
        {
            "model": model,
            "data": "digits",
            "train": {"steps": steps, "batch": 32, "lr": 1e-2},
            "measure": {"every": 2, "dense_until": 3, "probe": 32},
            "evaluate": {"size": 50},
            "checkpoint": checkpoint,
            "seed": seed,
            "engine": engine,
        }
    )


WATCH = {"false_alarms_per_run": 1.0, "keep": 4, "spacing": 1, "after": 2, "most": 1}


@pytest.fixture
def _changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training crawls, and from step 44 on it runs."""
    monkeypatch.setattr("ndt_ray.train.HEARTBEAT_SECONDS", 0.0)
    usual = schedule.lr_factor
    monkeypatch.setattr("ndt_ray.train.lr_factor", lambda s, step, n: usual(s, step, n) * (1.0 if step >= 44 else 1e-3))


def run(trials: list[Trial], stop_at: int | None = None, resume: Any = None) -> Memory:
    sink = Memory(stop_at)
    train_pack(pack(trials), sink, resume)
    return sink


def reasons(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], str]:
    """Why each checkpoint was taken; filled in while training."""
    found: dict[tuple[str, int], str] = {}
    usual = Memory.checkpoint

    def told(self: Memory, trial_id: str, step: int, tensors: Any, reason: str) -> None:
        assert (trial_id, step) not in self.checkpoints, "taken twice"
        found[trial_id, step] = reason
        usual(self, trial_id, step, tensors, reason)

    monkeypatch.setattr(Memory, "checkpoint", told)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("_changes")
@pytest.mark.parametrize(("model", "engine"), [("mlp_narrow", "stack"), ("cnn_shallow", "loop")])
def test_before_during_and_after_are_saved_as_if_planned(
    monkeypatch: pytest.MonkeyPatch, model: str, engine: str
) -> None:
    why = reasons(monkeypatch)
    t = trial(1, model=model, engine=engine, at=[0], on_event=WATCH)
    sink = run([trial(0, model=model, engine=engine, at=[0], on_event=WATCH), t])
    row = next(r for key, r in sink.tables["triggers"].items() if key[0] == t.trial_id)
    before, event, after = row["before_step"], row["step"], row["after_step"]
    assert before <= row["onset_step"] + 2 and 38 <= before <= 46 and 44 < event <= 54 and after == event + 4
    taken = {step: reason for (trial_id, step), reason in why.items() if trial_id == t.trial_id}
    assert taken == {0: "planned", before: "event-before", event: "event", after: "event-after"}
    assert abs(row["statistic"]) > row["threshold"] >= online.LOWEST and abs(row["change"]) >= online.LEAST_CHANGE
    confirmed = {k[1] for k in sink.tables["confirmations"] if k[0] == t.trial_id}
    assert confirmed == set(taken) == {k[1] for k in sink.tables["confirmation_spectra"] if k[0] == t.trial_id}
    # The same run with these steps planned, and nothing watched: neither its training nor what is saved differs.
    plain = trial(1, model=model, engine=engine, at=sorted(taken))
    planned = run([plain])
    for step in taken:
        own, other = sink.checkpoints[t.trial_id, step], planned.checkpoints[plain.trial_id, step]
        assert own.keys() == other.keys() and all(np.array_equal(v, other[k]) for k, v in own.items())
    for table in ("losses", "measurements", "confirmations", "confirmation_spectra", "scalars", "velocity"):
        rows = {k[1:]: r for k, r in sink.tables[table].items() if k[0] == t.trial_id}
        others = {k[1:]: r for k, r in planned.tables[table].items()}
        assert rows.keys() == others.keys()
        for key, found in rows.items():
            for column in found.keys() - {"trial_id"}:
                np.testing.assert_array_equal(found[column], others[key][column], err_msg=f"{table} {key} {column}")


@pytest.mark.slow
@pytest.mark.usefixtures("_changes")
@pytest.mark.parametrize("stops", [(43, 47), (49, 51)])
def test_a_run_that_was_stopped_twice_catches_the_same(stops: tuple[int, int]) -> None:
    trials = [trial(0, at=[0], on_event=WATCH), trial(1, at=[0], on_event=WATCH)]
    whole = run(trials)
    assert len(whole.tables["triggers"]) == 2
    first = run(trials, stops[0])
    second = run(trials, stops[1], first.stopped)
    parts = [first, second, run(trials, None, second.stopped)]
    joined = Memory()
    for part in parts:
        for table, rows in part.tables.items():
            assert not joined.tables.setdefault(table, {}).keys() & rows.keys()
            joined.tables[table] |= rows
        assert not joined.checkpoints.keys() & part.checkpoints.keys()
        joined.checkpoints |= part.checkpoints
    assert_same_rows(whole, joined)
    assert whole.checkpoints.keys() == joined.checkpoints.keys()
    for key, tensors in whole.checkpoints.items():
        assert all(np.array_equal(v, joined.checkpoints[key][name]) for name, v in tensors.items())


def through_a_store(folder: Path, trials: list[Trial], stops: Sequence[int]) -> tuple[list[Any], list[Any]]:
    """Checkpoint files with their SHA-256, and triggers, of a run that commits and stops at each of `stops`."""
    store = open_store(folder, create=True)
    for stop in (*stops, None):
        with PackWriter(store, "s", "p", trials=tuple(t.trial_id for t in trials)) as writer:

            class Stopping(StoreSink):
                def heartbeat(self, step: int, state: Any, progress: Any) -> bool:
                    if step != stop:  # noqa: B023
                        return False
                    self.writer.commit(step, state())
                    return True

            sink = Stopping(writer, "p", lambda _: None, lambda: False)
            assert train_pack(pack(trials), sink, writer.resume) == (stop is None)
    files = store.arrow("SELECT trial_id, step, reason, sha256 FROM checkpoints ORDER BY ALL").to_pylist()
    return files, store.arrow("SELECT * FROM triggers ORDER BY ALL").to_pylist()


@pytest.mark.slow
@pytest.mark.usefixtures("_changes")
def test_files_of_a_stopped_run_are_those_of_the_undisturbed_one(tmp_path: Path) -> None:
    trials = [trial(0, at=[0], on_event=WATCH), trial(1, at=[0], on_event=WATCH)]
    files, triggers = through_a_store(tmp_path / "whole", trials, ())
    assert len(triggers) == 2 and {f["reason"] for f in files} == {"planned", "event-before", "event", "event-after"}
    assert through_a_store(tmp_path / "stopped", trials, (45, 50)) == (files, triggers)


@pytest.mark.slow
@pytest.mark.usefixtures("_changes")
def test_what_a_lane_catches_does_not_depend_on_its_pack() -> None:
    own = trial(1, at=[0], on_event=WATCH)
    alone, packed = run([own]), run([trial(0, at=[0], on_event=WATCH), trial(2, at=[0], on_event=WATCH), own])
    assert_same_rows(alone, packed, {own.trial_id}, skip=("lane",))
    assert {k for k in packed.checkpoints if k[0] == own.trial_id} == alone.checkpoints.keys()
    assert all(np.array_equal(v, packed.checkpoints[k][n]) for k, c in alone.checkpoints.items() for n, v in c.items())


@pytest.mark.slow
@pytest.mark.usefixtures("_changes")
def test_planned_checkpoints_come_first_and_control_lanes_are_silent() -> None:
    busy = trial(1, every=1, on_event=WATCH)
    still = busy.model_copy(update={"control": Trial.model_validate({**busy.model_dump(), "control": "lr0"}).control})
    sink = run([busy, still])
    assert {k[0] for k in sink.tables["triggers"]} == {busy.trial_id}
    assert len(sink.checkpoints) == 2 * 60 and len({k[1] for k in sink.tables["confirmations"]}) == 60


def test_a_ring_holds_the_newest_states() -> None:
    trials = [trial(0), trial(1)]
    p = pack(trials)
    engine = make_engine(trials, p.build, p.device)
    ring, taken = Ring(engine, 3), []
    assert ring.newest(5) is None
    for step in range(5):
        engine.arena.weights += 0.5
        ring.take(10 * step)
        taken.append({k: v.copy() for k, v in engine.lane_state(1).items()})
    assert [ring.newest(s) for s in (0, 20, 29, 30, 99)] == [20, 20, 20, 30, 40]
    for step in (2, 3, 4):
        state = ring.lane_state(1, 10 * step)
        assert state.keys() == taken[step].keys() and all(np.array_equal(v, taken[step][k]) for k, v in state.items())
    now = engine.arena.weights.clone()
    with ring.put_back([1], 20):
        assert all(np.array_equal(v, taken[2][k]) for k, v in engine.lane_state(1).items() if k.startswith("model."))
        assert np.array_equal(engine.arena.weights[0], now[0])
    assert np.array_equal(engine.arena.weights, now)
    held = sum(rows.numel() * 4 for rows in ring.rows.values())
    exact = trial(0, on_event={**WATCH, "keep": 3})
    assert ring_bytes(exact, engine.arena.layout.n_parameters) == pytest.approx(held / 2, rel=0.01)  # but for padding


# -- the spec --------------------------------------------------------------------------------------------------------

SWEEP = "name: x\nbase: {{model: mlp_narrow, data: digits, train: {{steps: 9}}, checkpoint: {{on_event: {}}}}}"


def test_watching_is_switched_on_by_a_word_or_in_detail() -> None:
    plain = Trial.model_validate({"model": "m", "data": "d", "train": {"steps": 9}})
    off, on = (
        plain.model_copy(
            update={
                "checkpoint": Trial.model_validate({**plain.model_dump(), "checkpoint": {"on_event": value}}).checkpoint
            }
        )
        for value in (False, True)
    )
    assert off.trial_id == plain.trial_id == "e3a589842cdeca8c" != on.trial_id
    assert on.checkpoint.on_event == OnEvent() and Trial.model_validate_json(on.model_dump_json()) == on


def test_a_file_says_what_is_to_be_watched() -> None:
    sweep = parse_sweep(SWEEP.format("{measures: [velocity, stable_rank], false_alarms_per_run: 1}"))
    (found,) = (t.checkpoint.on_event for t in sweep.trials())
    assert found is not None and found.measures == ("stable_rank", "velocity") and found.false_alarms_per_run == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{mst: 2}", "did you mean 'most'"),
        ("{false_alarms_per_run: 0}", "greater than 0"),
        ("{measures: []}", "names no measure"),
        ("{measures: [energy_90]}", "must be .*'velocity', but got 'energy_90'"),
        ("{measures: [velocty]}", "did you mean 'velocity'"),
        ("sometimes", "on_event"),
    ],
)
def test_nonsense_is_refused(value: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_sweep(SWEEP.format(value))
