"""The open questions on scales, asked of all networks of a cell together.

A network of four heads cannot answer a question about heads: of their 24 orders the clearest gives p = 1/12. Six such
networks can. Heads of one network share its frequencies and are compared with each other alone: ranks are taken, and
units exchanged, within networks, so that what differs between networks is no evidence either way.
"""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from ndt_ray.analysis.nulls import generator

Floats = NDArray[np.float64]

DRAWS = 1999
EXACT = 10
"""Networks up to which all exchanges of their ends are gone through."""
FEWEST = 2
LEVEL = 0.05
LEAST_CHANGE = 0.05
"""Of a mean scale, below which nothing emerged, however sure the sign."""
EPSILON = 1e-12


def pooled(units: pd.DataFrame, cell: str) -> pd.DataFrame:
    """Rows of `scale_answers` (but cell and modulus) from the rows of `specialisation_timeline` of a cell's trials."""
    rows: list[dict[str, Any]] = []
    for kind in ("neuron", "head_to_a"):
        own = units[units["kind"] == kind].sort_values(["trial_id", "unit"])
        if not len(own):
            continue
        asked = [*_emergence(own, cell), *_order(own, cell), *_redundancy(own, cell)]
        asked += [_role(own, cell)] if kind == "head_to_a" else []
        rows += [{"kind": kind, **row} for row in asked]
    return pd.DataFrame(rows)


def within(x: Floats, y: Floats, network: NDArray[Any], *key: str) -> dict[str, Any]:
    """Rank correlation within networks, pooled: of the places that units have among those of their own network.

    p by 1,999 permutations of the units of each network among themselves. Networks in which either side is constant, or
    of which one unit is known, say nothing and are left out.
    """
    sides: list[tuple[Floats, Floats]] = []
    for one in np.unique(network):
        own = (network == one) & np.isfinite(x) & np.isfinite(y)
        if own.sum() > 1 and np.ptp(x[own]) > 0 and np.ptp(y[own]) > 0:
            sides.append((_places(x[own]), _places(y[own])))
    n = sum(len(a) for a, _ in sides)
    if not sides:
        return _row(np.nan, np.zeros(0), 0, [])
    size = np.sqrt(sum(a @ a for a, _ in sides) * sum(b @ b for _, b in sides))
    rng = generator("pooled", *key)
    null = sum(rng.permuted(np.tile(b, (DRAWS, 1)), axis=1) @ a for a, b in sides) / size
    each = [float(a @ b) for a, b in sides]
    return _row(float(sum(each) / size), null, n, each)


def changed(change: Floats, network: NDArray[Any], *key: str) -> dict[str, Any]:
    """Mean over networks of the mean change of their units, against exchange of the two ends of whole networks.

    Not of single units: those of a network move together, and as many of them would count as often. Of up to ten
    networks all exchanges, so that p is exact; six are the fewest that can reach 0.05.
    """
    known = np.isfinite(change)
    each = [float(change[known & (network == one)].mean()) for one in np.unique(network[known])]
    if not each:
        return _row(np.nan, np.zeros(0), 0, [])
    exact = len(each) <= EXACT
    signs = (
        np.array(list(product((1.0, -1.0), repeat=len(each))))
        if exact
        else generator("changed", *key).choice((-1.0, 1.0), (DRAWS, len(each)))
    )
    return _row(float(np.mean(each)), signs @ np.array(each) / len(each), int(known.sum()), each, exact=exact)


def _emergence(units: pd.DataFrame, cell: str) -> list[dict[str, Any]]:
    """Question 1: did the pattern emerge, and was its order there at the initialisation?"""
    first, last, network = _column(units, "scale_first"), _column(units, "scale"), units["trial_id"].to_numpy()
    kind = str(units["kind"].iloc[0])
    moved = changed(last - first, network, "emergence", kind, cell)
    size = abs(moved["value"])
    word = "no change on the whole" if size < LEAST_CHANGE else "coarser" if moved["value"] > 0 else "finer"
    words = word if size < LEAST_CHANGE else f"emerged in training: {word}"
    kept = within(first, last, network, "emergence_rank", kind, cell)
    order = "ordered as at the initialisation" if kept["value"] > 0 else "the order is reversed"
    return [
        _answered("emergence", "mean_change", moved, words, "no change on the whole"),
        _answered("emergence", "rank_correlation", kept, order, "the order at the initialisation is gone"),
    ]


def _order(units: pd.DataFrame, cell: str) -> list[dict[str, Any]]:
    """Question 2: do low-frequency patterns settle before high-frequency ones?"""
    known = units[units["frequency"] > 0]
    network, kind = known["trial_id"].to_numpy(), str(units["kind"].iloc[0])
    rows = []
    for step, by, sign in (("commitment_step", "scale", -1), ("scale_step", "scale", -1),
                           ("commitment_step", "frequency", 1)):  # fmt: skip
        name = f"{step}_by_{by}"
        found = within(_column(known, by), _column(known, step), network, "order", name, kind, cell)
        low = "low frequencies first" if sign * found["value"] > 0 else "high frequencies first"
        rows.append(_answered("order", name, found, low, "no order found"))
    return rows


def _role(heads: pd.DataFrame, cell: str) -> dict[str, Any]:
    """Question 3: is a head's scale related to what its network loses without it?"""
    network = heads["trial_id"].to_numpy()
    found = within(_column(heads, "scale"), _column(heads, "ablation"), network, "role", cell)
    which = "coarse heads matter more" if found["value"] > 0 else "fine heads matter more"
    return _answered("role", "ablation_by_scale", found, which, "no relation found")


def _redundancy(units: pd.DataFrame, cell: str) -> list[dict[str, Any]]:
    """Do two metrics say the same?"""
    network, kind = units["trial_id"].to_numpy(), str(units["kind"].iloc[0])
    rows = []
    for other in ("variance_preservation", "relative_gradient"):
        found = within(_column(units, "scale"), _column(units, other), network, "redundancy", other, kind, cell)
        word = "redundant" if abs(found["value"]) >= 0.8 else "related"
        rows.append(_answered("redundancy", f"fft_and_{other}", found, word, "independent"))
    return rows


def _answered(question: str, statistic: str, row: dict[str, Any], found: str, nothing: str) -> dict[str, Any]:
    few = "too few networks" if row["n_trials"] < FEWEST or statistic == "mean_change" else "too few units"
    answer = few if row["p"] is None else found if row["p"] < LEVEL else nothing
    return {"question": question, "statistic": statistic, **row, "answer": answer}


def _row(value: float, null: Floats, n: int, each: list[float], exact: bool = False) -> dict[str, Any]:
    """`each`: a number of every network with the sign of its own value. `exact`: the null holds every exchange."""
    row: dict[str, Any] = {"value": value, "n": n, "n_trials": len(each)}
    row |= {"n_agree": sum(bool(v * value > 0) for v in each)}
    row |= dict.fromkeys(("null_mean", "null_hi", "p", "p_attainable"))
    if not len(null):
        return row
    size = np.abs(null)
    p, least = (
        (float((size >= at - EPSILON).sum()) + (not exact)) / (len(null) + (not exact))
        for at in (abs(value), size.max())
    )
    told = len(each) >= FEWEST and least <= LEVEL
    row |= {"null_mean": float(null.mean()), "null_hi": float(np.quantile(size, 0.95)), "p_attainable": least}
    return row | {"p": p if told else None}


def _places(values: Floats) -> Floats:
    """Ranks about their mean, as shares of the number of units: networks count by their units, whatever their width."""
    found: Floats = (rankdata(values) - (len(values) + 1) / 2) / len(values)
    return found


def _column(units: pd.DataFrame, name: str) -> Floats:
    found: Floats = units[name].to_numpy(np.float64, na_value=np.nan)
    return found
