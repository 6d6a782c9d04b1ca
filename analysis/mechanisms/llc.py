"""The local learning coefficient by SGLD (Lau et al. 2023; Hitchcock & Hoogland 2025): how degenerate a minimum is.

λ̂ = n β (E[L(w)] - L(w*)) under a chain that samples exp(-n β L(w) - γ/2 |w - w*|²), β = 1 / ln n. For a regular
minimum of d parameters it is d/2, less where directions are flat. A chain whose mean loss falls *below* the
checkpoint's has left for a better place: the checkpoint is no minimum, and there is no number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
Loss = Callable[[int], Tensor]
"""The loss of the parameters as they are, on the mini-batch of a draw."""
LEFT = "chain_below_checkpoint"
DIVERGED = "chain_diverged"


@dataclass(frozen=True)
class Chains:
    """What the chains gave. `value` is NaN where `flag` says why; `loss_excess`: mean loss less the checkpoint's."""

    value: float
    standard_error: float
    by_chain: tuple[float, ...]
    loss_excess: float
    flag: str | None = None


def estimate(losses: Floats, at_checkpoint: float | Floats, n: float, beta: float | None = None) -> Chains:
    """From losses of chains after burn-in `[chains, draws]`, in nats a sample; `n`: samples the loss is a mean of.

    `at_checkpoint`: the loss there, or that of each chain's own mini-batches `[chains]`.
    """
    beta = 1 / np.log(n) if beta is None else beta
    with np.errstate(invalid="ignore", over="ignore"):
        excess = losses.mean(1) - at_checkpoint
    by_chain = tuple(float(v) for v in n * beta * excess)
    mean = float(excess.mean())
    error = float(np.std(by_chain, ddof=1) / np.sqrt(len(by_chain))) if len(by_chain) > 1 else float("nan")
    flag = DIVERGED if not np.isfinite(mean) else LEFT if mean < 0 else None
    return Chains(float("nan") if flag else n * beta * mean, error, by_chain, mean, flag)


def sgld(
    parameters: Sequence[Tensor],
    loss: Loss,
    *,
    n: float,
    draws: int,
    burn_in: int,
    step_size: float,
    localization: float,
    generator: torch.Generator,
    beta: float | None = None,
) -> Floats:
    """Losses `[draws]` of one chain that starts at the parameters; they are left where it ends.

    w ← w - ε/2 (n β ∇L + γ (w - w*)) + √ε η, η standard normal from `generator`. A direction of curvature h is sampled
    too wide by 1 / (1 - ε n β h / 4), and not at all in fewer than 2 / (ε n β h) draws. A chain that leaves the finite
    numbers ends in NaN. Losses are taken before each update, so that the gradient's pass is all it costs.
    """
    if n <= 1 or draws < 1 or burn_in < 0 or step_size <= 0 or localization < 0:
        raise SpecError(
            f"SGLD needs n > 1, draws > 0 and a positive step, but got ({n=}, {draws=}, {burn_in=}, {step_size=}, "
            f"{localization=})"
        )
    strength = n * (1 / np.log(n) if beta is None else beta)
    start = [p.detach().clone() for p in parameters]
    seen = np.full(draws, np.nan)
    for i in range(burn_in + draws):
        value = loss(i)
        if not torch.isfinite(value):
            break
        if i >= burn_in:
            seen[i - burn_in] = value.item()
        gradients = torch.autograd.grad(value, list(parameters))
        with torch.no_grad():
            for p, gradient, home in zip(parameters, gradients, start, strict=True):
                noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                drift = strength * gradient + localization * (p - home)
                p.add_(drift, alpha=-step_size / 2).add_(noise, alpha=step_size**0.5)
    return seen


def of_potential(
    potential: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    n: float,
    seed: int,
    chains: int = 64,
    draws: int = 2000,
    burn_in: int = 500,
    step_size: float = 1e-4,
    localization: float = 1.0,
) -> Chains:
    """The coefficient of a function of `[..., d]` at `start` [d], all chains at once: the sampler is checked on it."""
    w = start.double().expand(chains, -1).clone().requires_grad_()
    record: list[Floats] = []

    def loss(_draw: int) -> Tensor:
        values = potential(w)
        record.append(values.detach().numpy().copy())
        return values.sum()

    generator = torch.Generator().manual_seed(seed)
    sgld(
        [w],
        loss,
        n=n,
        draws=draws,
        burn_in=burn_in,
        step_size=step_size,
        localization=localization,
        generator=generator,
    )
    losses = np.full((chains, draws), np.nan)  # draws that a diverged chain never came to stay so
    kept = record[burn_in:]
    losses[:, : len(kept)] = np.array(kept).reshape(-1, chains).T
    return estimate(losses, float(potential(start.double())), n)
