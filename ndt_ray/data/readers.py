"""Readers of the two file formats that the data sets come in: idx (MNIST and its relatives) and CSV."""

import csv
import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ndt_ray.errors import DataError

# Third byte of an idx file's magic number (the format is described on the MNIST page of LeCun, Cortes and Burges).
_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path, dims: int, dtype: Any = np.uint8) -> np.ndarray:
    """The array of an idx file, gzipped or not, in native byte order.

    DataError where it is truncated or too long, is no idx file, or does not hold `dims` dimensions of `dtype`.
    """
    body = _read_bytes(path)
    if len(body) < 4 or body[:2] != b"\0\0" or body[2] not in _IDX_TYPES:
        raise DataError(f"{path}: not an idx file: it starts with {body[:4].hex(' ') or 'nothing'}; replace the file")
    found, found_dims = np.dtype(_IDX_TYPES[body[2]]).newbyteorder("="), body[3]
    if found != np.dtype(dtype) or found_dims != dims:
        raise DataError(
            f"{path}: holds {found_dims} dimensions of {found}, but {dims} of {np.dtype(dtype)} are needed: "
            "probably another file under this name"
        )
    start = 4 + 4 * dims
    if len(body) < start:
        raise DataError(f"{path}: truncated within its header ({len(body)} of {start} bytes); replace the file")
    shape = tuple(int(n) for n in np.frombuffer(body, ">u4", dims, offset=4))
    expected = math.prod(shape) * found.itemsize
    if len(body) - start != expected:
        what = "truncated" if len(body) - start < expected else "too long"
        raise DataError(
            f"{path}: {what}: its header says {shape}, {expected} bytes, but {len(body) - start} follow; "
            "replace the file"
        )
    return np.frombuffer(body, _IDX_TYPES[body[2]], offset=start).astype(found, copy=False).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        body = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not body.startswith(_GZIP_MAGIC):
        return body
    try:
        return gzip.decompress(body)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: truncated or damaged gzip file ({error}); replace the file") from error


def read_csv(path: Path, fields: int) -> list[list[str]]:
    """The rows of a comma-separated UTF-8 file without header, each of exactly `fields` fields.

    DataError, naming the line, where a row has another number of fields, a quote stays open or a byte is no UTF-8.
    """
    rows: list[list[str]] = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if len(row) != fields:
                    raise DataError(f"{path}, line {reader.line_num}: {len(row)} fields instead of {fields}")
                rows.append(row)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}: damaged or truncated; replace the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; replace the file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return rows
