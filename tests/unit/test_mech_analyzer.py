"""`ActivationAnalyzer`: known clouds, and what cannot be asked."""

import numpy as np
import pytest
import torch

from ndt_ray.analysis.mechanisms.analyzer import ActivationAnalyzer
from ndt_ray.errors import SpecError
from ndt_ray.measurement.activation_capture import ActivationCapture

RNG = np.random.default_rng(0)


def test_components_of_a_cloud_of_known_axes() -> None:
    axes = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    scale = np.array([5.0, 2.0, 1.0, 0.1, 0.1, 0.1])
    scores = RNG.normal(size=(4000, 6))
    found = ActivationAnalyzer({"fc": (scores * scale) @ axes + 3}).pca_analysis("fc", 3)
    assert found.components.shape == (3, 6) and found.projections.shape == (4000, 3)
    np.testing.assert_allclose(np.abs(found.components @ axes[:3].T), np.eye(3), atol=0.05)
    expected = scale**2 / (scale**2).sum()
    np.testing.assert_allclose(found.explained_variance_ratio, expected[:3], rtol=0.1)
    assert found.participation_ratio == pytest.approx((scale**2).sum() ** 2 / (scale**4).sum(), rel=0.05)
    np.testing.assert_allclose(found.projections.var(0), scale[:3] ** 2, rtol=0.1)


def test_planted_clusters_are_found_and_agree_with_their_labels() -> None:
    labels = np.repeat([0, 1, 2], 30)
    values = 8 * np.eye(3, 5)[labels] + RNG.normal(size=(90, 5))
    found = ActivationAnalyzer({"fc": values}, labels).clustering("fc")
    assert found.label_agreement == pytest.approx(1) and found.silhouette > 0.6
    assert found.centres.shape == (3, 5)
    noise = ActivationAnalyzer({"fc": RNG.normal(size=(90, 5))}, labels).clustering("fc")
    assert noise.label_agreement < 0.2 and noise.silhouette < 0.3
    assert np.isnan(ActivationAnalyzer({"fc": values}).clustering("fc", 3).label_agreement)


def test_the_shape_of_a_plane_and_of_a_point() -> None:
    plane = RNG.uniform(size=(400, 2)) @ np.linalg.qr(RNG.normal(size=(9, 9)))[0][:2]
    found = ActivationAnalyzer({"fc": plane}, RNG.integers(0, 3, 400)).manifold_analysis("fc")
    assert found.intrinsic_dimension == pytest.approx(2, abs=0.3) and found.participation_ratio == pytest.approx(
        2, abs=0.1
    )
    assert abs(found.label_alignment) < 0.05
    flat = ActivationAnalyzer({"fc": np.ones((40, 3))}).manifold_analysis("fc")
    assert np.isnan(flat.participation_ratio) and np.isnan(flat.intrinsic_dimension) and np.isnan(flat.label_alignment)


def test_it_takes_what_activation_capture_keeps() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    with ActivationCapture() as capture:
        capture.register_model(model, ["0", "2"])
        model(torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    analyzer = ActivationAnalyzer(capture.activations)
    assert analyzer.layers == ["0", "2"]
    assert analyzer.matrix("0").shape == (12, 4) and analyzer.matrix("2").shape == (12, 5)
    np.testing.assert_allclose(analyzer.matrix("0"), capture.activations["0"].double().mean((2, 3)).numpy())
    assert ActivationAnalyzer({"t": np.zeros((4, 7, 3))}).matrix("t").shape == (4, 3)


def test_capturing_leaves_no_hooks_behind() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))

    def hooks() -> int:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)

    capture = ActivationCapture()
    capture.register_layer("first", model[0])
    capture.register_layer("last", model[2])
    model(torch.randn(5, 3, requires_grad=True))
    kept = capture.activations["last"]
    assert hooks() == 2 and not kept.requires_grad and kept.grad_fn is None
    capture.remove_hooks()
    assert hooks() == 0
    model(torch.randn(5, 3))
    assert capture.activations["last"] is kept  # what was recorded stays, and nothing new is
    capture.register_layer("first", model[0])  # the name is free again
    capture.remove_hooks()
    with pytest.raises(RuntimeError, match="in the block"), ActivationCapture() as other:
        other.register_model(model, ["0", "2"])
        raise RuntimeError("in the block")
    assert hooks() == 0


def test_activations_can_be_given_to_the_analysis_instead() -> None:
    values, labels = torch.randn(30, 4, 3, 3, generator=torch.Generator().manual_seed(0)), np.repeat([0, 1, 2], 10)
    by_name, given = ActivationAnalyzer({"conv": values}, labels), ActivationAnalyzer(labels=labels)
    assert given.layers == []
    np.testing.assert_array_equal(
        given.pca_analysis(values, 2).projections, by_name.pca_analysis("conv", 2).projections
    )
    np.testing.assert_array_equal(given.clustering(values).assignment, by_name.clustering("conv").assignment)
    assert given.manifold_analysis(values) == by_name.manifold_analysis("conv")


def test_what_cannot_be_asked_says_why() -> None:
    analyzer = ActivationAnalyzer({"fc": RNG.normal(size=(10, 3))})
    for action, says in (
        (lambda: analyzer.matrix("fd"), "known: fc"),
        (lambda: analyzer.pca_analysis("fc", 4), r"1\.\.3"),
        (lambda: analyzer.clustering("fc"), "n_clusters"),
        (lambda: analyzer.clustering("fc", 10), "between 2 and"),
        (lambda: ActivationAnalyzer({"fc": np.zeros(3)}), r"layer 'fc' must be \[n, …\]"),
        (lambda: ActivationAnalyzer().pca_analysis(np.zeros(3)), r"activations must be \[n, …\]"),
        (lambda: ActivationAnalyzer().pca_analysis({"fc": np.zeros((3, 2))}), r"ActivationAnalyzer\(…\).*'fc'"),
        (lambda: ActivationAnalyzer().pca_analysis("fc"), "no activations of layer 'fc'"),
        (lambda: ActivationAnalyzer(labels=[0, 1]).clustering(np.zeros((3, 2))), "3 stimuli, but 2 labels"),
        (lambda: ActivationAnalyzer({"fc": np.zeros((3, 2))}, [0, 1]), "3 stimuli, but 2 labels"),
    ):
        with pytest.raises(SpecError, match=says):
            action()
