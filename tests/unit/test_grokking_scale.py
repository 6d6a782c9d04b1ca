"""Metrics of structure at several scales on maps whose answer is known."""

import numpy as np
import pytest

from ndt_ray.analysis.mechanisms.grokking import scale
from ndt_ray.errors import SpecError

P = 113
A, B = np.ogrid[:P, :P]


def wave(k: float, axis: int = 0) -> np.ndarray:
    return np.cos(2 * np.pi * k * (A, B)[axis] / P) + 0.0 * A + 0.0 * B


def test_the_fft_ratio_is_one_up_to_the_radius_and_zero_beyond() -> None:
    maps = np.stack([wave(1), wave(14), wave(14, 1), wave(15), wave(56), np.full((P, P), 3.0)])
    assert scale.fft_ratio(maps) == pytest.approx([1, 1, 1, 0, 0, 0], abs=1e-9)


def test_an_offset_changes_nothing_without_the_constant_and_everything_with_it() -> None:
    maps = wave(30)[None] * 0.1
    assert scale.fft_ratio(maps + 100) == pytest.approx(scale.fft_ratio(maps), abs=1e-6)
    assert scale.fft_ratio(maps, dc=True) == pytest.approx([0], abs=1e-9)
    assert scale.fft_ratio(maps + 100, dc=True) == pytest.approx([1], abs=1e-4)


@pytest.mark.parametrize("shape", [(113, 113), (28, 28), (23, 31)])
def test_the_ratio_is_that_of_the_complex_fft(shape: tuple[int, int]) -> None:
    h, w = shape
    image = np.random.default_rng(0).random(shape)
    power = np.abs(np.fft.fftshift(np.fft.fft2(image))) ** 2
    y, x = np.ogrid[:h, :w]
    mask = (y - h // 2) ** 2 + (x - w // 2) ** 2 <= int(min(h, w) * 0.125) ** 2
    assert scale.fft_ratio(image[None], dc=True)[0] == pytest.approx(power[mask].sum() / power.sum())
    power[h // 2, w // 2] = 0
    assert scale.fft_ratio(image[None])[0] == pytest.approx(power[mask].sum() / power.sum())


def test_variance_survives_coarsening_only_at_low_frequency() -> None:
    board = (-1.0) ** (A + B)
    found = scale.variance_preservation(np.stack([wave(1), board, np.ones((P, P))]))
    assert found[0] > 0.9 and found[1] < 0.1 and found[2] == 0


def test_the_gradient_of_a_ramp_is_half_its_slope() -> None:
    ramp = 0.25 * A + 0.0 * B
    assert scale.gradient_magnitude(np.stack([ramp, np.ones((P, P))])) == pytest.approx([0.125, 0])
    assert scale.relative_gradient(np.stack([ramp, 7 * ramp]))[0] == pytest.approx(0.125 / (0.25 * 112))


def test_heads_of_the_founding_document_get_its_words() -> None:
    labels = scale.head_labels(np.array([0.014, 0.349, 0.969, 0.013]), np.array([0.324, 0.241, 0.094, 0.334]))
    assert labels == [
        "High-freq, variable intensity",
        "Mixed",
        "Low-freq, smooth uniform regions",
        "High-freq, most edge variation",
    ]
    assert scale.structure(float("nan"), 0.1) is None and scale.structure(0, 0) == "flat"


def test_waves_are_classified_by_their_frequency() -> None:
    maps = np.stack([wave(2) + wave(2, 1), wave(40) + wave(40, 1), wave(2) + wave(40, 1)])
    kinds = [
        scale.structure(float(f), float(g))
        for f, g in zip(scale.fft_ratio(maps), scale.relative_gradient(maps), strict=True)
    ]
    assert kinds == ["low_frequency", "high_frequency", "mixed"]


def test_regions_are_counted_on_the_torus() -> None:
    spots = np.zeros((28, 28))
    spots[5:9, 5:9] = spots[15:18, 15:18] = 1.0
    spots[26:, 10:14] = spots[:2, 10:14] = 1.0  # one region across the edge
    spots[22, 22] = 1.0  # too small to count
    count, area, largest = scale.blobs(spots[None])[0]
    assert count == 3 and area == pytest.approx((16 + 9 + 16) / 784) and largest == pytest.approx(16 / 784)
    assert scale.blobs(spots[None], wrap=False)[0, 0] == 4
    assert scale.blobs(np.ones((1, 28, 28)))[0].tolist() == [0, 0, 0]


def test_a_plane_wave_has_as_many_regions_as_periods_and_noise_many() -> None:
    assert scale.blobs(wave(3)[None])[0, 0] == 3
    noise = np.random.default_rng(0).random((8, P, P))
    assert scale.blobs(noise)[:, 0].mean() > 5


def test_maps_are_reduced_without_moving_their_mean() -> None:
    image = np.random.default_rng(0).random((2, P, P))
    for side in (28, 56):
        small = scale.downsampled(image, side)
        assert small.shape == (2, side, side) and small.mean() == pytest.approx(image.mean(), abs=0.02)
    assert scale.pooled(image, 8).shape == (2, 14, 14)


def test_a_single_map_needs_its_axis() -> None:
    with pytest.raises(SpecError, match=r"maps must be \[n, height, width\]"):
        scale.fft_ratio(np.zeros((5, 5)))


def test_coarseness_adds_the_first_frequencies() -> None:
    assert scale.coarseness(np.array([[0.2, 0.3, 0.1, 0.4]])) == pytest.approx([0.6])
