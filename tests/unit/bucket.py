"""An object store in memory: an object appears when its put is complete, and there are no folders."""

import io
import time
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs


class Bucket(pafs.FileSystemHandler):
    """Objects by path. `pafs.PyFileSystem(Bucket())` is a filesystem like S3FileSystem."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def get_type_name(self) -> str:
        return "bucket"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        base = selector.base_dir.rstrip("/") + "/"
        below = [path for path in list(self.objects) if path.startswith(base)]
        if not selector.recursive:
            below = sorted({base + path[len(base) :].partition("/")[0] for path in below})
        return [self._info(path) for path in below]

    def _info(self, path: str) -> pafs.FileInfo:
        if path in self.objects:
            data, changed = self.objects[path]
            return pafs.FileInfo(path, pafs.FileType.File, size=len(data), mtime=datetime.fromtimestamp(changed, UTC))
        folder = any(other.startswith(path + "/") for other in list(self.objects))
        return pafs.FileInfo(path, pafs.FileType.Directory if folder else pafs.FileType.NotFound)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: object stores have none."""

    def delete_dir(self, path: str) -> None:
        for other in [p for p in self.objects if p.startswith(path + "/")]:
            self.objects.pop(other, None)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.delete_dir(path)

    def delete_root_dir_contents(self) -> None:
        self.objects.clear()

    def delete_file(self, path: str) -> None:
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError

    copy_file = move

    def open_input_stream(self, path: str) -> pa.NativeFile:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.objects[path][0])

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Put(self.objects, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise OSError("object stores cannot append")


class _Put(io.BytesIO):
    def __init__(self, objects: dict[str, tuple[bytes, float]], path: str) -> None:
        super().__init__()
        self._objects, self._path = objects, path

    def close(self) -> None:
        if not self.closed:
            self._objects[self._path] = (self.getvalue(), time.time())
        super().close()
