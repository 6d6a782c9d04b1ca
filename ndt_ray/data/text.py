"""AG News: four classes of news, as the founding study cuts them into words."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from ndt_ray.data.dataset import Completeness, Dataset, build
from ndt_ray.data.files import FILES, data_root, locate, md5
from ndt_ray.data.readers import read_csv
from ndt_ray.errors import DataError
from ndt_ray.inputs import InputSpec

_CLASSES = ("World", "Sports", "Business", "Sci/Tech")
_TRAIN_ROWS = 120_000
_PADDING, _UNKNOWN, _SPECIAL = 0, 1, 2
_DROPPED = re.compile(r"[^a-z0-9\s]")


def ag_news(
    *,
    words: Annotated[int, Field(ge=1)] = 5000,
    length: Annotated[int, Field(ge=1)] = 100,
    root: Path | None = None,
) -> Dataset:
    """AG News: 120,000 training and 7,600 test news items in four classes, as token ids.

    Inputs int64 [N, length], cut or padded with 0 on the right: 0 padding, 1 any other word, then the `words` most
    common words of the training split. A `train.csv` of other than 120,000 rows is taken as a subset, and says so.
    """
    folder = data_root(root)
    train_file, test_file = (FILES["ag_news"][name] for name in ("train.csv", "test.csv"))
    train_path = locate(train_file, folder, check=False)
    train_rows, train_y = _read(train_path)
    completeness: Completeness = "complete" if len(train_y) == _TRAIN_ROWS else "subset"
    if completeness == "complete" and (found := md5(train_path)) != train_file.md5:
        raise DataError(
            f"{train_path}: expected MD5 {train_file.md5}, found {found}, though it has all {_TRAIN_ROWS:,} rows: "
            "remove it and load again to download it."
        )
    test_rows, test_y = _read(locate(test_file, folder))
    ids = vocabulary(train_rows, words)
    amount = "complete" if completeness == "complete" else f"a subset of {len(train_y):,} of {_TRAIN_ROWS:,} rows"
    return build(
        "ag_news",
        InputSpec("text", (length,), classes=len(_CLASSES), vocab=words + _SPECIAL, padding=_PADDING),
        (encode(train_rows, ids, length), train_y),
        (encode(test_rows, ids, length), test_y),
        _CLASSES,
        completeness,
        f"AG News, training split {amount}; the test split is complete ({len(test_y):,} rows).",
    )


def tokens(text: str) -> list[str]:
    """Words of a text: lower case, everything but letters a-z, digits and white space dropped, split at white space."""
    return _DROPPED.sub("", text.lower()).split()


def vocabulary(texts: Iterable[list[str]], size: int) -> dict[str, int]:
    """Ids 2, 3, ... of the `size` most common words; of equally common ones the first seen comes first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    return {word: _SPECIAL + rank for rank, (word, _) in enumerate(counts.most_common(size))}


def encode(texts: list[list[str]], ids: dict[str, int], length: int) -> torch.Tensor:
    """Token ids, int64 [N, length]: cut at `length`, padded with 0 on the right."""
    encoded = np.full((len(texts), length), _PADDING, dtype=np.int64)
    for row, text in zip(encoded, texts, strict=True):
        known = [ids.get(word, _UNKNOWN) for word in text[:length]]
        row[: len(known)] = known
    return torch.from_numpy(encoded)


def _read(path: Path) -> tuple[list[list[str]], torch.Tensor]:
    """Words and labels (0..3) of rows of class (1..4), title, description."""
    labels, texts = [], []
    for number, (label, title, description) in enumerate(read_csv(path, fields=3), start=1):
        if label not in ("1", "2", "3", "4"):
            raise DataError(f"{path}, row {number}: the class must be 1, 2, 3 or 4, but is '{label[:40]}'")
        labels.append(int(label) - 1)
        texts.append(tokens(f"{title} {description}".strip()))
    return texts, torch.tensor(labels, dtype=torch.int64)
