"""Where data files lie, what they must hold, and how to get them: canonical names, checksums and addresses.

Files are looked for under `NDT_DATA`, else under `data` in the cache folder (`NDT_CACHE`, else `~/.cache/ndt-ray`). A
file that is missing is downloaded there and accepted by its checksum only; `NDT_OFFLINE=1` forbids that. Nothing is
ever replaced.
"""

import hashlib
import logging
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ndt_ray.cache import cache_folder
from ndt_ray.errors import DataError, did_you_mean

log = logging.getLogger(__name__)

_TIMEOUT = 30.0  # seconds without a byte before the next address is tried


@dataclass(frozen=True)
class DataFile:
    """A file of a data set: its folder below the root, its name, its MD5 as published, and where it is published."""

    folder: str
    name: str
    md5: str
    urls: tuple[str, ...]

    def candidates(self, root: Path) -> tuple[Path, ...]:
        """Paths it may have: as torchvision lays it out (where downloads go), without `raw/`, and flat."""
        return root / self.folder / self.name, root / self.folder.split("/")[0] / self.name, root / self.name


def _files(folder: str, bases: tuple[str, ...], sums: dict[str, str]) -> dict[str, DataFile]:
    return {name: DataFile(folder, name, md5, tuple(f"{b}/{name}" for b in bases)) for name, md5 in sums.items()}


_GITHUB = "https://raw.githubusercontent.com"
FILES: dict[str, dict[str, DataFile]] = {
    "mnist": _files(
        "MNIST/raw",
        ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": _files(
        "FashionMNIST/raw",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            f"{_GITHUB}/zalandoresearch/fashion-mnist/master/data/fashion",
        ),
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "qmnist": _files(
        "QMNIST/raw",
        (f"{_GITHUB}/facebookresearch/qmnist/master",),
        {
            "qmnist-train-images-idx3-ubyte.gz": "ed72d4157d28c017586c42bc6afe6370",
            "qmnist-train-labels-idx2-int.gz": "0058f8dd561b90ffdd0f734c6a30e5e4",
            "qmnist-test-images-idx3-ubyte.gz": "1394631089c404de565df7b7aeaf9412",
            "qmnist-test-labels-idx2-int.gz": "5b5b05890a5e13444e108efe57b788aa",
        },
    ),
    "ag_news": _files(
        "AG_NEWS",
        (f"{_GITHUB}/mhjabreel/CharCnn_Keras/master/data/ag_news_csv",),
        {
            "train.csv": "b1a00f826fdfbd249f79597b59e1dc12",
            "test.csv": "d52ea96a97a2d943681189a97654912d",
        },
    ),
}


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of data sets: `root`, else `NDT_DATA`, else `data` in the cache folder."""
    named = root or os.environ.get("NDT_DATA")
    if named:
        return Path(named).expanduser()
    return cache_folder() / "data"


def find(file: DataFile, root: Path) -> Path | None:
    """The first of a file's candidate paths that exists."""
    return next((path for path in file.candidates(root) if path.is_file()), None)


def locate(file: DataFile, root: Path, check: bool = True) -> Path:
    """Path of a data file, downloaded if need be (not with NDT_OFFLINE=1), its checksum verified with `check`.

    DataError where it is missing and cannot be had, or is not what its checksum says.
    """
    path = find(file, root)
    if path is None:
        if os.environ.get("NDT_OFFLINE", "") not in ("", "0"):
            raise DataError(f"{_missing(file, root)}\nNDT_OFFLINE is set, so it was not downloaded.\n{_way_out(file)}")
        path = download(file, root)  # accepted by its checksum
    elif check and (found := md5(path)) != file.md5:
        raise DataError(f"{_mismatch(path, file, found)}: remove it and load again to download it.")
    return path


def md5(path: Path) -> str:
    """MD5 (hex) of a file: the sum that the publishers give; it tells damage, not malice."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def fetch_files(name: str, root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Paths of the canonical files of a data set, those missing downloaded; any checksum that differs is DataError."""
    if name not in FILES:
        raise DataError(f"data '{name}' has no files to download{did_you_mean(name, FILES)}")
    folder = data_root(root)
    paths = []
    for file in FILES[name].values():
        path = find(file, folder)
        if path is not None and (found := md5(path)) != file.md5:
            raise DataError(f"{_mismatch(path, file, found)}: move it away, then fetch again; nothing is replaced.")
        paths.append(path or download(file, folder))
    return paths


def download(file: DataFile, root: Path) -> Path:
    """Bring one file from the first address that gives it with the right checksum; DataError if none does."""
    path = file.candidates(root)[0]
    failures = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in file.urls:
            log.info("downloading %s to %s", url, path)
            reason = _download(url, path, file.md5)
            if reason is None:
                return path
            failures.append(f"  {url}: {reason}")
    except OSError as error:
        failures.append(f"  {path.parent} cannot be written: {error.strerror or error}")
    raise DataError("\n".join([_missing(file, root), "and could not be downloaded:", *failures, _way_out(file)]))


def _download(url: str, path: Path, expected: str) -> str | None:
    """Why this address did not give the file; None: it did. Other OSErrors than the address's own are raised."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with os.fdopen(handle, "wb") as out:
            try:
                response = urllib.request.urlopen(url, timeout=_TIMEOUT)
            except (OSError, HTTPException) as error:
                return str(error)
            with response:
                while True:
                    try:
                        chunk = response.read(1 << 20)
                    except (OSError, HTTPException) as error:
                        return f"broken off: {error}"
                    if not chunk:
                        break
                    digest.update(chunk)
                    out.write(chunk)
        if digest.hexdigest() != expected:
            return f"the MD5 of what it gave is {digest.hexdigest()}, not {expected}"
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a data folder is often shared
        os.replace(temporary, path)
        return None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _missing(file: DataFile, root: Path) -> str:
    looked = "\n".join(f"  {path}" for path in file.candidates(root))
    return f"data file {file.name} is missing; looked for\n{looked}"


def _mismatch(path: Path, file: DataFile, found: str) -> str:
    others = (other for group in FILES.values() for other in group.values() if other.md5 == found)
    also = next((f" (which is {other.folder}/{other.name})" for other in others), "")
    return f"{path}: expected MD5 {file.md5}, found {found}{also}"


def _way_out(file: DataFile) -> str:
    return (
        "Set NDT_DATA to a folder that holds it, or put it at the first of these paths yourself, from\n"
        + "\n".join(f"  {url}" for url in file.urls)
        + f"\n(MD5 {file.md5})."
    )
