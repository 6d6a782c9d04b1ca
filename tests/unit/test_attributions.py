"""Pictures of what decisions rest on: known answers, panels in the order of steps, and why something is not there."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mech_store import SWEEP, looked_at, trial_of
from torch import nn

from ndt_ray.analysis.mechanisms.seeing.attribution import Decisions, decisions
from ndt_ray.errors import SpecError
from ndt_ray.figures import attributions, looking, networks
from ndt_ray.figures.album import Album
from ndt_ray.figures.bundle import Wanted, write_mechanisms
from ndt_ray.figures.moments import Moment

MOMENT = Moment("abcdef99", "cnn/digits", {"before": 10, "after": 20}, "fc", (12, 18))
CLEAR = {0: np.array([4, 2]), 1: np.array([], dtype=np.int64), 2: np.array([3]), 5: np.array([0]), 7: np.array([1])}


def context(model: nn.Module, x: torch.Tensor, labels: list[int], kinds: dict[str, str]) -> Any:
    """As much of a `ProbeContext` as is read."""
    kept: dict[str, Any] = {}
    for path in kinds:
        model.get_submodule(path).register_forward_hook(lambda _m, _a, out, path=path: kept.update({path: out}))
    logits = model(x).detach().double().numpy()
    there = {path: out.detach().numpy() for path, out in kept.items()}
    layers = [SimpleNamespace(path=path, kind=kind) for path, kind in kinds.items()]
    return SimpleNamespace(
        model=model, inputs=x, labels=np.array(labels), logits=logits, layers=layers, activations=there.__getitem__
    )


def found(n: int, level: float, maps: str | None = "conv") -> Decisions:
    rng = np.random.default_rng(int(10 * level))
    signed = rng.normal(size=(n, 6, 6)) * level
    cam = None if maps is None else np.abs(signed) * np.array([0.0, *[1.0] * (n - 1)])[:, None, None]
    return Decisions(np.full(n, level), np.abs(signed), signed, np.full(n, 0.25), maps, cam)


# -- what is computed ------------------------------------------------------------------------------------------------


def test_of_a_linear_network_the_answer_is_its_weights() -> None:
    pytest.importorskip("captum", reason="needs captum")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 5 * 5, 3)).eval()
    x = torch.randn(4, 2, 5, 5)
    made = decisions(context(model, x, [0, 1, 2, 1], {"1": "units"}), np.array([3, 0]))
    w = model[1].weight.detach().double().view(3, 2, 5, 5).numpy()[[1, 0]]
    np.testing.assert_allclose(made.saliency, np.abs(w).max(1), atol=1e-6)
    darkest = x.amin((0, 2, 3), keepdim=True)
    np.testing.assert_allclose(made.integrated, (w * (x[[3, 0]] - darkest).numpy()).sum(1), atol=1e-5)
    np.testing.assert_allclose(made.missed, 0, atol=1e-4)
    np.testing.assert_allclose(made.probability, model(x).softmax(1).detach().numpy()[[3, 0], [1, 0]], atol=1e-6)
    assert made.maps is None and made.cam is None


def test_grad_cam_is_of_the_last_layer_with_maps_wider_than_one_position() -> None:
    pytest.importorskip("captum", reason="needs captum")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    ).eval()
    x = torch.randn(2, 1, 12, 12)
    kinds = {"0": "positions", "1": "positions", "2": "positions", "4": "units"}
    made = decisions(context(model, x, [2, 0], kinds), np.array([0, 1]))
    maps = model[1](model[0](x)).detach()
    cam = torch.einsum("nchw,nc->nhw", maps, model[4].weight.detach()[[2, 0]]).relu()[:, None] / 64
    whole = nn.functional.interpolate(cam, (12, 12), mode="bilinear")[:, 0]
    assert made.maps == "1"
    np.testing.assert_allclose(made.cam, whole, atol=1e-6)


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_few_classes_with_their_clearest_image_stand_for_all() -> None:
    assert attributions.chosen(CLEAR) == {0: 4, 5: 0, 7: 1}
    assert attributions.chosen({3: np.array([8])}) == {3: 8} and attributions.chosen({3: CLEAR[1]}) == {}


def test_panels_are_in_the_order_of_steps_and_say_their_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = []
    monkeypatch.setattr(Album, "figure", lambda self, *given, **_: shown.append(given))
    inputs = np.random.default_rng(0).random((5, 1, 6, 6), dtype=np.float32)
    early, late = found(3, 0.2), found(3, 0.9)
    album = Album(tmp_path)
    attributions.draw(album, MOMENT, {"step 10 (before)": early, "step 20 (after)": late}, inputs, CLEAR)
    images = attributions.chosen(CLEAR)
    assert [name for _, name, *_ in shown] == [f"{MOMENT.name}/attributions_class_{c}" for c in images]
    section, _, figure, caption, shows = shown[1]
    assert section == "Attributions" and "Grad-CAM of conv" in caption and "10 (before), 20 (after)" in shows
    axes = figure.axes
    assert [a.get_title() for a in axes[:4]] == ["image", "saliency", "integrated gradients", "Grad-CAM"]
    rows = [a.get_ylabel().splitlines() for a in axes[::4]]
    assert [(r[0], r[1], r[2].split(" = ")[1]) for r in rows] == [
        ("step 10", "(before)", "0.200"), ("step 20", "(after)", "0.900"),
    ]  # fmt: skip
    for row, one in enumerate((early, late)):
        for i, values in enumerate((one.saliency, one.integrated, one.cam)):
            assert values is not None
            np.testing.assert_array_equal(axes[4 * row + 1 + i].get_images()[0].get_array(), values[1])
        low, high = axes[4 * row + 2].get_images()[0].get_clim()
        assert low == -high == -np.abs(one.integrated[1]).max()  # white is 0
        total = one.integrated[1].sum()
        assert axes[4 * row + 2].get_xlabel() == f"sum {total:.2f} of {total - 0.25:.2f}"
    assert shown[0][2].axes[3].get_xlabel() == "0: nothing speaks for it"
    assert [(s.what, s.reason) for s in album.skips] == [
        ("cnn/digits: class " + ", ".join(str(c) for c in CLEAR if c not in images), "a few classes stand for all")
    ]


def test_without_maps_there_is_no_grad_cam_and_the_rest_is_drawn(tmp_path: Path) -> None:
    album = Album(tmp_path, limit=1)
    inputs = np.random.default_rng(0).random((5, 1, 6, 6), dtype=np.float32)
    attributions.draw(album, MOMENT, {"step 10 (before)": found(3, 0.2, None)}, inputs, CLEAR)
    (entry,) = album.entries
    assert "Grad-CAM" not in entry.caption and entry.path.is_file()
    assert any(s.what == "cnn/digits: Grad-CAM" and "no layer gives maps" in s.reason for s in album.skips)
    with pytest.raises(SpecError, match="maps have the shape of the image"):
        looking.attributions_over(np.ones((1, 4, 4)), {"a": {"x": (np.ones((3, 3)), "")}}, "t")


def test_of_text_and_of_what_no_network_recognises_there_is_no_picture(tmp_path: Path) -> None:
    none = networks._decisions(SimpleNamespace(), {0: CLEAR[1]})  # type: ignore[arg-type]
    assert isinstance(none, str) and "no image of the probe is recognised" in none
    album = Album(tmp_path)
    for why in (none, networks.Look(0).decisions):
        seen: Any = SimpleNamespace(moment=MOMENT, looks={"before": networks.Look(0, decisions=why)})
        networks._attributions(album, seen)
    assert [s.reason for s in album.skips] == [none, networks.Look(0).decisions] and not album.entries
    assert "its stimuli are no images" in album.skips[1].reason


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False])
def test_a_sweeps_networks_have_attributions_where_captum_is_installed(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        pytest.importorskip("captum", reason="needs captum")
    else:
        monkeypatch.setitem(sys.modules, "captum.attr", None)
    store = looked_at()
    album = write_mechanisms(store, SWEEP, tmp_path, Wanted(units=0, limit=1, trials=[trial_of(store, "cnn")]))
    drawn = [e for e in album.entries if e.section == attributions.SECTION]
    left = [s.reason for s in album.skips if s.section == attributions.SECTION]
    if there:
        (entry,) = drawn
        assert "Grad-CAM of conv_layers.3" in entry.caption and entry.path.stat().st_size > 5000
        assert "0 (first), 30 (middle), 40 (last)" in entry.shows
    else:
        assert not drawn and left == ["attributions need Captum: pip install -e '.[attribution]'"]
