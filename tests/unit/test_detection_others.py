"""Local contrasts and change points: what they find, and what they are known to report on noise."""

import importlib

import numpy as np
import pytest
from numpy.typing import NDArray

from ndt_ray.analysis.detection import make
from ndt_ray.analysis.detection.contrast import LocalContrast
from ndt_ray.errors import SpecError

STEPS = np.arange(400) * 5


def planted(size: float = 8.0, seed: int = 0) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).normal(size=400)
    values[250:] += size
    return values


@pytest.mark.parametrize("name", ["pelt", "binseg"])
def test_change_points_find_a_step_and_count_noise_with_memory(name: str) -> None:
    found = make(name)(STEPS, planted())
    assert found.step_before.tolist() == [1245] and found.step_after.tolist() == [1250]
    assert found.direction.tolist() == [1] and found.magnitude[0] == pytest.approx(8, abs=0.5)
    walk = np.cumsum(np.random.default_rng(1).normal(size=400))
    assert len(make(name)(STEPS, walk)) > 10  # as published: 37 in a random walk
    assert len(make(name)(STEPS, np.ones(400))) == 0 and len(make(name)(STEPS[:2], np.ones(2))) == 0


def test_the_kernel_s_optimum_is_pelt_s() -> None:
    ruptures = importlib.import_module("ruptures")
    values = planted(3.0, 5)[150:330]
    sigma = 1.4826 * np.median(np.abs(np.diff(values))) / np.sqrt(2)
    own = make("pelt")(np.arange(180), values)
    pelt = ruptures.Pelt(model="l2", jump=1, min_size=2).fit((values - values.mean()) / sigma)
    assert own.index.tolist() == pelt.predict(pen=2 * np.log(180))[:-1]


def test_without_ruptures_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str, *rest: str) -> object:
        if name == "ruptures":
            raise ImportError(name)
        return real(name, *rest)

    detector = make("pelt")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SpecError, match=r"pip install -e .\.\[changepoint\]"):
        detector(STEPS, planted())


def test_contrasts_find_steps_and_sigmoids_and_not_outliers() -> None:
    detector = LocalContrast(kinks=False)
    found = detector(STEPS, planted(12.0))
    assert found.index.tolist() == [250] and found.step_before[0] <= 1245 < 1250 <= found.step_after[0]
    t = np.arange(400)
    slow = np.random.default_rng(2).normal(size=400) + 12 / (1 + np.exp(-(t - 200) / 5))
    assert any(abs((a + b) / 2 - 1000) < 50 for a, b in zip(*_ends(detector(STEPS, slow)), strict=True))
    outlier = np.random.default_rng(3).normal(size=400)
    outlier[200] += 50
    assert len(detector(STEPS, outlier)) == 0
    assert len(detector(STEPS[:8], np.arange(8.0))) == 0 and len(detector(STEPS, np.ones(400))) == 0


def _ends(found: object) -> tuple[list[int], list[int]]:
    return found.step_before.tolist(), found.step_after.tolist()  # type: ignore[attr-defined]


def test_contrasts_of_many_series_are_those_of_each() -> None:
    series = np.stack([planted(12.0), planted(0.0, 7)])
    z, flagged = LocalContrast().scores(series)
    for row in range(2):
        one, flags = LocalContrast().scores(series[row])
        assert np.allclose(z[row], one) and (flagged[row] == flags).all()
    slope = LocalContrast(threshold=3.0).scores(np.arange(400.0))
    assert np.allclose(slope[0], 0, atol=1e-6) and not slope[1].any()
    with pytest.raises(SpecError, match="shares"):
        LocalContrast(shares=(0.5,))
