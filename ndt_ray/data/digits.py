"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: real data with nothing to download."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from ndt_ray.data.dataset import Dataset, build
from ndt_ray.inputs import InputSpec
from ndt_ray.lanes.random import words

_TEST_PER_CLASS = 60
# Mean and standard deviation of all 1,797 images scaled to 0..1: constants, so that the hash is the same everywhere.
_MEAN, _STD = 0.3053, 0.3760


def digits() -> Dataset:
    """1,797 real handwritten digits, 8 x 8 (UCI, bundled with scikit-learn): 1,197 to train, 600 to test.

    The test split holds 60 of each class, the same in every trial: enough for two probes of 256 and a rest.
    """
    bunch = load_digits()
    x = torch.from_numpy((bunch.images / 16).astype(np.float32)).sub_(_MEAN).div_(_STD).unsqueeze(1)
    y = bunch.target.astype(np.int64)
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
