"""The recent states of a pack's lanes, so that a checkpoint can be taken of a step that has passed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ndt_ray.lanes import Engine


class Ring:
    """The `keep` newest of the states that it was shown: weights, moments and buffers of every lane.

    Memory: `keep` times 4 bytes × weights × (1 + moments) a lane, on the engine's device, taken when first needed.
    """

    def __init__(self, engine: Engine, keep: int) -> None:
        self.engine, self.keep = engine, keep
        self.steps = np.full(keep, -1, dtype=np.int64)
        self.taken = 0
        self.rows: dict[str, Tensor] = {}
        self.buffers: dict[str, list[Tensor]] = {}
        self._owners = {name: name.rpartition(".") for name, _ in engine.models[0].named_buffers()}

    def take(self, step: int) -> None:
        """Keeps the lanes as they are, in place of the oldest."""
        slot, lanes = self.taken % self.keep, len(self.engine.models)
        for name, rows in self._sources().items():
            if name not in self.rows:
                self.rows[name] = torch.empty((self.keep, lanes, rows.shape[1]), device=rows.device)
            self.rows[name][slot].copy_(rows[:lanes])
        for name, buffers in self._buffers().items():
            held = self.buffers.setdefault(name, [torch.empty((self.keep, *b.shape), dtype=b.dtype) for b in buffers])
            for into, buffer in zip(held, buffers, strict=True):
                into[slot].copy_(buffer)
        self.steps[slot] = step
        self.taken += 1

    def newest(self, step: int) -> int | None:
        """The newest step held that is not behind `step`; the oldest held where all are; None where none is."""
        held = self.steps[self.steps >= 0]
        early = held[held <= step]
        return int(early.max()) if early.size else int(held.min()) if held.size else None

    def lane_state(self, lane: int, step: int) -> dict[str, NDArray[Any]]:
        """As `Engine.lane_state` gave it at a step that is held."""
        slot, arena = self._slot(step), self.engine.arena
        state = {f"model.{k}": v for k, v in arena.export(lane, self.rows["weights"][slot]).items()}
        for moment in arena.moments:
            state |= {f"{moment}.{k}": v for k, v in arena.export(lane, self.rows[moment][slot]).items()}
        for name, held in self.buffers.items():
            state[f"buffer.{name}"] = held[lane][slot].cpu().numpy().copy()
        return state

    @contextmanager
    def put_back(self, lanes: Sequence[int], step: int) -> Iterator[None]:
        """The lanes' models as they were at a step that is held; afterwards as they are now, to the bit."""
        slot, weights, held = self._slot(step), self.engine.arena.weights, self.rows["weights"]
        buffers = self._buffers()
        now = [(weights[lane], weights[lane].clone()) for lane in lanes]
        now += [(found[lane], found[lane].clone()) for found in buffers.values() for lane in lanes]
        try:
            for lane in lanes:
                weights[lane].copy_(held[slot, lane])
                for name, found in buffers.items():
                    found[lane].copy_(self.buffers[name][lane][slot])
            yield
        finally:
            for tensor, value in now:
                tensor.copy_(value)

    def state(self) -> dict[str, NDArray[Any]]:
        """What `load` needs to hold the same states."""
        state: dict[str, NDArray[Any]] = {"steps": self.steps, "taken": np.array([self.taken])}
        state |= {f"rows.{name}": rows.cpu().numpy() for name, rows in self.rows.items()}
        for name, held in self.buffers.items():
            state |= {f"buffer.{lane}.{name}": buffer.cpu().numpy() for lane, buffer in enumerate(held)}
        return state

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """The inverse of `state`; KeyError where something is missing."""
        self.steps, self.taken = np.array(state["steps"]), int(state["taken"][0])
        if not self.taken:
            return
        device, lanes = self.engine.device, range(len(self.engine.models))
        found = {name: state[f"rows.{name}"] for name in self._sources()}
        self.rows = {name: torch.from_numpy(np.array(rows)).to(device) for name, rows in found.items()}
        names = self._buffers()
        self.buffers = {n: [torch.from_numpy(np.array(state[f"buffer.{i}.{n}"])) for i in lanes] for n in names}

    @staticmethod
    def picked(state: Mapping[str, NDArray[Any]], lanes: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The state of a ring whose lane i is lane `lanes[i]` of the one that gave `state`."""
        out: dict[str, NDArray[Any]] = {}
        for key, value in state.items():
            kind, _, rest = key.partition(".")
            if kind == "rows":
                out[key] = value[:, list(lanes)]
            elif kind == "buffer":
                source, _, name = rest.partition(".")
                out |= {f"buffer.{lane}.{name}": value for lane, s in enumerate(lanes) if s == int(source)}
            else:
                out[key] = value
        return out

    def _slot(self, step: int) -> int:
        return int(np.flatnonzero(self.steps == step)[0])

    def _sources(self) -> dict[str, Tensor]:
        arena = self.engine.arena
        return {"weights": arena.weights, **arena.moments}

    def _buffers(self) -> dict[str, list[Tensor]]:
        """By name, those of all lanes: looked up anew, since a module may have put another tensor in its place."""
        models = self.engine.models
        return {
            n: [getattr(m.get_submodule(path), leaf) for m in models] for n, (path, _, leaf) in self._owners.items()
        }
