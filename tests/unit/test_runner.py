"""The runner, in process: what is computed stays, what fails is reported and tried again a bounded number of times."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_tables import Folder, measurements, noise, trial
from threadpoolctl import threadpool_info, threadpool_limits

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, Partition, analysis, conform
from ndt_ray.analysis.running.runner import Progress, Report, run
from ndt_ray.analysis.running.stored import StoredSweep, analyze, analyze_all
from ndt_ray.errors import SpecError, StoreError
from ndt_ray.store.outputs import Outputs
from ndt_ray.store.reader import Store, open_store
from ndt_ray.store.schema import Column, Table
from ndt_ray.store.sweep import create_sweep
from ndt_ray.store.writer import PackWriter

TRIALS = [f"{i:016x}" for i in range(6)]
MEANS = Table(
    "test_means",
    "Mean of a measure.",
    (Column("trial_id", "string", ""), Column("mean", "float64", ""), Column("n", "int32", "")),
    ("trial_id",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path)
    for i, name in enumerate(TRIALS):
        found.put("trials", name, trial(100, 10, name))
        layers = {"fc": noise(11, i)}
        rows = measurements(layers, steps=np.arange(11) * 10, measure="stable_rank", every=10, trial_id=name)
        found.put("measurements", name, rows)
    return found


def means(calls: list[str], broken: tuple[str, ...] = (), heals_after: int = 99):
    """An analysis that notes its calls and fails on some partitions, for the first few times."""

    def compute(data: AnalysisInput, *, factor: float = 1.0) -> dict[str, pd.DataFrame]:
        """Mean stable rank."""
        name = str(data.partition.trial_id)
        calls.append(name)
        if name in broken and calls.count(name) <= heals_after:
            raise RuntimeError(f"no luck with {name}\nand more")
        mean = factor * data.frame("measurements")["stable_rank"].mean()
        return {"test_means": pd.DataFrame([{"trial_id": name, "mean": mean, "n": 11}])}

    return analysis(name="means", reads=("trials", "measurements"), writes=(MEANS,), per="trial")(compute)


def test_every_partition_is_computed_once_and_then_left_alone(folder: Folder) -> None:
    calls: list[str] = []
    first = run(means(calls), folder)
    again = run(means(calls), folder)
    assert (first.total, first.done, first.skipped, first.ok) == (6, 6, 0, True)
    assert (again.total, again.done, again.skipped) == (6, 0, 6)
    assert calls == TRIALS and first.rows == {"test_means": 6}
    assert folder.output("means", "test_means")["trial_id"].tolist() == TRIALS


def test_an_analysis_in_this_process_has_one_thread_as_a_worker_has_and_leaves_the_process_as_it_was(
    folder: Folder,
) -> None:
    seen = []

    def compute(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        seen.append(_threads())
        return {"test_means": pd.DataFrame()}

    counted = analysis(name="means", reads=("trials",), writes=(MEANS,), per="trial")(compute)
    with threadpool_limits(limits=2):
        before = _threads()
        assert run(counted, folder, partitions=[Partition(TRIALS[0])]).ok and _threads() == before
    assert seen == [{1}] and 2 in before


def _threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info()}


@pytest.mark.slow
def test_other_parameters_or_inputs_recompute_what_they_touch(folder: Folder) -> None:
    calls: list[str] = []
    run(means(calls), folder)
    folder.put("measurements", TRIALS[2], pd.DataFrame({"stable_rank": [5.0]}))
    assert run(means(calls), folder).done == 1 and calls[-1] == TRIALS[2]
    assert run(means(calls), folder, parameters={"factor": 2.0}).done == 6
    table = folder.output("means", "test_means").set_index("trial_id")
    assert table.loc[TRIALS[2], "mean"] == 10.0 and len(table) == 6  # in place of the former output, not beside it


@pytest.mark.slow
def test_a_failing_partition_is_a_dead_letter_after_three_attempts_and_stops_no_other(folder: Folder) -> None:
    calls: list[str] = []
    report = run(means(calls, broken=(TRIALS[1],)), folder)
    assert (report.done, report.ok, report.retries) == (5, False, 2)
    (letter,) = report.dead
    assert letter.partition == Partition(TRIALS[1]) and letter.attempts == 3
    assert letter.error == f"RuntimeError: no luck with {TRIALS[1]}" and "Traceback" in letter.traceback
    assert calls.count(TRIALS[1]) == 3 and calls[-1] == TRIALS[1]
    assert run(means(calls), folder).done == 1  # mended: only what is missing runs


def test_a_failure_that_heals_is_made_good(folder: Folder) -> None:
    calls: list[str] = []
    report = run(means(calls, broken=(TRIALS[0],), heals_after=2), folder)
    assert report.ok and report.done == 6 and report.retries == 2


def test_progress_is_told_after_every_partition(folder: Folder) -> None:
    told: list[Progress] = []
    run(means([], broken=(TRIALS[5],)), folder, progress=told.append, attempts=1)
    assert told[0].partition is None and len(told) == 7
    assert (told[-1].total, told[-1].done, told[-1].dead) == (6, 5, 1)


@pytest.mark.slow
def test_a_chosen_partition_runs_alone_and_drops_nothing(folder: Folder) -> None:
    run(means([]), folder)
    report = run(means([]), folder, partitions=[Partition(TRIALS[3])], parameters={"factor": 3.0})
    assert (report.total, report.done) == (1, 1) and len(folder.output("means", "test_means")) == 6


@pytest.mark.slow
def test_outputs_of_trials_that_are_gone_are_dropped(folder: Folder) -> None:
    run(means([]), folder)
    (folder.root / "in/trials" / TRIALS[0]).unlink()
    assert run(means([]), folder).skipped == 5
    assert folder.output("means", "test_means")["trial_id"].tolist() == TRIALS[1:]


def test_an_interrupt_keeps_what_was_finished(folder: Folder) -> None:
    calls: list[str] = []

    def stop(told: Progress) -> None:
        if told.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(means(calls), folder, progress=stop)
    assert run(means(calls), folder).skipped == 3


def test_the_key_follows_parameters_code_and_inputs_and_nothing_else() -> None:
    one = means([])
    code = one.code_hash()
    assert code == means([1]).code_hash()
    keys = {
        one.output_key({}, code, "a"),
        one.output_key({"factor": 2.0}, code, "a"),
        one.output_key({}, code, "b"),
        one.output_key({}, "other", "a"),
    }
    assert len(keys) == 4 and one.output_key({"factor": 1.0}, code, "a") in keys


def test_the_code_of_an_analysis_is_all_that_its_numbers_stand_on() -> None:
    from ndt_ray.analysis.api import _sources
    from ndt_ray.analysis.jumps import jumps

    source = Path(sys.modules[jumps.function.__module__].__file__ or "")
    seen = _sources(jumps.function.__module__, source, {})
    modules = ["jumps", "nulls", "phases", "series", "tables", "events.cases", "events.grid"]
    modules += ["detection", "detection.original", "detection.atoms", "detection.kept"]
    assert {f"ndt_ray.analysis.{m}" for m in modules} == set(seen)
    assert "\n# " not in seen["ndt_ray.analysis.detection"]


def test_an_analysis_must_return_what_it_declares() -> None:
    data = AnalysisInput("s", Partition(), {})

    def other(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        return {"test_mean": pd.DataFrame()}

    with pytest.raises(SpecError, match=r"declares \['test_means'\] but returned \['test_mean'\]"):
        analysis(name="x", reads=(), writes=(MEANS,), per="sweep")(other)(data)
    with pytest.raises(SpecError, match=r"lack \['mean', 'n'\] and have unknown \['men'\]"):
        conform(MEANS, pd.DataFrame({"trial_id": ["a"], "men": [1.0]}))
    with pytest.raises(SpecError, match="test_means"):
        conform(MEANS, pd.DataFrame({"trial_id": ["a"], "mean": ["much"], "n": [1]}))
    with pytest.raises(SpecError, match="not declared"):
        data.frame("trials")
    with pytest.raises(SpecError, match="per must be one of"):
        analysis(name="x", reads=(), writes=(MEANS,), per="trail")(other)  # type: ignore[arg-type]


def test_rows_are_sorted_by_key_and_nan_becomes_null() -> None:
    rows = pd.DataFrame({"trial_id": ["b", "a"], "mean": [float("nan"), 1.0], "n": [1, 2]})
    assert conform(MEANS, rows).to_pylist()[1] == {"trial_id": "b", "mean": None, "n": 1}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"executor": "dask"}, "inline or ray"),
        ({"attempts": 0}, "positive"),
        ({"workers": 0}, "positive"),
        ({"parameters": {"facto": 2}}, "did you mean 'factor'"),
        ({"parameters": {"factor": float("nan")}}, "plain JSON"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(folder: Folder, options: dict, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        run(means([]), folder, **options)
    with pytest.raises(SpecError, match="unknown analysis 'jump'.*'jumps'"):
        run("jump", folder)


def test_the_folder_is_importable_under_one_name_only() -> None:
    root = Path(__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r}); import analysis"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1 and "ndt_ray.analysis" in found.stderr.splitlines()[-1]


# Against the real store


def fill(store: Store, sweep: str, pack: str, names: list[str], seed: int = 0) -> None:
    create_sweep(store, sweep, "name: planted\n", {})
    with PackWriter(store, sweep, pack, trials=tuple(names), fingerprint="here") as writer:
        for i, name in enumerate(names):
            writer.rows("trials", trial(1000, 10, name).to_dict("list"))
            values = noise(101, seed + i)
            values[60:] += 80
            rows = measurements({"fc": values}, steps=np.arange(101) * 10, measure="stable_rank", every=10)
            writer.rows("measurements", rows.assign(trial_id=name).to_dict("list"))
        writer.commit(1000, None, finished=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path / "store", create=True)
    fill(made, "planted", "pack-a", TRIALS[:2])
    fill(made, "other", "pack-a", TRIALS[3:4])
    return made


def test_a_sweep_of_the_store_is_analysed_and_can_be_queried(store: Store) -> None:
    report: Report = analyze(store, "planted", "jumps", parameters={"n_surrogates": 20})
    assert report.ok and report.done == 2
    found = store.sql("select trial_id, step_before, step_after from jumps where detector = 'difference_z' and z > 6")
    assert found.to_numpy().tolist() == [[name, 590, 600] for name in TRIALS[:2]]
    counts = store.table("jump_counts", "planted")
    assert set(counts["trial_id"]) == set(TRIALS[:2]) and set(counts["sweep"]) == {"planted"}
    assert analyze(store, "planted", "jumps", parameters={"n_surrogates": 20}).skipped == 2


def test_a_grown_sweep_computes_only_what_is_new(store: Store) -> None:
    analyze(store, "planted", "growth")
    fill(store, "planted", "pack-b", TRIALS[2:3], seed=7)
    report = analyze(store, "planted", "growth")
    assert (report.done, report.skipped) == (1, 2)


def test_an_analysis_of_analyses_is_stale_when_they_change(store: Store) -> None:
    tables = StoredSweep(store, "planted")
    who = [Partition(TRIALS[0]), Partition()]
    jumps_before, trials_before = (tables.input_hashes((t,), who) for t in ("jumps", "trials"))
    analyze(store, "planted", "jumps", parameters={"n_surrogates": 20})
    jumps_after, trials_after = (tables.input_hashes((t,), who) for t in ("jumps", "trials"))
    assert jumps_before[0] != jumps_after[0] and jumps_before[1] != jumps_after[1]
    assert trials_before == trials_after
    analyze(store, "planted", "jumps", parameters={"n_surrogates": 21}, partitions=[Partition(TRIALS[1])])
    own, whole = tables.input_hashes(("jumps",), who)
    assert own == jumps_after[0] and whole != jumps_after[1]  # the other trial's jumps concern the sweep only


@pytest.mark.slow
def test_what_an_analysis_stands_on_keeps_the_parameters_it_was_asked_for_with(store: Store) -> None:
    analyze(store, "planted", "jumps", parameters={"n_surrogates": 20})
    before = Outputs(store, "planted", "jumps").entries()

    @analysis(name="standing", reads=("jumps",), writes=(MEANS,), per="trial")
    def standing(data: AnalysisInput) -> dict[str, pd.DataFrame]:
        """Mean size of jumps."""
        mean = data.frame("jumps")["z"].mean()
        return {"test_means": pd.DataFrame([{"trial_id": data.partition.trial_id, "mean": mean, "n": 1}])}

    reports = analyze_all(store, "planted", [(standing, None)], executor="inline")
    assert [(r.analysis, r.done, r.skipped) for r in reports] == [("jumps", 0, 2), ("standing", 2, 0)]
    assert Outputs(store, "planted", "jumps").entries() == before
    analyze_all(store, "planted", [("jumps", None)], executor="inline")
    assert Outputs(store, "planted", "jumps").entries() != before  # asked for without parameters: the defaults


def test_what_the_spec_declares_for_an_analysis_holds_until_it_is_told_otherwise(store: Store) -> None:
    declared = "analyses:\n- {name: jumps, n_surrogates: 20, modes: [default]}\n- growth\n"
    create_sweep(store, "planted", f"name: planted\n{declared}", {})
    for given, count in ((None, 20), ({"n_surrogates": 30}, 30)):
        analyze_all(store, "planted", [("jumps", given)], executor="inline")
        found = StoredSweep(store, "planted").parameters("jumps")
        assert found is not None and (found["n_surrogates"], found["modes"]) == (count, ["default"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_surrogates": "many"}, "analysis 'jumps': parameter 'n_surrogates': must be an integer, but got 'many'"),
        ({"n_surrogates": 2.5}, "must be an integer, but got 2.5"),
        ({"measures": "stable_rank"}, "'measures': must be a list, but got 'stable_rank'"),
        ({"rules": ["difference_z"]}, "'rules': must be a mapping of names to values, but got"),
    ],
)
def test_a_parameter_of_another_type_is_refused_before_anything_is_computed(
    store: Store, parameters: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        analyze_all(store, "planted", [("jumps", parameters)])
    assert Outputs(store, "planted", "jumps").entries() == {}


def test_what_many_partitions_have_to_say_is_said_once(store: Store) -> None:
    (report,) = analyze_all(store, "planted", [("series_tests", {"measures": ["rankme"]})], executor="inline")
    (note,) = report.notes
    assert note.startswith(f"{TRIALS[0]} and 1 more: no series of rankme - there are: ")


def test_an_unknown_parameter_is_refused_before_anything_is_computed(store: Store) -> None:
    with pytest.raises(SpecError, match="'growth' has no parameter 'n_surrogates'"):
        analyze_all(store, "planted", [("jumps", {"n_surrogates": 20}), ("growth", {"n_surrogates": 20})])
    assert Outputs(store, "planted", "jumps").entries() == {}


def test_partitions_come_from_the_tables_and_rows_belong_to_them(store: Store) -> None:
    tables = StoredSweep(store, "planted")
    assert tables.partitions("trial") == [Partition(t) for t in TRIALS[:2]]
    assert tables.partitions("sweep") == [Partition()] and tables.partitions("checkpoint") == []
    assert set(tables.read("measurements", Partition(TRIALS[1]))["trial_id"].to_pylist()) == {TRIALS[1]}
    assert tables.read("measurements", Partition()).num_rows == 202
    assert tables.read("no_such_table", Partition()).num_rows == 0
    assert str(Partition(TRIALS[0], 50)) == f"{TRIALS[0]} step 50" and str(Partition()) == "sweep"


def test_an_unknown_sweep_is_named(store: Store) -> None:
    with pytest.raises(StoreError, match="did you mean 'planted'"):
        analyze(store, "plantd", "jumps")


@pytest.mark.parametrize("name", registry.names("analysis"))
def test_the_parameters_of_every_analysis_are_checked_and_its_defaults_pass(name: str) -> None:
    found = registry.resolve("analysis", name)
    assert set(found.defaults) <= set(found.hints)  # none whose annotation could not be told
    assert found.parameters(found.defaults) == found.defaults  # outputs in place are gone on with by what they say
