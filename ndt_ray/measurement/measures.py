"""Measures of dimensionality: pure functions of eigenvalue spectra `[..., r]`, and the bias-corrected one of Gram sums.

A spectrum holds the eigenvalues of a Gram matrix (squared singular values of the activation matrix), descending,
float64. A spectrum that is all zero (dead layer) or not finite gives NaN, the null of the tables: never a made-up
number. Sources: Rudelson & Vershynin 2007 (stable rank), Gao et al. 2017 (participation ratio), Roy & Vetterli 2007 and
Garrido et al. 2023 (RankMe), Martin & Mahoney 2021 (power law), Chun et al. 2026 (bias correction).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ENERGY = 0.9
TAIL_FIRST, TAIL_LAST, TAIL_POINTS = 5, 50, 10
"""The power law is fitted on ranks 5 … min(50, rank / 2) and needs 10 of them."""
RANK_FLOOR = 1e-10
"""An eigenvalue counts for the rank above this share of the largest."""

GRAM_SUMS = ("t", "tt", "k", "kk", "kt", "k_k", "m_m", "w", "u", "q")
"""Sums over stimuli a, b of the centred matrix, whose rows i belong to stimuli: with M_a the mean over i of x_ai x_ai',
m_a the mean row, t_a = tr M_a and k_a = |m_a|^2, they are the sums of t, t^2, k, k^2, k t, (m_a.m_b)^2, tr M_a M_b,
|M_a|^2, m_a' M_a m_a and m_a' M_b m_a."""


def _relative(eigenvalues: ArrayLike) -> Floats:
    """Eigenvalues over the largest, negative round-off at 0; a spectrum without meaning becomes all NaN."""
    raw = np.asarray(eigenvalues, dtype=np.float64)
    if raw.shape[-1] == 0:
        return np.full((*raw.shape[:-1], 1), np.nan)
    largest = raw[..., :1]
    usable = np.isfinite(raw).all(-1, keepdims=True) & (largest > 0)
    return np.where(usable, np.maximum(raw, 0.0) / np.where(usable, largest, 1.0), np.nan)


def _stable_rank(share: Floats, root: Floats) -> Floats:
    return np.asarray(share.sum(-1))


def _participation_ratio(share: Floats, root: Floats) -> Floats:
    return np.asarray(share.sum(-1) ** 2 / (share * share).sum(-1))


def _participation_ratio_sv(share: Floats, root: Floats) -> Floats:
    return np.asarray(root.sum(-1) ** 2 / share.sum(-1))


def _energy_90(share: Floats, root: Floats) -> Floats:
    held = share.cumsum(-1)
    total = held[..., -1:]
    # The tolerance keeps round-off from deciding where the energy is reached exactly (10 equal directions: 9).
    count = (held < ENERGY * total * (1 - 1e-12)).sum(-1) + 1.0
    return np.asarray(np.where(np.isnan(total[..., 0]), np.nan, count))


def _nuclear_norm_ratio(share: Floats, root: Floats) -> Floats:
    return np.asarray(root.sum(-1))


def _rankme(share: Floats, root: Floats) -> Floats:
    total = root.sum(-1)
    logs = 0.5 * np.log(np.where(share > 0, share, 1.0))
    return np.asarray(total * np.exp(-(root * logs).sum(-1) / total))


def _power_law_alpha(share: Floats, root: Floats) -> Floats:
    rank = (share > RANK_FLOOR).sum(-1, keepdims=True)
    place = np.arange(TAIL_FIRST, min(TAIL_LAST, share.shape[-1]) + 1)
    if len(place) < TAIL_POINTS:
        return np.full(share.shape[:-1], np.nan)
    used = np.asarray(place <= rank / 2)
    count = used.sum(-1)
    enough = count >= TAIL_POINTS
    x = np.broadcast_to(np.log(place), used.shape) * used
    y = np.log(np.where(used, share[..., place - 1], 1.0))
    n = np.where(enough, count, 1)[..., None]
    dx = (x - x.sum(-1, keepdims=True) / n) * used
    slope = (dx * y).sum(-1) / np.where(enough, (dx * dx).sum(-1), 1.0)
    return np.asarray(np.where(enough, 0.0 - slope, np.nan))


_KERNELS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "stable_rank": _stable_rank,
    "participation_ratio": _participation_ratio,
    "participation_ratio_sv": _participation_ratio_sv,
    "energy_90": _energy_90,
    "nuclear_norm_ratio": _nuclear_norm_ratio,
    "rankme": _rankme,
    "power_law_alpha": _power_law_alpha,
}

NAMES = tuple(_KERNELS)
"""Of the measures that are functions of one spectrum, in the order of the tables' columns."""


def _apply(name: str, eigenvalues: ArrayLike) -> Floats:
    share = _relative(eigenvalues)
    return _KERNELS[name](share, np.sqrt(share))


def stable_rank(eigenvalues: ArrayLike) -> Floats:
    """Sum of eigenvalues over the largest: |X|_F^2 / |X|_2^2, in dimensions."""
    return _apply("stable_rank", eigenvalues)


def participation_ratio(eigenvalues: ArrayLike) -> Floats:
    """(Sum of eigenvalues)^2 over the sum of their squares, in dimensions."""
    return _apply("participation_ratio", eigenvalues)


def participation_ratio_sv(eigenvalues: ArrayLike) -> Floats:
    """(Sum of singular values)^2 over the sum of their squares: the founding study's, in dimensions."""
    return _apply("participation_ratio_sv", eigenvalues)


def energy_90(eigenvalues: ArrayLike) -> Floats:
    """Smallest number of directions that hold 90 % of the energy; whole numbers, float64 so that NaN can say null."""
    return _apply("energy_90", eigenvalues)


def nuclear_norm_ratio(eigenvalues: ArrayLike) -> Floats:
    """Sum of singular values over the largest, in dimensions."""
    return _apply("nuclear_norm_ratio", eigenvalues)


def rankme(eigenvalues: ArrayLike) -> Floats:
    """Exponential of the entropy of the singular values normalised to sum 1, in dimensions."""
    return _apply("rankme", eigenvalues)


def power_law_alpha(eigenvalues: ArrayLike) -> Floats:
    """Minus the slope of log eigenvalue on log rank over ranks 5 … min(50, rank / 2); NaN under 10 of them."""
    return _apply("power_law_alpha", eigenvalues)


def all_measures(eigenvalues: ArrayLike, names: Sequence[str] = NAMES) -> dict[str, Floats]:
    """Measures of a batch of spectra `[..., r]`: name -> `[...]`; all of them, in the order of the tables' columns."""
    share = _relative(eigenvalues)
    root = np.sqrt(share)
    return {name: _KERNELS[name](share, root) for name in names}


def participation_ratio_corrected(gram_sums: ArrayLike, n_stimuli: ArrayLike) -> Floats:
    """Participation ratio without the bias of a finite probe, from `[..., len(GRAM_SUMS)]` of the centred matrix.

    (tr C)^2 and |C|_F^2 of the population covariance C are each estimated without bias by U-statistics over distinct
    stimuli; their ratio is returned. With one row a stimulus this is gamma_row of Chun et al. (ICLR 2026). Rows of one
    stimulus (positions, tokens) are dependent, so that only stimuli may be the sampling unit. NaN below 4 stimuli and
    where an estimate is not positive (noise outweighs signal).
    """
    sums = np.asarray(gram_sums, dtype=np.float64)
    n = np.asarray(n_stimuli, dtype=np.float64)
    t, tt, k, kk, kt, k_k, m_m, w, u, q = np.moveaxis(sums, -1, 0)
    # Centred rows make every sum with a free index 0, which leaves these sums over 2, 3 and 4 distinct stimuli.
    pairs, triples, quadruples = n * (n - 1), n * (n - 1) * (n - 2), n * (n - 1) * (n - 2) * (n - 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        fourth = (k * k - 6 * kk + 2 * k_k) / quadruples
        trace_squared = (t * t - tt) / pairs + 2 * (t * k - 2 * kt) / triples + fourth
        norm_squared = (m_m - w) / pairs - 2 * (2 * u - q) / triples + fourth
        ratio = trace_squared / norm_squared
    return np.asarray(np.where((n >= 4) & (trace_squared > 0) & (norm_squared > 0), ratio, np.nan))
