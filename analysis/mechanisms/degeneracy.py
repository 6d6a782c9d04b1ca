"""The local learning coefficient of networks: the analysis around `llc`'s sampler."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms import llc as sampler
from ndt_ray.analysis.mechanisms.context import ProbeContext, trained_copy
from ndt_ray.analysis.mechanisms.tables import LLC, WHOLE, Metrics
from ndt_ray.analysis.nulls import generator
from ndt_ray.measurement.coarse import hessian_product, largest_eigenvalue
from ndt_ray.models.build import channels_last

STABLE = 0.4
"""Step size x (n β h + γ) along the sharpest direction h: it is sampled 11 % too wide at most."""
SHARPNESS_STIMULI = 64
"""Fewer stimuli make it larger, if anything, and the step smaller; it is most of the cost of a short chain."""


@analysis(name="llc", reads=("trials", "checkpoints"), writes=(LLC,), per="checkpoint", context=True)
def llc(
    data: AnalysisInput,
    *,
    chains: int = 2,
    draws: int = 50,
    burn_in: int = 20,
    batch: int = 32,
    localization: float = 100.0,
    step_size: float | None = None,
) -> dict[str, pd.DataFrame]:
    """Local learning coefficient on the training data by SGLD; no number where the chain left the checkpoint's basin.

    `step_size`: by default 0.4 / (n β h + γ), h the largest Hessian eigenvalue on the probe. Directions flatter than
    about 5 h / (burn_in + draws) are not explored, so that it is a lower bound: compare it at equal settings only.
    """
    context, out = data.context(), Metrics(**data.partition.key)
    inputs, labels = context.training()
    if len(labels) < 3:
        out.nothing(WHOLE, -1, "llc", "too_few_samples", part=WHOLE)
        return {LLC.name: out.frame()}
    n = float(len(labels))
    strength = n / np.log(n)
    sharpness = _sharpness(context)
    step = step_size or STABLE / (strength * sharpness + localization)
    losses, home = np.full((chains, draws), np.nan), np.full(chains, np.nan)
    for chain in range(chains):
        rng = generator("llc", str(data.partition.trial_id), str(data.partition.step), str(chain))
        order = rng.integers(0, len(labels), size=(burn_in + draws, min(batch, len(labels))))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with trained_copy(context.model) as parameters:
            home[chain] = np.mean([_at(context, inputs, labels, index, False).item() for index in order[burn_in:]])
            losses[chain] = sampler.sgld(
                parameters,
                lambda i, order=order: _at(context, inputs, labels, order[i], True),  # type: ignore[misc]
                n=n,
                draws=draws,
                burn_in=burn_in,
                step_size=step,
                localization=localization,
                generator=noise,
            )
    found = sampler.estimate(losses, home, n)
    spread = {"chance_sd": found.standard_error, "n": chains * draws, "part": WHOLE}
    out.add(WHOLE, -1, "llc", found.value, flag=found.flag, **spread)
    for metric, value in (("llc_loss_excess", found.loss_excess), ("llc_step_size", step), ("sharpness", sharpness)):
        out.add(WHOLE, -1, metric, value, flag=found.flag, n=chains * draws, part=WHOLE)
    for chain, value in enumerate(found.by_chain):
        out.add(WHOLE, -1, "llc", value, flag=found.flag, n=draws, part=f"chain {chain}")
    return {LLC.name: out.frame()}


def _at(context: ProbeContext, inputs: Tensor, labels: Tensor, index: Sequence[int], grad: bool) -> Tensor:
    chosen = torch.as_tensor(np.asarray(index))
    with torch.set_grad_enabled(grad):
        loss: Tensor = F.cross_entropy(context.model(channels_last(inputs[chosen])), labels[chosen])
    return loss


def _sharpness(context: ProbeContext) -> float:
    """Largest Hessian eigenvalue of the loss on (at most 64 stimuli of) the probe; at least 1e-3."""
    some = slice(0, min(SHARPNESS_STIMULI, context.n))
    with torch.enable_grad():
        parameters = {name: p for name, p in context.model.named_parameters() if p.requires_grad}
        logits = context.model(channels_last(context.inputs[some]))
        loss = F.cross_entropy(logits, torch.from_numpy(context.labels[some]))
        size = sum(p.numel() for p in parameters.values())
        value = largest_eigenvalue(hessian_product(loss, parameters), size, context.inputs.device)
    return max(value, 1e-3) if np.isfinite(value) else 1e-3
