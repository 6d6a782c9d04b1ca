"""Writes that are whole or not at all, and names that only one claimant gets, on disk and on object stores."""

import errno
import threading
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from bucket import Bucket

from ndt_ray.errors import StoreError
from ndt_ray.store import filesystem
from ndt_ray.store.filesystem import Location, is_temporary
from ndt_ray.store.manifests import check_name, claim, generation


@pytest.fixture(params=["local", "object store"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location.of(tmp_path)
    return Location.of("store", pafs.PyFileSystem(Bucket()))


def test_files_are_written_read_listed_and_deleted(location: Location) -> None:
    assert location.names("a") == [] and location.files("a") == [] and location.size("a/b") is None
    location.write("a/b/c.bin", b"12345")
    location.write("a/b/c.bin", b"123")
    assert location.read("a/b/c.bin") == b"123" and location.size("a/b/c.bin") == 3
    assert location.names("a") == ["b"] and location.names("a/b") == ["c.bin"]
    (entry,) = location.files("a")
    assert (entry.path, entry.bytes) == ("a/b/c.bin", 3) and entry.mtime > 1e9
    location.delete("a/b/c.bin")
    location.delete("a/b/c.bin")
    with pytest.raises(FileNotFoundError):
        location.read("a/b/c.bin")
    location.write("a/d", b"")
    location.delete_tree("a")
    location.delete_tree("a")
    assert location.files("") == []


def test_a_stream_knows_size_and_hash_and_vanishes_on_failure(location: Location) -> None:
    with location.writing("x") as stream:
        stream.write(b"ab")
        stream.write(memoryview(b"c"))
    assert stream.bytes == 3 and stream.sha256.startswith("ba7816bf")
    with pytest.raises(KeyError), location.writing("x" if location.local else "y") as stream:
        stream.write(b"half")
        raise KeyError
    assert location.read("x") == b"abc" and location.names("") == ["x"]


def test_temporary_names_are_hidden_from_duckdb_and_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = filesystem.write_all

    def spy(file: object, data: object) -> None:
        seen.extend(p.name for p in tmp_path.iterdir())
        real(file, data)

    monkeypatch.setattr(filesystem, "write_all", spy)
    Location.of(tmp_path).write("part.parquet", b"x")
    assert len(seen) == 1 and seen[0].startswith(".") and not seen[0].endswith(".parquet") and is_temporary(seen[0])


def test_data_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(filesystem, "to_disk", lambda descriptor: order.append("sync"))
    real = filesystem.os.replace
    monkeypatch.setattr(filesystem.os, "replace", lambda *a: (order.append("rename"), real(*a))[1])
    Location.of(tmp_path).write("x", b"1")
    assert order == ["sync", "rename", "sync"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_os_errors_say_what_where_and_what_to_do(
    location: Location, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(file: object, data: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(filesystem, "write_all", fail)
    with pytest.raises(StoreError, match=r"cannot write .*x: .* - "):
        location.write("x", b"1")
    assert location.names("") == []


def test_one_claimant_of_many_gets_a_name(location: Location) -> None:
    won: list[tuple[str, int]] = []
    barrier = threading.Barrier(6)

    def contend(who: int) -> None:
        for n in range(5):
            barrier.wait()
            if location.create_exclusively(f"claims/{n}", str(who).encode()):
                won.append((str(n), who))

    threads = [threading.Thread(target=contend, args=[n]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [name for name, _ in won]
    assert len(names) == len(set(names))
    if location.local:
        assert len(names) == 5


def test_generations_are_claimed_once_each(location: Location) -> None:
    taken: list[int] = []

    def contend() -> None:
        for _ in range(3):
            taken.append(claim(location, "s", "p").generation)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 12 and generation(location, "s", "p") == max(taken)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a=b", "..", "x" * 101, "a b", "a\n"])
def test_names_that_would_break_paths_are_refused(name: str) -> None:
    with pytest.raises(StoreError, match="letters, digits"):
        check_name("sweep", name)
