"""Symmetry between the units of a layer: how alike they are, before and after they leave the initialisation.

A layer whose units are all alike does the work of one. The founding study's "initialisation escape" says that early
events break that symmetry; here it has numbers: the mean |cosine| of the incoming weights of two units, which random
weights have at its chance level, and the mean |correlation| of their responses over stimuli.
"""

from typing import Any

import numpy as np
import pandas as pd

from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.mechanisms.composition import MOST, correlations
from ndt_ray.analysis.mechanisms.filters import (
    filter_similarity,
    off_diagonal,
    random_cosine,
    random_cosine_sd,
    rows_of,
)
from ndt_ray.analysis.mechanisms.tables import WHOLE, Metrics, metrics_table
from ndt_ray.analysis.nulls import generator

SYMMETRY = metrics_table("symmetry_metrics", "How alike the units of a layer are: incoming weights and responses.")


@analysis(name="symmetry", reads=("trials", "checkpoints"), writes=(SYMMETRY,), per="checkpoint", context=True)
def symmetry(data: AnalysisInput, *, draws: int = 20) -> dict[str, pd.DataFrame]:
    """Similarity between the units of a layer, of weights and of responses: what initialisation escape breaks.

    `unit_weight_similarity` beside that of Gaussian weights, `unit_response_similarity` beside that of permuted
    stimuli (`draws` of them), `effective_units`: participation ratio of the responses' correlation matrix / units.
    """
    context, out = data.context(), Metrics(**data.partition.key)
    for layer in context.layers:
        weight = context.weight(layer.path)
        kept = None if weight is None else rows_of(weight)
        if kept is None or len(kept) < 2:
            flag = "no_weight" if kept is None else "dead"
            out.nothing(layer.path, layer.index, "unit_weight_similarity", flag, part=WHOLE)
        else:
            n, size = kept.shape
            chance: dict[str, Any] = {"chance": random_cosine(size), "chance_sd": random_cosine_sd(size, n)}
            value = float(np.abs(off_diagonal(filter_similarity(kept))).mean())
            out.add(layer.path, layer.index, "unit_weight_similarity", value, n=n, part=WHOLE, **chance)
        key = (str(data.partition.trial_id), layer.path)
        responses = context.stimuli(layer.path)
        which = np.sort(generator("composition", *key).permutation(responses.shape[1])[:MOST])
        rng = generator("symmetry", *key, str(data.partition.step))
        for metric, (value, null) in response_similarity(responses[:, which], rng, draws).items():
            known: dict[str, Any] = {"flag": None if np.isfinite(value) else "dead", "n": context.n, "part": WHOLE}
            if len(null) > 1:
                known |= {"chance": float(np.mean(null)), "chance_sd": float(np.std(null, ddof=1))}
            out.add(layer.path, layer.index, metric, value, **known)
    return {SYMMETRY.name: out.frame()}


def response_similarity(
    responses: "np.ndarray[Any, Any]", rng: np.random.Generator, draws: int = 20
) -> dict[str, tuple[float, list[float]]]:
    """metric -> (value, the same with the stimuli of every unit permuted by themselves), from `[n, units]`.

    Units that never change are left out; NaN for under two that do.
    """
    moving = responses[:, np.ptp(responses, axis=0) > 1e-12 * np.abs(responses).max(initial=1e-300)]
    if moving.shape[1] < 2:
        return {"unit_response_similarity": (float("nan"), []), "effective_units": (float("nan"), [])}

    def measured(x: "np.ndarray[Any, Any]") -> tuple[float, float]:
        r = correlations(x, x)
        return float(np.abs(off_diagonal(r)).mean()), float(np.trace(r) ** 2 / (r**2).sum() / len(r))

    null = [measured(rng.permuted(moving, axis=0)) for _ in range(draws)]
    value = measured(moving)
    names = ("unit_response_similarity", "effective_units")
    return {name: (value[i], [draw[i] for draw in null]) for i, name in enumerate(names)}
