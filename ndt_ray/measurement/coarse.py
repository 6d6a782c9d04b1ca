"""What is too dear for every measurement: spectra of the weights, curvature of the probe loss, gradient noise.

All of it works on copies of the parameters with a generator of its own, in eval mode: training does not notice.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from ndt_ray.measurement.capture import evaluating
from ndt_ray.measurement.grams import gram
from ndt_ray.measurement.measures import participation_ratio, stable_rank
from ndt_ray.measurement.spectra import eigenvalues
from ndt_ray.spec import Train

ITERATIONS = 60
TOLERANCE = 1e-3
"""Lanczos stops when the residual of the largest Ritz value is below this share of it."""

NOISE_BLOCKS = 16
"""Parts of the probe whose mean gradients are compared."""


def weight_spectra(model: nn.Module) -> dict[str, Any]:
    """Columns of the table `weight_spectra` but for trial_id and step: one row per parameter with 2 axes or more.

    A weight counts as rows × the rest. Singular values come from the float64 Gram matrix: those below 1e-8 of the
    largest are round-off.
    """
    weights = {name: p.detach() for name, p in model.named_parameters() if p.ndim >= 2}
    solved = [eigenvalues(gram([w.flatten(1)[None, :, None]]).cpu().numpy()).values[0] for w in weights.values()]
    singular = [np.sqrt(values) for values in solved]
    return {
        "parameter": list(weights),
        "stable_rank": np.array([stable_rank(values) for values in solved]),
        "participation_ratio": np.array([participation_ratio(values) for values in solved]),
        "spectral_norm": np.array([values[0] for values in singular]),
        "singular_values": [values.astype(np.float32) for values in singular],
    }


def curvature(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    second_moments: Mapping[str, NDArray[Any]] | None = None,
    step: int,
    train: Train,
) -> dict[str, float]:
    """The values of one row of the table `curvature`, for the mean loss on a probe; NaN is null.

    `second_moments`: Adam's running mean of squared gradients by parameter; without it, and at step 0, where it is 0,
    there is no preconditioned sharpness.
    """
    labels = labels.to(inputs.device)
    with evaluating(model), torch.enable_grad():
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        parameters = {name: p.detach().clone().requires_grad_() for name, p in trained.items()}

        def loss(chosen: slice) -> Tensor:
            logits = functional_call(model, parameters, (inputs[chosen],))
            return F.cross_entropy(logits.to(getattr(torch, train.loss_dtype)), labels[chosen])

        product = hessian_product(loss(slice(None)), parameters)
        size = sum(p.numel() for p in parameters.values())
        found = {"sharpness": largest_eigenvalue(product, size, inputs.device), "sharpness_preconditioned": np.nan}
        if second_moments is not None and step > 0:
            preconditioner = adam_preconditioner({name: second_moments[name] for name in parameters}, step, train)
            scale = _flat(preconditioner.values()).to(inputs.device).rsqrt()
            found["sharpness_preconditioned"] = largest_eigenvalue(
                lambda v: scale * product(scale * v), size, inputs.device
            )
        found["gradient_noise_scale"] = gradient_noise_scale(loss, parameters, len(labels))
    return found


def adam_preconditioner(second_moments: Mapping[str, NDArray[Any]], step: int, train: Train) -> dict[str, Tensor]:
    """Diagonal by which Adam divides its momentum after `step` ≥ 1 updates, with both bias corrections.

    (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps); training is at the edge of stability where the largest eigenvalue
    of the so preconditioned Hessian is near (2 + 2 beta1) / ((1 - beta1) lr) (Cohen et al. 2022). Infinite for weights
    that never had a gradient (frozen, dead, of unseen tokens): Adam does not move along them.
    """
    beta1, beta2 = train.betas
    found = {}
    for name, moment in second_moments.items():
        v = torch.as_tensor(moment).double()
        divisor = (1 - beta1**step) * ((v / (1 - beta2**step)).sqrt() + train.eps)
        found[name] = torch.where(v > 0, divisor, torch.inf)
    return found


def hessian_product(loss: Tensor, parameters: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Products of the Hessian of `loss` with flat float64 vectors, through its gradient's graph."""
    leaves = list(parameters.values())
    gradient = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
    # Where the loss does not see a parameter, or is linear in it, there is nothing to differentiate again.
    curved = [i for i, g in enumerate(gradient) if g.requires_grad]

    def product(vector: Tensor) -> Tensor:
        pieces = torch.split(vector, [p.numel() for p in leaves])
        directions = [pieces[i].view_as(leaves[i]).to(leaves[i].dtype) for i in curved]
        outputs = [gradient[i] for i in curved]
        return _flat(
            torch.autograd.grad(
                outputs, leaves, directions, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )

    return product


def largest_eigenvalue(product: Callable[[Tensor], Tensor], size: int, device: torch.device) -> float:
    """Largest (most positive) eigenvalue of a symmetric operator on `[size]` float64, by Lanczos; NaN if not finite.

    Without reorthogonalisation: the extreme Ritz values converge all the same, only copies of them appear.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(size, dtype=torch.float64, generator=generator).to(device)
    vector /= vector.norm()
    before, beta = torch.zeros_like(vector), 0.0
    diagonal: list[float] = []
    off: list[float] = []
    ritz = float("nan")
    for _ in range(min(ITERATIONS, size)):
        image = product(vector) - beta * before
        alpha = float(image @ vector)
        image -= alpha * vector
        beta = float(image.norm())
        if not np.isfinite(alpha) or not np.isfinite(beta):
            return float("nan")
        diagonal.append(alpha)
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        ritz = float(values[-1])
        if beta * abs(vectors[-1, -1]) <= TOLERANCE * abs(ritz) or beta == 0:
            break
        off.append(beta)
        before, vector = vector, image / beta
    return ritz


def gradient_noise_scale(loss: Callable[[slice], Tensor], parameters: Mapping[str, Tensor], samples: int) -> float:
    """tr(covariance of sample gradients) / |mean gradient|^2, in samples (McCandlish et al. 2018, the simple scale).

    Both are estimated without bias from the mean gradients of 16 interleaved parts of the probe: the covariance from
    their scatter, the squared mean less what scatter adds to it. NaN where nothing of the mean is left above noise.
    """
    blocks = min(NOISE_BLOCKS, samples // 2)
    if blocks < 2:
        return float("nan")
    each = samples // blocks
    total, squares = torch.zeros(()), 0.0
    for block in range(blocks):
        part = loss(slice(block, blocks * each, blocks))
        flat = _flat(torch.autograd.grad(part, list(parameters.values()), allow_unused=True, materialize_grads=True))
        total = flat if block == 0 else total + flat
        squares += float(flat @ flat)
    mean_squared = float(total @ total) / blocks**2
    covariance = each * (squares - blocks * mean_squared) / (blocks - 1)
    signal = mean_squared - covariance / (blocks * each)
    return covariance / signal if np.isfinite(signal) and signal > 0 else float("nan")


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.detach().double().flatten() for part in parts])
