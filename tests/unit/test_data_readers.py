"""idx and CSV files: what is written is read, and damage is named."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from ndt_ray.data.readers import read_csv, read_idx
from ndt_ray.errors import DataError

_CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, _CODES[str(array.dtype)], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", sorted(_CODES))
@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_file_gives_back_its_array(tmp_path: Path, dtype: str, packed: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - 3 * (dtype != "uint8")).astype(dtype)
    body = idx_bytes(array)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(body) if packed else body)
    found = read_idx(path, dims=3, dtype=dtype)
    assert found.dtype == array.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, array)


def test_a_gzip_file_cut_anywhere_is_a_data_error(tmp_path: Path) -> None:
    body = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 255, (5, 4, 4)).astype(np.uint8)))
    path = tmp_path / "cut.gz"
    for length in range(len(body)):
        path.write_bytes(body[:length])
        with pytest.raises(DataError, match=r"cut\.gz: .*(truncated|not an idx file)"):
            read_idx(path, dims=3)


def test_a_flipped_bit_in_the_gzip_body_is_a_data_error(tmp_path: Path) -> None:
    body = bytearray(gzip.compress(idx_bytes(np.zeros((50, 28, 28), np.uint8)), mtime=0))
    body[-6] ^= 1  # in the checksum
    path = tmp_path / "flipped.gz"
    path.write_bytes(body)
    with pytest.raises(DataError, match="damaged gzip"):
        read_idx(path, dims=3)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "it starts with nothing"),
        (b"\0\0", "not an idx file"),
        (b"<html>not found</html>", "not an idx file: it starts with 3c 68 74 6d"),
        (b"\0\0\x07\x01" + b"\0" * 8, "not an idx file"),
        (b"\0\0\x08\x03\0\0", "truncated within its header"),
        (idx_bytes(np.zeros((2, 3, 4), np.uint8))[:-1], r"truncated: its header says \(2, 3, 4\), 24 bytes, but 23"),
        (idx_bytes(np.zeros((2, 3, 4), np.uint8)) + b"\0", "too long"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "truncated"),
        (idx_bytes(np.zeros(3, np.uint8)), "1 dimensions of uint8, but 3 of uint8"),
        (idx_bytes(np.zeros((1, 1, 1), np.int32)), "3 dimensions of int32, but 3 of uint8"),
    ],
)
def test_what_is_no_image_file_is_a_data_error(tmp_path: Path, body: bytes, message: str) -> None:
    path = tmp_path / "images"
    path.write_bytes(body)
    with pytest.raises(DataError, match=message):
        read_idx(path, dims=3)


def test_a_file_that_cannot_be_opened_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path, dims=3)
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path, fields=3)


def test_csv_rows_keep_commas_quotes_newlines_and_empty_fields(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('"1","","say ""hi"", now"\n"2","two\nlines","a\\re-signed é"\n', encoding="utf-8")
    assert read_csv(path, fields=3) == [["1", "", 'say "hi", now'], ["2", "two\nlines", "a\\re-signed é"]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'"1","a","b"\n"2","c"\n', "line 2: 2 fields instead of 3"),
        (b'"1","a","b"\n"2","c","cut in the mid', "line 2: .*truncated"),
        (b'"1","a","b"x\n', "line 1: .*damaged"),
        (b'"1","a","\xff"\n', "not UTF-8"),
        (b'"1","a","' + b"x" * 200_000 + b'"\n', "line 1: field larger than field limit"),
    ],
)
def test_a_damaged_csv_file_is_a_data_error(tmp_path: Path, body: bytes, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(body)
    with pytest.raises(DataError, match=rf"rows\.csv.*{message}"):
        read_csv(path, fields=3)
