"""Control windows: what matches an event's window, and what must not."""

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.events.control_windows import COLUMNS, NETWORK, Tolerance, matched_windows, windows_of_all
from ndt_ray.errors import SpecError

STEPS, EVERY = 1000, 10
GRID = np.arange(0, STEPS + 1, EVERY)


def tables(
    update: np.ndarray | float = 0.01, lr: np.ndarray | float = 1e-3, trial: str = "t"
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """trials, dynamics and scalars of one trial with one layer that owns weights of norm 2."""
    n = len(GRID)
    update = np.broadcast_to(np.asarray(update, dtype=float), n).copy()
    update[0] = np.nan
    common = {"trial_id": trial, "step": GRID, "weight_norm": 2.0, "update_norm": update}
    dynamics = pd.DataFrame({**common, "layer": "a", "layer_index": 0})
    scalars = pd.DataFrame({**common, "lr": np.broadcast_to(np.asarray(lr, dtype=float), n)})
    return pd.DataFrame([{"trial_id": trial, "steps": STEPS}]), dynamics, scalars


def events(*windows: tuple[int, int], layer: str = "a", trial: str = "t") -> pd.DataFrame:
    columns = ["trial_id", "layer", "layer_index", "step_before", "step_after"]
    return pd.DataFrame([(trial, layer, 0, a, b) for a, b in windows], columns=columns)


def test_controls_have_the_events_length_and_phase_and_overlap_nothing() -> None:
    found = matched_windows(events((500, 520), (540, 560)), *tables(), most=None)
    assert list(found.columns) == list(COLUMNS)
    assert ((found["end"] - found["start"]) == 20).all()
    assert ((found["phase"] - found["event_phase"]).abs() <= 0.05 + 1e-12).all()
    for event, group in found.groupby("event"):
        windows = [(500, 520), (540, 560), *zip(group["start"], group["end"], strict=True)]
        for i, (a, b) in enumerate(windows):
            assert all(b <= c or a >= d for c, d in windows[i + 1 :]), (event, a, b)
    # 450..500 holds two and a half windows, 520..540 one, 560..570 none that begin within 5 %
    assert sorted(found.loc[found["event"] == 0, "start"]) == [460, 480, 520]
    assert found["displacement"].to_numpy() == pytest.approx(20 * 0.01 / 2)


def test_displacement_is_matched_to_twenty_percent_and_can_be_left_unmatched() -> None:
    update = np.where(GRID < 500, 0.01, 0.02)  # twice as far behind the middle
    wide = Tolerance(phase=0.2)
    found = matched_windows(events((440, 460)), *tables(update), tolerance=wide, most=None)
    assert len(found) and (found["end"] <= 500).all()
    ratio = found["displacement"] / found["event_displacement"]
    assert ((ratio - 1).abs() <= 0.2).all()
    loose = Tolerance(phase=0.2, displacement=np.inf)
    beside = matched_windows(events((440, 460)), *tables(update), tolerance=loose, most=None)
    assert len(beside) > len(found) and (beside["start"] >= 500).any()


def test_the_learning_rate_is_matched() -> None:
    lr = np.where(GRID < 500, 1e-3, 1e-4)
    found = matched_windows(events((480, 500)), *tables(lr=lr), tolerance=Tolerance(phase=0.1), most=None)
    assert len(found) and (found["end"] <= 500).all()
    assert found["lr"].to_numpy() == pytest.approx(1e-3, rel=0.05)


def test_the_nearest_displacements_come_first_and_guards_are_kept() -> None:
    update = 0.01 * (1 + 0.5 * GRID / STEPS)
    found = matched_windows(events((500, 510)), *tables(update), most=3, tolerance=Tolerance(guard=20))
    assert list(found["rank"]) == [0, 1, 2]
    off = (found["displacement"] / found["event_displacement"] - 1).abs()
    assert (np.diff(off) > -1e-9).all()
    assert ((found["start"] >= 530) | (found["end"] <= 480)).all()


def test_occupied_windows_of_other_events_are_avoided_but_not_those_of_other_layers() -> None:
    every = pd.concat([events((500, 510)), events((510, 560)), events((450, 500), layer="b")], ignore_index=True)
    found = matched_windows(events((500, 510)), *tables(), occupied=every, most=None)
    assert sorted(found["start"]) == [450, 460, 470, 480, 490]
    both = matched_windows(events((500, 510)), *tables(), occupied=every, most=None, tolerance=Tolerance(phase=0.07))
    assert {560, 570} & set(both["start"])


def test_a_layer_without_weights_is_matched_on_the_network() -> None:
    found = matched_windows(events((500, 510), layer="relu"), *tables())
    assert set(found["displacement_of"]) == {NETWORK}
    assert set(matched_windows(events((500, 510)), *tables())["displacement_of"]) == {"layer"}


def test_a_known_distance_replaces_the_path() -> None:
    def distance(trial: str, layer: str, a: int, b: int) -> float:
        assert (trial, layer, b - a) == ("t", "a", 10)
        return 1.0 if a < 500 else float("nan") if a == 510 else 0.5 if a > 500 else 1.1

    found = matched_windows(events((500, 510)), *tables(), displacement=distance, most=None)
    assert len(found) == 5 and (found["start"] < 500).all()


def test_nothing_to_match_gives_nothing() -> None:
    trials, dynamics, scalars = tables()
    none = matched_windows(pd.DataFrame(), trials, dynamics, scalars)
    assert none.empty and list(none.columns) == list(COLUMNS)
    assert matched_windows(events((500, 510)), trials, pd.DataFrame(), pd.DataFrame()).empty
    assert matched_windows(events((500, 510), trial="other"), trials, dynamics, scalars).empty
    assert matched_windows(events((990, 1010)), trials, dynamics, scalars).empty  # behind the last measurement
    still = tables(update=0.0)  # lr = 0: nothing moved, so no window moved as far
    assert matched_windows(events((500, 510)), *still).empty
    short = (trials, dynamics.head(1), scalars.head(1))
    assert matched_windows(events((0, 10)), *short).empty


def test_what_cannot_be_matched_is_told() -> None:
    trials, dynamics, scalars = tables()
    with pytest.raises(SpecError, match="lacks \\['lr'\\]"):
        matched_windows(events((500, 510)), trials, dynamics, scalars.drop(columns="lr"))
    with pytest.raises(SpecError, match="ends behind its start"):
        matched_windows(events((500, 500)), trials, dynamics, scalars)
    with pytest.raises(SpecError, match="step_before"):
        matched_windows(events((500, 510)).drop(columns="step_before"), trials, dynamics, scalars)


# -- windows of all seeds --------------------------------------------------------------------------------------------


def several(**updates: np.ndarray | float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    parts = [tables(update, trial=name) for name, update in updates.items()]
    return tuple(pd.concat(part, ignore_index=True) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def taken(*windows: tuple[str, int, int]) -> pd.DataFrame:
    rows = [(trial, "a", 0, start, end) for trial, start, end in windows]
    return pd.DataFrame(rows, columns=["trial_id", "layer", "layer_index", "start", "end"])


def test_a_window_of_all_seeds_is_free_and_matched_in_each_of_them() -> None:
    given = several(t=0.01, u=0.01)
    free = windows_of_all((500, 520), "a", *given, occupied=taken())
    assert free == [480, 520, 460, 540]  # nearest first where all moved as far; one from 560 on begins 6 % away
    busy = windows_of_all((500, 520), "a", *given, occupied=taken(("t", 455, 480), ("u", 545, 560)))
    assert busy == [480, 520]  # 460 is taken in one seed, 540 in the other: for both of them they are
    assert windows_of_all((500, 520), "a", *given, occupied=taken(), most=1) == [480]
    faster = np.where(GRID > 520, 0.013, 0.01)  # 30 % further behind 520, in one of the two
    assert windows_of_all((500, 520), "a", *several(t=0.01, u=faster), occupied=taken()) == [480, 460]
    closer = np.where(GRID > 520, 0.011, 0.01)  # 10 %: matched, but the others are closer
    assert windows_of_all((500, 520), "a", *several(t=0.01, u=closer), occupied=taken()) == [480, 460, 520, 540]


def test_a_window_that_one_seed_lacks_is_none() -> None:
    trials, dynamics, scalars = several(t=0.01, u=0.01)
    one = scalars[(scalars["trial_id"] == "t") | (scalars["step"] < 500)]
    cut = dynamics[(dynamics["trial_id"] == "t") | (dynamics["step"] < 500)]
    assert windows_of_all((500, 520), "a", trials, cut, one, occupied=taken()) == []
    assert (
        windows_of_all((500, 520), "a", trials, dynamics, scalars[scalars["trial_id"] == "t"], occupied=taken()) == []
    )
    assert windows_of_all((500, 520), "a", trials.iloc[:0], dynamics, scalars, occupied=taken()) == []
