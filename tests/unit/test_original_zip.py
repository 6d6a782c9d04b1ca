"""Zips that are not the published study are refused with the reason; small made-up ones are read as they say."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ndt_ray.errors import DataError
from ndt_ray.original import NO_RUN, NOISE, SUMMARY, read_published

METRICS = {"stable_rank": 1.0, "participation_ratio": 8.0, "effective_rank_90": 3.0, "nuclear_norm_ratio": 4.0}


def a_run(**changes: Any) -> dict[str, Any]:
    rows = [
        {"step": 5 * i, "epoch": 1, "loss": 2.0, "grad_norm": 0.1, "layer_metrics": {"network.0": METRICS}}
        for i in range(4)
    ]
    made = {"measurements": rows, "arch_name": "mlp_narrow", "dataset_name": "mnist", "num_steps": 20}
    made |= {"measurement_interval": 5, "final_accuracy": 0.9, "architecture_params": {"num_params": 7}}
    return made | changes


def zip_of(path: Path, **files: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"phase1_full/{name}.json", content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_run_becomes_rows_with_true_steps_and_the_true_stable_rank(tmp_path: Path) -> None:
    found = read_published(zip_of(tmp_path / "a.zip", e=a_run()))
    rows = found.tables["measurements"].to_pandas()
    assert rows["step"].tolist() == [1, 6, 11, 16]
    assert rows["stable_rank_uncentred"].tolist() == [2.0] * 4  # 4² / 8
    assert rows["participation_ratio_sv_uncentred"].tolist() == [8.0] * 4
    assert rows["stable_rank"].isna().all() and rows["flag"].isna().all()
    (trial,) = found.tables["trials"].to_pylist()
    assert trial["model"] == "mlp_narrow" and trial["seed"] is None and trial["n_parameters"] == 7
    assert json.loads(trial["spec"])["measure"]["every"] == 5
    assert found.rows["experiment"].unique().tolist() == ["e"]


def test_trial_ids_follow_name_and_content(tmp_path: Path) -> None:
    def ids(name: str, **files: Any) -> list[str]:
        return list(read_published(zip_of(tmp_path / name, **files)).experiments["trial_id"])

    first = ids("a.zip", e=a_run(), f=a_run())
    assert len(set(first)) == 2 and ids("b.zip", e=a_run(), f=a_run()) == first
    assert ids("c.zip", e=a_run(final_accuracy=0.8))[0] != first[0]


def test_what_is_no_run_is_named_with_the_reason(tmp_path: Path) -> None:
    path = zip_of(
        tmp_path / "a.zip", e=a_run(), noise=a_run(dataset_name="cifar10"), summary={"results": []}, other=[1, 2]
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
        archive.mkdir("empty")
    skipped = {Path(name).stem: why for name, why in read_published(path).skipped}
    assert skipped == {"noise": NOISE, "summary": SUMMARY, "other": NO_RUN, "README": NO_RUN}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"measurements": [', "e.json is no JSON"),
        (a_run(measurements=[]), "not a run as published"),
        (a_run(measurements=[{"step": 0}]), "layer_metrics"),
        (a_run(measurement_interval=10), "steps are not 0, 10, 20"),
        (a_run(num_steps=10), "do not fit 10 steps"),
        (a_run(measurements=7), "not a run as published"),
        ({k: v for k, v in a_run().items() if k != "final_accuracy"}, "final_accuracy"),
        (a_run(architecture_params=None), "not a run as published"),
    ],
)
def test_a_run_that_is_not_as_published_is_refused_by_name(tmp_path: Path, content: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_published(zip_of(tmp_path / "a.zip", e=content))


def test_layers_that_come_and_go_are_refused(tmp_path: Path) -> None:
    run = a_run()
    run["measurements"][2]["layer_metrics"] = {"network.2": METRICS}
    with pytest.raises(DataError, match="layers change"):
        read_published(zip_of(tmp_path / "a.zip", e=run))
    run["measurements"][2]["layer_metrics"] = {"network.0": {"stable_rank": "high"}}
    with pytest.raises(DataError, match="not a run"):
        read_published(zip_of(tmp_path / "b.zip", e=run))


def test_files_that_are_no_zip_or_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("not a zip")
    (tmp_path / "folder.zip").mkdir()
    for name in ("text.zip", "folder.zip"):
        with pytest.raises(DataError, match="no zip file"):
            read_published(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        read_published(tmp_path / "absent.zip")
    with pytest.raises(DataError, match="holds no published run"):
        read_published(zip_of(tmp_path / "none.zip", summary={"results": []}))


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", e=a_run())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("again/e.json", json.dumps(a_run()))
    with pytest.raises(DataError, match="'e' twice"):
        read_published(path)


def test_an_encrypted_or_enormous_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "a.zip", e=a_run())
    monkeypatch.setattr("ndt_ray.original._LARGEST", 10)
    with pytest.raises(DataError, match="bytes - that is no published run"):
        read_published(path)
    monkeypatch.undo()
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1  # the flag that says: encrypted
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        read_published(path)
