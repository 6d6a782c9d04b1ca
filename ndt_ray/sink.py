"""The one thing that training knows of the world: where its results go."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


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
