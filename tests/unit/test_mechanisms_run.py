"""`ndt mechanisms --run`: from a sweep's events to checkpoints around them, the comparison, and its files, in one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from ndt_ray import registry
from ndt_ray.analysis.api import AnalysisInput, analysis
from ndt_ray.analysis.events.tables import EVENT_FAMILIES, EVENTS
from ndt_ray.cli import analyses, main
from ndt_ray.errors import NdtError
from ndt_ray.run import Options, run_sweep
from ndt_ray.spec.sweepfile import parse_sweep
from ndt_ray.store.reader import open_store

SPEC = """
name: planted
base:
  model: {name: mlp, hidden: [16, 12]}
  data: digits
  train: {steps: 600, batch: 32, optimizer: sgd, lr: 1e-2}
  measure: {every: 4, probe: 32, confirm: 64}
  evaluate: {size: 50}
  checkpoint: {at: [0, 600]}
axes:
  - {path: seed, role: replicate, range: 3}
"""
AT, WIDTH = 400, 4
NUMBERS = ("mechanism_tests.csv", "mechanism_changes.csv")
Ndt = Callable[..., tuple[int, str, str]]


@analysis(name="events", reads=("trials", "measurements"), writes=(EVENTS, EVENT_FAMILIES), per="sweep", optional=())
def planted(data: AnalysisInput, *, alpha: float = 0.05) -> dict[str, pd.DataFrame]:
    """An event a trial, of the first layer, where `alpha` is not 0."""
    layer = data.frame("measurements").sort_values("layer_index").iloc[0]
    row = {"family": "f", "significant": True, "q": 0.01, "p_event": 0.001, "layer": layer["layer"], "layer_index": 0}
    row |= {"view": layer["view"], "measure": "participation_ratio", "step_before": AT, "step_after": AT + WIDTH}
    row |= {"step_location": AT + WIDTH / 2, "width": 2.0, "phase": AT / 600, "phase_bin": "late", "size": 1.0}
    row |= {"detector": "d", "null": "n", "direction": "increase", "relative_size": 0.1}
    found = pd.DataFrame([row | {"trial_id": t} for t in sorted(data.frame("trials")["trial_id"])])
    family = pd.DataFrame([{"family": "f", "primary": True, "detector": "d", "null": "n", "n_events": len(found)}])
    events = found.reindex(columns=[c.name for c in EVENTS.columns])
    return {
        "events": events if alpha else events.iloc[:0],
        "event_families": family.reindex(columns=[c.name for c in EVENT_FAMILIES.columns]),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "store"
    assert run_sweep(parse_sweep(SPEC), root, Options(executor="inline")).ok
    return root


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "store"))


@pytest.fixture
def ndt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ndt:
    """The command over planted events; taxonomy is of measured ones."""
    monkeypatch.setitem(registry._TABLE["analysis"], "events", f"{__name__}:planted")
    monkeypatch.setattr(analyses, "SOUGHT", ("events",))

    def run(store: Path, *arguments: str, executor: str = "inline") -> tuple[int, str, str]:
        capsys.readouterr()
        inline = ["--executor", executor] if "--run" in arguments else []
        with pytest.raises(SystemExit) as end:
            main(["mechanisms", "planted", "--store", str(store), "--units", "0", *inline, *arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.mark.slow
def test_one_command_goes_from_events_to_tests_against_matched_windows(store: Path, ndt: Ndt, tmp_path: Path) -> None:
    wanted = ("--run", "--analysis", "mechanisms", "--controls", "4", "--limit", "1", "--out", str(tmp_path / "out"))
    code, out, err = ndt(store, *wanted, "--json")
    assert code == 0, err
    assert [line[:5] for line in err.splitlines() if line.startswith("[")] == [f"[{i}/4]" for i in (1, 2, 3, 4)]
    assert "3 events of 3 trials" in err and err.count("losses on the way equal the stored ones bit for bit") == 3
    names = {Path(p).relative_to(tmp_path / "out").as_posix() for p in json.loads(out)}
    assert {*NUMBERS, "tests_mlp_digits.png", "index.html"} <= names
    there = open_store(store)
    kept = there.sql("SELECT trial_id, step FROM checkpoints WHERE reason = 'replay'")
    around = {AT + WIDTH // 2 + d for d in (-WIDTH, 0, WIDTH)}
    assert all(around < set(own["step"]) for _, own in kept.groupby("trial_id")) and kept["trial_id"].nunique() == 3
    tests = pd.read_csv(tmp_path / "out/mechanism_tests.csv")
    stored = there.sql("SELECT * EXCLUDE (sweep) FROM mechanism_tests ORDER BY cell, metric")
    pd.testing.assert_frame_equal(tests[list(stored)], stored, check_dtype=False)
    changes = pd.read_csv(tmp_path / "out/mechanism_changes.csv")
    tested = tests[tests["q"].notna()]
    assert changes["n_controls"].min() >= 3 and len(tested) > 10 and set(tested["n_trials"]) == {3}
    # Again: nothing is left to bring back or to compute.
    code, _, err = ndt(store, *wanted, "--tables-only")
    assert code == 0 and f"{len(kept)} states, {len(kept)} of them there already" in err and "bit for bit" not in err
    assert "mechanisms: 1 of 1, 1 of them before" in err


@pytest.mark.slow
def test_without_events_there_is_nothing_to_bring_back_and_the_rest_goes_on(
    store: Path, ndt: Ndt, tmp_path: Path
) -> None:
    chosen = ("--analysis", "events", "--analysis", "weights", "--set", "events.alpha=0.0", "--tables-only")
    code, _, err = ndt(store, "--run", *chosen, "--out", str(tmp_path / "out"))
    assert code == 0 and "nothing to bring back: no tested event to plan around" in err
    assert "weights: 3 of 3, 0 of them before" in err and "[4/4]" in err
    assert not len(open_store(store).sql("SELECT 1 FROM checkpoints WHERE reason = 'replay'"))


@pytest.mark.slow
def test_a_trial_that_cannot_be_replayed_is_told_and_the_others_are_brought_back(
    store: Path, ndt: Ndt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ndt_ray import replay

    first = open_store(store).sql("SELECT min(trial_id) AS t FROM trials")["t"].item()
    whole = replay.replay

    def some(there, sweep, trial, steps, **options):  # type: ignore[no-untyped-def]
        if trial == first:
            raise NdtError("trained on another machine")
        return whole(there, sweep, trial, steps, **options)

    monkeypatch.setattr(replay, "replay", some)
    chosen = ("--controls", "0", "--analysis", "weights", "--tables-only", "--out", str(tmp_path / "out"))
    code, _, err = ndt(store, "--run", *chosen)
    assert code == 1 and f"✗ trial {first}: trained on another machine" in err
    assert err.count("bit for bit") == 2 and "weights: 3 of 3" in err and "[4/4]" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--controls", "3", "--set", "events.alpha=0.1"), "--controls, --set: give --run, too"),
        (("--run", "--analysis", "mechanism"), "unknown analysis 'mechanism'"),
        (("--run", "--set", "events.alhpa=0.1"), "has no parameter 'alhpa'"),
        (("--run", "--analysis", "weights", "--set", "events.alpha=0.1"), "is not among those to run"),
        (("--run", "--layer", "nowhere"), "has a layer 'nowhere'"),
        (("--run", "--format", "jpeg"), "png, pdf or svg"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_computed(
    arguments: tuple[str, ...], words: str, trained: Path, ndt: Ndt
) -> None:
    code, out, err = ndt(trained, *arguments)
    assert code == 2 and words in err and "[1/4]" not in err and not out
