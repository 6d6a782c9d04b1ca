"""The reference engine: any module, forward and backward lane by lane, one fused optimizer over all lanes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from ndt_ray.lanes.engine import Build, Engine, cross_entropy, dropouts, lane_masks
from ndt_ray.lanes.random import key
from ndt_ray.models.build import channels_last, seeded
from ndt_ray.spec import Trial


class LoopEngine(Engine):
    """No kernel sees how many lanes there are, so lanes are independent by construction.

    A module of the user's own runs each step under a forked global generator seeded from (seed.dropout, step), so
    that functional dropout is reproducible too.
    """

    name = "loop"

    def __init__(self, trials: Sequence[Trial], build: Build, device: torch.device) -> None:
        super().__init__(trials, build, device)
        self.loss_dtype = getattr(torch, self.trials[0].train.loss_dtype)
        self.own = [self.trials[0].source is None] * len(self.models)
        self.masked = [dropouts(m) for m in self.models]
        self.masks = [lane_masks(t, device) for t in self.trials]

    def backward(self, inputs: Tensor, targets: Tensor, update: int) -> Tensor:
        self.arena.grads.zero_()
        losses = torch.full((len(self.models),), float("nan"), dtype=torch.float64)
        for lane, model in enumerate(self.models):
            if not self.alive[lane]:
                continue
            for layer in self.masked[lane]:
                layer.masks = partial(self._mask, lane, update)
            model.train()
            try:
                with self._generator(lane, update):
                    losses[lane] = self._lane(model, inputs[lane], targets[lane])
            except (
                RuntimeError,
                ValueError,
                TypeError,
                IndexError,
                KeyError,
                AttributeError,
                ArithmeticError,
            ) as error:
                # A lane that raises fails alone; the others train on.
                self.errors[lane] = error
                self.drop(lane)
                self.arena.grads[lane].zero_()
        return losses

    def _lane(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
        logits = model(channels_last(inputs))
        loss = cross_entropy(logits, targets, self.loss_dtype).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _mask(self, lane: int, update: int, site: int, shape: Sequence[int], p: float) -> Tensor:
        return self.masks[lane](site, update, tuple(shape), p)

    def _generator(self, lane: int, update: int) -> AbstractContextManager[None]:
        if self.own[lane]:
            return nullcontext()
        return seeded(key(f"step {update}", self.trials[lane].seed.dropout) >> 1)
