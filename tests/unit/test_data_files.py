"""Finding, verifying and downloading data files, on small files that stand in for the canonical ones."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndt_ray import data
from ndt_ray.data import files
from ndt_ray.data.files import DataFile, data_root, download, fetch_files, locate
from ndt_ray.errors import DataError

BODY = b"the right content\n" * 100_000


def small_file(*urls: str, body: bytes = BODY) -> DataFile:
    return DataFile("SMALL/raw", "small.gz", hashlib.md5(body).hexdigest(), urls)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDT_OFFLINE", "1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "small.gz"
    path.parent.mkdir()
    path.write_bytes(BODY)
    return path


@pytest.fixture
def server(source: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            if self.path != "/broken.gz":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY[:1000])

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(source.parent))
    ) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_the_root_is_the_argument_then_ndt_data_then_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDT_DATA", "/data")
    monkeypatch.setenv("NDT_CACHE", "/cache")
    assert data_root("/given") == Path("/given")
    assert data_root() == Path("/data")
    monkeypatch.setenv("NDT_DATA", "")
    assert data_root() == Path("/cache/data")
    monkeypatch.delenv("NDT_CACHE")
    assert data_root() == Path.home() / ".cache/ndt-ray/data"


@pytest.mark.parametrize("place", ["SMALL/raw/small.gz", "SMALL/small.gz", "small.gz"])
def test_a_file_is_found_in_each_layout(weird_path: Path, place: str) -> None:
    path = weird_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BODY)
    assert locate(small_file(), weird_path) == path


def test_a_missing_file_says_which_where_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        locate(small_file("https://example.org/small.gz"), tmp_path)
    for part in ("small.gz is missing", str(tmp_path / "SMALL/raw/small.gz"), str(tmp_path / "small.gz"),
                 "NDT_OFFLINE is set", "Set NDT_DATA", "https://example.org/small.gz", small_file().md5):  # fmt: skip
        assert part in str(caught.value)


def test_a_wrong_checksum_names_both_sums_and_is_not_replaced(tmp_path: Path, source: Path) -> None:
    path = tmp_path / "small.gz"
    path.write_bytes(b"wrong")
    wrong = hashlib.md5(b"wrong").hexdigest()
    file = small_file(source.as_uri())
    with pytest.raises(DataError, match=f"expected MD5 {file.md5}, found {wrong}"):
        locate(file, tmp_path)
    assert path.read_bytes() == b"wrong"
    assert locate(file, tmp_path, check=False) == path


def test_the_file_of_another_data_set_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = DataFile("OTHER", "other.gz", hashlib.md5(b"other").hexdigest(), ())
    monkeypatch.setattr(files, "FILES", {"other": {"other.gz": other}})
    (tmp_path / "small.gz").write_bytes(b"other")
    with pytest.raises(DataError, match=r"which is OTHER/other\.gz"):
        locate(small_file(), tmp_path)


def test_a_missing_file_is_downloaded_unless_offline(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = small_file(source.as_uri())
    with pytest.raises(DataError, match="NDT_OFFLINE"):
        locate(file, tmp_path / "root")
    monkeypatch.setenv("NDT_OFFLINE", "0")
    path = locate(file, tmp_path / "root")
    assert path == tmp_path / "root/SMALL/raw/small.gz" and path.read_bytes() == BODY


def test_the_next_address_is_tried_and_only_the_right_bytes_are_kept(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"wrong")
    bad = (f"{server}/absent.gz", f"{server}/broken.gz", wrong.as_uri(), (tmp_path / "none").as_uri())
    path = download(small_file(*bad, f"{server}/small.gz"), tmp_path / "root")
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["small.gz"]
    path.unlink()
    with pytest.raises(DataError) as caught:
        download(small_file(*bad), tmp_path / "root")
    message = str(caught.value)
    assert all(f"  {url}: " in message for url in bad)
    assert "404" in message and f"is {hashlib.md5(b'wrong').hexdigest()}, not" in message and "Set NDT_DATA" in message
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path, source: Path) -> None:
    (tmp_path / "root").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written"):
        download(small_file(source.as_uri()), tmp_path / "root")


def test_fetch_brings_what_is_missing_and_replaces_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FILES", {"small": {"small.gz": small_file(source.as_uri())}})
    (path,) = data.fetch("small", tmp_path)  # asked for, so NDT_OFFLINE does not matter
    stamp = path.stat().st_mtime_ns
    assert fetch_files("small", tmp_path) == [path] and path.stat().st_mtime_ns == stamp
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="move it away"):
        data.fetch("small", tmp_path)
    assert path.read_bytes() == b"mine"


def test_fetch_of_a_data_set_without_files_says_so() -> None:
    with pytest.raises(DataError, match="'mnst' has no files to download - did you mean 'mnist'"):
        data.fetch("mnst")


def test_every_canonical_file_has_a_checksum_and_an_address() -> None:
    every = [file for group in files.FILES.values() for file in group.values()]
    assert len(every) == 14 and len({file.md5 for file in every}) == 14
    assert all(len(file.md5) == 32 and file.urls and all(u.endswith(file.name) for u in file.urls) for file in every)
