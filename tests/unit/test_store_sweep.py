"""A sweep's directory: made again without harm, stopped, listed, removed with everything that belongs to it."""

from pathlib import Path

import pytest
from store_rows import TRIALS, contents, local, object_store, train

from ndt_ray.errors import StoreError
from ndt_ray.store.outputs import Outputs
from ndt_ray.store.reader import Store
from ndt_ray.store.sweep import create_sweep, list_sweeps, open_sweep, remove_sweep
from ndt_ray.store.writer import PackWriter

SPEC = "name: digits\nabout: Do they jump?\n"


@pytest.fixture(params=[local, object_store])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.param(tmp_path)


def test_a_sweep_is_created_opened_and_brought_up_to_date(store: Store) -> None:
    create_sweep(store, "digits", SPEC, {"packs": [1]}, {"git": "abc"})
    create_sweep(store, "digits", SPEC, {"packs": [1, 2]}, {"git": "abc"})
    sweep = open_sweep(store, "digits")
    assert (sweep.spec, sweep.plan, sweep.env) == (SPEC, {"packs": [1, 2]}, {"git": "abc"})
    assert list_sweeps(store) == ["digits"]
    with pytest.raises(StoreError, match="did you mean 'digits'"):
        open_sweep(store, "digit")
    with pytest.raises(StoreError, match="sweep name"):
        create_sweep(store, "../x", SPEC, {})


def test_events_are_read_from_where_one_was(store: Store) -> None:
    sweep = create_sweep(store, "digits", SPEC, {})
    assert sweep.events() == []
    sweep.append_events([{"n": 0}, {"n": 1}])
    sweep.append_events([])
    sweep.append_events([{"n": 2, "path": Path("x")}])
    assert [e["n"] for e in sweep.events()] == [0, 1, 2]
    assert [e["n"] for e in sweep.events(after=2)] == [2] and sweep.events(after=9) == []


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    sweep = create_sweep(local(tmp_path), "digits", SPEC, {})
    sweep.append_events([{"n": 0}])
    with (tmp_path / "store/sweeps/digits/events.jsonl").open("a") as log:
        log.write('{"n": ')
    assert sweep.events() == [{"n": 0}]


def test_stop(store: Store) -> None:
    sweep = create_sweep(store, "digits", SPEC, {})
    assert sweep.stop_requested() is None
    sweep.request_stop("drain")
    assert sweep.stop_requested() == "drain"
    sweep.clear_stop()
    sweep.clear_stop()
    assert sweep.stop_requested() is None


def test_the_table_of_sweeps(store: Store) -> None:
    create_sweep(store, "digits", SPEC, {}, {"git": "abc"})
    create_sweep(store, "empty", "- not a mapping", {})
    train(PackWriter(store, "digits", "a", trials=TRIALS), lambda step: False)
    PackWriter(store, "digits", "b", trials=("x",)).close()
    rows = store.sweeps().set_index("sweep")
    assert rows.loc["digits", ["about", "packs", "packs_finished"]].tolist() == ["Do they jump?", 2, 1]
    assert rows.loc["digits", ["trials", "trials_finished"]].tolist() == [3, 2]
    assert rows.loc["digits", "env"] == '{"git": "abc"}' and rows.loc["empty", "packs"] == 0


def test_removal_takes_all_of_one_sweep_and_nothing_of_another(store: Store) -> None:
    for name in ("keep", "drop"):
        create_sweep(store, name, SPEC, {})
        train(PackWriter(store, name, "a"), lambda step: step == 4)
    Outputs(store, "drop", "jumps").commit([])
    before = contents(store)
    remove_sweep(store, "drop")
    assert not [f.path for f in store.location.files("") if "drop" in f.path]
    for name, rows in contents(store).items():
        assert rows.num_rows == before[name].num_rows // 2
    assert list_sweeps(store) == ["keep"]
    with pytest.raises(StoreError, match="no sweep 'drop'"):
        remove_sweep(store, "drop")


def test_a_running_sweep_is_not_removed_by_accident(store: Store) -> None:
    create_sweep(store, "live", SPEC, {})
    writer = PackWriter(store, "live", "a")
    train(writer, lambda step: True, last=3)
    assert [a.pack for a in open_sweep(store, "live").running()] == ["a"]
    with pytest.raises(StoreError, match=r"sweep live is running: a on .*ndt stop live"):
        remove_sweep(store, "live")
    remove_sweep(store, "live", force=True)
    again = PackWriter(store, "live", "a")
    assert again.generation == writer.generation
    with pytest.raises(StoreError, match="was removed"):
        writer.commit(9, {})
    train(again, lambda step: False)
    assert store.manifests()[0].finished


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    store = local(tmp_path)
    sweep = create_sweep(store, "digits", SPEC, {})
    (tmp_path / "store/sweeps/digits/plan.json").write_text("{")
    with pytest.raises(StoreError, match="plan.json is not JSON"):
        _ = sweep.plan
    (tmp_path / "store/sweeps/digits/spec.yaml").unlink()
    with pytest.raises(StoreError, match="spec.yaml is missing"):
        _ = sweep.spec
