"""Trials trained together, one lane each; a lane's trajectory is a function of its trial alone, bit for bit."""

from collections.abc import Sequence

import torch

from ndt_ray.lanes.engine import Build, Engine
from ndt_ray.lanes.loop import LoopEngine
from ndt_ray.lanes.stack import StackEngine
from ndt_ray.spec import Trial

__all__ = ["ENGINES", "Build", "Engine", "make_engine"]

ENGINES: dict[str, type[Engine]] = {"loop": LoopEngine, "stack": StackEngine}


def make_engine(trials: Sequence[Trial], build: Build, device: torch.device) -> Engine:
    """The engine that the trials were resolved to, with their models at the initialisation."""
    return ENGINES[trials[0].engine](trials, build, device)
