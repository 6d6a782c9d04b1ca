"""Activation maximisation: an image that drives a unit as far as gradient ascent gets, within what pixels may be.

Olah, Mordvintsev & Schubert, Feature Visualization (Distill 2017): an image is sought in a Fourier basis, amplitudes
scaled by 1 / frequency, under random shifts, so that it is no adversarial noise. All units of a layer at once: a batch
with one image each. Grayscale is an image of one channel like any other; colours are not decorrelated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import evaluating, first_tensor

Floats = NDArray[np.float32]
Basis = Literal["fourier", "pixels"]
STEPS, RATE = 512, 0.05
"""Of Adam, as the founding plan has them."""


@dataclass(frozen=True)
class Maximised:
    """`images` [units, C, H, W] in the units of the data; `activations` [units]: responses to them, unshifted.

    `starts` [units]: responses to the images that the ascent began with.
    """

    images: Floats
    activations: Floats
    starts: Floats


def maximise(
    model: nn.Module,
    path: str,
    units: Sequence[int],
    shape: tuple[int, int, int],
    limits: tuple[float, float],
    *,
    steps: int = STEPS,
    rate: float = RATE,
    basis: Basis = "fourier",
    jitter: int = 2,
    rotate: float = 0.0,
    scale: float = 0.0,
    seed: int = 0,
) -> Maximised:
    """Images `[C, H, W]` with pixels within `limits` that maximise units of the module at `path`.

    A unit's response is its output, averaged over positions or tokens. What the ascent sees is shifted by up to
    `jitter` pixels, turned by up to `rotate` degrees and scaled by up to the share `scale`, both ways, anew each step.
    Reproducible by `seed` on one machine. SpecError for a unit that the layer does not have, or empty limits.
    """
    low, high = limits
    if not low < high or steps < 1 or jitter < 0:
        raise SpecError(f"low < high, steps >= 1 and jitter >= 0 must hold, but got ({limits=}, {steps=}, {jitter=})")
    if not 0 <= rotate <= 180 or not 0 <= scale < 1:
        raise SpecError(f"0 <= rotate <= 180 degrees and 0 <= scale < 1 must hold, but got ({rotate=}, {scale=})")
    chosen = torch.as_tensor(list(units))
    generator = torch.Generator().manual_seed(seed)
    parameters = _start(basis, len(chosen), shape, generator).requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=rate)
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in frozen:
            p.requires_grad_(False)
        with evaluating(model):
            start = _respond(model, path, _image(parameters, basis, shape, limits).detach(), chosen)
            for _ in range(steps):
                optimizer.zero_grad()
                image = _image(parameters, basis, shape, limits)
                shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
                moved = image.roll(shift, (2, 3))
                if rotate or scale:
                    turn, size = (2 * torch.rand(2, generator=generator) - 1).tolist()
                    moved = transformed(moved, rotate * turn, 1 + scale * size)
                response = _respond(model, path, moved, chosen)
                (-response.sum()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                images = _image(parameters, basis, shape, limits)
                end = _respond(model, path, images, chosen)
    finally:
        for p, before in frozen:
            p.requires_grad_(before)
    return Maximised(*(x.detach().float().numpy() for x in (images, end, start)))


def transformed(images: Tensor, degrees: float, scale: float) -> Tensor:
    """Images `[n, C, H, W]` turned counter-clockwise about their middle, magnified by `scale`; edges repeat."""
    h, w = images.shape[2:]
    t = math.radians(degrees)
    # Where in the old image each new pixel is taken from; in units of half a side, hence h / w where it is not square.
    back = [[math.cos(t), -math.sin(t) * h / w, 0.0], [math.sin(t) * w / h, math.cos(t), 0.0]]
    matrix = (torch.tensor(back, dtype=images.dtype) / scale).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def responses(model: nn.Module, path: str, inputs: Tensor) -> Floats:
    """Every unit's response `[n, units]` to inputs `[n, ...]`, as `maximise` counts it."""
    with torch.no_grad(), evaluating(model):
        found: Floats = _averaged(_output(model, path, inputs)).float().numpy()
    return found


def _respond(model: nn.Module, path: str, images: Tensor, units: Tensor) -> Tensor:
    """Response of unit i to image i."""
    output = _averaged(_output(model, path, images))
    if int(units.max()) >= output.shape[1] or int(units.min()) < 0:
        raise SpecError(f"'{path}' has units 0 to {output.shape[1] - 1}, but got {units.tolist()}")
    return output[torch.arange(len(units)), units]


def _averaged(output: Tensor) -> Tensor:
    """`[n, units]`: over positions of [n, C, ...], over tokens of [n, T, D]."""
    return output if output.ndim == 2 else output.mean(1) if output.ndim == 3 else output.flatten(2).mean(2)


def _output(model: nn.Module, path: str, inputs: Tensor) -> Tensor:
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: object) -> None:
        # A copy with its graph: an in-place ReLU behind the layer would overwrite it.
        found.append(first_tensor(output, path) * 1.0)

    handle = model.get_submodule(path).register_forward_hook(keep)
    try:
        model(inputs)
    finally:
        handle.remove()
    return found[0]


def _start(basis: Basis, count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    c, h, w = shape
    if basis == "pixels":
        return 0.1 * torch.randn((count, c, h, w), generator=generator)
    if basis == "fourier":
        return 0.1 * torch.randn((count, c, h, w // 2 + 1, 2), generator=generator)
    raise SpecError(f"the basis is fourier or pixels, but got {basis!r}")


def _image(parameters: Tensor, basis: Basis, shape: tuple[int, int, int], limits: tuple[float, float]) -> Tensor:
    """Parameters as an image within the limits."""
    low, high = limits
    if basis == "fourier":
        _, h, w = shape
        rows, columns = torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None]
        frequency = torch.sqrt(rows**2 + columns**2).clamp_min(1.0 / max(h, w))
        spectrum = torch.view_as_complex(parameters) * (math.sqrt(h * w) / frequency / max(h, w))
        raw = torch.fft.irfft2(spectrum, s=(h, w), norm="ortho")
    else:
        raw = parameters
    return low + (high - low) * torch.sigmoid(raw)
