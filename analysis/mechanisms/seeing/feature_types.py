"""A word for what is seen in an image, by measured properties: flat, edge, stripes, grid, blob, colour blob, dots,
corner, T-junction, curve, noise, or unresolved.

Orientation from the structure tensor, texture from the power spectrum, blobs by connected components. The words are a
rule, not a judgement: the numbers they come from are stored beside them, and `describe` of random images gives their
chance. In small images (under 8 pixels) nothing but flat and unresolved can be told.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from ndt_ray.errors import SpecError

Floats = NDArray[np.float64]
SMALLEST = 8
"""Pixels a side below which no texture can be told."""
FLAT = 0.02
"""Spread of the pixels, as a share of their range, below which there is nothing to see."""
ORIENTED = 0.5
"""Coherence of the structure tensor (0 isotropic, 1 one orientation) from which an image has an orientation."""
WHITE = 0.25
"""Spectral flatness (1: all frequencies alike) from which an image is noise; that of white noise is 0.56."""
STRIPES = 3
"""Crossings of the mean, along the direction of change, from which edges are stripes."""
COLOURED = 0.3
"""Spread between channels / spread of pixels from which a blob is a colour blob."""
THICK = 0.3
"""Largest distance to the outside / root of the area from which a region is a blob: a disc has 0.56, a line of length
7 widths 0.19."""
TWO = 0.2
"""Share of the gradient's energy that a second orientation, at least 45 degrees off, must have."""
OTHER = 0.35
"""Share of the energy outside both orientations, from which a thin region is a curve."""

HOLES, ALIKE = 4, 0.35
"""Meshes that a grid has at least, away from the border, and how much their areas may differ (SD / mean)."""


@dataclass(frozen=True)
class Seen:
    """One image: the word, and the numbers behind it. Angles in degrees, 0 a horizontal edge, counter-clockwise."""

    feature_type: str
    contrast: float
    coherence: float
    orientation: float
    spectral_slope: float
    flatness: float
    crossings: int
    blobs: int
    colour: float


def describe(image: ArrayLike, limits: tuple[float, float]) -> Seen:
    """An image `[C, H, W]` whose pixels lie within `limits`."""
    x = np.asarray(image, dtype=np.float64)
    if x.ndim != 3 or not limits[0] < limits[1] or not np.isfinite(x).all():
        raise SpecError(f"a finite image [C, H, W] and low < high are needed, but got {x.shape}, {limits}")
    colour = _colour(x, limits)
    gray = (_channel(x, colour) - limits[0]) / (limits[1] - limits[0])
    contrast = float(gray.std())
    if contrast < FLAT or min(gray.shape) < SMALLEST:
        word = "flat" if contrast < FLAT else "unresolved"
        return Seen(word, contrast, math.nan, math.nan, math.nan, math.nan, 0, 0, colour)
    coherence, orientation = _orientation(gray)
    slope, flatness = _spectrum(gray)
    crossings, blobs = _crossings(gray, orientation), _blobs(gray)
    word = _word(gray, coherence, flatness, crossings, blobs, colour)
    return Seen(word, contrast, coherence, orientation, slope, flatness, crossings, blobs, colour)


def _word(gray: Floats, coherence: float, flatness: float, crossings: int, blobs: int, colour: float) -> str:
    if coherence >= ORIENTED:
        return "stripes" if crossings >= STRIPES else "edge"
    if _grid(gray):
        return "grid"
    if flatness > WHITE:
        return "noise"
    if blobs == 1:
        region = _region(gray)
        thick = float(ndimage.distance_transform_edt(region).max()) / math.sqrt(max(int(region.sum()), 1))
        if thick >= THICK:
            return "colour blob" if colour >= COLOURED else "blob"
        first, second = _orientations(gray)
        if second >= TWO and 1 - first - second <= OTHER:
            return "T-junction" if _arms(gray, region) == 3 else "corner"
        return "curve"
    return "dots" if blobs >= 4 else "corner"


def row(seen: Seen) -> dict[str, object]:
    """As the columns of a table."""
    return asdict(seen)


def _colour(x: Floats, limits: tuple[float, float]) -> float:
    """Spread between channels / spread of pixels; 0 for one channel."""
    if len(x) == 1:
        return 0.0
    spread = float(x.std())
    return float((x - x.mean(0)).std()) / spread if spread > FLAT * (limits[1] - limits[0]) else 0.0


def _channel(x: Floats, colour: float) -> Floats:
    """Brightness; of a coloured image the mixture of channels that varies most, for colours may differ at one
    brightness."""
    if colour < COLOURED:
        return np.asarray(x.mean(0))
    flat = x.reshape(len(x), -1)
    weights = np.abs(np.linalg.svd(flat - flat.mean(1, keepdims=True), full_matrices=False)[0][:, 0])
    signs = np.sign((flat - flat.mean(1, keepdims=True)) @ (flat - flat.mean(1, keepdims=True))[weights.argmax()])
    mixed = np.tensordot(weights * signs, x, 1) / weights.sum()
    return np.asarray(mixed - mixed.mean() + x.mean())


def _region(gray: Floats) -> NDArray[np.bool_]:
    """The largest connected region that stands out, on the side that has fewer of at least 1 % of the image."""
    smooth = ndimage.gaussian_filter(gray, 1.0, mode="nearest")
    found: list[tuple[int, NDArray[np.bool_]]] = []
    for sign in (1, -1):
        labels, n = ndimage.label(sign * (smooth - smooth.mean()) > smooth.std())
        sizes = np.bincount(labels.ravel())[1 : n + 1]
        if (sizes >= 0.01 * gray.size).any():
            found.append((int((sizes >= 0.01 * gray.size).sum()), labels == 1 + int(sizes.argmax())))
    return min(found, key=lambda x: x[0])[1] if found else np.zeros(gray.shape, dtype=bool)


def _grid(gray: Floats) -> bool:
    """Whether lines that hang together span the image and leave meshes of one size."""
    away, deviation = gray - gray.mean(), gray.std()
    for sign in (1, -1):
        labels, _ = ndimage.label(sign * away > 0.25 * deviation)
        spans = any(
            rows.stop - rows.start >= 0.9 * gray.shape[0] and columns.stop - columns.start >= 0.9 * gray.shape[1]
            for rows, columns in ndimage.find_objects(labels)
        )
        if not spans:
            continue
        meshes, _ = ndimage.label(sign * away < 0)
        areas = np.bincount(meshes.ravel())[1:]
        border = np.unique(np.concatenate([meshes[0], meshes[-1], meshes[:, 0], meshes[:, -1]]))
        inner = np.delete(areas, border[border > 0] - 1)
        if len(inner) >= HOLES and inner.std() <= ALIKE * inner.mean():
            return True
    return False


def _orientations(gray: Floats) -> tuple[float, float]:
    """Shares of the gradient's energy within 22.5 degrees of its main orientation, and of the best one 45 or more off
    it."""
    dy, dx = np.gradient(ndimage.gaussian_filter(gray, 0.7, mode="nearest"))
    energy, bins = dx**2 + dy**2, 24
    place = np.floor((np.arctan2(dy, dx) % math.pi) / math.pi * bins).astype(int) % bins
    share = np.bincount(place.ravel(), energy.ravel(), bins) / max(float(energy.sum()), 1e-300)
    window = sum(np.roll(share, shift) for shift in range(-3, 4)) - (np.roll(share, 3) + np.roll(share, -3)) / 2
    first = int(np.argmax(window))
    away = np.abs((np.arange(bins) - first + bins // 2) % bins - bins // 2)
    return float(window[first]), float(window[away >= bins // 4].max())


def _arms(gray: Floats, region: NDArray[np.bool_]) -> int:
    """How many lines meet where orientations mix most: parts of a region on a circle around that place."""
    dy, dx = np.gradient(ndimage.gaussian_filter(gray, 0.7, mode="nearest"))
    size = min(gray.shape)
    xx, yy, xy = (ndimage.gaussian_filter(v, size / 12, mode="nearest") for v in (dx * dx, dy * dy, dx * dy))
    mixed = np.where(region, xx * yy - xy**2, -np.inf)
    y, x = np.unravel_index(int(mixed.argmax()), gray.shape)
    turns = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    at = np.round(y + size / 4 * np.sin(turns)), np.round(x + size / 4 * np.cos(turns))
    inside = (at[0] >= 0) & (at[0] < gray.shape[0]) & (at[1] >= 0) & (at[1] < gray.shape[1])
    on = np.zeros(64, dtype=bool)
    on[inside] = region[at[0][inside].astype(int), at[1][inside].astype(int)]
    return int((on & ~np.roll(on, 1)).sum())


def _orientation(gray: Floats) -> tuple[float, float]:
    """Coherence and angle of the structure tensor of the whole image (Bigün & Granlund 1987)."""
    smooth = ndimage.gaussian_filter(gray, 1.0, mode="nearest")
    dy, dx = np.gradient(smooth)
    jxx, jyy, jxy = float((dx * dx).sum()), float((dy * dy).sum()), float((dx * dy).sum())
    total = jxx + jyy
    if total == 0:
        return 0.0, math.nan
    coherence = math.hypot(jxx - jyy, 2 * jxy) / total
    # The gradient stands upright on the edge; rows count downwards.
    across = 0.5 * math.atan2(2 * jxy, jxx - jyy)
    return coherence, (math.degrees(-across) + 90.0) % 180.0


def _spectrum(gray: Floats) -> tuple[float, float]:
    """Slope of log power on log frequency (about -2 in natural images, 0 in white noise), and spectral flatness."""
    h, w = gray.shape
    window = np.hanning(h)[:, None] * np.hanning(w)[None]
    power = np.abs(np.fft.fft2((gray - gray.mean()) * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    known = (frequency > 1.5 / max(h, w)) & (frequency <= 0.5)
    rings = np.round(frequency[known] * max(h, w)).astype(int)
    counts = np.bincount(rings)
    at = np.flatnonzero(counts)
    mean = np.bincount(rings, power[known])[at] / counts[at]
    slope = float(np.polyfit(np.log(at), np.log(mean + 1e-30), 1)[0])
    return slope, float(np.exp(np.log(power[known] + 1e-30).mean()) / power[known].mean())


def _crossings(gray: Floats, orientation: float) -> int:
    """How often brightness, averaged along the orientation, goes from clearly above its mean to clearly below, or back.

    Clearly: by a quarter of its standard deviation.
    """
    if not math.isfinite(orientation):
        return 0
    h, w = gray.shape
    t = math.radians(orientation)
    across = np.arange(w)[None] * math.sin(t) + np.arange(h)[:, None] * math.cos(t)
    bins = np.round(across - across.min()).astype(int).ravel()
    counts = np.bincount(bins)
    profile = (np.bincount(bins, gray.ravel()) / np.maximum(counts, 1))[counts >= min(h, w) / 4]
    away = profile - profile.mean()
    sides = np.sign(away[np.abs(away) > 0.25 * away.std()])
    return int((np.diff(sides) != 0).sum())


def _blobs(gray: Floats) -> int:
    """Connected regions of at least 1 % of the image that stand out from the mean, on the side that has fewer."""
    smooth = ndimage.gaussian_filter(gray, 1.0, mode="nearest")
    counts = []
    for sign in (1, -1):
        labels, n = ndimage.label(sign * (smooth - smooth.mean()) > smooth.std())
        sizes = np.bincount(labels.ravel())[1 : n + 1]
        counts.append(int((sizes >= 0.01 * gray.size).sum()))
    found = [c for c in counts if c]
    return min(found) if found else 0
