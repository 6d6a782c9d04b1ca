"""Reading: views over exactly the committed files, whatever the path, the filesystem and the age of the parts."""

import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from store_rows import LAYERS, STEPS, TRIALS, contents, local, mounted, object_store, part_files, train

from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store import schema
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import COMPUTED, TABLES, Column, Table
from ndt_ray.store.views import wide_columns
from ndt_ray.store.writer import PackWriter

STATE = {"w": np.ones(1)}


@pytest.fixture(params=[local, object_store])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    found: Store = request.param(tmp_path)
    train(PackWriter(found, "s", "p0"), lambda step: False)
    return found


def test_an_empty_store_has_every_table_with_its_columns(tmp_path: Path) -> None:
    store = local(tmp_path)
    for name, table in {**TABLES, **COMPUTED}.items():
        frame = store.table(name)
        assert len(frame) == 0
        partitions = [p for p in table.partitions if name in TABLES]
        assert list(frame.columns) == [c.name for c in table.columns] + partitions
    assert list(store.table("wide").columns) == wide_columns()
    assert store.sql("SELECT * FROM spectra").dtypes["n_rows"] == "int32"


@pytest.mark.slow
def test_types_and_columns_are_the_same_before_and_after_the_first_rows(store: Store, tmp_path: Path) -> None:
    empty = local(tmp_path, "empty")
    for name in [*TABLES, "wide"]:
        ours = store.arrow(f"SELECT * FROM {name} LIMIT 0").schema
        assert ours == empty.arrow(f"SELECT * FROM {name} LIMIT 0").schema


def test_partitions_are_text_columns(store: Store) -> None:
    train(PackWriter(store, "s", "0002"), lambda step: False)
    rows = store.sql("SELECT DISTINCT sweep, pack FROM measurements ORDER BY pack")
    assert rows.values.tolist() == [["s", "0002"], ["s", "p0"]]


def test_wide_joins_what_a_measurement_belongs_to(store: Store) -> None:
    train(PackWriter(store, "other", "p0"), lambda step: False)
    full = store.sql("SELECT * FROM wide")
    assert len(full) == 2 * (STEPS + 1) * len(TRIALS) * len(LAYERS)
    assert full.phase.between(0, 1).all() and set(full.model) == {"mlp_narrow"} and full.probe_loss.notna().all()
    slim = store.sql("SELECT trial_id, step, layer, seed, phase, sweep FROM wide")
    key = ["sweep", "trial_id", "step", "layer"]
    left, right = (frame.sort_values(key).reset_index(drop=True) for frame in (full, slim))
    assert left[slim.columns].equals(right)
    scalars = store.sql("SELECT trial_id, step, probe_loss FROM scalars WHERE sweep = 's'")
    joined = store.sql("SELECT DISTINCT trial_id, step, probe_loss FROM wide WHERE sweep = 's'")
    assert sorted(map(tuple, scalars.values)) == sorted(map(tuple, joined.values))
    assert store.sql("SELECT max(W.Probe_Loss) AS m FROM Wide w").m[0] == full.probe_loss.max()


def test_measurements_filters(store: Store) -> None:
    train(PackWriter(store, "s", "p1"), lambda step: False)
    wanted = ["step", "stable_rank"]
    rows = store.measurements(sweep="s", trial=TRIALS[1], layer=LAYERS[0], steps=(3, 5), columns=wanted)
    assert sorted(rows.step) == [3, 3, 4, 4, 5, 5] and list(rows.columns) == wanted
    assert len(store.measurements(seed=[0, 1], model="mlp_narrow", steps=(0, 0))) == 8
    assert len(store.measurements(trial="nobody")) == 0 == len(store.measurements(layer=[]))
    with pytest.raises(SpecError, match="did you mean 'stable_rank'"):
        store.measurements(columns=["stable_rnk"])


@pytest.mark.slow
def test_a_series_is_read_from_its_own_pack_and_row_group(tmp_path: Path) -> None:
    store = local(tmp_path)
    for n in (3, 4):
        writer = PackWriter(store, "s", f"p{n}")
        place = {"layer": "l", "layer_index": 0, "view": "units"}
        for lane in range(3):
            rows = {"step": np.arange(50_000), "stable_rank": np.full(50_000, float(n))}
            writer.rows("measurements", {"trial_id": f"{lane}-{n}", **place, **rows})
        writer.commit(1, None, finished=True)
    assert pq.read_metadata(part_files(store, "measurements")[0]).num_row_groups == 2
    asked: list[str] = []
    real = store.reading
    store.reading = lambda query, parameters, use: asked.append(query) or real(query, parameters, use)  # type: ignore[method-assign]
    assert store.measurements(trial="1-3").stable_rank.unique().tolist() == [3.0]
    assert '"pack" IN (?)' in asked[0]
    assert len(store.sql("SELECT step FROM measurements WHERE trial_id = '2-4' AND step < 10")) == 10


@pytest.mark.parametrize("kind", [local, object_store])
def test_float64_parts_beside_float32_ones_make_the_view_float64(tmp_path: Path, kind: type) -> None:
    store: Store = kind(tmp_path)
    value = 1 / 3
    for pack, precision in (("a", "float32"), ("b", "float64")):
        writer = PackWriter(store, "s", pack, precision=precision)
        place = {"trial_id": "t", "layer": "l", "layer_index": 0, "view": "units"}
        for step in (0, 1):
            writer.rows("measurements", {**place, "step": [step], "stable_rank": np.array([value])})
            writer.commit(step, STATE, finished=step == 1 and pack == "b")
    rows = store.arrow("SELECT pack, step, stable_rank, energy_90 FROM measurements ORDER BY pack, step")
    assert str(rows.schema.field("stable_rank").type) == "double"
    assert rows["stable_rank"].to_pylist() == [float(np.float32(value))] * 2 + [value] * 2
    only = store.arrow("SELECT stable_rank FROM measurements WHERE pack = 'b'")
    assert only["stable_rank"].to_pylist() == [value] * 2


def test_parts_of_an_older_schema_are_read_with_nulls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = TABLES["scalars"]
    new = Table("scalars", old.doc, (*old.columns, Column("temperature", "float64", "of the day")), old.order)
    monkeypatch.setitem(schema.TABLES, "scalars", new)
    assert store.sql("SELECT temperature FROM scalars").temperature.isna().all()
    writer = PackWriter(store, "s", "p9")
    writer.rows("scalars", {"trial_id": "x", "step": [0], "temperature": 21.0})
    writer.commit(0, STATE)
    assert store.sql("SELECT sum(temperature) AS t, count(*) AS n FROM scalars").values.tolist() == [[21.0, 27]]


def test_a_running_sweep_is_seen_growing_by_an_open_store(tmp_path: Path) -> None:
    writing, reading = local(tmp_path), open_store(tmp_path / "store")
    writer = PackWriter(writing, "s", "p0")
    for step in range(6):
        writer.rows("losses", {"trial_id": "a", "step": [step], "loss": 1.0})
        writer.commit(step, STATE)
        assert reading.sql("SELECT max(step) AS s FROM losses").s[0] == step
        assert reading.sql("SELECT to_step FROM attempts").to_step.tolist() == [step]


def test_two_commits_in_one_tick_of_the_clock_are_both_seen(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer, tick = PackWriter(store, "s", "p0"), 0
    for step in (0, 1):
        writer.rows("losses", {"trial_id": "a", "step": [step], "loss": 1.0})
        writer.commit(step, STATE)
        folder = tmp_path / "store/commits/s/p0"
        if step:
            os.utime(folder, ns=(tick, tick))
        tick = folder.stat().st_mtime_ns
        assert store.tables()["losses"] == step + 1


def test_compaction_under_a_reader_is_retried(tmp_path: Path) -> None:
    store = local(tmp_path)
    writer = PackWriter(store, "s", "p0")
    train(writer, lambda step: True, last=STEPS - 1)
    calls = []

    def use(query):  # type: ignore[no-untyped-def]
        if not calls:
            train(PackWriter(store, "s", "p0"), lambda step: False)
        calls.append(1)
        return query.arrow()

    rows = store.reading("SELECT * FROM measurements", None, use)
    assert len(calls) == 2 and rows.num_rows == (STEPS + 1) * len(TRIALS) * len(LAYERS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [local, mounted])
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_manifest_that_names_a_damaged_part_is_an_error_with_a_way_out(
    tmp_path: Path, kind: type, damage: str
) -> None:
    store: Store = kind(tmp_path)
    train(PackWriter(store, "s", "p0"), lambda step: False)
    part = store.snapshot().parts["spectra"][0]
    data = store.location.read(part.path)
    store.location.delete(part.path)
    if damage != "missing":
        store.location.write(part.path, data[:-100] if damage == "short" else b"")
    message = "is missing" if damage == "missing" else r"bytes instead of \d+"
    for _ in range(2):
        with pytest.raises(StoreError, match=rf"{part.path} .*{message}.*run the same command"):
            store.sql("SELECT * FROM spectra")
    assert len(store.sql("SELECT * FROM scalars")) > 0
    store.location.write(part.path, data)
    assert len(store.sql("SELECT * FROM spectra")) > 0


def test_altered_bytes_are_found_by_a_deep_verification(tmp_path: Path) -> None:
    store = local(tmp_path)
    train(PackWriter(store, "s", "p0"), lambda step: False)
    path = part_files(store, "scalars")[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    store.verify()
    with pytest.raises(StoreError, match="SHA-256"):
        store.verify(deep=True)


def test_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"not an ndt store \(ndt-store.json is missing\)"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="is not an ndt store"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match=r"holds other files \(thesis.tex"):
        open_store(tmp_path, create=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="file stands where a directory"):
        open_store(tmp_path / "file", create=True)
    marker = tmp_path / "new"
    open_store(marker, create=True)
    for version in ({"format": 1, "schema_version": 99}, {"format": 2, "schema_version": 1}):
        (marker / "ndt-store.json").write_text(json.dumps(version))
        with pytest.raises(StoreError, match="newer ndt-ray.*upgrade"):
            open_store(marker)
    for text in ("", "[]", '{"format": "x"}'):
        (marker / "ndt-store.json").write_text(text)
        with pytest.raises(StoreError, match="not a store's marker"):
            open_store(marker)


@pytest.mark.parametrize("where", ["s3://key:secret@bucket/store", "nonsense://bucket/store"])
def test_uris_that_cannot_be(where: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_store(where)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_file_uris_and_weird_paths(weird_path: Path) -> None:
    store = open_store(weird_path / "st'ore", create=True)
    train(PackWriter(store, "s", "p0"), lambda step: step == 6)
    assert len(store.sql("SELECT * FROM wide")) == (STEPS + 1) * len(TRIALS) * len(LAYERS)
    again = open_store((weird_path / "st'ore").as_uri())
    assert contents(again).keys() == contents(store).keys()


def test_a_path_with_glob_characters_and_links(tmp_path: Path) -> None:
    store = open_store(tmp_path / "a[1]*", create=True)
    train(PackWriter(store, "s", "p0"), lambda step: step == 6)
    (tmp_path / "b1x").mkdir()
    assert len(store.table("scalars")) == (STEPS + 1) * len(TRIALS)
    plain = local(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store/data").symlink_to(tmp_path / "elsewhere")
    train(PackWriter(plain, "s", "p0"), lambda step: False)
    (tmp_path / "link").symlink_to(tmp_path / "store")
    assert len(open_store(tmp_path / "link").table("scalars")) == (STEPS + 1) * len(TRIALS)


@pytest.mark.slow
def test_a_store_travels_to_other_processes_and_threads(store: Store) -> None:
    if store.location.local:
        assert pickle.loads(pickle.dumps(store)).tables() == store.tables()
    found: list[int] = []

    def ask() -> None:
        for _ in range(5):
            found.append(len(store.sql("SELECT * FROM wide")))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(STEPS + 1) * len(TRIALS) * len(LAYERS)] * 20


def test_descriptions(store: Store) -> None:
    assert store.tables()["scalars"] == (STEPS + 1) * len(TRIALS)
    assert {"wide", "attempts", "sweeps", "measurements"} <= set(store.names())
    assert store.schema("measurements").columns[0].name == "trial_id"
    assert [c.name for c in store.schema("wide").columns] == wide_columns()
    assert {c.name: c.doc for c in store.schema("wide").columns}["base_lr"] == "base learning rate"
    with pytest.raises(SpecError, match="did you mean 'spectra'"):
        store.schema("spectre")
    with pytest.raises(SpecError, match="did you mean 'spectra'"):
        store.table("spectre")


@pytest.mark.slow
def test_a_thousand_packs_are_one_store(tmp_path: Path) -> None:
    store = local(tmp_path)
    train(PackWriter(store, "s", "p0"), lambda step: False)
    model = store.manifests()[0]
    text = json.loads(model.dump())
    for n in range(1, 1000):
        folder = tmp_path / f"store/commits/s/p{n}"
        folder.mkdir()
        text["pack"] = f"p{n}"
        (folder / Path(model.path).name).write_text(json.dumps(text))
        for part in [p for p in model.parts if p.table in ("measurements", "scalars")]:
            copy = tmp_path / "store" / part.path.replace("pack=p0", f"pack=p{n}")
            copy.parent.mkdir(parents=True)
            copy.hardlink_to(tmp_path / "store" / part.path)
        text["parts"] = [{**p, "path": p["path"].replace("pack=p" + str(n - 1), f"pack=p{n}")} for p in text["parts"]]
        (folder / Path(model.path).name).write_text(json.dumps(text))
    fresh = open_store(tmp_path / "store")
    assert fresh.tables()["scalars"] == 1000 * (STEPS + 1) * len(TRIALS)
    assert fresh.sql("SELECT count(*) AS n FROM measurements WHERE pack = 'p500'").n[0] > 0
