"""How far the features of one layer serve another: four numbers, without which a transfer says nothing.

Raw explained variance; the same after a map between the two, fitted on other stimuli; what dictionaries without learned
features reach through the same map; and what the target's own dictionary reaches (SCIENCE §3.8; arXiv:2605.24577).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ndt_ray.analysis.mechanisms.sae import quality
from ndt_ray.analysis.mechanisms.sae.align import Alignment, Matrix, align, principal, ridge
from ndt_ray.analysis.mechanisms.sae.model import Saes
from ndt_ray.errors import SpecError

Rows = NDArray[np.float32]
CONTROLS = ("random", "frozen", "pca")
TOP = 50
"""Features of largest variance, as the founding study took them."""


@dataclass(frozen=True)
class Side:
    """One layer of one network: activations [stimuli, rows a stimulus, d] and its dictionaries, one lane a seed.

    Of two sides of a pair, row i of stimulus s is the same place of the same stimulus.
    """

    name: str
    fit: Rows
    held_out: Rows
    saes: Saes
    """Trained dictionaries."""
    frozen: Saes
    """One with frozen random atoms."""
    random: Saes
    """One that was not trained."""
    artifact: str | None = None
    """File that holds the trained and the frozen ones (last), below the store's root."""

    @property
    def d(self) -> int:
        """Dimensions."""
        return int(self.fit.shape[-1])


@dataclass(frozen=True)
class Transfer:
    """The four numbers of source → target, and what the founding study reported. NaN where it cannot be had."""

    raw: float
    aligned: float
    affine: float
    controls: dict[str, float]
    ceiling: float
    errors: dict[str, float]
    """Standard error of ceiling - control, by control: over blocks of stimuli, and over dictionary seeds."""
    alignment: str
    founding: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The control that reaches most."""
        return max(self.controls, key=lambda name: self.controls[name])

    @property
    def control(self) -> float:
        """What it reaches."""
        return self.controls[self.best]

    @property
    def se(self) -> float:
        """Standard error of ceiling - control."""
        return self.errors[self.best]

    @property
    def score(self) -> float | None:
        """(aligned - control) / (ceiling - control); null where ceiling - control is under 2 standard errors."""
        return self.score_against(self.best)

    def score_against(self, name: str) -> float | None:
        """The same against one of the controls."""
        room = self.ceiling - self.controls[name]
        if not np.isfinite(room) or room <= 0 or not room >= 2 * self.errors[name]:
            return None
        return (self.aligned - self.controls[name]) / room


def transfer(source: Side, target: Side, fit: tuple[Rows, Rows] | None = None) -> Transfer:
    """Transfer of a source's dictionaries to a target's activations.

    `fit`: (source, target) activations of the same stimuli for the map; default both sides' own. SpecError where rows
    do not pair.
    """
    of_source, of_target = fit or (source.fit, target.fit)
    if of_source.shape[:2] != of_target.shape[:2]:
        raise SpecError(f"rows do not pair: {source.name} {of_source.shape[:2]}, {target.name} {of_target.shape[:2]}")
    x_fit = normalised(target.saes, of_target)
    x = normalised(target.saes, target.held_out)
    y_fit = _flat(normalised(source.saes, of_source))
    chosen = align(_flat(x_fit), y_fit)
    maps = {"aligned": chosen}
    maps["affine"] = chosen if chosen.method == "ridge" else ridge(_flat(x_fit), y_fit)
    total = quality.residuals(x, x)[1]

    def through(saes: Saes, mapped: Alignment | None) -> list[Matrix]:
        """Squared errors by stimulus of each lane, through a map."""
        return [quality.residuals(x, made)[0] for made in _made(saes, x, mapped)]

    def mean(errors: list[Matrix]) -> float:
        return float(np.mean([quality.explained(e, total) for e in errors]))

    l0 = float(np.mean([row["l0"] for row in quality.held_out(source.saes, _lanes(source))]))
    own = through_target(target.saes, x)
    errors = {
        "random": through(source.random, chosen),
        "frozen": through(source.frozen, chosen),
        "pca": [quality.residuals(x, _projected(x, y_fit, max(1, round(l0)), chosen))[0]],
    }
    controls = {name: mean(found) for name, found in errors.items()}
    return Transfer(
        raw=mean(through(source.saes, None)) if source.d == target.d else float("nan"),
        aligned=mean(through(source.saes, maps["aligned"])),
        affine=mean(through(source.saes, maps["affine"])),
        controls=controls,
        ceiling=mean(own),
        errors={name: _error(own, found, total) for name, found in errors.items()},
        alignment=chosen.method,
        founding=founding_numbers(source, target) if source.d == target.d else {},
    )


def through_target(saes: Saes, x: Matrix) -> list[Matrix]:
    """Squared errors by stimulus of the target's own dictionaries."""
    return [quality.residuals(x, made)[0] for made in _made(saes, x, None)]


def founding_numbers(source: Side, target: Side) -> dict[str, float]:
    """The founding study's numbers of two layers of equal width: the source's first dictionary on both.

    `quality`: source loss / target loss, capped at 1 (its heat map); `ratio`: the inverse, uncapped (its tables);
    Spearman correlation and ratio of feature variances over the source's top 50; cosines of these atoms to the nearest
    atom of the target's first dictionary. Each beside chance: quality and correlation of a dictionary that was not
    trained, features paired at random, and cosines of random directions.
    """
    own, other = (_as_tensor(_flat(normalised(s.saes, s.held_out))[None]) for s in (source, target))
    first, second = source.saes.lanes([0]), target.saes.lanes([0])
    with torch.no_grad():
        here, there = (first.encode(x)[0].double().numpy() for x in (own, other))
        losses = [float(((x - first.reconstruct(x)) ** 2).double().mean()) for x in (own, other)]
    variance, moved = here.var(0), there.var(0)
    top = np.argsort(-variance, kind="stable")[:TOP]
    atoms, others = first.atoms[0].double().numpy(), second.atoms[0].double().numpy()
    nearest = quality.max_cosines(atoms[top], others)
    return _untrained(source.random, own, other) | {
        "source_loss": losses[0],
        "target_loss": losses[1],
        "quality": min(1.0, losses[0] / (losses[1] + 1e-8)),
        "ratio": losses[1] / (losses[0] + 1e-8),
        "spearman": _spearman(variance[top], moved[top]),
        "spearman_null_hi": quality.permuted_spearman(variance[top], moved[top]),
        "variance_ratio": float(moved[top].mean() / moved.mean()) if moved.mean() > 0 else float("nan"),
        "cosine": float(nearest.mean()),
        "cosine_chance": quality.chance_max_cosine(source.d, len(others)),
        "cosine_over_7": float((nearest > 0.7).mean()),
        "cosine_over_7_chance": quality.chance_over(0.7, source.d, len(others)),
        "cosine_over_5": float((nearest > 0.5).mean()),
        "cosine_over_5_chance": quality.chance_over(0.5, source.d, len(others)),
    }


def _untrained(saes: Saes, own: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """`quality` and `spearman` of the source's dictionary that was not trained, on the same normalised rows."""
    with torch.no_grad():
        losses = [float(((x - saes.reconstruct(x)) ** 2).double().mean()) for x in (own, other)]
        here, there = (saes.encode(x)[0].double().numpy().var(0) for x in (own, other))
    top = np.argsort(-here, kind="stable")[:TOP]
    return {
        "quality_random": min(1.0, losses[0] / (losses[1] + 1e-8)),
        "spearman_random": _spearman(here[top], there[top]),
    }


def _spearman(one: Matrix, other: Matrix) -> float:
    varies = np.ptp(one) > 0 and np.ptp(other) > 0
    return float(spearmanr(one, other).statistic) if varies else float("nan")


def matching(source: Side, target: Side, key: tuple[str, ...]) -> dict[str, float]:
    """Do the two have the same features? Correlation of their activations by the same held-out stimuli after matching,
    each network seen by itself, beside its null by permuted stimuli; and for equal widths the matched |cosine| of the
    rotated atoms, beside that of random ones."""
    per_stimulus = []
    for one in (source, target):
        x = normalised(one.saes, one.held_out)
        with torch.no_grad():
            features = one.saes.lanes([0]).encode(_as_tensor(_flat(x)[None]))[0]
        per_stimulus.append(features.double().numpy().reshape(len(x), -1, features.shape[-1]).mean(1))
    value, null, high = quality.matched_correlation(per_stimulus[0], per_stimulus[1], key)
    found = {"correlation": value, "correlation_null": null, "correlation_null_hi": high}
    if source.d == target.d:
        chosen = align(_flat(normalised(target.saes, target.fit)), _flat(normalised(source.saes, source.fit)))
        atoms = source.saes.atoms[0].double().numpy() @ chosen.back
        others = target.saes.atoms[0].double().numpy()
        found["mcc"] = quality.mcc(atoms, others)
        found["mcc_chance"] = quality.chance_mcc(len(atoms), len(others), source.d, draws=1)
    return found


def normalised(saes: Saes, rows: Rows) -> Matrix:
    """Activations [n, per stimulus, d] as a side's dictionaries see them."""
    mean, scale = saes.mean[0].double().numpy(), saes.scale[0].double().numpy()
    found: Matrix = (np.asarray(rows, np.float64) - mean) / scale
    return found


def _made(saes: Saes, x: Matrix, mapped: Alignment | None) -> list[Matrix]:
    """What each lane makes of normalised target rows [n, m, d], through the map and back."""
    given = _flat(x) if mapped is None else mapped.to_source(_flat(x))
    made = saes.reconstruct(_as_tensor(np.broadcast_to(given, (len(saes), *given.shape)))).double().numpy()
    back = [lane if mapped is None else mapped.to_target(lane) for lane in made]
    return [lane.reshape(x.shape) for lane in back]


def _projected(x: Matrix, source: Matrix, k: int, mapped: Alignment) -> Matrix:
    mean = source.mean(0)
    kept = (mapped.to_source(_flat(x)) - mean) @ principal(source, k) + mean
    return mapped.to_target(kept).reshape(x.shape)


def _error(ceiling: list[Matrix], control: list[Matrix], total: Matrix) -> float:
    """Standard error of ceiling - control: blocks of stimuli, and the spread over seeds of the ceiling."""
    blocks = [np.mean([quality.without_blocks(e, total) for e in errors], axis=0) for errors in (ceiling, control)]
    of_blocks = quality.jackknife(blocks[0] - blocks[1])
    values = [quality.explained(e, total) for e in ceiling]
    of_seeds = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return float(np.hypot(of_blocks, of_seeds))


def _lanes(side: Side) -> torch.Tensor:
    rows = torch.from_numpy(np.ascontiguousarray(side.held_out.reshape(1, -1, side.d)))
    return rows.expand(len(side.saes), -1, -1)


def _flat(x: Any) -> Matrix:
    found: Matrix = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return found


def _as_tensor(x: Any) -> torch.Tensor:
    """Lanes of rows [S, N, d] as float32."""
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
