"""The founding document's reading of a layer matrix: its illustrative one gives what it says, all of it computed."""

import json

import numpy as np
import pandas as pd
import pytest

from ndt_ray.analysis.mechanisms.sae import checks, founding, matrix
from ndt_ray.analysis.mechanisms.sae.matrix import LayerMatrix
from ndt_ray.analysis.mechanisms.sae.tables import SAE, TRANSFER
from ndt_ray.errors import SpecError
from ndt_ray.figures import transfer as figures

LAYERS = ("4", "8", "12", "16")
VALUES = np.array([[1.0, 0.95, 0.72, 0.35], [0.91, 1.0, 0.88, 0.64], [0.68, 0.85, 1.0, 0.79], [0.31, 0.62, 0.76, 1.0]])
SEED = LayerMatrix("gemma -> gemma", LAYERS, LAYERS, VALUES, 2048)


def test_the_illustrative_matrix_gives_the_documents_findings() -> None:
    assert matrix.row_verdicts(SEED) == dict(zip(LAYERS, matrix.ROW_WORDS, strict=True))
    assert matrix.early_layers(SEED) == ("4", "8")
    flag, mean = matrix.universal_early(SEED)
    assert flag and mean == pytest.approx(0.93)
    assert matrix.divergence(SEED) == "12"
    layer, value, clear = matrix.bottleneck(SEED)
    assert layer == "8" and value == pytest.approx(0.8575) and clear
    assert SEED.universality == pytest.approx(VALUES.mean())
    assert matrix.bidirectional(SEED) == [("4", "8"), ("8", "12"), ("12", "16")]
    assert 0.9 < matrix.concentration(SEED) < 1


@pytest.mark.parametrize(
    ("value", "name"),
    [(0.9, "universal"), (0.8999, "partially universal"), (0.6, "partially universal"), (0.5999, "model-specific")],
)
def test_bands_of_the_heat_map(value: float, name: str) -> None:
    assert matrix.band(value) == name and matrix.band(float("nan")) == "skipped"


def test_the_file_has_the_documents_schema_and_scores_are_means() -> None:
    other = LayerMatrix("a -> b", ("4", "8"), ("4",), np.array([[0.5], [np.nan]]))
    text = matrix.transfer_json([SEED, other])
    found = json.loads(text)
    assert (
        found["gemma -> gemma"]["layer_pairs"]["12_to_4"] == 0.68 and len(found["gemma -> gemma"]["layer_pairs"]) == 16
    )
    assert found["a -> b"] == {"layer_pairs": {"4_to_4": 0.5}, "universality_score": 0.5}
    assert checks.readable(text).ok
    found["a -> b"]["universality_score"] = 0.7
    assert not checks.readable(json.dumps(found)).ok and not checks.readable("{").ok


def test_insights_follow_the_numbers() -> None:
    text = matrix.insights([SEED])
    for words in (
        "early layers: Yes** (0.93",
        "Divergence: at 12 (0.68 to 4)",
        "Bottleneck: 8 (0.86 to all",
        "score 0.78",
    ):
        assert words in text, text
    other = matrix.insights([LayerMatrix("flat", LAYERS, LAYERS, np.full((4, 4), 0.3), 64)])
    assert "early layers: No** (0.30" in other and "not clearly" in other and "High universality" not in other
    alike = matrix.insights([LayerMatrix("alike", LAYERS, LAYERS, np.ones((4, 4)), 64)])
    assert "Divergence: none" in alike and "Model-specific" not in alike
    assert "No pair of layers could be compared" in matrix.insights([])


def between(relation: str, diagonal: tuple[float, ...]) -> LayerMatrix:
    """Two networks whose layers of equal depth were compared."""
    values = np.full((4, 4), np.nan)
    values[np.diag_indices(4)] = diagonal
    return LayerMatrix(f"a -> b {relation}", LAYERS, LAYERS, values, relation=relation)


def test_networks_are_compared_by_layers_of_the_same_depth() -> None:
    one, other = between("seeds", (0.99, 0.95, 0.8, 0.5)), between("seeds", (0.97, 0.93, 0.6, 0.9))
    assert matrix.matched(one) == dict(zip(LAYERS, (0.99, 0.95, 0.8, 0.5), strict=True))
    assert matrix.shared_early(one) == (True, pytest.approx(0.97)) and matrix.apart(one) == "16"
    tasks = between("data", (0.99, 0.6, 0.9, 0.9))
    assert matrix.shared_early(tasks) == (False, pytest.approx(0.795)) and matrix.apart(tasks) == "8"
    deep = LayerMatrix("x", LAYERS, ("p", "q"), np.arange(8.0).reshape(4, 2) / 10, relation="architectures")
    assert matrix.matched(deep) == {"4": 0.0, "8": 0.2, "12": 0.5, "16": 0.7}  # by relative depth
    full = LayerMatrix("y", LAYERS, LAYERS, VALUES, relation="checkpoints")
    assert set(matrix.matched(full).values()) == {1.0} and matrix.apart(full) is None
    text = matrix.insights([SEED, one, other, tasks])
    for words in (
        "**Universal early layers: Yes** (0.93",
        "**Universal early layers between seeds: Yes** (0.96 on average, n = 2 matrices; all above 0.9 in 2)",
        "**Universal early layers between data: No** (0.79 on average, n = 1 matrices; all above 0.9 in 0)",
        "## Between seeds: 2 pairs of networks",
        "- 12 to the layer of its depth: 0.70 on average, partially universal (n = 2)",
        "First layer at or below 0.7: 16 in 1, 12 in 1 (of 2 pairs of networks)",
        "Carries over best: 4 (0.98)",
        "## gemma -> gemma",
        "cannot be said: 1 networks",  # size is a question of networks, not of their pairs
    ):
        assert words in text, text
    nothing = LayerMatrix("z", LAYERS, LAYERS, np.where(np.eye(4)[::-1] > 0, 0.5, np.nan), relation="seeds")
    assert "between seeds: Cannot be said** (no two early layers" in matrix.insights([nothing])
    alone = matrix.insights([tasks])
    assert "between data: No" in alone and "## Size" not in alone


def test_the_effect_of_size_is_tested_not_told() -> None:
    def diverging(width: int, at: int) -> LayerMatrix:
        values = np.ones((4, 4))
        values[at:, 0] = 0.4
        return LayerMatrix(str(width), LAYERS, LAYERS, values, width)

    assert matrix.size_effect([SEED])["answer"] == "cannot be said: 1 networks"
    grows = matrix.size_effect([diverging(w, at) for w, at in ((16, 1), (17, 1), (64, 2), (65, 2), (256, 3), (255, 3))])
    assert grows["answer"] == "narrower networks diverge earlier" and grows["p"] < 0.01
    mixed = matrix.size_effect([diverging(w, at) for w, at in ((16, 2), (32, 1), (64, 3), (128, 2))])
    assert mixed["answer"] == "no effect of size was found"
    same = matrix.size_effect([diverging(w, 2) for w in (16, 32, 64)])
    assert same["answer"].startswith("size does not matter")


def test_a_matrix_must_fit_its_layers() -> None:
    with pytest.raises(SpecError, match="does not fit 4 source and 2 target layers"):
        LayerMatrix("x", LAYERS, LAYERS[:2], VALUES)
    one = LayerMatrix("one", ("a",), ("a",), np.ones((1, 1)))
    assert matrix.bottleneck(one)[0] is None and np.isnan(matrix.concentration(one))


def rows() -> pd.DataFrame:
    """The illustrative matrix as rows of `sae_transfer`, one of them skipped."""
    found = []
    for i, s in enumerate(LAYERS):
        for j, t in enumerate(LAYERS):
            if i == j:
                continue
            row = {c.name: None for c in TRANSFER.columns} | {
                "relation": "layers", "source_trial": "t", "target_trial": "t", "source_cell": "m", "target_cell": "m",
                "source_step": 9, "target_step": 9, "source_layer": s, "target_layer": t, "source_layer_index": i,
                "target_layer_index": j, "source_d": 64, "target_d": 64, "status": "ok", "quality": VALUES[i, j],
                "aligned": 0.9, "control": 0.5, "ceiling": 0.95, "score": 0.8, "source_loss": 0.4,
                "target_loss": 0.5, "ratio": 1 / VALUES[i, j],
                "cosine": 0.4, "cosine_chance": 0.38,
            }  # fmt: skip
            found.append(row)
    found[0] |= {"status": "skipped", "quality": None, "reason": "dimension_mismatch_64_vs_32"}
    return pd.DataFrame(found)


def dictionaries() -> pd.DataFrame:
    """Rows of `sae` for the same four layers; a fifth could not be trained."""
    row = {c.name: None for c in SAE.columns} | {"trial_id": "t", "step": 9, "dictionary": 0, "d": 64}
    row |= {"explained_variance": 0.9, "l0": 8.0, "dead": 0.1, "shrinkage": 0.95}
    row |= {"final_loss": 0.4, "min_loss": 0.4, "late_change": -0.02}
    found = [row | {"layer": layer, "layer_index": i} for i, layer in enumerate(LAYERS)]
    return pd.DataFrame([*found, row | {"layer": "20", "layer_index": 4, "flag": "constant", "final_loss": None}])


def test_matrices_come_from_the_table_and_skipped_pairs_stay_open() -> None:
    (made,) = founding.matrices(rows())
    assert made.sources == made.targets == LAYERS and np.isnan(made.values[0, 1])
    assert np.diag(made.values).tolist() == [1] * 4 and made.values[2, 0] == 0.68 and made.width == 64
    assert founding.matrices(rows().iloc[:0]) == []
    with pytest.raises(SpecError, match="no matrix of 'qualty'.*did you mean 'quality'"):
        founding.matrices(rows(), "qualty")


def test_the_files_are_written_from_the_table() -> None:
    found = founding.files(rows(), dictionaries())
    assert set(found) == {"layer_transfer_matrix.json", "layer_analysis_insights.md", "sae_checks.json"}
    assert "4_to_8" not in json.loads(found["layer_transfer_matrix.json"])["m"]["layer_pairs"]
    assert "1 pairs: dimension_mismatch_…" in found["layer_analysis_insights.md"]
    assert all(c["ok"] for c in json.loads(found["sae_checks.json"]))
    empty = founding.files(rows().iloc[:0], dictionaries().iloc[:0])
    assert empty["layer_transfer_matrix.json"] == "{}\n"


def test_insights_cover_every_relation_and_stand_beside_chance() -> None:
    seeds = rows().assign(relation="seeds", target_trial="u", quality=0.8, quality_random=0.9, target_layer=LAYERS[0])
    seeds = seeds.assign(target_layer=seeds["source_layer"], target_layer_index=seeds["source_layer_index"])
    seeds = seeds.drop_duplicates("source_layer", keep="last").assign(
        cosine_over_7=0.25, cosine_over_7_chance=0.01, cosine_over_5=0.5, cosine_over_5_chance=0.125, spearman=0.3,
        spearman_random=0.02, spearman_null_hi=0.23,
    )  # fmt: skip
    text = founding.files(pd.concat([rows(), seeds]), dictionaries())["layer_analysis_insights.md"]
    for words in (
        "**Universal early layers: Yes**",
        "**Universal early layers between seeds: No** (0.80 on average",
        "## Between seeds: 1 pair of networks",
        "seeds: quality 0.80 on average, 0.90 with untrained dictionaries; above them in 0 of 4 pairs.",
        "layers: nearest atoms have a cosine of 0.400, random directions 0.380.",
        "above .7 are 25.0%, of random ones 1.0%; above .5 are 50.0%, of random ones 12.5%.",
        "(Spearman), those of untrained dictionaries at 0.02; above the 95 % quantile of permuted features in 4 of 4",
    ):
        assert words in text, text


def test_files_of_several_configurations_keep_them_apart() -> None:
    both = pd.concat([rows().assign(configuration="default"), rows().assign(configuration="relu", quality=0.3)])
    trained = pd.concat([dictionaries().assign(configuration=c) for c in ("default", "relu")])
    found = founding.files(both, trained)
    scores = json.loads(found["layer_transfer_matrix.json"])
    assert list(scores) == ["m [default]", "m [relu]"]
    assert scores["m [relu]"]["layer_pairs"]["12_to_4"] == 0.3 != scores["m [default]"]["layer_pairs"]["12_to_4"]
    text = found["layer_analysis_insights.md"]
    assert "(default dictionaries)" in text and "(relu dictionaries)" in text and "11 of 12 pairs" in text
    judged = {c["name"]: c for c in json.loads(found["sae_checks.json"])}
    assert judged["shapes"]["ok"] and judged["finite"]["found"].startswith("110 values")
    trained.loc[trained["configuration"] == "relu", "final_loss"] = 1.5
    broken = founding.validate(both, trained, "{}")[0]
    assert not broken.ok and "[relu]" in broken.found and "[default]" not in broken.found
    assert len(json.loads(figures.summary_json(trained.assign(config="{}")))) == 8


def ok(pairs: pd.DataFrame, trained: pd.DataFrame) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for check in founding.validate(pairs, trained, "{}"):
        found.setdefault(check.name, []).append(check.ok)
    return found


def test_checks_of_what_is_right() -> None:
    right = {"losses": [True, True], "converged": [True], "finite": [True, True], "ratios": [True], "shapes": [True]}
    assert ok(rows(), dictionaries()) == right | {"json": [True]}
    assert set(ok(rows(), dictionaries().iloc[:0])) == {"losses", "ratios", "finite", "json"}
    assert ok(rows().iloc[:0], dictionaries().iloc[:0]) == {"json": [True]}


@pytest.mark.parametrize(
    ("table", "column", "value", "name"),
    [
        ("dictionaries", "final_loss", 1.2, "losses"),
        ("dictionaries", "min_loss", 0.3, "converged"),
        ("dictionaries", "late_change", -0.3, "converged"),
        ("dictionaries", "final_loss", float("nan"), "converged"),
        ("dictionaries", "explained_variance", float("nan"), "finite"),
        ("dictionaries", "d", 32, "shapes"),
        ("pairs", "source_loss", 1.0, "losses"),
        ("pairs", "ratio", 324.0, "ratios"),
        ("pairs", "aligned", float("nan"), "finite"),
        ("pairs", "ceiling", float("inf"), "finite"),
        ("pairs", "target_d", 65, "shapes"),
    ],
)
def test_checks_fail_on_what_is_wrong(table: str, column: str, value: float, name: str) -> None:
    tables = {"pairs": rows(), "dictionaries": dictionaries()}
    tables[table].loc[2, column] = value
    assert False in ok(tables["pairs"], tables["dictionaries"])[name]
