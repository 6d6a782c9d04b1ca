"""A checkpoint as the founding study wrote it: a PyTorch file that plain PyTorch loads and trains on from.

Keys: step, model_state_dict, optimizer_state_dict (of `torch.optim`, parameters in the order of `model.parameters()`)
and loss, the mini-batch loss of the update that led to the step (None at step 0).
"""

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ndt_ray.errors import CheckpointError
from ndt_ray.lanes.optimizer import lane_lr
from ndt_ray.replay import find_trial
from ndt_ray.schedule import lr_factor
from ndt_ray.sink import Arrays
from ndt_ray.spec import Trial
from ndt_ray.store.filesystem import Location
from ndt_ray.store.reader import Store
from ndt_ray.worker import make_pack

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
MOMENTS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "momentum": "momentum_buffer"}
"""Our names of the moments, and those of torch."""


def export_checkpoint(store: Store, sweep: str, trial: str, step: int, out: str) -> int:
    """Writes a trial's checkpoint at a step to a `.pt` file; its bytes. CheckpointError where there is none."""
    known = find_trial(store, sweep, trial)
    state, _ = store.checkpoint(known["trial_id"], step, sweep)
    resolved = Trial.model_validate_json(known["spec"])
    model = make_pack([resolved], (known["cell"],), torch.device("cpu")).build(resolved)
    query = "SELECT loss FROM losses WHERE sweep = ? AND trial_id = ? AND step = ?"
    losses = store.arrow(query, [sweep, known["trial_id"], step])["loss"].to_pylist()
    buffer = io.BytesIO()
    torch.save({**founding_state(resolved, model, state, step), "loss": losses[0] if losses else None}, buffer)
    folder, _, name = out.rpartition("/")
    Location.of(folder or ".").write(name, buffer.getvalue())
    return buffer.tell()


def founding_state(trial: Trial, model: nn.Module, state: Arrays, step: int) -> dict[str, Any]:
    """step, model_state_dict and optimizer_state_dict of a lane's state; `model` takes the weights on."""
    weights = model.state_dict()
    for kind in ("model.", "buffer."):
        weights |= {k[len(kind) :]: _tensor(v) for k, v in state.items() if k.startswith(kind)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"this checkpoint is not of {trial.cell}: {error}") from error
    optimizer = make_optimizer(trial, model, step)
    for name, parameter in model.named_parameters():
        own = {MOMENTS[kind]: _tensor(state[f"{kind}.{name}"]) for kind in MOMENTS if f"{kind}.{name}" in state}
        if own and step:
            counted = {} if trial.train.optimizer == "sgd" else {"step": torch.tensor(float(step))}
            optimizer.state[parameter] = {**counted, **own}
    return {"step": step, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def make_optimizer(trial: Trial, model: nn.Module, step: int) -> torch.optim.Optimizer:
    """The trial's optimizer in plain PyTorch, at the learning rate of the update after `step`."""
    train = trial.train
    at = min(step, train.steps)
    lr = lane_lr(trial, at, lr_factor(train.schedule, at, train.steps))
    given: dict[str, Any] = {"lr": lr, "weight_decay": train.weight_decay}
    given |= {"momentum": train.momentum} if train.optimizer == "sgd" else {"betas": train.betas, "eps": train.eps}
    made: torch.optim.Optimizer = OPTIMIZERS[train.optimizer](model.parameters(), **given)
    return made


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array))
