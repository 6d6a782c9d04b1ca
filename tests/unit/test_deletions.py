"""Measures without blocks of stimuli: equal to measuring what is left, right about the error of a planted change."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ndt_ray.analysis.events.described import Blocks, Change, Deletions, Run
from ndt_ray.measurement.deletions import without_blocks
from ndt_ray.measurement.measures import NAMES, all_measures
from ndt_ray.measurement.rows import rows
from ndt_ray.measurement.spectra import Layer, measure_layers

# More rows than features and fewer, with a remainder and without, and fewer stimuli than blocks.
SHAPES = [(50, 1, 20), (50, 1, 80), (64, 1, 100), (40, 5, 6), (5, 3, 40), (6, 1, 4)]


def layer(shape: tuple[int, int, int]) -> Layer:
    kind = "units" if shape[1] == 1 else "tokens"
    return Layer("a", 2, kind, kind)


def activations(shape: tuple[int, int, int], lanes: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(lanes, *shape, generator=generator) * torch.linspace(1, 0.1, shape[2]) + 2
    return x[:, :, 0] if shape[1] == 1 else x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_are_what_measuring_the_rest_gives(shape: tuple[int, int, int]) -> None:
    x = activations(shape)
    lane, found = without_blocks({"a": x}, [layer(shape)])
    assert found["block"] == list(range(min(16, shape[0]))) and set(found["layer_index"]) == {2} and not lane.any()
    for place, block in enumerate(found["block"]):
        kept = [a for a in range(shape[0]) if a % 16 != block]
        alone = rows(measure_layers({"a": x[:, kept]}, [layer(shape)]), "none").measurements
        assert found["n_stimuli"][place] == len(kept)
        for name in (*NAMES, *(f"{n}_uncentred" for n in NAMES)):
            assert found[name][place] == pytest.approx(alone[name][0], rel=1e-6, nan_ok=True), name


def test_a_lanes_bits_are_its_own_and_what_cannot_be_measured_is_null() -> None:
    shape = SHAPES[0]
    x = activations(shape, lanes=3)
    x[1] = 4.0
    x[2, 7, 3] = torch.inf
    lane, together = without_blocks({"a": x}, [layer(shape)])
    _, alone = without_blocks({"a": x[:1]}, [layer(shape)])
    for name in NAMES:
        assert np.array_equal(together[name][lane == 0], alone[name], equal_nan=True)
        assert np.isnan(together[name][lane == 1]).all()
    assert np.isfinite(together["stable_rank_uncentred"][lane == 1]).all()
    assert np.isnan(together["stable_rank_uncentred"][lane == 2]).all()
    assert without_blocks({"a": x[:, :3]}, [layer(shape)])[0].size == 0


@pytest.mark.slow
def test_intervals_cover_a_planted_change_and_its_snr_is_that_of_other_probes() -> None:
    """Over 80 probes of 96 stimuli: three of ten directions grow by half between two steps, the stimuli stay.

    The error is compared with the SD of the change over probes, and of one probe with a jackknife over single stimuli.
    """
    generator, draws, n = torch.Generator().manual_seed(3), 80, 96
    scale = torch.cat([torch.tensor([3.0]), torch.linspace(1.5, 0.3, 9)]).double()
    grown = scale * torch.tensor([1.0] * 7 + [1.5] * 3)
    measures = [m for m in NAMES if m != "power_law_alpha"]  # undefined on ten directions
    changes: dict[str, list[Change]] = {m: [] for m in measures}
    sizes: dict[str, list[float]] = {m: [] for m in measures}
    for _ in range(draws):
        z = torch.randn(n, 10, generator=generator, dtype=torch.float64)
        confirm, left = probe([(z * scale)[None], (z * grown)[None]])
        for m in measures:
            sizes[m].append(float(confirm[1][m][0] - confirm[0][m][0]))
            changes[m].append(Blocks(np.array([10, 20]), np.stack([left[0][m], left[1][m]])).change(10, 20))
    for m in measures:
        truth, spread = np.mean(sizes[m]), np.std(sizes[m], ddof=1)
        ratio = np.sqrt(np.mean([c.error**2 for c in changes[m]])) / spread
        halves = [c.half_width(c.error) for c in changes[m]]
        covered = np.mean([abs(size - truth) <= half for size, half in zip(sizes[m], halves, strict=True)])
        if m == "energy_90":  # whole numbers: its error is of whole numbers too, and coarse rather than small
            assert ratio > 0.5
            continue
        assert 0.75 < ratio < 1.33 and covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / draws), (m, ratio, covered)
    known = Run(pd.DataFrame(), pd.DataFrame(), frame(confirm), {}, Deletions(frame(left), {}), 100)
    for m in measures:
        row, snr, source = known.confirmed(2, "units", m, 10, 20, 0, 1.0)
        error = changes[m][-1].error
        assert row["confirm_size"] == pytest.approx(sizes[m][-1])
        if error == 0:
            assert (snr, source) == (None, "no_spread")
            continue
        assert source == "confirm" and snr == pytest.approx(abs(sizes[m][-1]) / error)
        assert row["confirm_lo"] < row["confirm_size"] < row["confirm_hi"]
        assert row["confirm_relative_lo"] < row["confirm_relative"] < row["confirm_relative_hi"]
        if m != "energy_90":
            assert snr == pytest.approx(abs(sizes[m][-1]) / over_stimuli(z, scale, grown, m), rel=0.6), m


def probe(at: list[torch.Tensor]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Columns of `confirmations`, and of `confirmation_blocks`, of one layer at each of some states."""
    shape = (at[0].shape[1], 1, at[0].shape[2])
    whole = [rows(measure_layers({"a": x}, [layer(shape)]), "none").measurements for x in at]
    return whole, [without_blocks({"a": x}, [layer(shape)])[1] for x in at]


def frame(at: list[dict[str, Any]]) -> pd.DataFrame:
    """Of steps 10, 20, …"""
    return pd.concat([pd.DataFrame(c).assign(step=10 * (i + 1)) for i, c in enumerate(at)], ignore_index=True)


def over_stimuli(z: torch.Tensor, before: torch.Tensor, after: torch.Tensor, measure: str) -> float:
    """The paired error of the change by leaving out one stimulus after the other, from singular values."""
    n, found = len(z), []
    for a in range(n):
        kept = np.delete(z.numpy(), a, axis=0)
        values = []
        for scale in (before, after):
            x = kept * scale.numpy()
            values.append(all_measures(np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2)[measure])
        found.append(float(values[1] - values[0]))
    centred = np.array(found) - np.mean(found)
    return float(np.sqrt((n - 1) / n * (centred**2).sum()))


def test_runs_from_before_there_were_blocks_have_those_of_their_spectra() -> None:
    old = Deletions(pd.DataFrame(), {(0, "units"): Blocks(np.array([5, 9]), np.arange(32.0).reshape(2, 16))})
    held = old.of(0, "units", "participation_ratio")
    assert held is not None and held.change(5, 9).size == 16 and held.change(5, 9).error == 0
    assert old.of(0, "units", "stable_rank") is None and old.of(1, "units", "participation_ratio") is None
