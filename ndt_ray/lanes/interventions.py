"""What is done to single lanes at a step of their training: lesions of a layer, damage to the data of a window.

Until its step a lane is the untouched trial bit for bit, and no other lane of its pack is touched: an intervention is
one more thing in which lanes may differ. Designs: Achille et al. (arXiv:1711.08856) for deficits in a window.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ndt_ray.errors import SpecError
from ndt_ray.lanes.arena import Arena, Slot
from ndt_ray.lanes.engine import Build, Engine
from ndt_ray.lanes.random import gaussian, words
from ndt_ray.spec import Trial

BLUR = 4
"""Images are averaged over squares of so many pixels and enlarged again (Achille et al.: 8 of 32 pixels are left)."""


class Lesions:
    """Applies each lane's lesion once its step is reached: `ablate`, `reinit`, `perturb`.

    What is lesioned begins without optimizer moments, so that no gradient from before brings it back. Biases are
    ablated not at all (the founding plan zeroes the weights) and re-initialised with the rest.
    """

    def __init__(self, engine: Engine, build: Build) -> None:
        self.engine, self.build = engine, build
        self.due = [
            (t.control.at, lane)
            for lane, t in enumerate(engine.trials)
            if t.control.kind in ("ablate", "reinit", "perturb")
        ]
        refuse_empty_lesions(engine.arena, engine.trials)

    def at(self, step: int) -> None:
        """To be called when the update that leads to `step` is done, and at step 0, before anything is recorded."""
        for when, lane in self.due:
            if when == step and self.engine.alive[lane]:
                self._lesion(lane, self.engine.trials[lane])

    def _lesion(self, lane: int, trial: Trial) -> None:
        control, arena = trial.control, self.engine.arena
        assert control.layer is not None
        slots = layer_slots(arena, control.layer)
        if control.kind == "reinit":
            fresh = dict(self.build(trial).named_parameters())
            for slot in slots:
                slot.view(arena.weights[lane]).copy_(fresh[slot.name].detach())
                for rows in arena.moments.values():
                    slot.view(rows[lane]).zero_()
            return
        for slot in slots:
            if len(slot.shape) < 2:
                continue
            weight = slot.view(arena.weights[lane])
            units = chosen_units(trial, slot, control.dose).to(weight.device)
            if control.kind == "ablate":
                weight[units] = 0.0
            else:
                noise = _gaussian(trial, slot, len(units)).to(weight.device)
                weight[units] += noise * (weight[units].norm() / noise.norm().clamp_min(1e-30))
            for rows in arena.moments.values():
                slot.view(rows[lane])[units] = 0.0


def refuse_empty_lesions(arena: Arena, trials: Sequence[Trial]) -> None:
    """SpecError for a lesion of a layer that has no units with inputs."""
    for control in (t.control for t in trials if t.control.kind in ("ablate", "perturb")):
        if not any(len(s.shape) > 1 for s in layer_slots(arena, str(control.layer))):
            raise SpecError(f"control: '{control}' has no weights to act on - {control.layer} has no units with inputs")


def layer_slots(arena: Arena, layer: str) -> list[Slot]:
    """Slots of a layer's parameters, and of the modules inside it."""
    return [s for s in arena.layout if s.name.startswith(f"{layer}.")]


def chosen_units(trial: Trial, slot: Slot, dose: float) -> Tensor:
    """Output units (first axis) that a dose takes: round(dose x units), those of a smaller dose among them."""
    order = np.argsort(words(f"units {slot.name}", trial.seed.data, 0, 0, slot.shape[0]), kind="stable")
    return torch.from_numpy(np.sort(order[: round(dose * slot.shape[0])]))


def _gaussian(trial: Trial, slot: Slot, units: int) -> Tensor:
    """Standard normal numbers `[units, ...]` of (seed.data, parameter)."""
    n = units * int(np.prod(slot.shape[1:]))
    drawn = gaussian(f"perturb {slot.name}", trial.seed.data, 0, 0, n)
    return torch.from_numpy(drawn).view(units, *slot.shape[1:])


class Damage:
    """Spoils the batches of lanes inside their windows: inputs blurred, upside down or noise, or labels permuted."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.lanes = [(lane, t) for lane, t in enumerate(trials) if t.control.kind == "damage"]

    def spoil(self, update: int, inputs: Tensor, labels: Tensor, shuffled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs `[S, B, ...]` and labels `[S, B]` of one update; `shuffled`: what labels become, `[S, B]`."""
        due = [(n, t) for n, t in self.lanes if (t.control.at or 0) <= update < (t.control.until or 0)]
        if due:
            inputs, labels = inputs.clone(), labels.clone()
        for lane, trial in due:
            c = trial.control
            if c.damage == "labels":
                assert shuffled is not None
                labels[lane] = shuffled[lane]
            else:
                inputs[lane] = damaged(inputs[lane], str(c.damage), trial.seed.data, update)
        return inputs, labels


def damaged(images: Tensor, kind: str, seed: int, update: int) -> Tensor:
    """Images `[B, C, H, W]`: `blur`, `flip` (vertically), or `noise` of each batch's mean and spread."""
    if kind == "flip":
        return images.flip(-2)
    if kind == "blur":
        size = (max(1, images.shape[-2] // BLUR), max(1, images.shape[-1] // BLUR))
        return F.interpolate(F.adaptive_avg_pool2d(images, size), images.shape[-2:], mode="bilinear")
    noise = torch.from_numpy(gaussian("damage", seed, 0, update, images.numel())).view(images.shape).to(images.device)
    return images.mean() + images.std() * noise
