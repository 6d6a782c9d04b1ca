"""The probe that a command line names: a registered data set, or a file of tensors."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndt_ray.data import load, probes
from ndt_ray.errors import DataError, SpecError
from ndt_ray.inputs import InputSpec

SUFFIXES = (".npz", ".npy", ".pt", ".pth")
INPUTS = ("x", "inputs", "input", "x_test", "test_x", "input_ids")
LABELS = ("y", "labels", "label", "targets", "y_test", "test_y")
STIMULI = 256
"""Taken of a data set, unless told otherwise; of a file, all."""


@dataclass(frozen=True)
class ProbeData:
    """Inputs [n, ...], labels [n] or None, and what is known of the data set behind them."""

    name: str
    inputs: Tensor
    labels: Tensor | None
    spec: InputSpec | None
    completeness: str | None = None
    data_hash: str | None = None


def read_probe(source: str | Path, size: int | None = None, seed: int = 0) -> ProbeData:
    """The probe of a data set's test split (class-stratified, by `seed`), or the first `size` rows of a file.

    Files: .npz with x and (or not) y, .npy of inputs, .pt or .pth of a tensor, (x, y) or {"x": …, "y": …}. DataError
    where a file is missing, damaged or holds something else; SpecError for an unknown data set or too large a probe.
    """
    if size is not None and size < 2:
        raise SpecError(f"a probe needs 2 or more stimuli, but got ({size=})")
    path = Path(source).expanduser()
    if path.suffix not in SUFFIXES:
        data = load(str(source))
        chosen = probes(data, size or STIMULI, 2, seed).detect
        return ProbeData(data.name, data.test_x[chosen], data.test_y[chosen], data.inputs, data.completeness, data.hash)
    if not path.is_file():
        raise DataError(f"probe file {path} is missing (looked from {Path.cwd()})")
    inputs, labels = _checked(path, *_read(path))
    if size is not None and size > len(inputs):
        raise SpecError(f"{path} has {len(inputs)} stimuli, but {size} are asked for")
    inputs, labels = inputs[:size], None if labels is None else labels[:size]
    return ProbeData(path.name, inputs, labels, _spec(inputs, labels))


def _read(path: Path) -> tuple[Any, Any]:
    try:
        if path.suffix in (".pt", ".pth"):
            held = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with path.open("rb") as stream:
                held = np.load(stream, allow_pickle=False)
                held = {name: held[name] for name in held.files} if isinstance(held, np.lib.npyio.NpzFile) else held
    except (OSError, ValueError, EOFError, RuntimeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable file of plain tensors: {error}") from error
    except Exception as error:  # pickle.UnpicklingError, and whatever else a damaged file makes torch raise
        raise DataError(f"{path}: not a file of plain tensors: {str(error).splitlines()[0]}") from error
    if isinstance(held, Mapping):
        return _named(path, held)
    if isinstance(held, tuple | list) and len(held) == 2:
        return held[0], held[1]
    return held, None


def _named(path: Path, held: Mapping[str, Any]) -> tuple[Any, Any]:
    inputs = next((held[name] for name in INPUTS if name in held), None)
    labels = next((held[name] for name in LABELS if name in held), None)
    if inputs is None and len(held) == 1:
        inputs = next(iter(held.values()))
    if inputs is None:
        raise DataError(f"{path}: holds {', '.join(map(str, held))}, but no inputs called {', '.join(INPUTS)}")
    return inputs, labels


def _checked(path: Path, inputs: Any, labels: Any) -> tuple[Tensor, Tensor | None]:
    x, y = (torch.from_numpy(v) if isinstance(v, np.ndarray) and v.dtype != object else v for v in (inputs, labels))
    if not isinstance(x, Tensor) or x.ndim < 2 or len(x) < 2:
        told = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise DataError(f"{path}: inputs must be a tensor [n, ...] with n from 2, but are {told}")
    if x.dtype == torch.uint8:
        raise DataError(f"{path}: inputs are uint8: save them as the model takes them, scaled and float32")
    if y is not None and (not isinstance(y, Tensor) or y.shape != x.shape[:1] or y.is_floating_point()):
        told = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise DataError(f"{path}: {len(x)} stimuli need as many integer labels, but got {told}")
    return (x if x.is_floating_point() else x.long()), None if y is None else y.long()


def _spec(inputs: Tensor, labels: Tensor | None) -> InputSpec | None:
    """What a factory may want to know, where a file of images with labels says it."""
    if labels is None or not inputs.is_floating_point() or inputs.ndim not in (2, 3, 4):
        return None
    shape = {2: (1, 1, *inputs.shape[1:]), 3: (1, *inputs.shape[1:]), 4: tuple(inputs.shape[1:])}[inputs.ndim]
    return InputSpec("image", shape, max(2, int(labels.max()) + 1))
