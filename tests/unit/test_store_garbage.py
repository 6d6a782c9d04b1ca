"""`ndt gc` takes what nobody names, and never anything that somebody does, or may be about to."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from store_rows import contents, local, measure, train

from ndt_ray.errors import StoreError
from ndt_ray.store.garbage import gc
from ndt_ray.store.reader import Store
from ndt_ray.store.writer import PackWriter


def age(store: Store, seconds: float = 7200.0) -> None:
    then = time.time() - seconds
    for file in store.location.files(""):
        os.utime(store.location.absolute(file.path), (then, then))


def messy(tmp_path: Path) -> Store:
    store = local(tmp_path)
    train(PackWriter(store, "s", "done"), lambda step: step % 3 == 0)
    for _ in range(3):
        writer = PackWriter(store, "s", "running")
        train(writer, lambda step: step % 2 == 0, last=writer.step + 3)
    root = tmp_path / "store"
    pack = root / "data/measurements/sweep=s/pack=running"
    (pack / "part-g000001-000000000099-000.parquet").write_bytes(b"torn")
    (pack / ".part.parquet.1-2.tmp").write_bytes(b"torn")
    (root / "data/scalars/sweep=gone/pack=p").mkdir(parents=True)
    (root / "data/scalars/sweep=gone/pack=p/x.parquet").write_bytes(b"x")
    (root / "state/s/running/state-g000009-000000000001-000.safetensors").write_bytes(b"x")
    (root / "checkpoints/s/zz").mkdir()
    (root / "checkpoints/s/zz/step_000000001.safetensors").write_bytes(b"x")
    (root / "notes.txt").write_text("mine")
    (root / "data/README").write_text("mine")
    return store


def test_orphans_go_and_everything_named_stays(tmp_path: Path) -> None:
    store = messy(tmp_path)
    assert gc(store) == []  # all too young
    age(store)
    before = contents(store)
    listed = gc(store, dry_run=True)
    assert contents(store) == before and {g.path for g in listed} == {g.path for g in gc(store, dry_run=True)}
    removed = {g.path for g in gc(store)}
    assert removed == {g.path for g in listed} and len(removed) >= 5
    assert gc(store) == []
    assert contents(store) == before
    store.verify(deep=True)
    for row in store.sql("SELECT trial_id, step FROM checkpoints").itertuples():
        store.checkpoint(row.trial_id, row.step)
    assert (tmp_path / "store/notes.txt").exists() and (tmp_path / "store/data/README").exists()
    assert {g.reason for g in listed} >= {"not committed", "unfinished write", "superseded", "state of an older commit"}
    writer = PackWriter(store, "s", "running")
    assert writer.generation == 4 and writer.resume is not None
    train(writer, lambda step: False)


def test_a_live_writer_is_not_disturbed(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    for step in range(4):
        measure(writer, step)
        writer.commit(step, {"w": np.ones(1)})
        age(store)
        gc(store)
        store.verify(deep=True)
    zombie = writer
    PackWriter(store, "s", "p0").close()
    age(store)
    gc(store)
    with pytest.raises(StoreError, match="superseded"):
        zombie.commit(9, {"w": np.ones(1)})


def test_nothing_is_removed_when_a_manifest_cannot_be_read(tmp_path: Path) -> None:
    store = messy(tmp_path)
    (tmp_path / "store/commits/s/done/manifest-g000099-000000000001-000.json").write_text("?")
    age(store)
    count = len(store.location.files(""))
    with pytest.raises(StoreError, match="is not a manifest"):
        gc(store)
    assert len(store.location.files("")) == count
