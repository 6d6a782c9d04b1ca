"""How unlike the training data the mini-batches between two measurements were.

Their order follows from the trial's seeds, so it is drawn again here: nothing of it was stored, and all of it was
settled before the run began.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.data import Dataset, load
from ndt_ray.errors import NdtError
from ndt_ray.lanes.batches import Batches
from ndt_ray.spec import Trial

STATISTICS = ("batch_classes", "batch_inputs")
Drawn = Callable[[Mapping[str, Any], Ints], pd.DataFrame]
"""(row of `trials`, steps measured) -> `batch_statistics` of each interval but the last step's, which has none."""


def batch_statistics(trial: Trial, data: Dataset, steps: Ints) -> pd.DataFrame:
    """Of the mini-batches between each of `steps` and the next: `STATISTICS`, a row each, NaN for the last.

    Both are 1 on average for samples drawn independently, and 0 for the whole training set. `batch_classes`: root of
    Pearson's chi-square of the class counts over its degrees of freedom. `batch_inputs`: distance of the mean input
    from the training set's, over what chance gives; of texts, inputs are their lengths.
    """
    batches = Batches([trial], data, torch.device("cpu"))
    own, labels = np.sort(batches.subsets[0]), batches.labels[0].numpy()
    share = np.bincount(labels[own], minlength=data.inputs.classes) / len(own)
    inputs = _features(data)
    centre, spread = _moments(inputs, own)
    found = np.full((len(steps), 2), np.nan)
    for i, (first, last) in enumerate(zip(steps, steps[1:], strict=False)):
        drawn = np.concatenate([batches.indices(update)[0] for update in range(int(first), int(last))])
        counts = np.bincount(labels[drawn], minlength=len(share))
        there = share > 0
        expected = share[there] * len(drawn)
        chi2 = float(((counts[there] - expected) ** 2 / expected).sum())
        shift = float(((_mean(inputs, drawn) - centre) ** 2).sum())
        found[i] = np.sqrt(chi2 / max(int(there.sum()) - 1, 1)), np.sqrt(shift * len(drawn) / spread) if spread else 0.0
    return pd.DataFrame(found, columns=list(STATISTICS))


def drawn_again(trials: pd.DataFrame, notes: list[str]) -> Drawn | None:
    """A function of a trial and its steps; None, with a note that says why, where a data set is not what it was."""
    none = "mini-batches are no drivers here"
    if not {"spec", "data_hash"} <= set(trials):
        return None
    for spec, recorded in dict(zip(trials["spec"], trials["data_hash"], strict=True)).items():
        try:
            wanted = Trial.model_validate_json(spec).data
            there = load(wanted.name, wanted.params).hash
        except ValidationError:
            notes.append(f"{none}: these trials were not trained by a sweep, so their order is not known")
            return None
        except NdtError as error:
            notes.append(f"{none}: {error}")
            return None
        if not pd.isna(recorded) and there != recorded:
            notes.append(f"{none}: the data set '{wanted.name}' is not the one that the trials were trained on")
            return None

    def drawn(row: Mapping[str, Any], steps: Ints) -> pd.DataFrame:
        trial = Trial.model_validate_json(row["spec"])
        return batch_statistics(trial, load(trial.data.name, trial.data.params), steps)

    return drawn


def _features(data: Dataset) -> torch.Tensor:
    """Inputs as float rows `[N, d]`; of tokens, how many are not padding."""
    if data.train_x.is_floating_point():
        return data.train_x.flatten(1)
    padding = -1 if data.inputs.padding is None else data.inputs.padding
    return (data.train_x != padding).sum(1, keepdim=True).float()


def _moments(inputs: torch.Tensor, samples: Ints) -> tuple[Floats, float]:
    """Mean `[d]` of the samples, and the trace of their covariance; in pieces, for float64 copies are large."""
    total, squares = np.zeros(inputs.shape[1]), 0.0
    for piece in np.array_split(samples, -(-len(samples) // 4096)):
        values = inputs[torch.from_numpy(piece)].double().numpy()
        total, squares = total + values.sum(0), squares + float((values**2).sum())
    centre = total / len(samples)
    square = squares / len(samples)
    spread = square - float((centre**2).sum())
    return centre, spread if spread > 1e-9 * square else 0.0


def _mean(inputs: torch.Tensor, samples: Ints) -> Floats:
    return np.asarray(inputs[torch.from_numpy(samples)].mean(0, dtype=torch.float64).numpy())
