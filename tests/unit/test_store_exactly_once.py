"""Kill the writer at any write, as often as you like: the finished tables are those of the undisturbed run."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_rows import STEPS, contents, files, local, measure, train

from ndt_ray.errors import StoreError
from ndt_ray.store import writer as writer_module
from ndt_ray.store.filesystem import Location, Stream
from ndt_ray.store.reader import Store
from ndt_ray.store.writer import PackWriter


class Killed(BaseException):
    """SIGKILL: nothing that the process would still do happens."""


class MortalLocation(Location):
    """Dies at its n-th change of the disk, before it, after it, or in the middle of writing a temporary file."""

    def __init__(self, alive: Location, changes: int, how: str) -> None:
        super().__init__(alive.filesystem, alive.root, alive.uri)
        self._left = changes
        self._how = how

    def _change(self) -> bool:
        """True when this is the last one; Killed if there was one already."""
        self._left -= 1
        if self._left < 0 or (self._left == 0 and self._how == "before"):
            raise Killed
        return self._left == 0

    @contextmanager
    def writing(self, path: str, *, durable: bool = True) -> Iterator[Stream]:
        last = self._change()
        if last and self._how == "torn":
            torn = Path(self.absolute(path))
            torn.parent.mkdir(parents=True, exist_ok=True)
            torn.with_name(f".{torn.name}.1-0.tmp").write_bytes(b"PAR1 half of it")
            raise Killed
        with super().writing(path, durable=durable) as stream:
            yield stream
        if last:
            raise Killed

    def create_exclusively(self, path: str, data: bytes) -> bool:
        last = self._change()
        made = super().create_exclusively(path, data)
        if last:
            raise Killed
        return made

    def delete(self, path: str) -> None:
        last = self._change()
        super().delete(path)
        if last:
            raise Killed


class At:
    """What PackWriter needs of a store."""

    def __init__(self, location: Location) -> None:
        self.location = location


@pytest.fixture(autouse=True)
def _early_merges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges happen early enough to be killed in."""
    monkeypatch.setattr(writer_module, "MERGE_PARTS", 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = local(tmp_path_factory.mktemp("undisturbed"))
    train(PackWriter(store, "s", "p0"), lambda step: step % 5 == 0)
    return store


@pytest.fixture(scope="module")
def whole(undisturbed: Store) -> dict[str, Any]:
    return contents(undisturbed)


def visible_is_a_prefix(store: Store, whole: dict[str, Any]) -> None:
    """At any moment a reader sees the rows of the finished run up to some step, in every table the same one."""
    manifests = store.manifests()
    step = manifests[0].step if manifests and (manifests[0].state or manifests[0].finished) else -1
    for name, rows in contents(store).items():
        expected = whole[name]
        if "step" in expected.column_names:
            expected = expected.filter(np.asarray(expected["step"]) <= step)
        assert rows.equals(expected), name


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 20))])
def test_random_kills_leave_the_same_tables_and_files(
    tmp_path: Path, undisturbed: Store, whole: dict[str, Any], seed: int
) -> None:
    chance = random.Random(seed)
    store = local(tmp_path)
    for _ in range(200):
        mortal = MortalLocation(store.location, chance.randrange(1, 40), chance.choice(["before", "after", "torn"]))
        try:
            writer = PackWriter(At(mortal), "s", "p0")
            if not writer.finished:
                train(writer, lambda step: chance.random() < 0.4)
            break
        except Killed:
            visible_is_a_prefix(store, whole)
    assert store.manifests()[0].finished
    assert {k: v for k, v in contents(store).items()} == whole
    assert files(store) == files(undisturbed)


@pytest.mark.slow
def test_a_kill_at_every_single_write_of_a_run(tmp_path: Path, undisturbed: Store) -> None:
    for changes in range(1, 200):
        store = local(tmp_path, f"store-{changes}")
        try:
            train(PackWriter(At(MortalLocation(store.location, changes, "after")), "s", "p0"), lambda step: step == 6)
            assert changes > 20
            return
        except Killed:
            writer = PackWriter(store, "s", "p0")
            if not writer.finished:
                train(writer, lambda step: step == 9)
        assert files(store) == files(undisturbed)
    raise AssertionError("the run has more writes than expected")


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 10))])
def test_zombies_commit_beside_their_successors_in_any_order(tmp_path: Path, whole: dict[str, Any], seed: int) -> None:
    """Up to four writers of one pack take turns at random; the last to open finishes."""
    chance = random.Random(seed)
    store = local(tmp_path)
    writers: list[tuple[PackWriter, int]] = []
    for _ in range(60):
        if len(writers) < 4 and chance.random() < 0.2:
            writer = PackWriter(store, "s", "p0")
            writers.append((writer, writer.step + 1 if writer.resume else 0))
        if not writers:
            continue
        at = chance.randrange(len(writers))
        writer, step = writers[at]
        if step >= STEPS:
            continue
        try:
            measure(writer, step)
            if chance.random() < 0.5:
                writer.commit(step, {"weights": np.full(3, float(step))})
            writers[at] = (writer, step + 1)
        except StoreError:
            continue
        visible = store.sql("SELECT DISTINCT step FROM measurements ORDER BY step").step.tolist()
        assert visible == list(range(len(visible)))
        store.verify()
    last = PackWriter(store, "s", "p0")
    for step in range(last.step + 1 if last.resume else 0, STEPS + 1):
        measure(last, step)
    last.commit(STEPS, None, finished=True)
    found = contents(store)
    for name in ("measurements", "spectra", "scalars"):
        assert found[name].equals(whole[name])
