"""The figures: what they draw equals what the tables hold, and rows that cannot be drawn are refused with a reason."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from store_rows import local

from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.analysis.tables import JUMP_COUNTS, JUMPS
from ndt_ray.errors import NdtError, SpecError, StoreError
from ndt_ray.figures import (
    MAX_PANELS,
    accuracy_curves,
    band,
    counts_against_null,
    demo_figure,
    layer_step_heatmap,
    save,
    sweep_figure,
)
from ndt_ray.figures.heatmap import edges, layer_names, octaves
from ndt_ray.store.outputs import write_output
from ndt_ray.store.reader import Store
from ndt_ray.store.schema import register_table
from ndt_ray.store.writer import PackWriter

STEPS = np.array([0, 1, 2, 3, 10, 20, 30])
MLP = (("network.0", "units"), ("network.2", "units"), ("network.10", "units"))


def rows(
    cells: Mapping[str, Sequence[tuple[str, str]]], seeds: int = 3, steps: Any = STEPS, data: str = "digits"
) -> pd.DataFrame:
    """A participation ratio of 8 × 2^(layer × step / 30 + offset of the seed): relative to step 0, all seeds agree."""
    made = []
    for cell, layers in cells.items():
        for seed in range(seeds):
            of = {"trial_id": f"{cell}/{data}-{seed}", "cell": f"{cell}/{data}", "data": data, "seed": seed}
            of |= {"control": "none", "steps": 30, "probe_size": 128, "data_completeness": "complete"}
            for i, (layer, view) in enumerate(layers):
                value = 8 * 2 ** (i * np.asarray(steps) / 30 + seed)
                where = {"layer": layer, "layer_index": i, "view": view, "step": steps}
                made.append(pd.DataFrame({**of, **where, "participation_ratio": value, "flag": None}))
    return pd.concat(made, ignore_index=True)


def panel_axes(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def mesh(axes: Axes) -> QuadMesh:
    (found,) = [c for c in axes.collections if isinstance(c, QuadMesh)]
    return found


def drawn(axes: Axes) -> np.ndarray:
    """Colour values [layers, steps]; NaN where nothing is drawn."""
    values = mesh(axes).get_array()
    return np.asarray(np.ma.filled(values.astype(float), np.nan)).reshape(values.shape)


def texts(figure: Figure) -> str:
    legends = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    inside = [text for axes in figure.axes for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())]
    return "\n".join([*(t.get_text() for t in figure.texts), *inside, *legends])


# -- heatmap -------------------------------------------------------------------------------------------------------


def test_the_heatmap_draws_the_mean_log_ratio_to_step_0() -> None:
    figure = layer_step_heatmap(rows({"mlp": MLP, "cnn": MLP[:2]}))
    mlp, cnn = panel_axes(figure)
    np.testing.assert_allclose(drawn(mlp), np.outer([0, 1, 2], STEPS / 30), atol=1e-12)
    np.testing.assert_allclose(drawn(cnn), np.outer([0, 1], STEPS / 30), atol=1e-12)
    assert [axes.get_title() for axes in (mlp, cnn)] == ["mlp", "cnn"]


def test_absolute_values_are_the_mean_over_seeds() -> None:
    (axes,) = panel_axes(layer_step_heatmap(rows({"mlp": MLP}), relative=False))
    expected = 8 * np.mean([1, 2, 4]) * 2 ** np.outer([0, 1, 2], STEPS / 30)
    np.testing.assert_allclose(drawn(axes), expected)
    assert mesh(axes).get_clim() == (pytest.approx(expected.min()), pytest.approx(expected.max()))


def test_colours_are_symmetric_about_no_change_and_shared() -> None:
    figure = layer_step_heatmap(rows({"mlp": MLP, "cnn": MLP[:2]}))
    assert [mesh(axes).get_clim() for axes in panel_axes(figure)] == [(-2.0, 2.0)] * 2
    clipped = layer_step_heatmap(rows({"mlp": MLP}), limit=0.5)
    assert mesh(panel_axes(clipped)[0]).get_clim() == (-0.5, 0.5)


def test_a_series_that_never_changes_can_be_drawn() -> None:
    for relative in (True, False):
        figure = layer_step_heatmap(rows({"mlp": MLP[:1]}, seeds=1), relative=relative)
        figure.draw_without_rendering()
        assert np.ptp(drawn(panel_axes(figure)[0])) == 0


def test_cells_end_midway_between_measurements() -> None:
    np.testing.assert_array_equal(edges(np.array([0, 1, 2, 10, 30])), [-0.5, 0.5, 1.5, 6, 20, 40])
    np.testing.assert_array_equal(edges(np.array([7])), [6.5, 7.5])
    (axes,) = panel_axes(layer_step_heatmap(rows({"mlp": MLP})))
    corners = mesh(axes).get_coordinates()
    np.testing.assert_array_equal(corners[0, :, 0], edges(STEPS))
    np.testing.assert_array_equal(corners[:, 0, 1], [-0.5, 0.5, 1.5, 2.5])


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_axis_is_in_training_steps_with_the_first_layer_on_top(scale: Any) -> None:
    figure = layer_step_heatmap(rows({"mlp": MLP}), scale=scale)
    figure.draw_without_rendering()
    (axes,) = panel_axes(figure)
    assert axes.get_xlim() == (-0.5, 35.0) and axes.get_ylim() == (2.5, -0.5)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["network.0", "network.2", "network.10"]
    assert {"0", "10"} <= {t.get_text() for t in axes.get_xticklabels()}
    assert axes.get_xlabel() == "training step"


def test_layers_stand_in_forward_order_whatever_the_rows_order() -> None:
    shuffled = rows({"mlp": MLP}).sample(frac=1, random_state=0)
    (axes,) = panel_axes(layer_step_heatmap(shuffled))
    np.testing.assert_allclose(drawn(axes), np.outer([0, 1, 2], STEPS / 30), atol=1e-12)


def test_what_has_no_value_is_masked_over_a_hatched_ground() -> None:
    table = rows({"mlp": MLP})
    table.loc[(table["layer"] == "network.2") & (table["step"] >= 10), "participation_ratio"] = np.nan
    table.loc[(table["layer"] == "network.10") & (table["step"] == 20), "participation_ratio"] = np.inf
    figure = layer_step_heatmap(table)
    (axes,) = panel_axes(figure)
    missing = np.zeros((3, 7), dtype=bool)
    missing[1, 4:], missing[2, 5] = True, True
    np.testing.assert_array_equal(np.isnan(drawn(axes)), missing)
    assert axes.patch.get_hatch() and "no value" in texts(figure) and "some seeds" not in texts(figure)


def test_a_mean_over_fewer_seeds_is_dotted() -> None:
    table = rows({"mlp": MLP})
    table.loc[(table["seed"] == 0) & (table["layer_index"] == 1) & (table["step"] >= 20), "participation_ratio"] = None
    figure = layer_step_heatmap(table)
    (axes,) = panel_axes(figure)
    (box,) = [p for p in axes.patches if p.get_hatch() == "...."]
    assert box.get_xy() == (15.0, 0.5) and (box.get_width(), box.get_height()) == (20.0, 1)
    np.testing.assert_allclose(drawn(axes), np.outer([0, 1, 2], STEPS / 30), atol=1e-12)
    assert "some seeds without a value" in texts(figure)


def test_a_seed_without_a_value_at_step_0_has_no_ratio() -> None:
    table = rows({"mlp": MLP})
    table.loc[(table["layer_index"] == 2) & (table["step"] == 0), "participation_ratio"] = [np.nan, 0.0, -1.0]
    (axes,) = panel_axes(layer_step_heatmap(table))
    np.testing.assert_array_equal(np.isnan(drawn(axes)), np.arange(3)[:, None].repeat(7, 1) == 2)


def test_titles_say_data_completeness_seeds_and_probe() -> None:
    said = texts(layer_step_heatmap(rows({"mlp": MLP})))
    assert "digits (complete) · participation ratio relative to initialisation" in said
    assert "geometric mean of 3 seeds · probe of 128 stimuli" in said
    figure = layer_step_heatmap(rows({"mlp": MLP}))
    (bar,) = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert bar.get_ylabel() == "participation ratio (dimensions)\nratio to step 0, 3 seeds"
    assert [t.get_text() for t in bar.get_yticklabels()] == ["×0.25", "×0.5", "×1", "×2", "×4"]


def test_unequal_numbers_of_seeds_are_a_range_and_split_seeds_are_trials() -> None:
    table = pd.concat([rows({"mlp": MLP}), rows({"cnn": MLP}, seeds=1)])
    assert "mean of 1–3 seeds" in texts(layer_step_heatmap(table))
    assert "mean of 3 trials" in texts(layer_step_heatmap(rows({"mlp": MLP}).assign(seed=None)))
    assert "mean of 1 seed ·" in texts(layer_step_heatmap(rows({"mlp": MLP}, seeds=1)))


def test_controls_get_panels_of_their_own() -> None:
    table = rows({"mlp": MLP})
    table.loc[table["seed"] == 2, ["control"]] = "lr0"
    assert [axes.get_title() for axes in panel_axes(layer_step_heatmap(table))] == ["mlp", "mlp lr0"]


def test_several_data_sets_are_named_in_the_panels() -> None:
    table = pd.concat([rows({"mlp": MLP}), rows({"mlp": MLP}, data="mnist").assign(data_completeness="subset")])
    figure = layer_step_heatmap(table)
    assert [axes.get_title() for axes in panel_axes(figure)] == ["mlp/digits", "mlp/mnist"]
    assert "digits (complete), mnist (subset)" in texts(figure)


def test_trials_that_end_early_leave_the_rest_of_the_axis_hatched() -> None:
    table = rows({"mlp": MLP, "cnn": MLP})
    table = table[~(table["cell"].str.startswith("cnn") & (table["step"] > 10))]
    mlp, cnn = panel_axes(layer_step_heatmap(table))
    assert mlp.get_xlim() == cnn.get_xlim() and drawn(cnn).shape == (3, 5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 4, 6, 12])
def test_no_label_overlaps_another(count: int) -> None:
    deep = tuple((f"transformer.layers.{i}.linear1", "tokens") for i in range(24))
    wide = tuple((f"network.{2 * i}", "units") for i in range(16))
    cells = {f"transformer_verydeep_{i}": (deep, wide, MLP)[i % 3] for i in range(count)}
    table = rows(cells, seeds=2)
    table.loc[table["layer_index"] == 1, "participation_ratio"] = np.nan
    table.loc[(table["layer_index"] == 2) & (table["seed"] == 1), "participation_ratio"] = np.nan
    flagged = events([0, 1], layer="transformer.layers.3.linear1", view="tokens")
    flagged["trial_id"] = [f"transformer_verydeep_0/digits-{i}" for i in (0, 1)]
    figure = layer_step_heatmap(table, events=flagged)
    figure.draw_without_rendering()
    for axes in panel_axes(figure):
        boxes = [label.get_window_extent() for label in axes.get_yticklabels() if label.get_text()]
        assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
        others = [a.get_window_extent() for a in figure.axes if a is not axes]
        inside = figure.bbox
        for box in [*boxes, axes.title.get_window_extent()]:
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
            assert not any(box.overlaps(other) for other in others)
    for thing in (*figure.texts, *figure.legends, *(axes.yaxis.label for axes in figure.axes)):
        box = thing.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1


def test_layer_names_are_short_unless_two_would_read_the_same() -> None:
    attention = "transformer.layers.1.self_attn.out_proj"
    paths = [("input_proj", "tokens"), (attention, "tokens"), ("blocks.0.conv1", "positions"), ("network.4", "units")]
    assert layer_names(paths) == ["input_proj", "block 1 attn", "block 0 conv1", "network.4"]
    same = [("encoder.layers.0.fc", "tokens"), ("decoder.layers.0.fc", "tokens")]
    assert layer_names(same) == ["encoder.layers.0.fc", "decoder.layers.0.fc"]
    assert layer_names([("conv1", "positions"), ("conv1", "gap")]) == ["conv1 (positions)", "conv1 (gap)"]


@pytest.mark.parametrize("top", [0.003, 0.1, 0.5, 1.0, 1.37, 2.0, 3.99, 7.5])
def test_ticks_of_ratios_are_symmetric_and_few(top: float) -> None:
    ticks = octaves(top)
    assert ticks == [-t for t in reversed(ticks)] and 0 in ticks
    assert 5 <= len(ticks) <= 7 and max(ticks) <= top * (1 + 1e-9)


# -- marks on the heatmap ------------------------------------------------------------------------------------------


def events(seeds: Sequence[int], **more: Any) -> pd.DataFrame:
    trials = [f"mlp/digits-{seed}" for seed in seeds]
    row = {"layer": "network.2", "step_before": 10, "step_after": 20, "direction": "increase", "counted": True}
    row |= {"view": "units", "measure": "participation_ratio", "mode": "default", "detector": "difference_z"}
    return pd.DataFrame({"trial_id": trials, **(row | more)})


def markers(figure: Figure) -> list[tuple[float, float]]:
    found = [c for axes in panel_axes(figure) for c in axes.collections if isinstance(c, PathCollection)]
    return [(float(x), float(y)) for c in found for x, y in c.get_offsets()]


def test_a_change_that_half_of_the_seeds_show_is_marked_between_its_measurements() -> None:
    table = rows({"mlp": MLP}, seeds=4)
    figure = layer_step_heatmap(table, events=events([0, 1]))
    assert markers(figure) == [(15.0, 1.0)]
    assert "flagged by difference_z (uncalibrated) at the same step in ≥ 2 of 4 seeds" in texts(figure)
    assert markers(layer_step_heatmap(table, events=events([0]))) == []
    assert markers(layer_step_heatmap(table, events=events([0, 0, 0]))) == []
    assert markers(layer_step_heatmap(rows({"mlp": MLP}, seeds=1), events=events([0]))) == [(15.0, 1.0)]


def test_events_that_survive_are_each_marked_and_called_so() -> None:
    table = rows({"mlp": MLP}, seeds=4)
    figure = layer_step_heatmap(table, events=events([0]), calibrated=True)
    assert markers(figure) == [(15.0, 1.0)]
    assert "event of a seed that survives its null" in texts(figure) and "flagged" not in texts(figure)


def test_seeds_that_disagree_on_place_or_direction_are_not_added_up() -> None:
    table = rows({"mlp": MLP}, seeds=4)
    for change in ({"step_before": 20, "step_after": 30}, {"direction": "decrease"}, {"layer": "network.0"}):
        assert markers(layer_step_heatmap(table, events=pd.concat([events([0]), events([1], **change)]))) == []


@pytest.mark.parametrize("change", [{"counted": False}, {"measure": "stable_rank"}, {"layer": "*"}, {"view": "gap"}])
def test_events_that_do_not_belong_here_are_left_out(change: dict[str, Any]) -> None:
    assert markers(layer_step_heatmap(rows({"mlp": MLP}), events=events([0, 1, 2], **change))) == []


def test_events_of_several_rules_are_refused() -> None:
    both = pd.concat([events([0]), events([0], detector="rolling_level")])
    with pytest.raises(SpecError, match=r"more than one detector \(difference_z, rolling_level\)"):
        layer_step_heatmap(rows({"mlp": MLP}), events=both)


def test_no_events_are_no_marks_and_no_legend() -> None:
    figure = layer_step_heatmap(rows({"mlp": MLP}), events=events([]))
    assert markers(figure) == [] and figure.legends == []


# -- bad input -----------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_drawn_are_refused() -> None:
    table = rows({"mlp": MLP})
    with pytest.raises(SpecError, match="no rows to draw"):
        layer_step_heatmap(table.iloc[:0])
    with pytest.raises(SpecError, match="no measure 'participation_ration' - did you mean 'participation_ratio'"):
        layer_step_heatmap(table, "participation_ration")
    with pytest.raises(SpecError, match="no column 'layer_index'"):
        layer_step_heatmap(table.drop(columns="layer_index"))
    with pytest.raises(SpecError, match="every value of 'participation_ratio' is null"):
        layer_step_heatmap(table.assign(participation_ratio=np.nan))
    with pytest.raises(SpecError, match="relative=False"):
        layer_step_heatmap(table[table["step"] > 0])
    with pytest.raises(SpecError, match="unknown scale 'lg' - did you mean 'log'"):
        layer_step_heatmap(table, scale="lg")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="limit > 0"):
        layer_step_heatmap(table, limit=0.0)
    with pytest.raises(SpecError, match="two rows of one layer"):
        layer_step_heatmap(pd.concat([table, table]))
    with pytest.raises(SpecError, match="too many panels"):
        layer_step_heatmap(rows({f"m{i}": MLP[:1] for i in range(MAX_PANELS + 1)}, seeds=1))


# -- jumps beside noise --------------------------------------------------------------------------------------------


def counts(
    observed: Sequence[int], cell: str = "mlp", detector: str = "difference_z", null: float = 2.0
) -> pd.DataFrame:
    """Two series a trial with the given count each; each series has SD 1 under both nulls."""
    made = []
    for seed, n in enumerate(observed):
        row = {"trial_id": f"{cell}-{seed}", "cell": f"{cell}/digits", "data": "digits", "seed": seed}
        row |= {"control": "none", "data_completeness": "complete", "mode": "default", "detector": detector}
        row |= {"measure": "participation_ratio", "observed": [n, n], "merged": [n, n], "layer_index": [0, 1]}
        row |= {f"null_{f}_mean": null for f in ("white", "ar1")} | {f"null_{f}_sd": 1.0 for f in ("white", "ar1")}
        made.append(pd.DataFrame(row))
    return pd.concat(made, ignore_index=True)


def test_bars_are_the_mean_a_trial_beside_the_null_with_its_interval() -> None:
    table = pd.concat([counts([5, 7]), counts([1, 1], "cnn"), counts([0, 0], detector="rolling_level", null=0.5)])
    figure = counts_against_null(table)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["difference_z", "rolling_level"]
    assert [t.get_text() for t in first.get_yticklabels()] == ["mlp", "cnn"]
    widths = [bar.get_width() for bar in first.patches]
    assert widths == pytest.approx([12.0, 4.0, 4.0, 2.0, 4.0, 4.0])  # observed, white, AR(1) of each cell
    half = 1.96 * 4**0.5 / 2  # four series of SD 1, two trials
    spans = [sorted(path.vertices[:, 0]) for c in first.collections for path in c.get_paths() if len(path) == 2]
    assert spans[0] == pytest.approx([4 - half, 4 + half])
    assert [bar.get_width() for bar in second.patches] == pytest.approx([0.0, 1.0, 1.0])
    dots = [sorted(c.get_offsets()[:, 0]) for c in first.collections if isinstance(c, PathCollection)]
    assert dots == [[10.0, 14.0], [2.0, 2.0]]
    assert "mean of 2 seeds" in texts(figure) and "AR(1) noise" in texts(figure)


def test_series_without_a_null_get_no_bar_of_it() -> None:
    table = counts([0, 0])
    table[[c for c in table if c.startswith("null_")]] = np.nan
    (axes,) = counts_against_null(table).axes
    assert len(axes.patches) == 1


def test_counts_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(SpecError, match="no rows to draw"):
        counts_against_null(counts([1]).iloc[:0])
    with pytest.raises(SpecError, match="no measure 'stable_rank'.*participation_ratio"):
        counts_against_null(counts([1]), measure="stable_rank")
    with pytest.raises(SpecError, match="no mode 'defaut' - did you mean 'default'"):
        counts_against_null(counts([1]), mode="defaut")
    with pytest.raises(SpecError, match="no column 'null_ar1_mean'"):
        counts_against_null(counts([1]).drop(columns="null_ar1_mean"))


# -- curves --------------------------------------------------------------------------------------------------------


def curves(per_seed: Sequence[Sequence[float]], cell: str = "mlp", data: str = "digits") -> pd.DataFrame:
    made = [
        pd.DataFrame({"trial_id": f"{cell}-{data}-{seed}", "seed": seed, "step": np.arange(len(v)) * 50, "accuracy": v})
        for seed, v in enumerate(per_seed)
    ]
    of = {"cell": f"{cell}/{data}", "data": data, "control": "none", "data_completeness": "complete"}
    return pd.concat(made, ignore_index=True).assign(**of)


def test_the_band_is_students_interval_of_the_mean() -> None:
    found = band(curves([[0.1, 0.7], [0.1, 0.8], [0.1, 0.9]]), "accuracy")
    assert found["n"].tolist() == [3, 3] and found["mean"].tolist() == pytest.approx([0.1, 0.8])
    half = 4.302653 * 0.1 / 3**0.5
    assert found.loc[1, ["low", "high"]].tolist() == pytest.approx([0.8 - half, 0.8 + half])


def test_two_seeds_have_a_range_and_one_has_no_band() -> None:
    found = band(curves([[0.1, 0.7], [0.3]]), "accuracy")
    assert found[["low", "high"]].iloc[0].tolist() == pytest.approx([0.1, 0.3])
    assert found[["low", "high"]].iloc[1].isna().all() and found["n"].tolist() == [2, 1]
    assert "no band: n = 1" in texts(accuracy_curves(curves([[0.1, 0.7]])))
    assert "range where n = 2" in texts(accuracy_curves(curves([[0.1, 0.7], [0.3]])))


def test_curves_are_named_with_their_n_and_keep_their_colour_across_data_sets() -> None:
    table = pd.concat(
        [
            curves([[0.1, 0.7]] * 3),
            curves([[0.1, 0.6], [0.2, None]], "cnn"),
            curves([[0.1, 0.5]] * 3, "cnn", data="mnist"),
        ]
    )
    figure = accuracy_curves(table)
    digits, mnist = figure.axes
    assert [t.get_text() for t in digits.get_legend().get_texts()] == ["mlp (n = 3)", "cnn (n = 1–2)"]
    assert [t.get_text() for t in mnist.get_legend().get_texts()] == ["cnn (n = 3)"]
    assert digits.lines[1].get_color() == mnist.lines[0].get_color() != digits.lines[0].get_color()
    np.testing.assert_allclose(digits.lines[1].get_xydata(), [[0, 0.15], [50, 0.6]])
    assert "held-out accuracy" in texts(figure) and digits.get_ylim()[1] <= 1


def test_curves_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(SpecError, match="no measure 'acuracy' - did you mean 'accuracy'"):
        accuracy_curves(curves([[0.1]]), "acuracy")
    with pytest.raises(SpecError, match="no rows to draw"):
        accuracy_curves(curves([[0.1]]).iloc[:0])
    with pytest.raises(SpecError, match="every value of 'accuracy' is null"):
        accuracy_curves(curves([[None]]))  # type: ignore[list-item]


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_a_figure_is_saved_with_the_same_bytes_each_time(tmp_path: Path, suffix: str, magic: bytes) -> None:
    written = [save(layer_step_heatmap(rows({"mlp": MLP})), tmp_path / "new folder" / f"{i}.{suffix}") for i in "ab"]
    first, second = (path.read_bytes() for path in written)
    assert first.startswith(magic) and first == second
    assert sorted(p.name for p in written[0].parent.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


@pytest.mark.slow
def test_saving_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    save(layer_step_heatmap(rows({"mlp": MLP})), tmp_path / "a.pdf")
    assert dict(matplotlib.rcParams) == before
    alone = "import sys, ndt_ray.figures; assert 'matplotlib.pyplot' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", alone], timeout=60).returncode == 0


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = layer_step_heatmap(rows({"mlp": MLP}))
    with pytest.raises(SpecError, match=r"saved as .png, .pdf or .svg, .* - did you mean 'png'"):
        save(figure, tmp_path / "a.pngg")
    (tmp_path / "file").write_text("")
    with pytest.raises(NdtError, match="cannot be written"):
        save(figure, tmp_path / "file" / "a.png")
    old = save(figure, tmp_path / "a.png").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NdtError, match="No space left"):
        save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == old and sorted(os.listdir(tmp_path)) == ["a.png", "file"]


# -- from a store --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two cells of one layer, two seeds and a control each; jumps counted in one of them."""
    register_table(EVENTS)
    register_table(EVENT_FAMILIES)
    register_table(JUMPS)
    register_table(JUMP_COUNTS)
    made = local(tmp_path)
    for data in ("digits", "mnist"):
        trials = {f"{data}{i}": control for i, control in enumerate(("none", "none", "lr0"))}
        with PackWriter(made, "planted", data, trials=tuple(trials)) as writer:
            for seed, (trial, control) in enumerate(trials.items()):
                of = {"cell": f"mlp/{data}", "data": data, "control": control, "seed": seed % 2, "steps": 20}
                writer.rows("trials", {"trial_id": [trial], **of, "probe_size": 64, "data_completeness": "complete"})
                for step in (0, 10, 20):
                    place = {"trial_id": [trial], "step": step, "layer": "network.0", "layer_index": 0}
                    value = 8.0 if control == "none" else 1e6
                    writer.rows("measurements", {**place, "view": "units", "participation_ratio": value / (1 + step)})
                    writer.rows("velocity", {**place, "from_init": step / 20})
                    writer.rows("evaluations", {"trial_id": [trial], "step": step, "accuracy": step / 40})
                    writer.rows("scalars", {"trial_id": [trial], "step": step, "probe_loss": 1.0})
            writer.commit(20, None, finished=True)
    return made


def test_a_stored_sweep_can_be_drawn(store: Store, tmp_path: Path) -> None:
    figure = sweep_figure(store, "planted")
    first, second = panel_axes(figure)
    assert [axes.get_title() for axes in (first, second)] == ["mlp/digits", "mlp/mnist"]
    np.testing.assert_allclose(drawn(first), -np.log2([[1, 11, 21]]), rtol=1e-6)
    assert "mean of 2 seeds · probe of 64 stimuli" in texts(figure)
    assert demo_figure(store, "planted", tmp_path / "demo.png").stat().st_size > 10_000


def test_the_demo_of_a_sweep_too_large_for_one_figure_shows_its_first_data_set(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndt_ray.figures.MAX_PANELS", 1)
    monkeypatch.setattr("ndt_ray.figures.heatmap.MAX_PANELS", 1)
    with pytest.raises(SpecError, match="2 cells are too many panels"):
        sweep_figure(store, "planted")
    said = demo_figure(store, "planted", tmp_path / "demo.svg")
    assert said.exists()


def test_a_stored_sweep_is_drawn_by_data_set_measure_and_kind(store: Store) -> None:
    (axes,) = panel_axes(sweep_figure(store, "planted", data="mnist", measure="from_init", relative=False))
    np.testing.assert_allclose(drawn(axes), [[0, 0.5, 1]])
    assert len(panel_axes(sweep_figure(store, "planted", controls=True))) == 4
    (axes,) = sweep_figure(store, "planted", "accuracy", data="digits").axes
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0], [10, 0.25], [20, 0.5]])
    assert "probe loss" in texts(sweep_figure(store, "planted", "accuracy", value="probe_loss"))


def test_jumps_of_a_stored_sweep_are_drawn_and_marked(store: Store) -> None:
    for trial in ("digits0", "digits1"):
        row = {"trial_id": [trial], "layer": "network.0", "layer_index": 0, "view": "units", "mode": "default"}
        row |= {"measure": "participation_ratio", "detector": "difference_z", "parameters": "{}", "grid_every": 10}
        count = {c.name: None for c in JUMP_COUNTS.columns} | row | {"observed": 3, "merged": 3}
        count |= {f"null_{f}_{c}": 1.0 for f in ("white", "ar1") for c in ("mean", "sd")}
        event = {"index": 1, "step_before": 10, "step_after": 20, "direction": "decrease", "counted": True}
        jump = {c.name: None for c in JUMPS.columns} | row | event
        write_output(store, "planted", "jumps", trial, {"jump_counts": count, "jumps": jump}, cache_key="1")
    assert markers(sweep_figure(store, "planted")) == [(15.0, 0.0)]
    assert "uncalibrated" in texts(sweep_figure(store, "planted"))
    assert markers(sweep_figure(store, "planted", marks=None)) == []
    (axes,) = sweep_figure(store, "planted", "jumps").axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([3.0, 1.0, 1.0])


def test_events_of_a_stored_sweep_are_marked_rather_than_jumps(store: Store) -> None:
    where = {"layer": "network.0", "layer_index": 0, "view": "units", "direction": "increase"}
    of = {"measure": "participation_ratio", "detector": "profile", "null": "ar_sieve", "family": "primary"}
    found = [
        where | of | {"trial_id": "digits0", "step_before": step, "step_after": step + 10, "significant": real}
        for step, real in ((0, True), (10, False))
    ]
    family = of | {"primary": True, "view": "*", "alpha": 0.05, "n_series": 2, "n_events": 1}
    named = {
        table.name: {c.name: [row.get(c.name) for row in made] for c in table.columns}
        for table, made in ((EVENTS, found), (EVENT_FAMILIES, [family]))
    }
    write_output(store, "planted", "events", "sweep", named, cache_key="1")
    figure = sweep_figure(store, "planted")
    assert markers(figure) == [(5.0, 0.0)] and "survives its null" in texts(figure)
    assert markers(sweep_figure(store, "planted", measure="from_init", relative=False)) == []
    assert markers(sweep_figure(store, "planted", data="mnist", marks="events")) == []


def test_a_stored_sweep_that_cannot_be_drawn_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="did you mean 'planted'"):
        sweep_figure(store, "planed")
    with pytest.raises(SpecError, match="unknown figure 'heatmaps' - did you mean 'heatmap'"):
        sweep_figure(store, "planted", "heatmaps")
    with pytest.raises(SpecError, match="no trial of data set 'mnst' - did you mean 'mnist'"):
        sweep_figure(store, "planted", data="mnst")
    with pytest.raises(SpecError, match="no measure 'stable_rnk' - did you mean 'stable_rank'"):
        sweep_figure(store, "planted", measure="stable_rnk")
    with pytest.raises(SpecError, match="every value of 'stable_rank' is null"):
        sweep_figure(store, "planted", measure="stable_rank")
    with pytest.raises(SpecError, match="jump_counts: no rows"):
        sweep_figure(store, "planted", "jumps")
