"""A data set in memory: tensors ready for a model, and what its reports must say about it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ndt_ray.errors import DataError
from ndt_ray.inputs import InputSpec

Completeness = Literal["complete", "subset", "surrogate", "generated"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test split of one data set; shared within a process, so never write into its tensors.

    ``train_x``, ``test_x``: `inputs.kind` image: float32 [N, C, H, W], normalised; text: int64 ids [N, length];
    modular: int64 [N, 3]. ``train_y``, ``test_y``: int64 [N] in 0..classes-1.
    ``note``: one sentence that reports print. ``hash``: SHA-256 (hex) of the tensors as a model sees them.
    """

    name: str
    inputs: InputSpec
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    class_names: tuple[str, ...]
    completeness: Completeness
    note: str
    hash: str


def build(
    name: str,
    inputs: InputSpec,
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    class_names: Sequence[str],
    completeness: Completeness,
    note: str,
) -> Dataset:
    """Check the two splits (inputs, labels) against `inputs`, hash them, and make the data set.

    DataError where the counts, the shape, the labels or the values do not fit.
    """
    for split, (x, y) in (("training", train), ("test", test)):
        _check(f"data '{name}', {split} split", x, y, inputs)
    if len(class_names) != inputs.classes:
        raise DataError(f"data '{name}': {len(class_names)} class names for {inputs.classes} classes")
    train_x, train_y, test_x, test_y = (tensor.contiguous() for tensor in (*train, *test))
    digest = hashlib.sha256()
    for tensor in (train_x, train_y, test_x, test_y):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data.cast("B"))
    return Dataset(
        name, inputs, train_x, train_y, test_x, test_y, tuple(class_names), completeness, note, digest.hexdigest()
    )


def _check(where: str, x: torch.Tensor, y: torch.Tensor, inputs: InputSpec) -> None:
    dtype = torch.float32 if inputs.kind == "image" else torch.int64
    if x.dtype != dtype or tuple(x.shape[1:]) != inputs.shape:
        raise DataError(
            f"{where}: inputs must be {dtype} [N, {', '.join(map(str, inputs.shape))}], "
            f"but are {x.dtype} {list(x.shape)}"
        )
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise DataError(f"{where}: {len(x)} samples need as many int64 labels, but got {y.dtype} {list(y.shape)}")
    if len(y) == 0:
        raise DataError(f"{where}: there are no samples")
    if int(y.min()) < 0 or int(y.max()) >= inputs.classes:
        raise DataError(
            f"{where}: labels must lie in 0..{inputs.classes - 1}, but reach from {int(y.min())} to {int(y.max())}"
        )
    if inputs.kind == "image" and not bool(torch.isfinite(x).all()):
        raise DataError(f"{where}: the inputs hold NaN or infinite values")
    if inputs.kind != "image" and (int(x.min()) < 0 or int(x.max()) >= inputs.vocab):
        raise DataError(
            f"{where}: token ids must lie in 0..{inputs.vocab - 1}, but reach from {int(x.min())} to {int(x.max())}"
        )
