"""What is compared: our engine with its batches, and the same module in a plain eager PyTorch loop."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import median_seconds
from ndt_ray import registry
from ndt_ray.data import Dataset
from ndt_ray.data.dataset import build as build_dataset
from ndt_ray.inputs import InputSpec
from ndt_ray.lanes import Engine, make_engine
from ndt_ray.lanes.batches import Batches
from ndt_ray.lanes.random import permutation
from ndt_ray.lanes.stack import only_linear
from ndt_ray.models import build
from ndt_ray.spec import Trial

IMAGE = InputSpec("image", (1, 28, 28), 10)
BATCH = 64
MLPS = (
    "mlp_shallow_2",
    "mlp_medium_5",
    "mlp_deep_10",
    "mlp_verydeep_15",
    "mlp_narrow",
    "mlp_medium",
    "mlp_wide",
    "mlp_verywide",
)
CNNS = ("cnn_shallow", "cnn_medium", "cnn_deep")
TRANSFORMERS = ("transformer_shallow", "transformer_medium", "transformer_deep", "transformer_narrow")
FOUNDING = (*MLPS, *CNNS, *TRANSFORMERS)


def make(trial: Trial) -> nn.Module:
    """A trial's model at its initialisation."""
    return build(registry.resolve("model", trial.model.name), IMAGE, trial.model.params, trial.seed.init)


@functools.cache
def mnist_shaped(samples: int) -> Dataset:
    """Random images and labels, of the shape and (by default) the number of MNIST's."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, *IMAGE.shape, generator=g), torch.randint(0, 10, (samples,), generator=g)
    names = tuple(map(str, range(10)))
    return build_dataset("random", IMAGE, (x, y), (x[:64], y[:64]), names, "generated", "Random noise.")


def best_engine(model: str) -> str:
    """The engine that a plan picks for a model on the CPU."""
    return "stack" if only_linear(make(trial(model, "loop", 0))) else "loop"


def trial(model: str, engine: str, seed: int) -> Trial:
    """Batch 64, Adam with 1e-3."""
    train = {"steps": 10**9, "batch": BATCH}
    return Trial(model=model, data="mnist", train=train, seed=seed, engine=engine)  # type: ignore[arg-type]


class Ours:
    """A pack of lanes, fed as a run feeds it."""

    def __init__(self, model: str, engine: str, lanes: int, data: Dataset, device: torch.device) -> None:
        trials = [trial(model, engine, seed) for seed in range(lanes)]
        self.lanes = lanes
        self.device = device
        self.engine: Engine = make_engine(trials, make, device)
        self.batches = Batches(trials, data, device)
        self.batches.get(0)  # draws the order of the first epoch
        n = self.batches.n
        self.charge = median_seconds(lambda: permutation(1, 0, n)) / self.batches.per_epoch
        self.update = 0
        self.losses = torch.zeros(lanes, dtype=torch.float64)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        synchronise(self.device)

    def step(self) -> None:
        # Within one epoch, since a round is shorter than one; what the order costs is in `charge`.
        inputs, labels = self.batches.get(self.update % self.batches.per_epoch)
        self.losses = self.engine.step(inputs, labels, self.update, 1.0)
        self.update += 1


class Plain:
    """One model in the loop that a PyTorch tutorial writes, with data in memory: the baseline."""

    lanes = 1

    def __init__(self, model: str, data: Dataset, device: torch.device) -> None:
        self.device = device
        self.model = make(trial(model, "loop", 0)).to(device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.inputs, self.labels = data.train_x.to(device), data.train_y.to(device)
        self.order = torch.randperm(len(self.labels), device=device)
        self.per_epoch = len(self.order) // BATCH
        self.charge = median_seconds(lambda: torch.randperm(len(self.order))) / self.per_epoch
        self.update = 0
        self.loss = 0.0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()
        synchronise(self.device)

    def step(self) -> None:
        place = self.update % self.per_epoch * BATCH
        index = self.order[place : place + BATCH]
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.inputs[index]), self.labels[index])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss = loss.item()
        self.update += 1


class PlainDefaults(Plain):
    """The plain loop with the numerics that PyTorch starts with: on a GPU, TF32 convolutions and any algorithm."""

    def run(self, steps: int) -> None:
        cudnn, deterministic = torch.backends.cudnn, torch.are_deterministic_algorithms_enabled()
        before = cudnn.allow_tf32, cudnn.deterministic
        torch.use_deterministic_algorithms(False)
        cudnn.allow_tf32, cudnn.deterministic = True, False
        try:
            super().run(steps)
        finally:
            cudnn.allow_tf32, cudnn.deterministic = before
            torch.use_deterministic_algorithms(deterministic, warn_only=True)


def synchronise(device: torch.device) -> None:
    """Waits for what is queued on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
