"""The image data sets that come as idx files: MNIST, Fashion-MNIST and QMNIST."""

from pathlib import Path

import numpy as np
import torch

from ndt_ray.data.dataset import Dataset, build
from ndt_ray.data.files import FILES, data_root, find, locate
from ndt_ray.data.readers import read_idx
from ndt_ray.errors import DataError
from ndt_ray.inputs import InputSpec

_DIGITS = tuple(str(n) for n in range(10))
_CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# Mean and standard deviation of the training pixels scaled to 0..1, to four digits: those of the founding study.
_MNIST_SCALE = (0.1307, 0.3081)
_FASHION_SCALE = (0.2860, 0.3530)

Split = tuple[torch.Tensor, torch.Tensor]


def mnist(*, root: Path | None = None) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28."""
    train, test = (_split("mnist", part, _MNIST_SCALE, root) for part in ("train", "t10k"))
    note = f"MNIST, complete: {len(train[1]):,} training and {len(test[1]):,} test images."
    return build("mnist", InputSpec("image", (1, 28, 28), 10), train, test, _DIGITS, "complete", note)


def fashion_mnist(*, root: Path | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 28 x 28."""
    train, test = (_split("fashion_mnist", part, _FASHION_SCALE, root) for part in ("train", "t10k"))
    note = f"Fashion-MNIST, complete: {len(train[1]):,} training and {len(test[1]):,} test images."
    return build("fashion_mnist", InputSpec("image", (1, 28, 28), 10), train, test, _CLOTHES, "complete", note)


def qmnist(*, root: Path | None = None) -> Dataset:
    """QMNIST: MNIST's digits cut anew from NIST's scans, 60,000 to train and 60,000 to test.

    Where QMNIST's labels and MNIST's files are there but QMNIST's images are not, a surrogate: MNIST's pixels (70,000
    images) with QMNIST's labels, verified to be the same digits. `note` and `completeness` say so.
    """
    folder = data_root(root)
    files = FILES["qmnist"]
    pixels = [file for name, file in files.items() if "images" in name]
    labels = [file for name, file in files.items() if "labels" in name]
    surrogate = (
        not any(find(file, folder) for file in pixels)
        and all(find(file, folder) for file in labels)
        and all(find(file, folder) for file in FILES["mnist"].values())
    )
    if surrogate:
        return _mnist_pixels(root)
    train, test = (_qmnist_split(part, root) for part in ("train", "test"))
    note = f"QMNIST, complete: {len(train[1]):,} training and {len(test[1]):,} test images."
    return build("qmnist", InputSpec("image", (1, 28, 28), 10), train, test, _DIGITS, "complete", note)


def _mnist_pixels(root: Path | None) -> Dataset:
    train, test = (_split("mnist", part, _MNIST_SCALE, root) for part in ("train", "t10k"))
    for part, (_, of_mnist) in (("train", train), ("test", test)):
        of_qmnist = _qmnist_labels(part, root)[: len(of_mnist)]
        if not torch.equal(of_qmnist, of_mnist):
            raise DataError(f"QMNIST's {part} labels are not those of MNIST's images: the two do not belong together")
    note = (
        f"MNIST pixels with QMNIST labels ({len(train[1]):,} training and {len(test[1]):,} test images): QMNIST's own "
        "images are absent, so this is no data set independent of MNIST."
    )
    return build("qmnist", InputSpec("image", (1, 28, 28), 10), train, test, _DIGITS, "surrogate", note)


def _qmnist_split(part: str, root: Path | None) -> Split:
    file = FILES["qmnist"][f"qmnist-{part}-images-idx3-ubyte.gz"]
    path = locate(file, data_root(root))
    return _paired(path, read_idx(path, dims=3), _qmnist_labels(part, root), _MNIST_SCALE)


def _qmnist_labels(part: str, root: Path | None) -> torch.Tensor:
    """Column 0 of the extended labels (class, series, writer, digit, code, NIST index, 0, 0)."""
    file = FILES["qmnist"][f"qmnist-{part}-labels-idx2-int.gz"]
    extended = read_idx(locate(file, data_root(root)), dims=2, dtype=np.int32)
    return torch.from_numpy(extended[:, 0].astype(np.int64))


def _split(name: str, part: str, scale: tuple[float, float], root: Path | None) -> Split:
    files = FILES[name]
    images = locate(files[f"{part}-images-idx3-ubyte.gz"], data_root(root))
    labels = locate(files[f"{part}-labels-idx1-ubyte.gz"], data_root(root))
    y = torch.from_numpy(read_idx(labels, dims=1).astype(np.int64))
    return _paired(images, read_idx(images, dims=3), y, scale)


def _paired(path: Path, pixels: np.ndarray, y: torch.Tensor, scale: tuple[float, float]) -> Split:
    if len(pixels) != len(y):
        raise DataError(f"{path}: {len(pixels)} images, but their label file has {len(y)} labels")
    # In place: 60,000 images are 188 MB as float32. Same operations and bits as torchvision's ToTensor, Normalize.
    x = torch.from_numpy(pixels.astype(np.float32)).div_(255).sub_(scale[0]).div_(scale[1]).unsqueeze(1)
    return x, y
