"""The real data sets under NDT_DATA: counts, labels, scale and vocabulary, against published or recounted numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ndt_ray.data import fetch, load, probes
from ndt_ray.data.files import FILES, find
from ndt_ray.data.readers import read_csv, read_idx
from ndt_ray.data.text import tokens, vocabulary

pytestmark = pytest.mark.data


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NDT_OFFLINE", "1")


_MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
_MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [("mnist", _MNIST_TRAIN, _MNIST_TEST), ("fashion_mnist", [6000] * 10, [1000] * 10)],
)
def test_images_are_complete_and_normalised(data: Path, name: str, train: list[int], test: list[int]) -> None:
    found = load(name, {}, data)
    assert found.completeness == "complete" and "60,000 training and 10,000 test" in found.note
    assert found.train_x.shape == (60_000, 1, 28, 28) and found.test_x.shape == (10_000, 1, 28, 28)
    assert torch.bincount(found.train_y).tolist() == train and torch.bincount(found.test_y).tolist() == test
    # The scale is given to four digits: the mean is 0 and the deviation 1 to that precision.
    assert abs(float(found.train_x.mean(dtype=torch.float64))) < 5e-4
    assert abs(float(found.train_x.view(-1).std()) - 1) < 5e-4
    assert len(fetch(name, data)) == 4  # all there and verified, nothing downloaded
    assert found.train_y[:5].tolist() == {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}[name]


def test_qmnist_is_mnists_digits_and_says_which_pixels(data: Path) -> None:
    if find(FILES["qmnist"]["qmnist-train-images-idx3-ubyte.gz"], data):
        assert load("qmnist", {}, data).completeness == "complete"
        pytest.skip("NDT_DATA holds QMNIST's own images: the surrogate is not to be seen here")
    found = load("qmnist", {}, data)
    assert found.completeness == "surrogate" and "MNIST pixels" in found.note
    assert torch.bincount(found.train_y).tolist() == _MNIST_TRAIN
    assert torch.bincount(found.test_y).tolist() == _MNIST_TEST
    for name, file in FILES["qmnist"].items():
        if "labels" in name:
            path = find(file, data)
            assert path is not None and read_idx(path, dims=2, dtype=np.int32).shape == (60_000, 8)


def test_ag_news_is_what_it_says(data: Path) -> None:
    found = load("ag_news", {}, data)
    assert found.inputs.vocab == 5002 and found.inputs.shape == (100,)
    assert torch.bincount(found.test_y).tolist() == [1900] * 4
    assert torch.bincount(found.train_y).unique().numel() == 1  # as many of each class
    if found.completeness == "subset":
        assert f"{len(found.train_y):,} of 120,000" in found.note
    lengths = (found.train_x != 0).sum(1)
    assert int(lengths.min()) > 0 and int(found.train_x.max()) == 5001  # no empty text; every id in use
    # Padding is on the right only, and 0 means nothing else.
    assert bool(((found.train_x != 0) == (torch.arange(100) < lengths[:, None])).all())
    path = find(FILES["ag_news"]["train.csv"], data)
    assert path is not None
    texts = [tokens(f"{title} {description}".strip()) for _, title, description in read_csv(path, 3)]
    ids = vocabulary(texts, 5000)
    assert set(list(ids)[:5]) == {"the", "to", "a", "of", "in"} and sorted(ids.values()) == list(range(2, 5002))
    words = {number: word for word, number in ids.items()}
    first = [words.get(int(i), "<UNK>") for i in found.train_x[0] if i]
    assert first == [word if word in ids else "<UNK>" for word in texts[0][:100]]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "qmnist", "ag_news"])
def test_probes_of_real_data_are_balanced_and_leave_the_rest(data: Path, name: str) -> None:
    found = load(name, {}, data)
    chosen = probes(found, 256, 256, 0)
    for probe in (chosen.detect, chosen.confirm):
        counts = torch.bincount(found.test_y[probe], minlength=found.inputs.classes)
        assert int(counts.max() - counts.min()) <= 1
    assert len(chosen.evaluation) == len(found.test_y) - 512
