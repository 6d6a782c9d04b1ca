"""Series whose truth is known: null families without any event, and planted ones. Every parameter and seed is here.

All series are `[count, n]` float64. Series i of a family is drawn from a Philox generator keyed by (family, i): the
same however many are asked for, in any order or process. Noise has marginal SD 1, unless a family says otherwise;
an amplitude is in units of that SD (the SNR), and a width is the 10-90 % rise. An event is a change within a window
that exceeds what a locally smooth trend plus stationary autocorrelated noise gives: the null families hold none.
Parameters were chosen where the null counts of `BASELINE` are reproduced.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit

from ndt_ray.errors import SpecError, did_you_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LENGTH = 400
"""Measurements in a series, as in most of the founding study's."""
SEED = "ndt-ray validity 1"
"""Part of every key: another battery is another string."""

# -- parameters of the null families ---------------------------------------------------------------------------------

PHI_MILD, PHI_STRONG = 0.5, 0.9
DRIFT = 32.0
"""Rise of the linear drift over the whole series, in noise SDs."""
RELAXATION = (30.0, 0.15)
"""Amplitude in noise SDs and time constant as a share of the series: exponential relaxation from the initialisation."""
COLLAPSE = 3.0
"""The SD of the decaying-variance family falls by e^-3 = 1/20 over the series."""
T_DEGREES = 3.0
LOSS = (0.2, 2.1, 0.05, 0.8, 0.05)
"""Loss-like: floor + drop · (1 + t / τ)^-a with τ as a share of the series, and noise of 5 % of the level."""
QUANTISED = (40.0, 0.75, 0.5)
"""Level, SD in quanta and φ of an AR(1) that is rounded to whole numbers (as energy-90 is)."""

FAST, SLOW, SLOW_WIDTH = 0.05, 0.4, 0.6
"""Time constants and a 10-90 % width, as shares of the series, of further smooth curves."""
AR2, PHI_NEAR, GROWTH = (1.2, -0.5), 0.97, 3.0
SMOOTH_ROOT, SLOW_ROOT, OVER = 0.9, 0.97, 0.05
"""Double roots of noise that wanders smoothly, and the SD of independent noise over the slower one."""
LENGTHS = (0.02, 0.08)
"""Correlation lengths of the Gaussian processes (squared-exponential), as shares of the series."""

# -- parameters of the planted truths --------------------------------------------------------------------------------

SNRS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0)
PHIS = (0.0, 0.5)
WIDTHS = (20.0, 60.0)
"""10-90 % widths of the planted sigmoids, in measurements."""
KINK_SPAN = 60.0
"""A kink departs from its continued line by one amplitude within this many measurements."""
MARGIN = 0.2
"""No planted event lies in the first or last fifth of a series."""
SEVERAL, GAP = 3, 50
"""Steps in a series of `several`, and the least distance between two of them."""
OVERLAP = (60.0, 30.0)
"""Width of a sigmoid, and the distance of its middle to a step of the same amplitude that overlaps it."""
STEP_TOLERANCE = 5.0
"""Matching tolerance of a step, in measurements; of wider events it is half the width."""


def generator(*key: object) -> np.random.Generator:
    """The Philox generator of one series: its key is the first 128 bits of the SHA-256 of the parts and `SEED`."""
    digest = hashlib.sha256("\x1f".join(map(str, (SEED, *key))).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))


def normals(key: str, count: int, n: int, first: int = 0) -> Floats:
    """Independent N(0, 1), `[count, n]`: row i is that of series `first + i` of the family `key`."""
    drawn = np.empty((count, n))
    for i in range(count):
        generator(key, first + i).standard_normal(out=drawn[i])
    return drawn


def autoregressive(white: Floats, phi: float) -> Floats:
    """Stationary AR(1) of marginal SD 1 from N(0, 1) innovations `[count, n]`."""
    scaled = white.copy()
    scaled[:, 1:] *= np.sqrt(1 - phi * phi)
    return cast(Floats, lfilter([1.0], [1.0, -phi], scaled, axis=-1))


def _time(n: int) -> Floats:
    return np.arange(n) / n


def _iid(count: int, n: int, first: int) -> Floats:
    return normals("iid", count, n, first)


def _ar1_mild(count: int, n: int, first: int) -> Floats:
    return autoregressive(normals("ar1_mild", count, n, first), PHI_MILD)


def _ar1_strong(count: int, n: int, first: int) -> Floats:
    return autoregressive(normals("ar1_strong", count, n, first), PHI_STRONG)


def _random_walk(count: int, n: int, first: int) -> Floats:
    return np.cumsum(normals("random_walk", count, n, first), axis=-1)


def _drift(count: int, n: int, first: int) -> Floats:
    return DRIFT * _time(n) + normals("drift", count, n, first)


def _relaxation(count: int, n: int, first: int) -> Floats:
    amplitude, constant = RELAXATION
    return amplitude * np.exp(-_time(n) / constant) + normals("relaxation", count, n, first)


def _decaying_variance(count: int, n: int, first: int) -> Floats:
    return cast(Floats, np.exp(-COLLAPSE * _time(n)) * normals("decaying_variance", count, n, first))


def _student_t(count: int, n: int, first: int) -> Floats:
    drawn = np.empty((count, n))
    for i in range(count):
        drawn[i] = generator("student_t", first + i).standard_t(T_DEGREES, n)
    return drawn / float(np.sqrt(T_DEGREES / (T_DEGREES - 2)))


def _loss_like(count: int, n: int, first: int) -> Floats:
    floor, drop, constant, power, share = LOSS
    level = floor + drop * (1 + _time(n) / constant) ** -power
    return level * (1 + share * normals("loss_like", count, n, first))


def _quantised(count: int, n: int, first: int) -> Floats:
    level, sd, phi = QUANTISED
    return cast(Floats, np.rint(level + sd * autoregressive(normals("quantised", count, n, first), phi)))


# Series that no requirement names. They bound what the requirements show: other trends, other memories.


def _fast_relaxation(count: int, n: int, first: int) -> Floats:
    return RELAXATION[0] * np.exp(-_time(n) / FAST) + normals("fast_relaxation", count, n, first)


def _slow_relaxation(count: int, n: int, first: int) -> Floats:
    return RELAXATION[0] * np.exp(-_time(n) / SLOW) + normals("slow_relaxation", count, n, first)


def _half_cosine(count: int, n: int, first: int) -> Floats:
    return RELAXATION[0] / 2 * (1 + np.cos(np.pi * _time(n))) + normals("half_cosine", count, n, first)


def _slow_sigmoid(count: int, n: int, first: int) -> Floats:
    scaled = (_time(n) - 0.5) * (2 * np.log(9) / SLOW_WIDTH)
    return cast(Floats, RELAXATION[0] * expit(scaled) + normals("slow_sigmoid", count, n, first))


def _logarithm(count: int, n: int, first: int) -> Floats:
    rise = np.log1p(np.arange(n)) / np.log(n)
    return cast(Floats, RELAXATION[0] * rise + normals("logarithm", count, n, first))


def _ar2(count: int, n: int, first: int) -> Floats:
    """Stationary from the start: 200 measurements are dropped, and what is left has SD 1."""
    (a, b), burn = AR2, 200
    drawn = lfilter([1.0], [1.0, -a, -b], normals("ar2", count, n + burn, first), axis=-1)[:, burn:]
    variance = (1 - b) / ((1 + b) * ((1 - b) ** 2 - a * a))
    return cast(Floats, drawn / np.sqrt(variance))


def _heavy_ar1(count: int, n: int, first: int) -> Floats:
    drawn = np.empty((count, n))
    for i in range(count):
        drawn[i] = generator("heavy_ar1", first + i).standard_t(T_DEGREES, n)
    return autoregressive(drawn / float(np.sqrt(T_DEGREES / (T_DEGREES - 2))), PHI_MILD)


def _near_unit_root(count: int, n: int, first: int) -> Floats:
    return autoregressive(normals("near_unit_root", count, n, first), PHI_NEAR)


def _drifting_ar1(count: int, n: int, first: int) -> Floats:
    return DRIFT * _time(n) + autoregressive(normals("drifting_ar1", count, n, first), PHI_STRONG)


def _growing_variance(count: int, n: int, first: int) -> Floats:
    return GROWTH ** _time(n) * normals("growing_variance", count, n, first)


def _double_root(name: str, root: float, count: int, n: int, first: int) -> Floats:
    """Noise of marginal SD 1 whose autoregression has the same root twice; 1,000 measurements are dropped."""
    drawn = lfilter([1.0], np.poly([root, root]), normals(name, count, n + 1000, first), axis=-1)[:, 1000:]
    return cast(Floats, drawn * np.sqrt((1 - root**2) ** 3 / (1 + root**2)))


def _smooth_wander(count: int, n: int, first: int) -> Floats:
    return _double_root("smooth_wander", SMOOTH_ROOT, count, n, first)


def _wander_under_noise(count: int, n: int, first: int) -> Floats:
    slow = _double_root("wander_under_noise", SLOW_ROOT, count, n, first)
    return slow + OVER * normals("noise over wander", count, n, first)


def _gaussian_process(name: str, length: float, count: int, n: int, first: int) -> Floats:
    """Squared-exponential, with independent noise of 1/1000 of its SD, which float32 would give it too."""
    apart = (_time(n)[:, None] - _time(n)) / length
    root = np.linalg.cholesky(np.exp(-(apart**2) / 2) + 1e-6 * np.eye(n))
    # Not by BLAS: which kernel it picks, and so the last bit, depends on how many series are asked for.
    return np.asarray(np.einsum("ij,kj->ik", normals(name, count, n, first), root))


def _smoother_wander(count: int, n: int, first: int) -> Floats:
    return _gaussian_process("smoother_wander", LENGTHS[0], count, n, first)


def _long_wander(count: int, n: int, first: int) -> Floats:
    return _gaussian_process("long_wander", LENGTHS[1], count, n, first)


@dataclass(frozen=True)
class Null:
    """A family of series without events. `may_be_marked`: a detector may decline to judge it (no p, no q)."""

    name: str
    about: str
    draw: Callable[[int, int, int], Floats]
    may_be_marked: bool = False


NULLS: dict[str, Null] = {
    null.name: null
    for null in (
        Null("iid", "independent Gaussian noise", _iid),
        Null("ar1_mild", "AR(1), φ = 0.5", _ar1_mild),
        Null("ar1_strong", "AR(1), φ = 0.9", _ar1_strong),
        Null("random_walk", "a random walk (unit root)", _random_walk, may_be_marked=True),
        Null("drift", "linear drift of 32 noise SDs", _drift),
        Null("relaxation", "exponential relaxation of 30 noise SDs, time constant 15 % of the series", _relaxation),
        Null(
            "decaying_variance", "noise whose SD falls to 1/20 over the series", _decaying_variance, may_be_marked=True
        ),
        Null("student_t", "independent Student-t noise, 3 degrees of freedom", _student_t),
        Null("loss_like", "a power-law loss curve with noise of 5 % of its level", _loss_like),
        Null("quantised", "AR(1), φ = 0.5, of SD 0.75, rounded to whole numbers", _quantised),
    )
}
OTHERS: dict[str, Null] = {
    null.name: null
    for null in (
        Null(
            "fast_relaxation",
            "exponential relaxation of 30 noise SDs, time constant 5 % of the series",
            _fast_relaxation,
        ),
        Null("slow_relaxation", "the same, time constant 40 %", _slow_relaxation),
        Null("half_cosine", "half a cosine of 30 noise SDs, as learning-rate schedules have it", _half_cosine),
        Null("slow_sigmoid", "a sigmoid of 30 noise SDs whose 10-90 % rise takes 60 % of the series", _slow_sigmoid),
        Null("logarithm", "a rise of 30 noise SDs with the logarithm of time", _logarithm),
        Null("ar2", "AR(2) with coefficients 1.2 and -0.5 (damped oscillation)", _ar2),
        Null("heavy_ar1", "AR(1), φ = 0.5, Student-t innovations of 3 degrees of freedom", _heavy_ar1),
        Null("near_unit_root", "AR(1), φ = 0.97", _near_unit_root, may_be_marked=True),
        Null("drifting_ar1", "AR(1), φ = 0.9, on a linear drift of 32 noise SDs", _drifting_ar1),
        Null("growing_variance", "noise whose SD grows threefold over the series", _growing_variance),
        Null("smooth_wander", "noise that wanders smoothly: two roots of 0.9", _smooth_wander),
        Null("wander_under_noise", "two roots of 0.97, under independent noise of 1/20 of it", _wander_under_noise),
        Null("smoother_wander", "a Gaussian process of length 2 % of the series", _smoother_wander),
        Null("long_wander", "the same, of length 8 %", _long_wander, may_be_marked=True),
    )
}
"""Families on which nothing is required: they show how far the detector can be trusted beyond."""
CALIBRATED = tuple(name for name, null in NULLS.items() if not null.may_be_marked)
"""Families on which a detector has to hold its level."""
RATES = tuple(name for name in CALIBRATED if name not in ("drift", "quantised"))
"""Those on which it has to where it takes them for rates (velocities), which neither rise for good nor are counted."""

BASELINE: dict[str, tuple[float, float, float]] = {
    "iid": (22.1, 1.9, 0.05),
    "ar1_mild": (21.8, 2.6, 12.7),
    "ar1_strong": (40.2, 5.3, 32.5),
    "random_walk": (63.0, 7.8, 37.2),
    "drift": (63.2, 4.0, 15.2),
    "relaxation": (24.8, 1.7, 11.9),
    "decaying_variance": (8.6, 0.3, 16.6),
    "student_t": (23.2, 8.5, 2.3),
}
"""Alarms per series of 400 measured once before (40 series each): rolling z > 2, rolling z > 3, PELT at 2 σ² ln n."""


def null(name: str, count: int, n: int = LENGTH, first: int = 0) -> Floats:
    """Series `first` … `first + count - 1` of a null family, `[count, n]`; SpecError for an unknown name."""
    known = {**NULLS, **OTHERS}
    if name not in known:
        raise SpecError(f"unknown null family '{name}'{did_you_mean(name, known)}")
    return known[name].draw(count, n, first)


@dataclass(frozen=True)
class Truths:
    """The events planted in `count` series, `[count, events]` each; `kind` names the columns.

    `location`: middle of the change, in measurements (a step between k - 1 and k is at k - 0.5; a kink is at its
    corner). `width`: 10-90 % rise, 0 for steps, `KINK_SPAN` for kinks. `size`: signed change in noise SDs.
    """

    location: Floats
    width: Floats
    size: Floats
    kind: tuple[str, ...]

    @property
    def tolerance(self) -> Floats:
        """How far a found event may lie from a true one: half its width, `STEP_TOLERANCE` for steps."""
        return np.maximum(self.width / 2, STEP_TOLERANCE)


@dataclass(frozen=True)
class Planted:
    """Series `[count, n]` with their truths."""

    values: Floats
    truths: Truths


@dataclass(frozen=True)
class Shape:
    """One kind of planted truth. `bar`: whether recall ≥ 0.95 at SNR 8 is asked of it."""

    name: str
    about: str
    bar: bool = False


PLANTED: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("step", "one step", bar=True),
        Shape("sigmoid_20", "one sigmoid, 10-90 % in 20 measurements", bar=True),
        Shape("sigmoid_60", "one sigmoid, 10-90 % in 60 measurements", bar=True),
        Shape("kink", "one change of slope"),
        Shape("several", "three steps at least 50 measurements apart"),
        Shape("overlapping", "a sigmoid of width 60 and a step 30 measurements after its middle"),
        Shape("step_on_drift", "one step on a linear drift of 32 noise SDs"),
        Shape("step_on_relaxation", "one step on an exponential relaxation of 30 noise SDs"),
    )
}


def planted(name: str, snr: float, phi: float, count: int, n: int = LENGTH, first: int = 0) -> Planted:
    """Series of one shape at one SNR on AR(1) noise; noise, places and signs are those of every other SNR.

    SpecError for an unknown name, a φ outside ±1, or a series too short for what is planted (under 250 measurements).
    """
    if name not in PLANTED:
        raise SpecError(f"unknown planted truth '{name}'{did_you_mean(name, PLANTED)}")
    if not -1 < phi < 1:
        raise SpecError(f"a stationary AR(1) needs -1 < phi < 1, but got ({phi=})")
    if n < 250:
        raise SpecError(f"planted truths need series of at least 250 measurements, but got ({n=})")
    key = f"planted {name} {phi}"
    noise = autoregressive(normals(f"{key} noise", count, n, first), phi)
    truths = _places(name, key, count, n, first)
    t = np.arange(n, dtype=np.float64)
    signal = np.zeros((count, n))
    for e, kind in enumerate(truths.kind):
        middle, sign = truths.location[:, e, None], truths.size[:, e, None]
        if kind == "step":
            signal += sign * (t >= middle)
        elif kind == "sigmoid":
            # A logistic of scale s rises from 10 to 90 % within 2 ln 9 · s.
            signal += sign * expit((t - middle) * (2 * np.log(9) / truths.width[:, e, None]))
        else:
            signal += sign * np.maximum(0, t - middle) / KINK_SPAN
    background = np.zeros(n)
    if name == "step_on_drift":
        background = DRIFT * _time(n)
    elif name == "step_on_relaxation":
        background = RELAXATION[0] * np.exp(-_time(n) / RELAXATION[1])
    scaled = Truths(truths.location, truths.width, snr * truths.size, truths.kind)
    return Planted(background + snr * signal + noise, scaled)


def _places(name: str, key: str, count: int, n: int, first: int) -> Truths:
    """Where the events lie, how wide they are, and their signs as sizes of ±1."""
    low, high = MARGIN * n, (1 - MARGIN) * n
    kinds = {
        "sigmoid_20": ("sigmoid",),
        "sigmoid_60": ("sigmoid",),
        "kink": ("kink",),
        "several": ("step",) * SEVERAL,
        "overlapping": ("sigmoid", "step"),
    }.get(name, ("step",))
    location = np.empty((count, len(kinds)))
    sign = np.empty((count, len(kinds)))
    for i in range(count):
        rng = generator(f"{key} truth", first + i)
        if name == "several":
            # Uniform among all placements with gaps: place in what the gaps leave, then put them back.
            free = np.sort(rng.uniform(low, high - (SEVERAL - 1) * GAP, SEVERAL))
            location[i] = free + GAP * np.arange(SEVERAL)
        elif name == "overlapping":
            location[i] = rng.uniform(low, high - OVERLAP[1]) + np.array([0, OVERLAP[1]])
        else:
            location[i] = rng.uniform(low, high)
        sign[i] = 2 * rng.integers(0, 2, len(kinds)) - 1
    widths = {
        "sigmoid_20": (WIDTHS[0],),
        "sigmoid_60": (WIDTHS[1],),
        "kink": (KINK_SPAN,),
        "overlapping": (OVERLAP[0], 0),
    }
    width = np.broadcast_to(np.array(widths.get(name, (0.0,) * len(kinds))), location.shape)
    steps = np.array([kind == "step" for kind in kinds])
    location[:, steps] = np.ceil(location[:, steps]) - 0.5
    return Truths(location, width.astype(np.float64), sign, kinds)


# -- families of series, for the false discovery rate ----------------------------------------------------------------

FAMILY_SIZE = 40
TRUE_SHARES = (0.0, 0.1, 0.5)
FAMILY_SNR = 8.0
FAMILY_SHAPES = ("step", "sigmoid_20", "sigmoid_60")
BEYOND = 10**6
"""Noise under planted events is that of series from here on in each null family: never one of the null series."""


def in_nulls(count: int, n: int = LENGTH, first: int = 0) -> Planted:
    """Series of the calibrated null families in turn, each with one event of `FAMILY_SNR` times its own noise's SD.

    Series i has the noise of series `BEYOND` + i // 8 of null family i mod 8; shape, place and sign are drawn by i.
    """
    values = np.empty((count, n))
    location, width, amplitude = np.empty((count, 1)), np.zeros((count, 1)), np.empty((count, 1))
    t = np.arange(n, dtype=np.float64)
    for row, i in enumerate(range(first, first + count)):
        source = CALIBRATED[i % len(CALIBRATED)]
        rng = generator("in_nulls", i)
        shape = FAMILY_SHAPES[int(rng.integers(len(FAMILY_SHAPES)))]
        place, sign = rng.uniform(MARGIN * n, (1 - MARGIN) * n), 2 * int(rng.integers(0, 2)) - 1
        amplitude[row] = sign * FAMILY_SNR * _noise_sd(source, place / n)
        values[row] = null(source, 1, n, BEYOND + i // len(CALIBRATED))[0]
        if shape == "step":
            location[row] = np.ceil(place) - 0.5
            values[row] += amplitude[row] * (t >= place)
        else:
            location[row], width[row] = place, float(shape.rpartition("_")[2])
            values[row] += amplitude[row] * expit((t - place) * (2 * np.log(9) / width[row]))
    return Planted(values, Truths(location, width, amplitude, ("mixed",)))


def composition(share: float, index: int, size: int = FAMILY_SIZE) -> tuple[list[tuple[str, int]], list[int]]:
    """Which series family `index` of the simulation with this share of true events holds: null ones, and true ones.

    Null series by (null family, number), the calibrated families in turn; true ones by their number in `in_nulls`. No
    series is in two families of one share, so that these are independent.
    """
    true = round(share * size)
    numbers = range(index * (size - true), (index + 1) * (size - true))
    return (
        [(CALIBRATED[k % len(CALIBRATED)], k // len(CALIBRATED)) for k in numbers],
        list(range(index * true, (index + 1) * true)),
    )


def _noise_sd(name: str, phase: float) -> float:
    """Marginal SD of a family's noise at a share of the series."""
    if name == "loss_like":
        floor, drop, constant, power, share = LOSS
        return float(share * (floor + drop * (1 + phase / constant) ** -power))
    return QUANTISED[1] if name == "quantised" else 1.0
