"""The commit protocol: what is committed is visible, what is not is not, and nobody but the newest writer commits."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_rows import LAYERS, STEPS, TRIALS, contents, files, local, measure, object_store, part_files, start, train

from ndt_ray.errors import CheckpointError, SpecError, StoreError
from ndt_ray.sink import Lists
from ndt_ray.store import filesystem, manifests
from ndt_ray.store import writer as writer_module
from ndt_ray.store.batches import Batches
from ndt_ray.store.manifests import Superseded
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import Column, Table
from ndt_ray.store.writer import COMMIT_ROWS, COMMIT_SHARE, PackWriter

STATE = {"weights": np.ones(3)}


@pytest.fixture(params=[local, object_store])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.param(tmp_path)


def count(store: Store, table: str = "measurements") -> int:
    return int(store.sql(f"SELECT count(*) AS n FROM {table}").n[0])


def committed(store: Store, step: int = 4) -> PackWriter:
    writer = PackWriter(store, "s", "p0")
    train(writer, lambda s: s == step, last=step + 1)
    return writer


def leftovers(store: Store) -> set[str]:
    """Files below data/ and state/ that no manifest names."""
    named = {path for m in store.manifests() for path in m.files}
    return {f.path for top in ("data", "state") for f in store.location.files(top)} - named


def test_rows_are_invisible_until_committed_and_then_visible_at_once(store: Store) -> None:
    writer = PackWriter(store, "s", "p0", trials=TRIALS)
    assert writer.resume is None and not writer.finished
    start(writer)
    measure(writer, 0)
    assert count(store) == 0
    writer.commit(0, STATE)
    assert count(store) == len(TRIALS) * len(LAYERS)
    assert store.manifests("s")[0].trials == TRIALS


def test_a_finished_pack_is_one_sorted_file_a_table_and_nothing_else(store: Store) -> None:
    writer = PackWriter(store, "s", "p0")
    train(writer, lambda step: step % 3 == 0)
    assert writer.finished and store.manifests()[0].finished
    parts = store.snapshot().parts
    assert {name: len(found) for name, found in parts.items()} == dict.fromkeys(parts, 1)
    assert count(store) == (STEPS + 1) * len(TRIALS) * len(LAYERS)
    rows = store.arrow("SELECT trial_id, layer_index, step FROM measurements").to_pylist()
    assert [tuple(r.values()) for r in rows] == sorted(tuple(r.values()) for r in rows)
    assert leftovers(store) == set()
    with pytest.raises(StoreError, match="closed"):
        writer.rows("outcomes", {"trial_id": "x"})


def test_resume_gives_back_step_and_state_bit_for_bit(store: Store) -> None:
    state = {"a": np.float32([0.1, np.nan, -0.0]), "b": np.array(7, np.int64), "c": np.zeros((0, 3), np.float16)}
    first = PackWriter(store, "s", "p0", fingerprint="avx2")
    measure(first, 0)
    first.commit(0, state)
    second = PackWriter(store, "s", "p0")
    assert second.generation == 2 and second.fingerprint_before == "avx2"
    assert second.resume is not None
    step, tensors = second.resume
    assert step == 0 and tensors.keys() == state.keys()
    for name, value in state.items():
        assert tensors[name].dtype == value.dtype and tensors[name].shape == value.shape
        assert tensors[name].tobytes() == value.tobytes()


@pytest.mark.slow
def test_the_fingerprint_is_of_who_committed_not_of_who_only_looked(tmp_path: Path) -> None:
    store = local(tmp_path)
    for mark, before, commits in [
        ("a", "", True),
        ("b", "a", False),
        ("b", "a", True),
        ("", "b", True),
        ("", "b", True),
    ]:
        writer = PackWriter(store, "s", "p0", fingerprint=mark)
        assert writer.fingerprint_before == before
        if commits:
            writer.commit(writer.step + 1, STATE)
        writer.close()
    assert PackWriter(store, "s", "p0", fingerprint="c", restart=True).fingerprint_before == ""


def test_a_second_writer_fences_the_first(store: Store) -> None:
    first = committed(store)
    before = contents(store)
    second = PackWriter(store, "s", "p0")
    with pytest.raises(Superseded, match="another worker"):
        first.commit(5, STATE)
    assert contents(store) == before and leftovers(store) == set()
    with pytest.raises(StoreError, match="closed"):
        first.commit(6, STATE)
    train(second, lambda step: False)
    alone = local(Path(store.location.root).parent, "alone") if store.location.local else None
    if alone:
        train(PackWriter(alone, "s", "p0"), lambda step: False)
        assert files(alone) == files(store)
    statuses = store.sql("SELECT generation, status FROM attempts ORDER BY generation")
    assert statuses.status.tolist() == ["superseded", "finished"]


def test_a_writer_fenced_between_its_check_and_its_manifest_harms_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = committed(store, step=3)
    measure(first, 6)
    successor: list[PackWriter] = []

    def late(location: Any, manifest: Any) -> None:
        if manifest.generation == 1 and not successor:
            successor.append(PackWriter(store, "s", "p0"))
        manifests.publish(location, manifest)

    monkeypatch.setattr(writer_module, "publish", late)
    with pytest.raises(Superseded):
        first.commit(6, STATE)
    assert store.manifests()[0].generation == 2
    assert store.sql("SELECT max(step) AS s FROM measurements").s[0] == 3
    store.verify(deep=True)
    train(successor[0], lambda step: step == 8)
    store.verify(deep=True)
    assert count(store) == (STEPS + 1) * len(TRIALS) * len(LAYERS)


def test_a_writer_fenced_while_it_writes_its_parts_publishes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = committed(store, step=3)
    real = writer_module.encode

    def slow(rows: Any) -> Any:
        if len(store.attempts()) == 1:
            PackWriter(store, "s", "p0")
        return real(rows)

    monkeypatch.setattr(writer_module, "encode", slow)
    with pytest.raises(Superseded):
        first.commit(6, STATE)
    assert leftovers(store) == set()
    names = manifests.manifest_names(store.location.names("commits/s/p0"))
    assert not [name for name in names if "g000001-000000000006" in name]


def test_restart_gives_up_what_was_committed(store: Store) -> None:
    committed(store)
    writer = PackWriter(store, "s", "p0", restart=True)
    assert writer.resume is None and count(store) == 0
    train(writer, lambda step: False)
    assert count(store) == (STEPS + 1) * len(TRIALS) * len(LAYERS)


def test_a_pack_keeps_the_trials_it_was_claimed_with(store: Store) -> None:
    PackWriter(store, "s", "p0", trials=TRIALS).close()
    with pytest.raises(StoreError, match="other trials"):
        PackWriter(store, "s", "p0", trials=("zz",))
    assert PackWriter(store, "s", "p0", trials=TRIALS[::-1]).generation == 2


@pytest.mark.slow
def test_many_commits_keep_few_files_manifests_and_states(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MERGE_PARTS", 3)
    writer = PackWriter(store, "s", "p0")
    for step in range(STEPS):
        measure(writer, step)
        writer.commit(step, {"weights": np.full(3, float(step))})
    levels = sorted(p.level for p in store.snapshot().parts["measurements"])
    assert levels == [1, 2]
    names = store.location.names("commits/s/p0")
    assert len(manifests.manifest_names(names)) == 2
    assert len(store.location.files("state")) == 2
    train(PackWriter(store, "s", "p0"), lambda step: False)
    assert count(store) == (STEPS + 1) * len(TRIALS) * len(LAYERS)


def test_commits_are_due_by_rows_and_by_time(tmp_path: Path) -> None:
    now = [0.0]
    writer = PackWriter(local(tmp_path), "s", "p0", clock=lambda: now[0])
    assert not writer.should_commit()
    now[0] = 31.0
    assert writer.should_commit()
    writer.commit(0, STATE)
    assert not writer.should_commit()
    steps = np.arange(COMMIT_ROWS)
    writer.rows("losses", {"trial_id": "a", "step": steps[:-1], "loss": 0.5})
    assert not writer.should_commit()
    writer.rows("losses", {"trial_id": "a", "step": steps[-1:], "loss": 0.5})
    assert writer.should_commit()


def test_commits_that_take_long_come_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDT_COMMIT_SECONDS", raising=False)
    ticks = itertools.count()  # every look at the clock is a second later: a commit takes one
    writer = PackWriter(local(tmp_path), "s", "p0", clock=lambda: float(next(ticks)))
    writer.commit(0, STATE)
    writer.rows("losses", {"trial_id": "a", "step": np.arange(COMMIT_ROWS), "loss": 0.5})
    due = next(i for i in range(1, 200) if writer.should_commit())
    assert due == pytest.approx(1 / COMMIT_SHARE, abs=2)
    monkeypatch.setenv("NDT_COMMIT_SECONDS", "30")
    asked = PackWriter(local(tmp_path), "s", "p1", clock=lambda: float(next(ticks)))
    asked.commit(0, STATE)
    asked.rows("losses", {"trial_id": "a", "step": np.arange(COMMIT_ROWS), "loss": 0.5})
    assert asked.should_commit()


def test_the_caller_may_reuse_its_arrays(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    loss = np.array([1.0, 2.0])
    writer.rows("losses", {"trial_id": "a", "step": [1, 2], "loss": loss})
    loss[:] = 9
    writer.commit(2, STATE)
    assert store.sql("SELECT loss FROM losses ORDER BY step").loss.tolist() == [1.0, 2.0]


def test_values_that_are_not_numbers_become_null(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    place = {"trial_id": "a", "layer": "l", "layer_index": 0, "view": "units"}
    writer.rows(
        "measurements", {**place, "step": [0, 1], "stable_rank": np.array([np.nan, 2.0]), "energy_90": [None, 3]}
    )
    writer.rows("measurements", {**place, "step": [2], "energy_90": np.array([np.nan]), "flag": "dead"})
    writer.rows("spectra", {**place, "step": [0, 1], "eigenvalues": [np.array([2.0, 1.0]), None]})
    writer.rows("spectra", {**place, "step": [2, 3], "eigenvalues": np.array([[2.0, np.nan, 0.5]] * 2)})
    writer.commit(2, STATE)
    rows = store.arrow("SELECT stable_rank, energy_90, flag FROM measurements ORDER BY step").to_pylist()
    assert [tuple(r.values()) for r in rows] == [(None, None, None), (2.0, 3, None), (None, None, "dead")]
    spectra = store.arrow("SELECT eigenvalues FROM spectra ORDER BY step")["eigenvalues"].to_pylist()
    assert spectra == [[2.0, 1.0], None, [2.0, None, 0.5], [2.0, None, 0.5]]


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("measurement", {"trial_id": "a"}, "did you mean 'measurements'"),
        ("losses", {"trial_id": "a", "step": 1, "lost": 2.0}, "did you mean 'loss'"),
        ("losses", {"step": 1, "loss": 2.0}, "trial_id"),
        ("losses", {"trial_id": ["a"], "step": [1, 2], "loss": 2.0}, "length"),
    ],
)
def test_bad_rows_are_refused_when_handed_over(tmp_path: Path, table: str, columns: dict, message: str) -> None:
    writer = PackWriter(local(tmp_path), "s", "p0")
    with pytest.raises(SpecError, match=message):
        writer.rows(table, columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"step": [1, None]}, "step"),
        ({"step": [2**40, 1]}, "step"),
        ({"step": [1, 2], "loss": ["high", "low"]}, "loss"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path, columns: dict, message: str) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    writer.rows("losses", {"trial_id": "a", **columns})
    with pytest.raises(SpecError, match=message):
        writer.commit(1, STATE)
    assert count(store, "losses") == 0 and leftovers(store) == set()


def test_two_rows_with_one_key_are_an_error_not_a_surprise(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    writer.rows("losses", {"trial_id": "a", "step": [3, 3], "loss": 0.5})
    with pytest.raises(StoreError, match="'step': 3"):
        writer.commit(3, None, finished=True)
    assert not store.manifests()[0].finished and leftovers(store) == set()


def fail_after(monkeypatch: pytest.MonkeyPatch, writes: int, code: int) -> Callable[[], None]:
    """From the n-th write on, half of the data is written and then the disk says `code`; returns the remedy."""
    done = [0]
    real = filesystem.write_all

    def write(file: Any, data: Any) -> None:
        done[0] += 1
        if done[0] > writes:
            real(file, memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
            raise OSError(code, os.strerror(code))
        real(file, data)

    monkeypatch.setattr(filesystem, "write_all", write)
    return lambda: monkeypatch.setattr(filesystem, "write_all", real)


@pytest.mark.slow
@pytest.mark.parametrize("writes", range(6))
def test_a_full_disk_leaves_nothing_half_written_and_the_commit_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    store = local(tmp_path)
    writer = committed(store)
    before = contents(store)
    on_disk = {f.path for f in store.location.files("")}
    remedy = fail_after(monkeypatch, writes, errno.ENOSPC)
    if writes < 5:  # parts of three tables, state, manifest; the sixth write is the attempt's record
        with pytest.raises(StoreError, match="disk is full - free some space"):
            writer.commit(5, STATE)
        assert {f.path for f in store.location.files("")} == on_disk
        assert contents(store) == before
    remedy()
    writer.commit(5, STATE)
    assert count(store) == 6 * len(TRIALS) * len(LAYERS)
    store.verify(deep=True)


@pytest.mark.parametrize(("code", "message"), [(errno.EROFS, "read-only"), (errno.EACCES, "permission denied")])
def test_a_store_that_cannot_be_written_says_so_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    store = local(tmp_path)
    train(PackWriter(store, "s", "p0"), lambda step: False)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match=message):
        PackWriter(store, "s", "p1")
    assert count(store) > 0


def test_torn_files_under_any_name_are_invisible(tmp_path: Path) -> None:
    store = local(tmp_path)
    committed(store)
    before = contents(store)
    folder = part_files(store, "measurements")[0].parent
    (folder / "part-g000001-000000000009-000-from-000000000004.parquet").write_bytes(b"PAR1 torn")
    (folder / ".part-g000001-000000000010-000.parquet.17.tmp").write_bytes(b"PAR1")
    assert contents(store) == before
    assert contents(open_store(tmp_path / "store")) == before


def test_a_foreign_file_where_a_manifest_should_be_is_named(tmp_path: Path) -> None:
    store = local(tmp_path)
    committed(store)
    folder = tmp_path / "store/commits/s/p0"
    (folder / "README").write_text("hello")
    assert count(store) > 0
    for text in ("not json", "{}", "[1]", '{"format": 1, "parts": [], "state": null, "trials": [], "sweep": "other"}'):
        foreign = folder / "manifest-g000009-000000000001-000.json"
        foreign.write_text(text)
        with pytest.raises(StoreError, match=f"{foreign.name} is not a manifest.*move it away"):
            count(store)
        with pytest.raises(StoreError, match="is not a manifest"):
            PackWriter(store, "s", "p0")
        foreign.unlink()
    assert count(store) > 0


@pytest.mark.parametrize("damage", ["gone", "torn", "flipped"])
def test_a_damaged_recovery_state_is_a_checkpoint_error(tmp_path: Path, damage: str) -> None:
    store = local(tmp_path)
    committed(store)
    state = store.manifests()[0].state
    assert state
    path = Path(store.location.absolute(state.path))
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] if damage == "torn" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="or restart it"):
        PackWriter(store, "s", "p0")
    assert store.attempts()[-1].status == "failed"
    PackWriter(store, "s", "p0", restart=True)


def test_checkpoints_are_indexed_verified_and_saved_once(tmp_path: Path) -> None:
    store = local(tmp_path)
    train(PackWriter(store, "s", "p0"), lambda step: step == 4)
    tensors, metadata = store.checkpoint(TRIALS[0], 8)
    assert tensors["w"].shape == (3,) and metadata == {"step": 8, "trial_id": TRIALS[0]}
    with pytest.raises(CheckpointError, match=r"no checkpoint at step 5 - there are: 0, 4, 8, 12"):
        store.checkpoint(TRIALS[0], 5)
    path = tmp_path / f"store/checkpoints/s/{TRIALS[0]}/step_000000008.safetensors"
    data = path.read_bytes()
    for damaged in (data[:-1] + b"\x00", data[:20], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="corrupt: its SHA-256"):
            store.checkpoint(TRIALS[0], 8)
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        store.checkpoint(TRIALS[0], 8)


def test_a_checkpoint_asked_for_twice_has_one_row(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    for step in (0, 1):
        writer.checkpoint("a", 0, {"w": np.ones(2)}, "planned" if step == 0 else "final")
        writer.commit(step, STATE)
    again = PackWriter(store, "s", "p0")
    again.checkpoint("a", 0, {"w": np.ones(2)}, "final")
    again.commit(2, None, finished=True)
    assert store.sql("SELECT reason FROM checkpoints").reason.tolist() == ["planned"]


def test_attempts_hold_what_may_differ_between_runs(tmp_path: Path) -> None:
    store = local(tmp_path)
    with pytest.raises(RuntimeError), PackWriter(store, "s", "p0", fingerprint="cpu") as writer:
        train(writer, lambda step: step == 4, last=5)
        raise RuntimeError("lane 3 exploded\nlong traceback")
    with PackWriter(store, "s", "p0") as writer:
        train(writer, lambda step: False)
    rows = store.sql("SELECT * FROM attempts ORDER BY generation").to_dict("records")
    assert [r["status"] for r in rows] == ["failed", "finished"]
    assert rows[0]["error"] == "lane 3 exploded" and rows[0]["fingerprint"] == "cpu"
    assert rows[1]["from_step"] == 4 and rows[1]["to_step"] == STEPS
    assert rows[0]["pid"] == os.getpid() and rows[1]["ended"] >= rows[1]["started"] >= rows[0]["ended"]


def test_lists_as_matrices_are_stored_as_lists_row_by_row() -> None:
    table = Table("t", "", (Column("k", "int32", ""), Column("v", "list:float32", "")), ("k",))
    matrix = np.arange(6.0).reshape(3, 2)
    matrix[1, 1] = np.nan
    column = Lists([matrix, 2, matrix[:1, :1]])
    assert len(column) == 6 and [None if r is None else r.tolist() for r in (column[2], column[3], column[-1])] == [
        [4, 5], None, [0],
    ]  # fmt: skip
    assert column[3:5] == [None, None]
    with pytest.raises(IndexError):
        column[6]
    one, other = Batches(table, "float32"), Batches(table, "float32")
    one.add({"k": np.arange(6), "v": column})
    other.add({"k": np.arange(6), "v": [column[i] for i in range(6)]})
    assert one.arrow().equals(other.arrow())
    assert one.arrow()["v"].to_pylist() == [[0, 1], [2, None], [4, 5], None, None, [0]]
    for kind, row, said in (
        ("list:float32", 3.0, "one list a row"),
        ("list:int32", [2**40], "too large|out of bounds"),
    ):
        bad = Batches(Table("t", "", (Column("k", "int32", ""), Column("v", kind, "")), ("k",)), "float32")
        bad.add({"k": [0], "v": [row]})
        with pytest.raises(SpecError, match=f"column v .*({said})"):
            bad.arrow()
