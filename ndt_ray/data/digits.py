"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: real data with nothing to download."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ndt_ray.data.dataset import Dataset, build
from ndt_ray.inputs import InputSpec
from ndt_ray.lanes.random import words

_TEST_PER_CLASS = 60
# Mean and standard deviation of all 1,797 images scaled to 0..1: constants, so that the hash is the same everywhere.
_MEAN, _STD = 0.3053, 0.3760
_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
"""Of the unpacked table of 64 pixels and the class."""


def digits() -> Dataset:
    """1,797 real handwritten digits, 8 x 8 (UCI, bundled with scikit-learn): 1,197 to train, 600 to test.

    The test split holds 60 of each class, the same in every trial: enough for two probes of 256 and a rest.
    """
    table = _bundled()
    x = torch.from_numpy((table[:, :-1].reshape(-1, 1, 8, 8) / 16).astype(np.float32)).sub_(_MEAN).div_(_STD)
    y = table[:, -1].astype(np.int64)
    order = np.argsort(words("digits_split", 0, 0, 0, len(y)), kind="stable")
    held_out = np.zeros(len(y), dtype=bool)
    for label in range(10):
        held_out[order[y[order] == label][:_TEST_PER_CLASS]] = True
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    labels = torch.from_numpy(y)
    return build(
        "digits",
        InputSpec("image", (1, 8, 8), 10),
        (x[train], labels[train]),
        (x[test], labels[test]),
        [str(label) for label in range(10)],
        "complete",
        f"scikit-learn's bundled digits, complete: {len(train):,} training and {len(test):,} test images of 8 x 8.",
    )


def _bundled() -> NDArray[np.float64]:
    """Pixels and class, `[1797, 65]`; scikit-learn is imported only where its file is not where it was.

    The import takes 1.8 s (one EPYC core, profiled) in every process that loads the digits.
    """
    spec = importlib.util.find_spec("sklearn")
    file = Path(spec.origin).parent / "datasets/data/digits.csv.gz" if spec and spec.origin else None
    if file is not None and file.is_file():
        text = gzip.decompress(file.read_bytes())
        if hashlib.sha256(text).hexdigest() == _SHA256:
            return np.loadtxt(text.decode().splitlines(), delimiter=",", dtype=np.float64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
