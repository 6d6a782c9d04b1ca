"""The series of a trial's siblings, which differ from it in batch order alone: what stands for chance beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ndt_ray.analysis.detection import Floats
from ndt_ray.analysis.events.cases import Case
from ndt_ray.errors import SpecError
from ndt_ray.spec import Control


@dataclass(frozen=True)
class Siblings:
    """The series of a trial's siblings by `Case.name`, and the step at which these branch off."""

    step: int
    cases: Mapping[tuple[str, int, str], Sequence[Case]]

    def of(self, case: Case) -> Floats:
        """Continuations `[K, n]` of a series: of the siblings that were measured at the very same steps."""
        same = [c.values for c in self.cases.get(case.name, ()) if np.array_equal(c.series.steps, case.series.steps)]
        return np.array(same, dtype=np.float64).reshape(len(same), len(case.values))


def is_sibling(trials: pd.DataFrame) -> bool:
    """Whether the one trial of a partition is a branch of another."""
    return "control" in trials and str(trials["control"].iloc[0]).startswith("reorder:")


def siblings_of(
    rows: pd.DataFrame,
    moves: pd.DataFrame,
    series: Callable[[pd.DataFrame, pd.DataFrame], Iterator[Case]],
    step: int | None,
) -> Siblings | None:
    """Those of a trial's siblings that branch off at `step`, by default the first at which any do; None without any.

    `rows`, `moves`: of `measurements` and `velocity`, with the `control` of the sibling. SpecError where none branch
    off at the step asked for.
    """
    tables = [t for t in (rows, moves) if not t.empty]
    controls = {str(text): Control.model_validate(text) for t in tables for text in t["control"].unique()}
    steps = sorted({control.at for control in controls.values() if control.at is not None})
    if not steps:
        return None
    if step is not None and step not in steps:
        raise SpecError(f"no siblings branch off at branch_step {step} - they do at {', '.join(map(str, steps))}")
    chosen = steps[0] if step is None else step
    found: dict[tuple[str, int, str], list[Case]] = {}
    for text, control in sorted(controls.items(), key=lambda item: item[1].branch or 0):
        if control.at != chosen:
            continue
        own = [t if t.empty else t[t["control"] == text] for t in (rows, moves)]
        for case in series(*own):
            found.setdefault(case.name, []).append(case)
    return Siblings(chosen, found)
