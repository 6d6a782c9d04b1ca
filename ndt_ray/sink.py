"""The one thing that training knows of the world: where its results go."""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Lists(Sequence[Any]):
    """A column of lists as a few matrices, one list a row, instead of an array a row: a tenth of the objects.

    A part is a matrix `[n, k]`, which whoever hands it over leaves alone from then on, or n: rows without a list.
    """

    def __init__(self, parts: Sequence[np.ndarray | int]) -> None:
        self.parts = tuple(parts)
        self.sizes = [part if isinstance(part, int) else len(part) for part in self.parts]
        self._ends = np.cumsum(self.sizes).tolist()

    @property
    def nbytes(self) -> int:
        return sum(0 if isinstance(part, int) else part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        place = bisect.bisect_right(self._ends, row)
        part = self.parts[place]
        return None if isinstance(part, int) else part[row - self._ends[place] + self.sizes[place]]


class Sink(Protocol):
    """Where a pack's results go."""

    def rows(self, table: str, columns: Mapping[str, Any]) -> None:
        """Rows of one table as equally long columns; names and types stand in `store.schema`."""

    def checkpoint(self, trial_id: str, step: int, tensors: Arrays, reason: str) -> None:
        """One lane's full state at a step."""

    def heartbeat(self, step: int, state: Callable[[], Arrays], progress: Mapping[str, float]) -> bool:
        """All rows up to `step` have been given; may commit, with `state` for what a resume needs. True: stop now."""

    def commit(self, step: int, state: Callable[[], Arrays], finished: bool) -> None:
        """Make everything up to `step` durable now."""
