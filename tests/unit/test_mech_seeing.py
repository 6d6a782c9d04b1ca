"""Seeing features: maximised images beat every image of a data set, attributions have their known answers."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from mech_store import SWEEP, folder, trial_of
from scipy import ndimage
from torch import nn

from ndt_ray.analysis.api import Partition
from ndt_ray.analysis.mechanisms.clear import clear_stimuli
from ndt_ray.analysis.mechanisms.seeing.attribution import grad_cam, integrated_gradients, saliency
from ndt_ray.analysis.mechanisms.seeing.feature_types import describe
from ndt_ray.analysis.mechanisms.seeing.groups import groups
from ndt_ray.analysis.mechanisms.seeing.maximise import maximise, responses, transformed
from ndt_ray.analysis.mechanisms.seeing.visualizer import FeatureVisualizer
from ndt_ray.analysis.running.stored import analyze
from ndt_ray.errors import SpecError
from ndt_ray.inputs import InputSpec
from ndt_ray.models.transformer import transformer_shallow
from ndt_ray.store.reader import open_store

captum = pytest.importorskip("captum", reason="needs captum")
SIDE = 16


def filters(*images):
    """A network whose one layer correlates the input with each image."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, len(images), bias=False))
    model[1].weight.data = torch.stack([torch.as_tensor(i, dtype=torch.float32).flatten() for i in images])
    return model.eval()


def grid():
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) * 2 - 1
    return y, x


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["fourier", "pixels"])
def test_a_linear_unit_is_driven_by_its_own_template(basis):
    _, x = grid()
    template = np.where(x > 0, 1.0, -1.0)
    found = maximise(filters(template), "1", [0], (1, SIDE, SIDE), (0.0, 1.0), basis=basis, jitter=0)
    best = (template > 0).sum()
    assert found.activations[0] > 0.8 * best
    assert np.corrcoef(found.images[0].ravel(), template.ravel())[0, 1] > 0.8
    assert found.images.min() >= 0 and found.images.max() <= 1


def test_it_beats_every_image_of_the_data_and_its_own_start():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)).eval()
    data = torch.rand((200, 1, SIDE, SIDE), generator=generator)
    best = responses(model, "2", data).max(0)
    found = maximise(model, "2", range(6), (1, SIDE, SIDE), (0.0, 1.0), steps=150, jitter=1)
    assert (found.activations > best).all() and (found.activations > found.starts).all()


def test_the_same_seed_gives_the_same_image_and_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    a, b, c = (maximise(model, "0", [1, 2], (1, SIDE, SIDE), (0, 1), steps=5, seed=seed).images for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_what_cannot_be_maximised():
    model = filters(np.ones((SIDE, SIDE)))
    for options, says in (
        ({"units": [3]}, "units 0 to 0"),
        ({"limits": (1.0, 1.0)}, "low < high"),
        ({"basis": "wavelet"}, "fourier or pixels"),
    ):
        given = {"units": [0], "shape": (1, SIDE, SIDE), "limits": (0.0, 1.0), "steps": 1, **options}
        with pytest.raises(SpecError, match=says):
            maximise(model, "1", **given)


class Product(nn.Module):
    def forward(self, v):
        return (v[:, 0] * v[:, 1])[:, None]


class Rectified(nn.Module):
    def forward(self, v):
        return torch.relu(v[:, 0] - v[:, 1])[:, None]


def test_integrated_gradients_have_their_closed_forms():
    zero = torch.zeros(1, dtype=torch.long)
    found, delta = integrated_gradients(Product(), torch.tensor([[3.0, 5.0]]), zero)
    assert found[0].tolist() == pytest.approx([7.5, 7.5], abs=1e-4) and abs(float(delta)) < 1e-4
    found, _ = integrated_gradients(Rectified(), torch.tensor([[2.0, 1.0]]), zero)
    assert found[0].tolist() == pytest.approx([2, -1], abs=1e-4)
    linear = nn.Linear(4, 2)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    found, _ = integrated_gradients(linear, x, torch.ones(3, dtype=torch.long))
    assert torch.allclose(found, x * linear.weight[1].detach(), atol=1e-6)
    assert torch.allclose(
        saliency(linear, x, torch.ones(3, dtype=torch.long)), linear.weight[1].detach().abs().expand(3, -1)
    )


def test_grad_cam_is_the_class_activation_map_of_a_network_with_average_pooling():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    x, target = torch.randn(4, 1, 10, 10), torch.tensor([0, 1, 2, 0])
    maps = model[0](x).detach()
    cam = torch.einsum("nchw,nc->nhw", maps, model[3].weight.detach()[target]) / 64
    assert torch.allclose(grad_cam(model, "0", x, target, relu=False)[:, 0], cam, atol=1e-6)
    assert (grad_cam(model, "0", x, target) >= 0).all()
    whole = grad_cam(model, "0", x, target, relu=False, upsampled=True)
    assert whole.shape == (4, 1, 10, 10)
    assert torch.allclose(whole, nn.functional.interpolate(cam[:, None], (10, 10), mode="bilinear"), atol=1e-6)
    np.testing.assert_array_equal(
        FeatureVisualizer(model).class_activation_map("0", x, target, relu=False, upsampled=True), whole[:, 0].numpy()
    )
    with pytest.raises(SpecError, match="needs maps"):
        grad_cam(model, "3", x, target)


def test_words_for_planted_images():
    y, x = grid()
    r = np.hypot(x, y)
    rng = np.random.default_rng(0)
    pictures = {
        "flat": np.full((SIDE, SIDE), 0.4),
        "edge": 1 / (1 + np.exp(-8 * x)),
        "stripes": 0.5 + 0.5 * np.sin(12 * x),
        "blob": np.exp(-((r / 0.35) ** 2)),
        "noise": rng.random((SIDE, SIDE)),
        "dots": 0.5 + 0.5 * np.sin(9 * x) * np.sin(9 * y),
    }
    for word, picture in pictures.items():
        assert describe(picture[None], (0, 1)).feature_type == word, (word, describe(picture[None], (0, 1)))


@pytest.mark.parametrize("spacing", [4, 5, 7])
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_lines_that_cross_are_a_grid(spacing, angle):
    rows, columns = np.mgrid[0:28, 0:28]
    across, along = (
        columns * np.cos(angle) + rows * np.sin(angle),
        rows * np.cos(angle) - columns * np.sin(angle),
    )
    lines = np.maximum(np.cos(2 * np.pi * across / spacing), np.cos(2 * np.pi * along / spacing))
    for picture in (0.5 + 0.25 * lines, 0.5 - 0.25 * lines):
        assert describe(picture[None], (0, 1)).feature_type == "grid"
    dots = np.cos(2 * np.pi * across / 9) * np.cos(2 * np.pi * along / 9)
    assert describe(0.5 + 0.4 * dots[None], (0, 1)).feature_type == "dots"


def test_smooth_noise_is_no_grid():
    rng = np.random.default_rng(0)
    for _ in range(50):
        picture = ndimage.gaussian_filter(rng.normal(size=(28, 28)), 1)
        assert describe(np.clip(0.5 + picture, 0, 1)[None], (0, 1)).feature_type != "grid"


@pytest.mark.parametrize("angle", [0, 60, 150, 270])
def test_words_for_planted_lines_at_any_angle(angle):
    t = np.deg2rad(angle)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    y, x = y * np.cos(t) + x * np.sin(t), x * np.cos(t) - y * np.sin(t)

    def line(a, b):
        along = np.clip(
            ((y - a[0]) * (b[0] - a[0]) + (x - a[1]) * (b[1] - a[1])) / np.hypot(*np.subtract(b, a)) ** 2, 0, 1
        )
        distance = np.hypot(y - a[0] - along * (b[0] - a[0]), x - a[1] - along * (b[1] - a[1]))
        return np.exp(-((distance / 0.14) ** 2))

    r = np.hypot(y, x)
    pictures = {
        "T-junction": np.maximum(line((0, -0.7), (0, 0.7)), line((0, 0), (0.8, 0))),
        "corner": np.maximum(line((-0.3, -0.3), (-0.3, 0.6)), line((-0.3, -0.3), (0.6, -0.3))),
        "curve": np.exp(-(((r - 0.6) / 0.14) ** 2)) * (np.abs(np.arctan2(y, x)) < 1.75),
        "blob": np.exp(-((r / 0.35) ** 2)),
    }
    for word, picture in pictures.items():
        assert describe(picture[None], (0, 1)).feature_type == word


def test_a_blob_of_colour_is_one_at_equal_brightness_too():
    y, x = grid()
    bump = np.exp(-((np.hypot(x, y) / 0.35) ** 2))
    for colours in ((0.4, -0.4, 0.0), (0.4, 0.1, -0.2)):
        picture = np.stack([0.5 + c * bump for c in colours])
        assert describe(picture, (0, 1)).feature_type == "colour blob"
    assert describe(np.stack([bump] * 3), (0, 1)).feature_type == "blob"


def test_turns_and_changes_of_scale_of_the_ascent():
    dot = torch.zeros(1, 1, 15, 15)
    dot[0, 0, 7, 11] = 1  # right of the middle: a quarter turn counter-clockwise brings it up
    up = transformed(dot, 90, 1.0)[0, 0]
    assert up.argmax().item() == 3 * 15 + 7 and up.max() == pytest.approx(1, abs=1e-5)
    assert transformed(dot, 0, 0.5)[0, 0].argmax().item() in (7 * 15 + 9, 7 * 15 + 9)
    assert torch.allclose(transformed(dot, 0, 1.0), dot, atol=1e-6)
    template = np.exp(-((grid()[1] / 0.4) ** 2)) - 0.5
    given = ([0], (1, SIDE, SIDE), (0.0, 1.0))
    options = {"steps": 60, "rotate": 10.0, "scale": 0.1, "seed": 1}
    moved, again = (maximise(filters(template), "1", *given, **options) for _ in range(2))
    assert (moved.images == again.images).all() and moved.activations[0] > moved.starts[0] + 1
    assert not np.allclose(moved.images, maximise(filters(template), "1", *given, steps=60, seed=1).images)
    for wrong in ({"rotate": -1.0}, {"scale": 1.0}):
        with pytest.raises(SpecError, match="rotate"):
            maximise(filters(template), "1", *given, **wrong)


def feature_row(unit, step, word, activation, beats=True):
    return {"layer": "a", "layer_index": 0, "unit": unit, "step": step, "feature_type": word,
            "activation": activation, "beats_data": beats, "flag": None}  # fmt: skip


def test_groups_of_units_are_told_in_sentences_made_of_their_numbers():
    rows = [feature_row(u, 10, "noise" if u < 3 else "edge", 1.0) for u in range(4)]
    rows += [feature_row(u, 20, "stripes", 1.5) for u in range(4)]
    rows += [feature_row(u, 40, "edge" if u else "noise", 2.0, beats=u > 1) for u in range(4)]
    found = {r["feature_type"]: r for r in groups(pd.DataFrame(rows), 12, 30)}
    noise = found["noise"]
    assert list(noise["units"]) == [0, 1, 2] and noise["kept"] == pytest.approx(1 / 3)
    assert (noise["checkpoint_before"], noise["checkpoint_during"], noise["checkpoint_after"]) == (10, 20, 40)
    assert noise["observation"] == (
        "3 units of type noise at step 10: mostly stripes at step 20; 1 keep it at step 40, 2 edge; "
        "responses to made images x 2.00; 1 driven further than by any probe image."
    )
    assert found["edge"]["kept"] == 1 and found["edge"]["observation"].startswith("1 unit of type edge")
    assert list(groups(pd.DataFrame(rows), 5, 30)) == []  # no checkpoint before


def test_clear_stimuli_are_the_most_confident_right_ones_of_each_class():
    logits = np.array([[3.0, 0], [1, 0], [2, 0], [0, 1], [5, 0], [0, 2]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert clear_stimuli(logits, labels, 2).tolist() == [True, False, True, True, False, True]
    assert clear_stimuli(logits, labels, 1).tolist() == [True, False, False, False, False, True]
    assert not clear_stimuli(logits, 1 - labels, 5)[[0, 1, 2, 3, 5]].any()
    with pytest.raises(SpecError, match="most >= 1"):
        clear_stimuli(logits, labels, 0)


@pytest.mark.parametrize("angle", [0, 30, 60, 90, 135])
def test_the_angle_of_an_edge(angle):
    y, x = grid()
    t = np.deg2rad(angle)
    # An edge along (cos, sin), rows counting downwards: brightness changes across it.
    picture = 1 / (1 + np.exp(-6 * (x * np.sin(t) + y * np.cos(t))))
    found = describe(picture[None], (0, 1))
    assert found.feature_type == "edge"
    assert min(abs(found.orientation - angle), 180 - abs(found.orientation - angle)) < 4


def test_small_and_bad_images():
    rng = np.random.default_rng(0)
    assert describe(rng.random((1, 4, 4)), (0, 1)).feature_type == "unresolved"
    coloured = describe(rng.random((3, 16, 16)), (0, 1))
    assert coloured.colour > 0.5
    with pytest.raises(SpecError):
        describe(np.full((1, 9, 9), np.nan), (0, 1))
    words = [describe(rng.random((1, 16, 16)), (0, 1)).feature_type for _ in range(50)]
    assert words.count("noise") >= 48


@pytest.mark.slow
def test_features_of_checkpoints_and_what_is_new_in_them(tmp_path):
    store = open_store(shutil.copytree(folder(), tmp_path / "store"))
    cnn, other = trial_of(store, "cnn"), trial_of(store, "mlp")
    at = [Partition(t, s) for t in (cnn, other) for s in (0, 40)]
    quick = {"units": 3, "steps": 12}
    assert analyze(store, SWEEP, "features", parameters=quick, partitions=at).ok
    rows = store.sql("SELECT * FROM features ORDER BY ALL")
    assert set(rows.groupby(["trial_id", "step", "layer"]).size()) == {3}
    assert (rows["activation"] > rows["start"]).all() and rows["flag"].isna().all()
    assert (rows["best_images"].map(len) == 4).all() and (rows["best_images"].str[0] == rows["best_image"]).all()
    assert rows["best_values"].map(lambda v: list(v) == sorted(v, reverse=True)).all()
    assert rows["again_type"].notna().all()  # three of five that may be
    metrics = store.sql("SELECT * FROM feature_metrics")
    assert (metrics.groupby(["trial_id", "step", "layer"]).size() == 14).all() and metrics["flag"].isna().all()
    shares = metrics[metrics["metric"].str.startswith("feature_share_")]
    assert shares.groupby(["trial_id", "step", "layer"])["value"].sum().max() <= 1 + 1e-9
    beats = metrics[metrics["metric"] == "feature_beats_data"].set_index(["trial_id", "step", "layer"])["value"]
    pd.testing.assert_series_equal(
        beats.sort_index(), rows.groupby(["trial_id", "step", "layer"])["beats_data"].mean(), check_names=False
    )
    same = rows[rows["trial_id"] == cnn].groupby("layer")["unit"].nunique()
    assert (same == 3).all()  # the same units at both checkpoints
    assert analyze(store, SWEEP, "feature_changes", partitions=[Partition(cnn)]).ok
    changes = store.sql("SELECT * FROM feature_changes")
    assert set(changes["step_before"]) == {0} and (changes["n"] == 3).all() and changes["changed"].between(0, 1).all()
    assert (changes["n_chance"] == 6).all() and changes["changed_chance"].between(0, 1).all()
    assert (
        changes["new_feature_types"] == changes["new_types"].map(lambda t: len([x for x in t.split(",") if x]))
    ).all()


def test_the_visualizer_says_what_it_cannot_show():
    image = InputSpec("image", (1, 8, 8), 10)
    model = transformer_shallow(image).train()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = FeatureVisualizer(model)
    for pattern in seen.attention(x).values():
        assert pattern.shape[0] == 4 and np.allclose(pattern.sum(-1), 1, atol=1e-5)
    assert seen.saliency(x).shape == seen.integrated_gradients(x, 3, steps=4).shape == (4, 1, 8, 8)
    assert model.training
    with pytest.raises(SpecError, match="no attention"):
        FeatureVisualizer(filters(np.ones((8, 8)))).attention(x)
