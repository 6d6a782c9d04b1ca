"""Which samples a lane sees at which update: a pure function of its seeds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ndt_ray.data import Dataset
from ndt_ray.data.probes import noisy_labels, shuffled_labels, training_subset
from ndt_ray.lanes.interventions import Damage
from ndt_ray.lanes.random import permutation
from ndt_ray.spec import Trial


class Batches:
    """Resident training data of one pack, and each lane's order through it. A remainder of an epoch is dropped."""

    def __init__(self, trials: Sequence[Trial], data: Dataset, device: torch.device) -> None:
        train = trials[0].train
        self.device = device
        self.inputs = data.train_x.to(device)
        self.trials = list(trials)
        self.subsets = [_subset(t, len(data.train_y)) for t in trials]
        self.n = len(self.subsets[0])
        self.full = train.batch == "full"
        self.size = self.n if isinstance(train.batch, str) else train.batch
        self.per_epoch = max(1, self.n // self.size)
        self.labels = torch.stack([_labels(t, data) for t in trials])
        self.damage = Damage(trials)
        self.shuffled: Tensor | None = None
        if any(t.control.damage == "labels" for t in trials):
            both = zip(self.labels, trials, strict=True)
            self.shuffled = torch.stack([shuffled_labels(y, t.seed.data) for y, t in both])
        self._epoch: tuple[int, list[np.ndarray]] | None = None

    def indices(self, update: int) -> np.ndarray:
        """Sample indices [S, B] of the mini-batch of one update."""
        if self.full:
            return np.stack(self.subsets)
        epoch, place = divmod(update, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, [self._order(t, s, epoch) for t, s in zip(self.trials, self.subsets, strict=True)])
        return np.stack([order[place * self.size : (place + 1) * self.size] for order in self._epoch[1]])

    def _order(self, trial: Trial, samples: np.ndarray, epoch: int) -> np.ndarray:
        """A lane's samples in the order of one epoch; a branch draws anew what the epoch has left at its step."""
        control, seed = trial.control, trial.seed.order
        order: np.ndarray = samples[permutation(seed, epoch, self.n)]
        if control.kind != "reorder":
            return order
        assert control.at is not None and control.branch is not None
        seen = min(max(control.at - epoch * self.per_epoch, 0), self.per_epoch) * self.size
        rest = order[seen:]
        return np.concatenate([order[:seen], rest[permutation(seed, epoch, len(rest), control.branch)]])

    def get(self, update: int) -> tuple[Tensor, Tensor]:
        """Inputs [S, B, ...] and labels int64 [S, B] of one update, on the device."""
        index = torch.from_numpy(self.indices(update))
        labels = self.labels.gather(1, index).to(self.device)
        flat = index.reshape(-1).to(self.device)
        inputs = self.inputs.index_select(0, flat).view(*index.shape, *self.inputs.shape[1:])
        if not self.damage.lanes:
            return inputs, labels
        shuffled = None if self.shuffled is None else self.shuffled.gather(1, index).to(self.device)
        return self.damage.spoil(update, inputs, labels, shuffled)


def _subset(trial: Trial, n_train: int) -> np.ndarray:
    if trial.train.subset is None:
        return np.arange(n_train)
    return np.asarray(training_subset(n_train, trial.train.subset, trial.seed.data))


def _labels(trial: Trial, data: Dataset) -> Tensor:
    labels = data.train_y
    if trial.train.label_noise:
        labels = noisy_labels(labels, data.inputs.classes, trial.train.label_noise, trial.seed.data)
    if trial.control.kind == "shuffled_labels":
        labels = shuffled_labels(labels, trial.seed.data)
    return labels
