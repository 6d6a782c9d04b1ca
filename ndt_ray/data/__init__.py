"""Data sets by name, the probes that are measured, and the choices of training samples and labels."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ndt_ray import registry
from ndt_ray.data.arrays import existing, from_arrays, from_file
from ndt_ray.data.dataset import Dataset
from ndt_ray.data.files import data_root, fetch_files
from ndt_ray.data.parameters import full_parameters
from ndt_ray.data.probes import BLOCKS, Probes, noisy_labels, probes, shuffled_labels, training_subset
from ndt_ray.errors import DataError, SpecError

__all__ = [
    "BLOCKS",
    "Dataset",
    "Probes",
    "data_root",
    "fetch",
    "load",
    "noisy_labels",
    "probes",
    "shuffled_labels",
    "training_subset",
]


def load(name: str, params: Mapping[str, Any] | None = None, root: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set of a registered name, or of a user's own `FILE.py:FUNCTION`, with its parameters.

    Files are read from `root` (default: NDT_DATA, see `files`) and downloaded if missing, unless NDT_OFFLINE=1. The
    last two data sets are kept, so that packs of a process share them. SpecError: unknown name or parameter, or a value
    that does not fit; DataError: a file that is missing and cannot be had, damaged, or not what its checksum says.
    """
    function = _function(name, root)
    full = full_parameters(f"data '{name}'", function, params or {})
    try:
        text = json.dumps(full, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(f"data '{name}': its parameters must be plain numbers, texts and lists: {error}") from error
    return _load(name, text, str(data_root(root)), _user_file(name, full, root))


def _function(name: str, root: str | os.PathLike[str] | None) -> Callable[..., Any]:
    return from_file(name, root) if ".py:" in name else registry.resolve("data", name)


def _user_file(name: str, params: Mapping[str, Any], root: str | os.PathLike[str] | None) -> tuple[Any, ...]:
    """State of the user's own file behind a data set, if there is one: when it changes, it is read again."""
    path = name.rpartition(":")[0] if ".py:" in name else params.get("path") if name == "arrays" else None
    if path is None:
        return ()
    file = existing(path, root)
    return str(file), file.stat().st_mtime_ns, file.stat().st_size


@functools.lru_cache(maxsize=2)  # MNIST and Fashion-MNIST are 220 MB each
def _load(name: str, params: str, root: str, user_file: tuple[Any, ...]) -> Dataset:
    function = _function(name, root)
    keywords = json.loads(params)
    if "root" in inspect.signature(function).parameters:
        keywords["root"] = Path(root)
    made = function(**keywords)
    if isinstance(made, Dataset):
        return made
    if isinstance(made, Sequence) and len(made) == 4:
        made = dict(zip(("x_train", "y_train", "x_test", "y_test"), made, strict=True))
    if not isinstance(made, Mapping):
        raise DataError(f"data '{name}' gives a {type(made).__name__}, not a Dataset or four arrays")
    return from_arrays(name, made)


def fetch(name: str, root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Paths of a data set's canonical files: those missing are downloaded, all are verified, none is replaced."""
    paths = fetch_files(name, root)
    _load.cache_clear()  # QMNIST's surrogate gives way to QMNIST
    return paths
