"""How unlike the training data the mini-batches between two measurements were.

Their order follows from the trial's seeds, so it is drawn again here: nothing of it was stored, and all of it was
settled before the run began.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from ndt_ray.analysis.detection import Floats, Ints
from ndt_ray.data import Dataset, load
from ndt_ray.lanes.batches import Batches
from ndt_ray.spec import Trial

STATISTICS = ("batch_classes", "batch_inputs")
Drawn = Callable[[Mapping[str, Any], Ints], pd.DataFrame]
"""(row of `trials`, steps measured) -> `batch_statistics` of each interval but the last step's, which has none."""


@dataclass(frozen=True)
class Typical:
    """What mini-batches are compared with: inputs `[N, d]`, their mean over a trial's samples, their total variance."""

    inputs: torch.Tensor
    centre: Floats
    spread: float


def batch_statistics(trial: Trial, data: Dataset, steps: Ints, typical: Typical | None = None) -> pd.DataFrame:
    """Of the mini-batches between each of `steps` and the next: `STATISTICS`, a row each, NaN for the last.

    Both are 1 in root mean square for samples drawn independently, and 0 for the whole training set. `batch_classes`:
    root of Pearson's chi-square of the class counts over its degrees of freedom. `batch_inputs`: distance of the mean
    input from the training set's, over what chance gives; of texts, inputs are their lengths.
    """
    batches = Batches([trial], data, torch.device("cpu"))
    found = np.full((len(steps), len(STATISTICS)), np.nan)
    if batches.full:
        found[:-1] = 0.0
        return pd.DataFrame(found, columns=list(STATISTICS))
    typical = typical_of(batches, data) if typical is None else typical
    labels = batches.labels[0].numpy()
    share = np.bincount(labels[batches.subsets[0]], minlength=data.inputs.classes) / len(batches.subsets[0])
    there = share > 0
    for i, (first, last) in enumerate(zip(steps, steps[1:], strict=False)):
        counts, total, drawn = np.zeros(len(share)), np.zeros(len(typical.centre)), 0
        for update in range(int(first), int(last)):
            samples = batches.indices(update)[0]
            counts += np.bincount(labels[samples], minlength=len(share))
            total += typical.inputs[torch.from_numpy(samples)].sum(0, dtype=torch.float64).numpy()
            drawn += len(samples)
        expected = share[there] * drawn
        chi2 = float(((counts[there] - expected) ** 2 / expected).sum())
        shift = float(((total / drawn - typical.centre) ** 2).sum())
        found[i, 0] = np.sqrt(chi2 / max(int(there.sum()) - 1, 1))
        found[i, 1] = np.sqrt(shift * drawn / typical.spread) if typical.spread else 0.0
    return pd.DataFrame(found, columns=list(STATISTICS))


def typical_of(batches: Batches, data: Dataset) -> Typical:
    """Of the samples that a pack's first trial is trained on."""
    inputs = _features(data)
    return Typical(inputs, *_moments(inputs, np.sort(batches.subsets[0])))


def drawn_again(trials: pd.DataFrame, notes: list[str]) -> Drawn | None:
    """A function of a trial and its steps; None, with a note that says why, where a data set is not what it was.

    Data sets are read, or fetched, as training does; all of a sweep's are held.
    """
    none = "mini-batches are no drivers here"
    if not {"spec", "data_hash"} <= set(trials):
        return None
    data: dict[str, Dataset] = {}
    for spec, recorded in zip(trials["spec"], trials["data_hash"], strict=True):
        try:
            wanted = Trial.model_validate_json(spec).data
            key = wanted.model_dump_json()
            data[key] = data[key] if key in data else load(wanted.name, wanted.params)
        except ValidationError:
            notes.append(f"{none}: these trials were not trained by a sweep, so their order is not known")
            return None
        except Exception as error:  # a user's own function may raise anything; the other drivers need no data
            notes.append(f"{none}: {error}")
            return None
        if not pd.isna(recorded) and data[key].hash != recorded:
            notes.append(f"{none}: the data set '{wanted.name}' is not the one that the trials were trained on")
            return None
    moments: dict[tuple[str, int | None, int | None], Typical] = {}

    def drawn(row: Mapping[str, Any], steps: Ints) -> pd.DataFrame:
        trial = Trial.model_validate_json(row["spec"])
        own = data[trial.data.model_dump_json()]
        subset = trial.train.subset
        key = (own.hash, subset, None if subset is None else trial.seed.data)
        if key not in moments:
            moments[key] = typical_of(Batches([trial], own, torch.device("cpu")), own)
        return batch_statistics(trial, own, steps, moments[key])

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
