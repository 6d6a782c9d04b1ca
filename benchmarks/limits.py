"""What the machine can do at most, and how much of it a training step needs."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sides import BATCH, IMAGE, synchronise

BYTES_A_WEIGHT = 40
"""Of memory traffic a step where weights stay in no cache: forward and backward read a weight (8), the gradient is
written (4), Adam reads weight, gradient and two moments and writes three of them (28)."""


@dataclass(frozen=True)
class Limit:
    """Measured here: float32 matrix products of 4096 (no TF32), and copies of 256 MiB."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Need:
    """Of one seed-step: floating-point operations of matrix products and convolutions, bytes of weights' traffic."""

    flops: float
    bytes: float


def limit(device: torch.device) -> Limit:
    """The best of some tries on an otherwise idle device."""
    side = 4096 if device.type == "cuda" else 2048
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    out = torch.empty_like(a)
    source = torch.zeros(64 * 2**20, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: torch.mm(a, b, out=out), device)
    copy = _best(lambda: target.copy_(source), device)
    return Limit(2 * side**3 / product, 2 * source.numel() * 4 / copy)


def need(model: nn.Module, device: torch.device) -> Need:
    """Counted on one forward and backward of a batch."""
    model = model.to(device).train()
    x = torch.randn(BATCH, *IMAGE.shape, device=device)
    y = torch.zeros(BATCH, dtype=torch.int64, device=device)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    weights = sum(p.numel() for p in model.parameters())
    return Need(float(counter.get_total_flops()), float(weights * BYTES_A_WEIGHT))


def _best(action: object, device: torch.device) -> float:
    assert callable(action)
    repeats = 20 if device.type == "cuda" else 1
    best = float("inf")
    for _ in range(5):
        synchronise(device)
        began = time.perf_counter()
        for _ in range(repeats):
            action()
        synchronise(device)
        best = min(best, (time.perf_counter() - began) / repeats)
    return best
