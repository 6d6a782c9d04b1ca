"""Activation maximisation: an image that drives a unit as far as gradient ascent gets, within what pixels may be.

Olah, Mordvintsev & Schubert, Feature Visualization (Distill 2017): an image is sought in a Fourier basis, amplitudes
scaled by 1 / frequency, under random shifts, so that it is no adversarial noise. All units of a layer at once: a batch
with one image each. Grayscale is an image of one channel like any other; colours are not decorrelated.

What is best on average over shifts is not best where it stands: of a trained network's classes, half of such images
drove their unit less than some image of 1,797 digits did. So the last part of the ascent is without them, and the best
image of that part is kept. A unit that still prefers an image of the data starts again, from that image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ndt_ray.errors import SpecError
from ndt_ray.measurement.capture import evaluating, first_tensor

Floats = NDArray[np.float32]
Basis = Literal["fourier", "pixels"]
STEPS, RATE = 512, 0.05
"""Of Adam, as the founding plan has them."""
SETTLING = 0.25
"""Share of the steps, the last ones, in which images are seen as they are: neither shifted, turned nor scaled."""
INSIDE = 1 / 512
"""Share of the pixels' range that an image of the data is drawn in by on each side where an ascent begins with it: what
limits pixels has no gradient at the limits."""


@dataclass(frozen=True)
class Maximised:
    """`images` [units, C, H, W] in the units of the data; `activations` [units]: responses to them, unshifted.

    `starts` [units]: responses to the images that the ascent began with. `from_example` [units]: that was an image of
    the data, for the ascent from noise had stayed below it.
    """

    images: Floats
    activations: Floats
    starts: Floats
    from_example: NDArray[np.bool_]


@dataclass(frozen=True)
class Examples:
    """The image of the data that drives each unit most, `images` [units, C, H, W], and the responses, [units]."""

    images: Tensor
    responses: ArrayLike


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
    seed: int | Sequence[int] = 0,
    examples: Examples | None = None,
) -> Maximised:
    """Images `[C, H, W]` with pixels within `limits` that maximise units of the module at `path`.

    A unit's response is its output, averaged over positions or tokens. What the ascent sees is shifted by up to
    `jitter` pixels, turned by up to `rotate` degrees and scaled by up to the share `scale`, both ways, anew each step
    but in the last quarter of them, of which the best image is kept. With `examples`, units that none of these drives
    further than their example have a second, short ascent, from that example and without changes. Reproducible by
    `seed` on one machine: one for all, or one each, of which neighbours that are equal share their draws. SpecError for
    a unit that the layer does not have, or empty limits.
    """
    low, high = limits
    if not low < high or steps < 1 or jitter < 0:
        raise SpecError(f"low < high, steps >= 1 and jitter >= 0 must hold, but got ({limits=}, {steps=}, {jitter=})")
    if not 0 <= rotate <= 180 or not 0 <= scale < 1:
        raise SpecError(f"0 <= rotate <= 180 degrees and 0 <= scale < 1 must hold, but got ({rotate=}, {scale=})")
    chosen = torch.as_tensor(list(units))
    runs = [(s, len(list(own))) for s, own in groupby([seed] * len(chosen) if isinstance(seed, int) else seed)]
    sizes, generators = [n for _, n in runs], [torch.Generator().manual_seed(s) for s, _ in runs]
    begin = torch.cat([_start(basis, n, shape, g) for n, g in zip(sizes, generators, strict=True)])

    def draw(parameters: Tensor) -> Tensor:
        return _image(parameters, basis, shape, limits)

    def moved(images: Tensor) -> Tensor:
        return torch.cat([changed(*own) for own in zip(torch.split(images, sizes), generators, strict=True)])

    def changed(image: Tensor, generator: torch.Generator) -> Tensor:
        image = image.roll(torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist(), (2, 3))
        if rotate or scale:
            turn, size = (2 * torch.rand(2, generator=generator) - 1).tolist()
            image = transformed(image, rotate * turn, 1 + scale * size)
        return image

    short = max(1, round(steps * SETTLING))
    settling = short if jitter or rotate or scale else steps
    with _frozen(model), evaluating(model):
        found = _ascend(model, path, chosen, begin, draw, rate, steps - settling, settling, moved)
        from_example = torch.zeros(len(chosen), dtype=torch.bool)
        if examples is not None:
            lacking = found.best <= torch.as_tensor(examples.responses, dtype=found.best.dtype)
            if lacking.any():
                begin = _parameters(examples.images[lacking], basis, limits)
                again = _ascend(model, path, chosen[lacking], begin, draw, rate, 0, short, moved)
                further = again.best > found.best[lacking]
                from_example[lacking] = further
                for name, part in vars(again).items():
                    getattr(found, name)[from_example] = part[further]
    images, best, starts = (x.float().numpy() for x in (found.images, found.best, found.starts))
    return Maximised(images, best, starts, from_example.numpy())


@dataclass
class _Found:
    images: Tensor
    best: Tensor
    starts: Tensor


def _ascend(
    model: nn.Module,
    path: str,
    units: Tensor,
    parameters: Tensor,
    draw: Callable[[Tensor], Tensor],
    rate: float,
    moving: int,
    settling: int,
    moved: Callable[[Tensor], Tensor],
) -> _Found:
    """`moving` steps on images as `moved` gives them, then `settling` on images as they are, of which the best is kept;
    its response is what each such step begins with, so that it costs no pass."""
    parameters = parameters.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=rate)
    with torch.no_grad():
        images = draw(parameters)
        starts = _respond(model, path, images, units)
        best = torch.full_like(starts, -math.inf)
    for step in range(moving + settling + 1):
        last = step == moving + settling
        with torch.set_grad_enabled(not last):
            image = draw(parameters)
            response = _respond(model, path, moved(image) if step < moving else image, units)
        if step >= moving:
            with torch.no_grad():
                better = (response > best) | response.isnan()
                images[better], best[better] = image[better], response[better]
        if not last:
            optimizer.zero_grad()
            (-response.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return _Found(images, best, starts)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Its parameters take no gradients inside."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


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
        found: Floats = averaged(_output(model, path, inputs)).float().numpy()
    return found


def averaged(output: Tensor) -> Tensor:
    """Responses `[n, units]` from a layer's output: over positions of [n, C, ...], over tokens of [n, T, D]."""
    return output if output.ndim == 2 else output.mean(1) if output.ndim == 3 else output.flatten(2).mean(2)


def _respond(model: nn.Module, path: str, images: Tensor, units: Tensor) -> Tensor:
    """Response of unit i to image i."""
    output = averaged(_output(model, path, images))
    if int(units.max()) >= output.shape[1] or int(units.min()) < 0:
        raise SpecError(f"'{path}' has units 0 to {output.shape[1] - 1}, but got {units.tolist()}")
    return output[torch.arange(len(units)), units]


class _Reached(Exception):
    """What lies behind the layer need not be computed."""


def _output(model: nn.Module, path: str, inputs: Tensor) -> Tensor:
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: object) -> None:
        found.append(first_tensor(output, path))
        raise _Reached

    handle = model.get_submodule(path).register_forward_hook(keep)
    try:
        model(inputs)
    except _Reached:
        pass
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
        h, w = shape[1:]
        spectrum = torch.view_as_complex(parameters) * _weights(h, w)
        raw = torch.fft.irfft2(spectrum, s=(h, w), norm="ortho")
    else:
        raw = parameters
    return low + (high - low) * torch.sigmoid(raw)


def _parameters(images: Tensor, basis: Basis, limits: tuple[float, float]) -> Tensor:
    """Parameters of images `[n, C, H, W]`: `_image` gives these again, a little less bright and dark."""
    low, high = limits
    raw = torch.logit((images.detach() - low) / (high - low), eps=INSIDE)
    if basis == "pixels":
        return raw
    h, w = images.shape[2:]
    return torch.view_as_real(torch.fft.rfft2(raw, norm="ortho") / _weights(h, w))


def _weights(h: int, w: int) -> Tensor:
    """What the amplitudes `[h, w // 2 + 1]` of the Fourier basis are scaled by: 1 / frequency."""
    rows, columns = torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)[None]
    frequency = torch.sqrt(rows**2 + columns**2).clamp_min(1.0 / max(h, w))
    return math.sqrt(h * w) / frequency / max(h, w)
