"""Pictures of arrays: what is in them, under the founding names, and what is refused."""

import numpy as np
import pytest
from matplotlib import pyplot

from ndt_ray.errors import SpecError
from ndt_ray.figures.looking import VisualizationTools, activations, filters, made_images

RNG = np.random.default_rng(0)


def shown(figure):
    return [np.asarray(image.get_array()) for axes in figure.axes for image in axes.get_images()]


@pytest.mark.slow
def test_the_founding_names_save_and_leave_nothing_open(tmp_path):
    tools, patterns = VisualizationTools, RNG.random((3, 2, 5, 5))
    made = {
        "pattern": lambda path: tools.plot_attention_pattern(patterns, 1, save_path=path),
        "heads": lambda path: tools.plot_attention_heads_comparison(patterns, patterns, save_path=path),
        "filters": lambda path: tools.plot_filter_visualization(RNG.normal(size=(20, 3, 3, 3)), save_path=path),
        "acts": lambda path: tools.plot_activation_heatmap(RNG.random((6, 4)), save_path=path),
        "entropy": lambda path: tools.plot_entropy_evolution([0, 5, 9], RNG.random((3, 2)), [5], save_path=path),
    }
    for name, draw in made.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert not pyplot.get_fignums()


@pytest.mark.slow
def test_what_is_drawn_is_what_was_given():
    patterns = RNG.random((3, 2, 5, 5))
    (image,) = shown(VisualizationTools.plot_attention_pattern(patterns, 1))
    np.testing.assert_allclose(image, patterns.mean(0)[1])
    weight = RNG.normal(size=(20, 3, 3, 3))
    kernels = shown(filters(weight))
    assert len(kernels) == 16 and np.array_equal(kernels[5], weight[5, 0])
    x = RNG.random((6, 4))
    np.testing.assert_array_equal(shown(activations(x))[0], x.T)
    assert len(shown(made_images(RNG.random((12, 1, 8, 8)), ["edge"] * 12))) == 12
    assert len(shown(made_images(RNG.random((2, 3, 8, 8))))) == 2


def test_events_are_red_dashed_lines():
    (axes,) = VisualizationTools.plot_entropy_evolution(range(10), range(10), [3, 7]).axes
    dashed = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [3, 7]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: VisualizationTools.plot_attention_pattern(np.ones((2, 3, 3)), 5),
        lambda: VisualizationTools.plot_attention_pattern(np.ones(3)),
        lambda: VisualizationTools.plot_attention_heads_comparison(np.ones((2, 3, 3)), np.ones((3, 3, 3))),
        lambda: filters(np.ones((3, 3))),
        lambda: activations(np.ones(3)),
        lambda: made_images(np.ones((2, 2, 3, 3))),
        lambda: VisualizationTools.plot_entropy_evolution([1, 2], [1]),
    ],
)
def test_arrays_of_another_shape_are_refused(draw):
    with pytest.raises(SpecError):
        draw()
