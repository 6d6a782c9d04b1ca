"""What a data set feeds a model: the shapes and vocabulary that a model factory is built from."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class InputSpec:
    """One sample's kind and shape.

    ``image``: float32 ``shape`` = (channels, height, width). ``text``: int64 token ids, ``shape`` = (length,),
    ``vocab`` ids of which ``padding`` is id 0. ``modular``: int64 ids, ``shape`` = (3,): a, b and '='.
    """

    kind: Literal["image", "text", "modular"]
    shape: tuple[int, ...]
    classes: int
    vocab: int = 0
    padding: int | None = None

    @property
    def features(self) -> int:
        """Numbers in one flattened sample."""
        total = 1
        for n in self.shape:
            total *= n
        return total
