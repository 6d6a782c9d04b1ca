"""A directory on any pyarrow filesystem, with the three writes the commit protocol needs: whole, exclusive, streamed.

Local writes go to a temporary name that starts with '.' and does not end in '.parquet' (DuckDB's globs read the
former, pyarrow's the latter), are flushed to disk and renamed. An object store shows an object only when its one
put is complete.
"""

import errno
import hashlib
import os
import random
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ndt_ray.errors import SpecError, StoreError

_ADVICE = {
    errno.ENOSPC: "the disk is full - free some space (`ndt gc` removes leftovers) and run the same command",
    errno.EDQUOT: "the disk quota is used up - free some space and run the same command",
    errno.EROFS: "the file system is read-only - give another --store",
    errno.EACCES: "permission denied - mend the permissions or give another --store",
    errno.EPERM: "not permitted - mend the permissions or give another --store",
    errno.ENOTDIR: "a file stands where a directory should be - give another --store",
}


@dataclass(frozen=True)
class Entry:
    """A file below the location: its path relative to it, size in bytes, modification time in seconds."""

    path: str
    bytes: int
    mtime: float


class Location:
    """A directory on a pyarrow filesystem. All paths handed in and out are relative to it, with '/'."""

    def __init__(self, filesystem: pafs.FileSystem, root: str, uri: str) -> None:
        self.filesystem = filesystem
        self.local = isinstance(filesystem, pafs.LocalFileSystem)
        self.root = os.path.realpath(root) if self.local else root.rstrip("/")
        self.uri = uri

    @classmethod
    def of(cls, where: str | Path, filesystem: pafs.FileSystem | None = None) -> "Location":
        """From a local path, a `file://`, `s3://` or `gs://` URI, or a path on a given pyarrow filesystem."""
        text = str(where)
        if filesystem is not None:
            return cls(filesystem, text, text)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), os.path.expanduser(text), text)
        if "@" in urlsplit(text).netloc:
            raise SpecError(
                f"store {text.split('://')[0]}://…: keys in a URI land in logs and state files - give them through the "
                "environment (AWS_ACCESS_KEY_ID, an instance profile, …)"
            )
        try:
            found, root = pafs.FileSystem.from_uri(_one_put(text))
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            raise SpecError(f"store {text}: {_first_line(error)} - give a path, file://, s3:// or gs://") from error
        return cls(found, root, text)

    def absolute(self, path: str) -> str:
        """`path` as the filesystem (and DuckDB, if local) knows it."""
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> bytes:
        """The whole file; FileNotFoundError if there is none."""
        with self._explain("read", path):
            if self.local:
                return Path(self.absolute(path)).read_bytes()
            with self.filesystem.open_input_stream(self.absolute(path), compression=None) as stream:
                data: bytes = stream.read()
                return data

    def write(self, path: str, data: Any, *, durable: bool = True) -> None:
        """Put `data` (bytes or an Arrow buffer) at `path`, whole or not at all, replacing what was there."""
        with self.writing(path, durable=durable) as stream:
            stream.write(data)

    @contextmanager
    def writing(self, path: str, *, durable: bool = True) -> Iterator["Stream"]:
        """A stream whose contents appear at `path` when the block ends well, and leave nothing when it fails."""
        with self._explain("write", path):
            if self.local:
                with replacing(Path(self.absolute(path)), durable=durable) as file:
                    yield Stream(file)
            else:
                stream = self._open_output(self.absolute(path))
                try:
                    yield Stream(stream)
                except BaseException:
                    with suppress(OSError):
                        stream.close()
                        self.filesystem.delete_file(self.absolute(path))
                    raise
                stream.close()

    def create_exclusively(self, path: str, data: bytes) -> bool:
        """Claim a name for good: True for exactly one of all callers that ever ask for it, at most.

        Local: O_CREAT | O_EXCL. Object store, by put and list alone (both strongly consistent on S3, GCS and
        Azure): put `path~<nonce>`, then list `path~*`; the name is ours if ours is the only claim. Of two claimants
        the one whose put came last sees the other's, so two can never both win; both may lose, and then the
        callers, who go on to the next name, have only burnt a number.
        """
        with self._explain("create", path):
            if self.local:
                return _create_local(Path(self.absolute(path)), data)
            folder, _, name = path.rpartition("/")
            if any(claimed(n, name) for n in self.names(folder)):
                return False
            self.write(f"{path}~{uuid.uuid4().hex}", data)
            if sum(claimed(n, name) for n in self.names(folder)) == 1:
                return True
            time.sleep(random.uniform(0.01, 0.1))  # so that the same two do not burn the next number together
            return False

    def append(self, path: str, data: bytes) -> None:
        """Add a few lines to a local file in one write; object stores cannot (see sweep.events)."""
        assert self.local
        with self._explain("write", path):
            absolute = Path(self.absolute(path))
            absolute.parent.mkdir(parents=True, exist_ok=True)
            with open(absolute, "ab", buffering=0) as file:
                write_all(file, data)

    def names(self, folder: str) -> list[str]:
        """Names of files and folders in it, sorted; none if there is no such folder."""
        with self._explain("list", folder):
            if self.local:
                try:
                    return sorted(os.listdir(self.absolute(folder)))
                except (FileNotFoundError, NotADirectoryError):
                    return []
            return sorted(info.base_name for info in self._select(folder, recursive=False))

    def files(self, folder: str) -> list[Entry]:
        """All files below it."""
        with self._explain("list", folder):
            if not self.local:
                infos = [i for i in self._select(folder, recursive=True) if i.type == pafs.FileType.File]
                start = len(self.root) + 1
                return [Entry(i.path[start:], i.size, i.mtime.timestamp() if i.mtime else 0.0) for i in infos]
            found = []
            for directory, _, names in os.walk(self.absolute(folder)):
                for name in names:
                    with suppress(FileNotFoundError):
                        full = os.path.join(directory, name)
                        status = os.stat(full)
                        found.append(Entry(os.path.relpath(full, self.root), status.st_size, status.st_mtime))
            return found

    def size(self, path: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with self._explain("read", path):
            if self.local:
                try:
                    return os.stat(self.absolute(path)).st_size
                except (FileNotFoundError, NotADirectoryError):
                    return None
            info = self.filesystem.get_file_info(self.absolute(path))
            return info.size if info.type == pafs.FileType.File else None

    def delete(self, path: str) -> None:
        """Remove a file; none there is fine."""
        with self._explain("remove", path), suppress(FileNotFoundError):
            if self.local:
                os.unlink(self.absolute(path))
            elif self.size(path) is not None:
                self.filesystem.delete_file(self.absolute(path))

    def delete_tree(self, folder: str) -> None:
        """Remove a folder with all that is in it; none there is fine."""
        assert folder
        with self._explain("remove", folder), suppress(FileNotFoundError):
            if self.local:
                shutil.rmtree(self.absolute(folder))
            else:
                self.filesystem.delete_dir(self.absolute(folder))

    def _select(self, folder: str, *, recursive: bool) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(self.absolute(folder), allow_not_found=True, recursive=recursive)
        found: list[pafs.FileInfo] = self.filesystem.get_file_info(selector)
        return found

    def _open_output(self, absolute: str) -> Any:
        try:
            return self.filesystem.open_output_stream(absolute, compression=None)
        except FileNotFoundError:  # a filesystem that, unlike object stores, wants its folders made
            self.filesystem.create_dir(absolute.rpartition("/")[0], recursive=True)
            return self.filesystem.open_output_stream(absolute, compression=None)

    @contextmanager
    def _explain(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise explained(error, verb, self.absolute(path)) from error


def _one_put(uri: str) -> str:
    """An S3 URI with which a small file is one PutObject; Arrow's default makes a multipart upload even of 1 byte."""
    if not uri.startswith("s3://") or "allow_delayed_open" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true"


class Stream:
    """A writable file that knows the SHA-256 and size of what went through it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        write_all(self._file, view)
        self._hash.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Nothing: whoever opened it flushes and closes it."""

    close = flush

    def tell(self) -> int:
        return self.bytes

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


def explained(error: OSError, verb: str, where: str) -> StoreError:
    """The same error for a user: what, where, what to do."""
    advice = _ADVICE.get(error.errno or 0) or f"{_first_line(error)} - check that the store can be reached and written"
    return StoreError(f"cannot {verb} {where}: {advice}")


def write_all(file: Any, data: Any) -> None:
    """Every byte that the store or an export writes passes here."""
    view = memoryview(data).cast("B")
    while view:
        written = file.write(view)
        view = view[written if written is not None else len(view) :]


def to_disk(descriptor: int) -> None:
    """Return when the file (or folder) would survive a power cut."""
    os.fsync(descriptor)


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A local file that takes its name only when the block ends well: written beside it, flushed, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        with open(temporary, "xb", buffering=0) as file:
            yield file
            if durable:
                to_disk(file.fileno())
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def is_temporary(name: str) -> bool:
    """Whether a file name is one that `replacing` gives to unfinished files."""
    return name.startswith(".") and name.endswith(".tmp")


def claimed(name: str, base: str) -> bool:
    """Whether the file `name` is a claim of the name `base` (local: the name; object store: `base~<nonce>`)."""
    return name == base or name.startswith(base + "~")


def _create_local(path: Path, data: bytes) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        write_all(file, data)
        to_disk(file.fileno())
    _sync_folder(path.parent)
    return True


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        to_disk(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
