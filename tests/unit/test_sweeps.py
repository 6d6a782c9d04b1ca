"""Every sweep file that is shipped is valid, names only what is registered, and is the grid it claims to be."""

import collections
from importlib import resources
from pathlib import Path

import pytest

from ndt_ray import registry
from ndt_ray.spec import axes, loader, where

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


def sweep(name: str) -> axes.Sweep:
    path = ROOT / "sweeps" / f"{name}.yaml"
    document = loader.load_yaml(path.read_text(), str(path))
    return axes.make_sweep(document.value, document)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_sweep_is_valid_and_carries_its_file_name(path: Path) -> None:
    made = sweep(path.stem)
    assert made.name == path.stem
    assert made.about.endswith("?")
    assert axes.find_problems(made) == []
    trials = list(made.trials())
    assert {t.model.name for t in trials} <= set(registry.names("model"))
    assert {t.data.name for t in trials} <= set(registry.names("data"))
    assert {a.name for a in made.analyses} <= set(registry.names("analysis"))
    assert len({t.trial_id for t in trials}) == len(trials)
    assert {a.role for a in made.axes if a.path.startswith("seed")} == {"replicate"}


def test_sweeps_are_packaged() -> None:
    packaged = {f.name for f in resources.files("ndt_ray.sweeps").iterdir() if f.name.endswith(".yaml")}
    assert packaged == {p.name for p in FILES}


def test_digits_is_three_architectures_by_six_seeds() -> None:
    cells = collections.Counter(t.cell for t in sweep("digits").trials())
    assert len(cells) >= 3
    assert set(cells.values()) == {6}


def test_dimensionality_is_the_57_cells_of_the_study() -> None:
    trials = list(sweep("dimensionality").trials())
    cells = collections.Counter(t.cell for t in trials)
    assert len(cells) == 57
    assert set(cells.values()) == {6}
    by_data = collections.Counter(cell.split("/")[1] for cell in cells)
    assert by_data == {"mnist": 15, "fashion_mnist": 15, "qmnist": 15, "ag_news": 12}
    (train,) = {t.train for t in trials}
    assert (train.steps, train.batch, train.optimizer, train.lr, train.subset) == (2000, 64, "adam", 1e-3, None)
    (measure,) = {t.measure.model_dump_json() for t in trials}
    assert '"every":5' in measure
    assert '"probe":256' in measure
    assert {t.evaluate.size for t in trials} == {None}


def test_the_piece_of_dimensionality_named_in_its_file_is_small() -> None:
    text = (ROOT / "sweeps" / "dimensionality.yaml").read_text()
    expression = text.split('--where "')[1].split('"')[0]
    keep = where.Where(expression, {})
    piece = [t for t in sweep("dimensionality").trials() if keep(t)]
    assert 2 <= len(piece) <= 6


def test_grokking_is_the_published_protocol() -> None:
    trials = list(sweep("grokking").trials())
    assert {t.model.name for t in trials} == {"modular_transformer"}
    data = trials[0].data.model_dump_json()
    assert data == '{"name":"modular_addition","params":{"p":113,"train_fraction":0.3,"split_seed":598}}'
    lengths = collections.Counter((t.data.params["p"], t.train.steps) for t in trials)
    assert lengths == {(113, 15000): 12, (59, 25000): 12}
    for t in trials:
        assert (t.train.batch, t.train.optimizer, t.train.lr, t.train.betas) == ("full", "adamw", 1e-3, (0.9, 0.98))
        assert t.train.loss_dtype == "float64"
    assert {t.train.weight_decay for t in trials} == {0.0, 1.0}
    # As they were before there was a second modulus: stores that hold them go on.
    published = {t.trial_id for t in trials if t.data.params["p"] == 113}
    assert {"ae845609b3c6d9d9", "eeffb26d6bb4416f", "ea6f3a47719fc6f4"} < published and len(published) == 12
