"""What every engine offers: S lanes, one training step, each lane's model, state in and out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndt_ray.lanes.arena import Arena, Layout
from ndt_ray.lanes.optimizer import MOMENTS, Optimizer
from ndt_ray.lanes.random import keep_mask
from ndt_ray.models.layers import Dropout
from ndt_ray.spec import Trial

Build = Callable[[Trial], nn.Module]
"""Makes a trial's model at its initialisation."""


class Engine(ABC):
    """S lanes of one computation. `models[lane]` is a plain module whose parameters are views of the arena:
    probes, evaluations and checkpoints read it; only training differs between engines.

    Where trials have a canonical width, the arena has so many lanes: those without a trial are dummies, which train
    on somebody else's batch and are never looked at, so that every pack of the cell runs the same kernels.
    """

    name: str

    def __init__(self, trials: Sequence[Trial], build: Build, device: torch.device) -> None:
        self.trials = list(trials)
        self.device = device
        self.models = [build(t).to(device) for t in self.trials]
        train = self.trials[0].train
        layout = Layout(self.models[0])
        moments = MOMENTS[train.optimizer] if train.optimizer != "sgd" or train.momentum else ()
        self.arena = Arena(layout, max(len(self.trials), self.trials[0].width), moments, device)
        for lane, model in enumerate(self.models):
            self.arena.adopt(lane, model)
        self.optimizer = Optimizer(self.trials, self.arena)
        self.alive = [True] * len(self.trials)
        self.errors: dict[int, BaseException] = {}

    @abstractmethod
    def backward(self, inputs: Tensor, targets: Tensor, update: int) -> Tensor:
        """Fills the gradients of one mini-batch per lane.

        inputs [S, B, ...], targets int64 [S, B] on the device; returns each lane's mean loss, float64 [S] on the host.
        """

    def step(self, inputs: Tensor, targets: Tensor, update: int, factor: float) -> Tensor:
        """One optimizer update of every lane; returns the losses it was computed from, float64 [S] on the host."""
        losses = self.backward(inputs, targets, update)
        self.optimizer.step(update, factor)
        return losses

    def drop(self, lane: int) -> None:
        """A lane that diverged or failed keeps its slot; nothing of it is recorded from here on."""
        self.alive[lane] = False

    # -- state ---------------------------------------------------------------------------------------------------

    def lane_state(self, lane: int) -> dict[str, np.ndarray]:
        """Everything needed to continue this lane: `model.*`, `<moment>.*`, `buffer.*`."""
        state = {f"model.{k}": v for k, v in self.arena.export(lane).items()}
        for moment, rows in self.arena.moments.items():
            state |= {f"{moment}.{k}": v for k, v in self.arena.export(lane, rows).items()}
        for name, buffer in self.models[lane].named_buffers():
            state[f"buffer.{name}"] = buffer.detach().cpu().numpy().copy()
        return state

    def load_lane_state(self, lane: int, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `lane_state`; KeyError where an array is missing."""

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}

        self.arena.load(lane, part("model."))
        for moment, rows in self.arena.moments.items():
            self.arena.load(lane, part(f"{moment}."), rows)
        for name, buffer in self.models[lane].named_buffers():
            buffer.copy_(torch.from_numpy(np.array(state[f"buffer.{name}"])))


def cross_entropy(logits: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Each sample's cross-entropy, computed in `dtype`: logits [..., C], targets [...] -> [...]."""
    flat = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).to(dtype), targets.reshape(-1), reduction="none")
    return flat.view(targets.shape)


def lane_masks(trial: Trial, device: torch.device) -> Callable[[int, int, tuple[int, ...], float], Tensor]:
    """Dropout masks of one lane: (site, update, shape, p) -> float32 mask."""
    seed = trial.seed.dropout

    def masks(site: int, update: int, shape: tuple[int, ...], p: float) -> Tensor:
        return torch.from_numpy(keep_mask(seed, site, update, shape, p)).to(device, non_blocking=True)

    return masks


def dropouts(model: nn.Module) -> list[Dropout]:
    """The dropout layers that take their masks from the engine."""
    return [m for m in model.modules() if isinstance(m, Dropout)]
