"""The founding study's published data: its numbers come out exactly, and the corrected ones beside them.

Figures: its published jump table (`all_jumps_detailed.upstream.csv`), its paper, and a recount of both.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ndt_ray import Phase2Infrastructure
from ndt_ray.analysis.detection.original import DifferenceZ
from ndt_ray.analysis.jumps import compare_with_null, published_table
from ndt_ray.analysis.phases import jump_phases, phase_bin
from ndt_ray.analysis.running.stored import analyze
from ndt_ray.errors import DataError, StoreError
from ndt_ray.original import NOISE, SUMMARY, Published, import_published, read_published
from ndt_ray.store.reader import Store, open_store

pytestmark = pytest.mark.data

N_SURROGATES = 10


@pytest.fixture(scope="module")
def published(zipped: Path) -> Published:
    return read_published(zipped)


@pytest.fixture(scope="module")
def folder() -> Path:
    import os

    root = os.environ.get("NDT_DATA")
    if not root:
        pytest.skip("NDT_DATA is not set: this test reads the founding study's data; set it to a folder that holds it")
    return Path(root) / "ndt_phase1"


@pytest.fixture(scope="module")
def zipped(folder: Path) -> Path:
    return folder / "phase1_full.zip"


@pytest.fixture(scope="module")
def store(zipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The published data, imported and analysed."""
    made = open_store(tmp_path_factory.mktemp("original") / "store", create=True)
    import_published(zipped, made)
    assert analyze(made, "original", "growth").ok
    assert analyze(made, "original", "jumps", parameters={"n_surrogates": N_SURROGATES}).ok
    return made


@pytest.fixture(scope="module")
def jumps(store: Store, published: Published) -> pd.DataFrame:
    return store.table("jumps").merge(published.experiments[["trial_id", "experiment", "family"]], on="trial_id")


@pytest.fixture(scope="module")
def rule(jumps: pd.DataFrame) -> pd.DataFrame:
    """The 2,991."""
    return jumps[(jumps["mode"] == "original") & (jumps["detector"] == "difference_z")]


def test_the_zip_gives_55_runs_and_says_what_it_leaves_out(published: Published) -> None:
    assert published.tables["trials"].num_rows == len(published.experiments) == 55
    assert published.tables["scalars"].num_rows == 22_000
    assert published.tables["measurements"].num_rows == len(published.rows) == 160_000
    skipped = dict(published.skipped)
    assert len(skipped) == 7 and skipped.pop("phase1_full/experiment_summary.json") == SUMMARY
    assert all(name.endswith("_cifar10.json") and why == NOISE for name, why in skipped.items())
    assert published.experiments["family"].value_counts().to_dict() == {"mlp": 32, "transformer": 14, "cnn": 9}


def test_steps_are_the_updates_really_done_and_layers_stand_in_forward_order(published: Published) -> None:
    rows = published.rows
    assert (rows["step"] == rows["recorded_step"] + 1).all() and (rows["recorded_step"] == 5 * rows["index"]).all()
    assert rows["step"].min() == 1 and rows["step"].max() == 1996
    deep = rows[rows["experiment"] == "mlp_deep_10_mnist"].drop_duplicates("layer").sort_values("layer_index")
    assert deep["layer"].tolist() == [f"network.{i}" for i in range(0, 21, 2)]
    views = rows.groupby("layer")["view"].unique()
    assert views["input_proj"].tolist() == ["feature_mean"] and views["conv_layers.3"].tolist() == ["gap"]
    assert views["fc"].tolist() == ["units"]


def test_both_protocols_are_told_apart(published: Published) -> None:
    trials = published.tables["trials"].to_pandas()
    count = trials.groupby(["batch", "n_train", "probe_size", "steps_per_epoch"]).size().to_dict()
    assert count == {(64, 10_000, 320, 157): 9, (32, 1_500, 160, 47): 46}
    assert trials["seed"].isna().all()


def test_every_published_number_survives_the_store_bit_for_bit(store: Store, folder: Path) -> None:
    columns = ["stable_rank", "participation_ratio", "effective_rank_90", "nuclear_norm_ratio"]
    ours = store.table("original_measurements").sort_values(["experiment", "layer", "index"], ignore_index=True)
    theirs = pd.read_parquet(folder / "measurements.parquet").astype({"experiment": str, "layer": str})
    theirs = theirs.sort_values(["experiment", "layer", "index"], ignore_index=True)
    assert (ours[columns].to_numpy() == theirs[columns].to_numpy(dtype=np.float64)).all()
    assert (ours["recorded_step"].to_numpy() == theirs["step"].to_numpy()).all()


def test_the_published_stable_rank_is_one_and_the_true_one_is_not(store: Store) -> None:
    rows = store.table("original_measurements")
    assert rows["stable_rank"].between(0.9999999, 1.0).all()
    assert rows["true_stable_rank"].max() > 2
    measured = store.sql("select sum(stable_rank_uncentred) s, count(stable_rank) c, count(flag) f from measurements")
    assert measured.loc[0, "s"] == pytest.approx(rows["true_stable_rank"].sum(), rel=1e-12)
    assert measured[["c", "f"]].to_numpy().tolist() == [[0, 0]]


def test_the_2991_jumps_are_the_published_ones(rule: pd.DataFrame, published: Published, folder: Path) -> None:
    theirs = pd.read_csv(folder / "all_jumps_detailed.upstream.csv")
    ours = published_table(rule, published.experiments)
    key = ["experiment", "layer", "step"]
    both = ours.merge(theirs, on=key, suffixes=("", "_theirs"), validate="one_to_one")
    assert len(ours) == len(theirs) == len(both) == 2991
    for column in ("magnitude", "speed", "direction", "phase", "phase_category", "arch_name", "dataset"):
        assert (both[column] == both[f"{column}_theirs"]).all(), column


def test_the_jumps_split_and_merge_as_recounted(rule: pd.DataFrame, store: Store) -> None:
    assert rule["family"].value_counts().to_dict() == {"transformer": 1598, "mlp": 1096, "cnn": 297}
    assert rule["direction"].value_counts().to_dict() == {"increase": 1922, "decrease": 1069}
    counts = store.sql("select sum(observed) o, sum(merged) m from jump_counts where measure = 'stable_rank'")
    assert counts.to_numpy().tolist() == [[2991, 1677]]


def test_published_phases_lose_252_and_know_no_late_jump_true_ones_do(rule: pd.DataFrame) -> None:
    def split(by: tuple[str, ...]) -> dict[str, list[int]]:
        table = jump_phases(rule, by=by)
        return {str(k): g["n"].tolist() for k, g in table.groupby(by[0])}

    assert split(("mode",)) == {"original": [2241, 498, 0, 252]}
    assert split(("family",)) == {"transformer": [1023, 478, 0, 97], "cnn": [270, 0, 0, 27], "mlp": [948, 20, 0, 128]}
    true = rule.assign(phase_bin=phase_bin(rule["step_before"] / 2000))
    count = true.groupby(["family", "phase_bin"]).size().unstack(fill_value=0)[["early", "mid", "late"]]
    assert count.sum().tolist() == [1869, 622, 500]
    assert count.loc[["transformer", "cnn", "mlp"]].to_numpy().tolist() == [
        [672, 446, 480],
        [241, 56, 0],
        [956, 120, 20],
    ]


def test_the_paper_s_aggregate_jumps_come_out(jumps: pd.DataFrame, published: Published) -> None:
    found = jumps[(jumps["mode"] == "original") & (jumps["detector"] == "smoothed_gradient")]
    n = found.groupby("experiment").size().reindex(published.experiments["experiment"], fill_value=0)
    by_family = n.groupby(published.experiments["family"].to_numpy())
    assert by_family.mean().round(2).to_dict() == {"cnn": 14.0, "transformer": 3.07, "mlp": 0.5}
    assert by_family.max().to_dict() == {"cnn": 23, "transformer": 9, "mlp": 14}
    assert by_family.agg(lambda x: round(100 * (x > 0).mean())).to_dict() == {"cnn": 100, "transformer": 57, "mlp": 6}
    case = found[found["experiment"] == "cnn_deep_fashion_mnist"]
    assert case["index"].tolist() == [*range(4, 24), 34, 35, 36]
    assert case.nlargest(5, "magnitude")["index"].tolist() == [7, 6, 8, 9, 5]
    assert case["magnitude"].max() == pytest.approx(0.03908, abs=5e-6)
    assert case["z"].max() == pytest.approx(4.361, abs=5e-4)
    assert n["transformer_shallow_mnist"] == 9 and n["mlp_narrow_mnist"] == 0
    # 14 early and 9 late: before and after half of the last flagged index
    early = case["index"] < case["index"].max() / 2
    assert (early.sum(), (~early).sum()) == (14, 9)
    assert case["magnitude"].mean() == pytest.approx(0.0274, abs=5e-5) and round(case["z"].mean(), 2) == 2.93


@pytest.mark.parametrize(
    ("experiment", "accuracy", "depth", "width", "parameters"),
    [
        ("cnn_deep_fashion_mnist", 0.848, 5, 120, 390_410),
        ("transformer_shallow_mnist", 0.936, 2, 128, 406_282),
        ("mlp_narrow_mnist", 0.927, 4, 32, 28_618),
    ],
)
def test_the_paper_s_cases_have_their_accuracy_and_size(
    published: Published, experiment: str, accuracy: float, depth: int, width: int, parameters: int
) -> None:
    case = published.experiments.set_index("experiment").loc[experiment]
    assert case["final_accuracy"] == pytest.approx(accuracy, abs=5e-4)
    assert (case["depth"], case["width"], case["num_params"]) == (depth, width, parameters)


@pytest.mark.parametrize(
    ("measure", "known"),
    [
        ("stable_rank", (2991, 1590, 1062, 798)),
        ("true_stable_rank", (7025, 2290, 1066, 580)),
        ("participation_ratio", (5707, 1961, 984, 611)),
        ("nuclear_norm_ratio", (6397, 2042, 948, 553)),
        ("effective_rank_90", (7146, 3093, 1792, 865)),
    ],
)
def test_other_measures_and_thresholds_give_the_recounted_numbers(
    published: Published, measure: str, known: tuple[int, ...]
) -> None:
    rows = published.rows.sort_values(["experiment", "layer_index", "index"])
    z = np.abs(DifferenceZ().scores(rows[measure].to_numpy().reshape(400, 400))[0])
    assert tuple(int((z > k).sum()) for k in (2, 3, 4, 5)) == known


def test_default_mode_says_what_is_true_of_the_same_data(store: Store) -> None:
    """Right measures, right steps, a null beside each: fewer changes than noise of the same spread would show."""
    table = compare_with_null(store.table("jump_counts")).set_index(["mode", "measure", "detector"])
    for measure, observed in (
        ("stable_rank_uncentred", 7025),
        ("participation_ratio_sv_uncentred", 5707),
        ("nuclear_norm_ratio_uncentred", 6397),
    ):
        row = table.loc[("default", measure, "difference_z")]
        assert row["observed"] == observed and row["series"] == 400
        assert row["verdict_white"] == row["verdict_ar1"] == "below"
        # 7,262 for Gaussian differences; 7,201 ± 54 was simulated for a Gaussian level
        assert row["expected_white"] == pytest.approx(7220, abs=60) and row["expected_ar1"] == pytest.approx(
            7240, abs=60
        )
    row = table.loc[("original", "stable_rank", "difference_z")]
    assert (row["observed"], row["constant"], row["verdict_white"]) == (2991, 31, "below")
    late = store.sql(
        "select avg((phase >= 0.5)::int) from jumps where mode = 'default' and detector = 'difference_z'"
        " and measure = 'stable_rank_uncentred'"
    )
    assert late.iloc[0, 0] == pytest.approx(0.29, abs=0.005)


def test_growth_fits_are_the_published_ones(store: Store, published: Published) -> None:
    fits = store.table("growth").merge(published.experiments[["trial_id", "experiment"]], on="trial_id")
    original = fits[fits["mode"] == "original"].set_index("experiment")
    assert original["r2"].mean() == pytest.approx(0.2402, abs=5e-5)
    assert (original["verdict"] == "excellent").sum() == 10 and (original["r2"] < 0).sum() == 13
    assert original["r2"].min() == pytest.approx(-4.81, abs=0.005)
    for name, r2, alpha in (
        ("mlp_narrow_mnist", 0.9336, 0.0014149),
        ("cnn_deep_fashion_mnist", 0.6317, 3.0623e-4),
        ("transformer_shallow_mnist", 0.2610, 5.0125e-5),
    ):
        assert original.loc[name, "r2"] == pytest.approx(r2, abs=5e-5)
        assert original.loc[name, "alpha"] == pytest.approx(alpha, rel=1e-4)
    assert original["at_bound"].str.contains("alpha").sum() == 9 and original["at_bound"].str.contains("t0").sum() == 47
    assert "alpha" in original.loc["transformer_shallow_mnist", "at_bound"]  # the paper quotes it as a finding
    default = fits[fits["mode"] == "default"]
    assert len(default) == 55 and default["r2"].mean() == pytest.approx(0.2402, abs=2e-4)


def test_importing_twice_changes_nothing_and_another_zip_is_refused(store: Store, zipped: Path, tmp_path: Path) -> None:
    before = store.tables()
    import_published(zipped, store)
    assert store.tables() == before
    with zipfile.ZipFile(zipped) as source, zipfile.ZipFile(tmp_path / "one.zip", "w") as one:
        one.writestr("phase1_full/mlp_narrow_mnist.json", source.read("phase1_full/mlp_narrow_mnist.json"))
    with pytest.raises(StoreError):
        import_published(tmp_path / "one.zip", store)
    assert store.tables() == before


def _broken(zipped: Path, **changes: object) -> bytes:
    with zipfile.ZipFile(zipped) as source:
        run = json.loads(source.read("phase1_full/mlp_narrow_mnist.json"))
    run["measurements"] = run["measurements"][:3]
    return json.dumps(run | changes).encode()


def test_a_damaged_zip_is_refused_before_anything_is_written(zipped: Path, tmp_path: Path) -> None:
    content = bytearray(zipped.read_bytes())
    content[200_000:200_100] = bytes(100)
    (tmp_path / "damaged.zip").write_bytes(content)
    (tmp_path / "short.zip").write_bytes(zipped.read_bytes()[:50_000])
    for name in ("damaged.zip", "short.zip"):
        with pytest.raises(DataError, match=f"{name}.*damaged"):
            read_published(tmp_path / name)


def test_lost_values_become_null_and_are_flagged(zipped: Path, tmp_path: Path) -> None:
    run = json.loads(_broken(zipped))
    run["measurements"][1]["layer_metrics"]["network.4"]["participation_ratio"] = 0.0
    run["measurements"][2]["layer_metrics"]["network.4"]["stable_rank"] = float("nan")
    with zipfile.ZipFile(tmp_path / "lost.zip", "w") as archive:
        archive.writestr("lost.json", json.dumps(run))
    rows = read_published(tmp_path / "lost.zip").tables["measurements"].to_pandas()
    lost = rows[rows["flag"].notna()]
    assert lost[["layer", "step", "flag"]].to_numpy().tolist() == [["network.4", 6, "lost"], ["network.4", 11, "lost"]]
    assert lost["stable_rank_uncentred"].isna().all() and lost["energy_90_uncentred"].isna().all()


def test_the_founding_api_has_losses_measures_and_jumps_of_the_published_study(store: Store) -> None:
    infra = Phase2Infrastructure(store.location.uri)
    found = infra.get_experiment_summary("transformer_deep_mnist")
    noise = found["expected_on_noise"]
    assert found["num_jumps"] == 258 and noise["white"] == pytest.approx(250, abs=15)
    assert "series_tests events" in found["jumps_are"]
    moments = infra.identify_moments("transformer_deep_mnist")
    assert len(moments) == 15
    compared = infra.compare_representations(moments[0], moments[2])
    seen = compared.measurements
    assert (seen["loss_is"], seen["measure"]) == ("batch_loss", "stable_rank_uncentred")
    assert np.isfinite(seen["loss_change"]) and "replay" in compared.missing["weights"]
    largest = seen["layer_changes"][moments[0].layer]
    assert abs(largest["change"]) == pytest.approx(moments[0].magnitude)
    published = Phase2Infrastructure(store.location.uri, jumps="original")
    assert published.get_experiment_summary("transformer_deep_mnist")["num_jumps"] == 174
    centred = Phase2Infrastructure(store.location.uri, measure="stable_rank")
    missing = centred.compare_representations(moments[0], moments[2]).missing
    assert "stable_rank" in missing["layer_changes"]
