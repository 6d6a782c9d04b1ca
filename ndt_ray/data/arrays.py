"""A user's own data: an .npz file, or a function in a Python file."""

import hashlib
import importlib.util
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from ndt_ray.data.dataset import Dataset, build
from ndt_ray.data.files import data_root
from ndt_ray.errors import DataError
from ndt_ray.inputs import InputSpec

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def arrays(
    *,
    path: str,
    classes: Annotated[int, Field(ge=2)] | None = None,
    vocab: Annotated[int, Field(ge=1)] | None = None,
    root: Path | None = None,
) -> Dataset:
    """Your own data from an .npz file with x_train, y_train, x_test and y_test.

    A relative `path` is looked for in the working folder, then in the folder of data sets; what the arrays may be:
    `from_arrays`. DataError where the file is missing, damaged or lacks an array.
    """
    file = existing(path, root)
    try:
        with file.open("rb") as stream:  # numpy leaves a file that it opened itself open when it is damaged
            found = np.load(stream, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise DataError(f"{file}: holds one array; save the four with numpy.savez(path, {', '.join(_NAMES)})")
            lacking = [name for name in _NAMES if name not in found.files]
            if lacking:
                raise DataError(f"{file}: lacks {', '.join(lacking)}; it holds {', '.join(found.files) or 'nothing'}")
            given = {name: found[name] for name in _NAMES}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file}: not a readable .npz file of plain arrays: {error}") from error
    return from_arrays(file.name, given, classes=classes, vocab=vocab)


def from_arrays(
    name: str, given: Mapping[str, Any], *, classes: int | None = None, vocab: int | None = None
) -> Dataset:
    """A data set of the arrays or tensors x_train, y_train, x_test, y_test.

    Inputs: floats [N, C, H, W], [N, H, W] or [N, F] are images as they are ([N, F] as 1 x 1 x F); uint8 too, scaled
    by mean and standard deviation of the training pixels; other integers [N, length] are token ids, 0 being padding.
    Labels: integers [N] from 0. `classes` and `vocab` default to one more than the largest label and id.
    """
    x_train, y_train, x_test, y_test = (np.asarray(given[key]) for key in _NAMES)
    for key, y in (("y_train", y_train), ("y_test", y_test)):
        if y.dtype.kind not in "iu" or y.ndim != 1 or not y.size:
            raise DataError(f"data '{name}': {key} must be integers [N], but is {y.dtype} {list(y.shape)}")
    if x_train.dtype != x_test.dtype or x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"data '{name}': x_train and x_test must be alike, but are "
            f"{x_train.dtype} {list(x_train.shape)} and {x_test.dtype} {list(x_test.shape)}"
        )
    classes = classes or max(2, 1 + int(max(y_train.max(), y_test.max())))
    if x_train.dtype.kind == "f" or x_train.dtype == np.uint8:
        train_x, test_x = _images(name, x_train, x_test)
        inputs = InputSpec("image", tuple(train_x.shape[1:]), classes)
    else:
        train_x, test_x = _tokens(name, x_train), _tokens(name, x_test)
        vocab = vocab or 1 + int(max(train_x.max(), test_x.max()))
        inputs = InputSpec("text", tuple(train_x.shape[1:]), classes, vocab=vocab, padding=0)
    return build(
        name,
        inputs,
        (train_x, torch.from_numpy(y_train.astype(np.int64))),
        (test_x, torch.from_numpy(y_test.astype(np.int64))),
        [str(label) for label in range(classes)],
        "complete",
        f"User data {name}: {len(y_train):,} training and {len(y_test):,} test samples.",
    )


def _images(name: str, train: np.ndarray, test: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    if train.ndim not in (2, 3, 4) or not train.size or not test.size:
        raise DataError(f"data '{name}': images must be [N, C, H, W], [N, H, W] or [N, F], but are {list(train.shape)}")
    mean, std = (float(train.mean()), float(train.std())) if train.dtype == np.uint8 else (0.0, 1.0)
    if std == 0:
        raise DataError(f"data '{name}': all training pixels are equal ({mean:g})")
    shape = {2: (1, 1, *train.shape[1:]), 3: (1, *train.shape[1:]), 4: train.shape[1:]}[train.ndim]
    scaled = [((x - mean) / std).astype(np.float32).reshape(-1, *shape) for x in (train, test)]
    return torch.from_numpy(scaled[0]), torch.from_numpy(scaled[1])


def _tokens(name: str, x: np.ndarray) -> torch.Tensor:
    if x.dtype.kind not in "iu" or x.ndim != 2 or not x.size:
        raise DataError(
            f"data '{name}': inputs must be floats or uint8 (images) or integers [N, length] (token ids), "
            f"but are {x.dtype} {list(x.shape)}"
        )
    return torch.from_numpy(x.astype(np.int64))


def from_file(target: str, root: str | os.PathLike[str] | None = None) -> Callable[..., Any]:
    """The function behind `FILE.py:NAME`: it gives a `Dataset` or what `from_arrays` takes. DataError if none."""
    path, _, attribute = target.rpartition(":")
    file = existing(path, root)
    state = f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}"
    name = f"ndt_ray_data_{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    module = sys.modules.get(name) or _imported(name, file)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise DataError(f"{file}: has no function '{attribute}'")
    made: Callable[..., Any] = function
    return made


def _imported(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, f"{file} has the suffix .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DataError(f"{file}: cannot be imported: {type(error).__name__}: {error}") from error
    return module


def existing(path: str, root: str | os.PathLike[str] | None) -> Path:
    """A user's file: `path` as it is, else below the folder of data sets; DataError if there is neither."""
    candidates = (Path(path).expanduser().absolute(), data_root(root) / path)
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise DataError(f"data file {path} is missing: there is neither {candidates[0]} nor {candidates[1]}")
