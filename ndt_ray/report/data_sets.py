"""What is known of the data sets of a sweep - complete, subset, surrogate, generated - and what claims that ends."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from ndt_ray.report.words import listed, span

LIMITED = {
    "subset": "only a subset of what was published",
    "surrogate": "made of surrogate inputs, which stand in for the published ones",
}
"""What a completeness flag means for a claim about the data set."""


@dataclass(frozen=True)
class DataSet:
    """A data set as the trials had it."""

    data: str
    completeness: str | None
    """complete, subset, surrogate or generated; None where nobody said."""
    n_train: tuple[int, ...]
    """Fewest and most training samples of a trial, once where they are equal; none where unknown."""


def data_sets(trials: pd.DataFrame) -> list[DataSet]:
    """Those of trials (data, and where there are data_completeness and n_train), by name."""
    if trials.empty:
        return []
    own = trials.reindex(columns=["data", "data_completeness", "n_train"])
    flags = own["data_completeness"].astype(object)
    own = own.assign(data_completeness=flags.where(flags.notna(), None))
    found = []
    for (data, flag), group in own.groupby(["data", "data_completeness"], sort=True, dropna=False):
        sizes = group["n_train"].dropna().astype(int)
        ends = tuple(sorted({int(sizes.min()), int(sizes.max())})) if len(sizes) else ()
        found.append(DataSet(str(data), str(flag) if isinstance(flag, str) else None, ends))
    return found


def sentences(sets: Iterable[DataSet]) -> Iterator[tuple[str, bool]]:
    """One a flag, and whether it ends claims about the data sets."""
    by_flag: dict[str, list[DataSet]] = {}
    for one in sets:
        by_flag.setdefault(one.completeness or "of unknown completeness", []).append(one)
    for flag, own in by_flag.items():
        said = [one.data + (f" ({span(one.n_train)} training samples)" if one.n_train else "") for one in own]
        text = f"Data: {listed(said)} {'is' if len(own) == 1 else 'are'} {LIMITED.get(flag, flag)}"
        yield f"{text}; no claim extends to the whole of it." if flag in LIMITED else f"{text}.", flag in LIMITED


def records(sets: Iterable[DataSet]) -> list[dict[str, Any]]:
    """The same as JSON takes it: data, completeness, n_train."""
    return [asdict(one) | {"n_train": list(one.n_train)} for one in sets]
