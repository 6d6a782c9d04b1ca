"""The command line in one process: every command, its output for people and programs, and what bad input gives."""

import contextlib
import errno
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from ndt_ray.cli import app, main
from ndt_ray.cli.analyses import _parameters
from ndt_ray.errors import SpecError
from ndt_ray.spec.sweepfile import sweep_schema
from ndt_ray.store import filesystem
from ndt_ray.store.reader import open_store

SPEC = """
name: small
about: Does it work?
base:
  data: digits
  train: {steps: 10, batch: 32, lr: 1e-3}
  measure: {every: 5, probe: 32}
  evaluate: {size: 50}
  checkpoint: {fractions: [1]}
axes:
  - {path: model, values: [mlp_narrow]}
  - {path: seed, range: 2}
"""
SWEEP = ("--executor", "inline")


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str


Ndt = Callable[..., Ran]


@pytest.fixture
def ndt(capsys: pytest.CaptureFixture[str]) -> Ndt:
    """Runs a command line; no traceback may reach the user."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Ran(int(end.value.code or 0), said.out, said.err)

    return run


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the finished sweep; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(SPEC)
    with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(io.StringIO()):
        main(["sweep", str(folder / "small.yaml"), "--store", str(folder / "store"), *SWEEP, "--json"])
    assert not end.value.code
    return folder / "store"


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "store"))


# -- help ------------------------------------------------------------------------------------------------------------

COMMANDS = sorted(typer.main.get_command(app()).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(ndt: Ndt, command: str) -> None:
    found = ndt(command, "--help")
    assert found.code == 0 and found.err == ""
    about = found.out.split("\n\n")[1].strip()
    assert len(about) > 20 and about.endswith((".", "?"))
    options = typer.main.get_command(app()).commands[command].params  # type: ignore[attr-defined]
    nameless = [o.name for o in options if not getattr(o, "help", None) and o.name != "help"]
    assert nameless == [], f"{command}: no help for {nameless}"


def test_the_version(ndt: Ndt) -> None:
    assert ndt("--version").out == f"ndt-ray {version('ndt-ray')}\n"


def test_the_list_of_commands(ndt: Ndt) -> None:
    found = ndt("--help")
    assert found.code == 0 and all(f"  {command} " in found.out for command in COMMANDS)
    assert ndt().code in (0, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["swep"], "No such command 'swep'"),
        (["query"], "Missing argument"),
        (["query", "select 1", "--limit", "no"], "--limit"),
        (["sweep", "smoke", "--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_command_line(ndt: Ndt, arguments: list[str], says: str) -> None:
    found = ndt(*arguments)
    assert found.code == 2 and says in found.err and found.out == ""


# -- a sweep's life --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_events_are_clean_json_and_nothing_else_is_said(ndt: Ndt, spec: Path, tmp_path: Path) -> None:
    found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP, "--json", "--set", "analyses=[jumps]")
    assert found.code == 2  # analyses are no part of what --set reaches
    found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP, "--json")
    assert (found.code, found.err) == (0, "")
    events = [json.loads(line)["event"] for line in found.out.splitlines()]
    assert events[0] == "plan" and events[-1] == "done" and events.count("finish") == 1


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do(ndt: Ndt, own: Path, spec: Path) -> None:
    found = ndt("sweep", spec, "--store", own)  # on Ray, had there been anything
    assert found.code == 0 and "2 of 2 trials already done: nothing to run" in found.err
    assert "mlp_narrow" in found.out and "ndt query" in found.out
    found = ndt("sweep", "small", "--store", own, "--json")  # by its name in the store
    assert [json.loads(line)["event"] for line in found.out.splitlines()] == ["plan", "done"]


@pytest.mark.slow
def test_what_a_failed_trial_leaves_on_the_screen(ndt: Ndt, spec: Path, tmp_path: Path) -> None:
    spec.write_text(SPEC.replace("lr: 1e-3", "lr: 1e+30").replace("steps: 10", "steps: 30"))
    found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP)
    assert found.code == 1
    assert found.err.count("diverged") == 2 and "--pack" in found.err and "--restart" in found.err


def test_status_logs_stop_and_rm(ndt: Ndt, own: Path) -> None:
    assert "small" in ndt("status", "--store", own).out
    (row,) = json.loads(ndt("status", "small", "--store", own, "--json").out)
    assert (row["state"], row["step"], row["steps"], row["trials"]) == ("finished", 10, 10, 2)
    text = ndt("logs", "small", "--store", own, "--follow").out
    assert [line.split()[2] for line in text.splitlines()] == ["plan", "start", "finish", "done"]
    lines = [json.loads(line) for line in ndt("logs", "small", "--store", own, "--json").out.splitlines()]
    assert lines[-1]["event"] == "attempt" and lines[-1]["status"] == "finished"
    assert "not running" in ndt("stop", "small", "--store", own).err
    assert ndt("rm", "smal", "--store", own, "--yes").code == 3
    assert ndt("rm", "small", "--store", own, "--yes").code == 0
    assert ndt("status", "--store", own).out == "" and not list(own.glob("data/*/*"))


def test_rm_and_sweep_refuse_while_another_process_runs_it(ndt: Ndt, own: Path, spec: Path) -> None:
    parent = psutil.Process(os.getppid())
    note = {"host": os.uname().nodename, "pid": parent.pid, "began": parent.create_time()}
    (own / "sweeps/small/driver.json").write_text(json.dumps(note))
    for command in (["rm", "small", "--yes"], ["sweep", spec, *SWEEP]):
        found = ndt(*command, "--store", own)
        assert found.code == 3 and f"process {parent.pid}" in found.err and "ndt stop small" in found.err
    assert "asked small to drain" in ndt("stop", "small", "--drain", "--store", own).err
    assert ndt("rm", "small", "--yes", "--force", "--store", own).code == 0


@pytest.mark.slow
def test_a_plan_shows_what_there_is_to_do_and_writes_nothing(ndt: Ndt, spec: Path, tmp_path: Path) -> None:
    found = ndt("plan", spec, "--store", tmp_path / "store", "--where", "seed = 0")
    assert found.code == 0 and "1 trials in 1 packs" in found.out and "MiB" in found.out
    found = ndt("plan", spec, "--store", tmp_path / "store", "--json")
    assert len(json.loads(found.out)["packs"]) == 1 and not (tmp_path / "store").exists()


# -- tables and names ------------------------------------------------------------------------------------------------


def test_queries(ndt: Ndt, finished: Path) -> None:
    count = ("query", "SELECT count(*) AS n FROM trials", "--store", finished)
    assert ndt(*count).out.split() == ["n", "2"]
    assert json.loads(ndt(*count, "-f", "json").out) == [{"n": 2}]
    assert ndt(*count, "-f", "csv").out == "n\n2\n" and ndt(*count, "-f", "md").out.startswith("| n |")
    cut = ndt("query", "SELECT step FROM losses", "--store", finished, "--limit", 3, "-f", "csv")
    assert len(cut.out.splitlines()) == 4 and cut.err != ""
    for bad in ("DROP TABLE trials", "SELECT * FROM nothing", "SELEC 1", "SELECT * FROM '/etc/passwd'"):
        found = ndt("query", bad, "--store", finished)
        assert found.code == 2 and found.out == "" and found.err.startswith("ndt: ")
    assert ndt("query", "SELECT 1", "--store", finished, "-f", "xml").code == 2


def test_exports(ndt: Ndt, finished: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "parquet", "json"):
        assert ndt("export", "losses", "-o", tmp_path / f"l.{suffix}", "--store", finished).code == 0
        assert (tmp_path / f"l.{suffix}").stat().st_size > 0
    found = ndt("export", "nothing", "-o", tmp_path / "n.csv", "--store", finished)
    assert found.code == 2 and not (tmp_path / "n.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["models", "data", "measures", "analyses", "sweeps", "tables"])
def test_lists(ndt: Ndt, kind: str) -> None:
    rows = json.loads(ndt("list", kind, "--json").out)
    assert rows and all(row["name"] and row["about"] for row in rows)
    assert len(ndt("list", kind).out.splitlines()) == len(rows)


def test_showing_one_thing(ndt: Ndt) -> None:
    assert {"column", "type", "unit", "meaning"} <= json.loads(ndt("show", "table", "losses", "--json").out)[0].keys()
    assert json.loads(ndt("show", "model", "mlp_narrow", "--json").out)["name"] == "mlp_narrow"
    assert ndt("show", "table", "los").code == 2 and ndt("show", "modle", "mlp_narrow").code == 2
    assert json.loads(ndt("show", "schema").out) == sweep_schema() and ndt("show", "schema", "table").code == 2
    assert "unknown model ''" in ndt("show", "model").err
    assert ndt("list", "modles").code == 2


def test_gc_says_what_it_removes(ndt: Ndt, own: Path) -> None:
    assert "0 files" in ndt("gc", "--store", own, "--dry-run").err


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("steps: 10", "stepz: 10"), ["small.yaml:6:", "stepz", "did you mean 'steps'"]),
        (("[mlp_narrow]", "[mlp_narow]"), ["mlp_narow", "did you mean 'mlp_narrow'"]),
        (("data: digits", "data: digit"), ["digit", "did you mean 'digits'"]),
        (("[mlp_narrow]", "[{name: mlp_narrow, widht: 3}]"), ["mlp_narrow", "widht"]),
        (("path: seed", "path: train.sede"), ["small.yaml:12", "sede"]),
        (("steps: 10", "steps: 10, steps: 20"), ["small.yaml:6", "steps", "a second time"]),
        (("batch: 32", "batch: many"), ["small.yaml:6", "batch"]),
        (("[mlp_narrow]", "[cnn_deep]"), ["cnn_deep", "digits", "exclude"]),
        (("range: 2", "range: 0"), ["small.yaml:12", "no values"]),
        (("name: small", "name: a/b"), ["small.yaml:2", "a/b"]),
        (("name: small", "name: [small"), ["small.yaml"]),
    ],
)
def test_a_bad_sweep_is_refused_with_its_place(
    ndt: Ndt, spec: Path, tmp_path: Path, change: tuple[str, str], says: list[str]
) -> None:
    spec.write_text(SPEC.replace(*change))
    found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP)
    assert found.code == 2 and found.out == "" and found.err.startswith("ndt: ")
    assert all(text in found.err for text in says), found.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--where", "seed > 100"], "no trial is left of 2 points"),
        (["--where", "sede = 1"], "sede"),
        (["--set", "train.sreps=3"], "sreps"),
        (["--set", "nonsense"], "path=value"),
        (["--executor", "slurm"], "slurm"),
        (["--pack", "0123456789abcdef"], "no such pack"),
    ],
)
def test_bad_options_are_refused(ndt: Ndt, spec: Path, tmp_path: Path, options: list[str], says: str) -> None:
    found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP, *options)
    assert found.code == 2 and says in found.err
    assert not (tmp_path / "store" / "commits").exists()


def test_a_sweep_that_is_nowhere(ndt: Ndt, finished: Path) -> None:
    assert "did you mean 'smoke'" in ndt("sweep", "smokee", "--store", finished).err
    assert "no such file" in ndt("sweep", "here.yaml", "--store", finished).err
    assert ndt("status", "smal", "--store", finished).code == 3


@pytest.mark.parametrize("damage", ["missing", "truncated", "altered"])
def test_data_that_cannot_be_trusted(
    ndt: Ndt, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setenv("NDT_OFFLINE", "1")
    monkeypatch.setenv("NDT_DATA", str(tmp_path / "data"))
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    name = "train-images-idx3-ubyte.gz"
    if damage != "missing":
        whole = gzip.compress(bytes(1000))
        (raw / name).write_bytes(whole[: len(whole) // 2] if damage == "truncated" else whole)
    spec.write_text(SPEC.replace("data: digits", "data: mnist"))
    found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP)
    assert found.code == 2 and name in found.err and str(tmp_path / "data") in found.err
    assert ("NDT_OFFLINE" if damage == "missing" else "remove it") in found.err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", [["sweep", "SPEC", *SWEEP], ["query", "SELECT 1"], ["status"], ["gc"]])
def test_a_folder_that_is_no_store(ndt: Ndt, spec: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    found = ndt(*[str(spec) if c == "SPEC" else c for c in command], "--store", tmp_path / "thesis")
    assert found.code == 3 and "not an ndt store" in found.err and str(tmp_path / "thesis") in found.err
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    if command[0] != "sweep":
        found = ndt(*command, "--store", tmp_path / "nowhere")
        assert found.code == 3 and not (tmp_path / "nowhere").exists()


def test_a_newer_store(ndt: Ndt, own: Path, spec: Path) -> None:
    (own / "ndt-store.json").write_text('{"format": 99, "schema_version": 1}')
    for command in (["sweep", spec, *SWEEP], ["query", "SELECT 1"]):
        found = ndt(*command, "--store", own)
        assert found.code == 3 and "newer" in found.err and "upgrade" in found.err


@contextlib.contextmanager
def disk_says(code: int, after: int) -> Iterator[None]:
    """From the n-th write of the store on, half of it is written and then the disk fails."""
    honest, written = filesystem.write_all, 0

    def write_all(file: Any, data: Any) -> None:
        nonlocal written
        written += 1
        if written > after:
            honest(file, memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
            raise OSError(code, os.strerror(code))
        honest(file, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filesystem, "write_all", write_all)
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "says", "after"),
    [(errno.ENOSPC, "disk is full", n) for n in (0, 3, 12, 30)] + [(errno.EROFS, "read-only", n) for n in (0, 12)],
)
def test_a_disk_that_fails_loses_nothing(
    ndt: Ndt, spec: Path, tmp_path: Path, finished: Path, code: int, says: str, after: int
) -> None:
    with disk_says(code, after):
        found = ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP)
    assert found.code == 3 and says in found.err
    assert found.err.count(says) <= 4  # when it happens, the log that cannot tell it, at the end, and for the report
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]
    assert ndt("sweep", spec, "--store", tmp_path / "store", *SWEEP).code == 0
    query = "SELECT * EXCLUDE (pack) FROM losses ORDER BY ALL"
    assert open_store(tmp_path / "store").sql(query).equals(open_store(finished).sql(query))


@pytest.mark.slow
def test_a_half_written_part_is_not_seen(ndt: Ndt, own: Path, spec: Path) -> None:
    (losses,) = own.glob("data/losses/*/*/*.parquet")
    (losses.parent / "part-g000009-000000000010-000.parquet").write_bytes(losses.read_bytes()[:100])
    assert ndt("query", "SELECT count(*) FROM losses", "--store", own, "-f", "csv").out.split()[1] == "20"
    losses.write_bytes(losses.read_bytes()[:-10])
    found = ndt("query", "SELECT count(*) FROM losses", "--store", own)
    assert found.code == 3 and str(losses) in found.err and "run the same command" in found.err
    shutil.rmtree(own / "commits/small")
    assert ndt("sweep", spec, "--store", own, *SWEEP).code == 0
    assert ndt("query", "SELECT count(*) FROM losses", "--store", own, "-f", "csv").out.split()[1] == "20"


@pytest.mark.slow
def test_a_corrupt_recovery_state_stops_its_pack_and_says_the_way_out(
    ndt: Ndt, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ndt_ray.worker import StoreSink

    store = tmp_path / "store"

    def stop(self: StoreSink, step: int, state: Any, progress: Any) -> bool:
        self.commit(step, state, False)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(StoreSink, "heartbeat", stop)
        patch.setattr("ndt_ray.train.HEARTBEAT_SECONDS", 0.0)
        found = ndt("sweep", spec, "--store", store, *SWEEP)
    assert found.code == 1 and "1 packs are not finished" in found.err
    (state,) = store.glob("state/*/*/*")
    state.write_bytes(state.read_bytes()[:-1])
    found = ndt("sweep", spec, "--store", store, *SWEEP)
    assert found.code == 3 and str(state) in found.err and "corrupt" in found.err and "restart" in found.err
    assert ndt("sweep", spec, "--store", store, *SWEEP, "--restart").code == 0


@pytest.mark.slow
def test_a_large_grid_is_announced_and_planned(
    ndt: Ndt, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndt_ray.plan.LARGE", 10_000)
    ndt("plan", spec, "--store", tmp_path / "store")  # what is imported is not the grid's
    before = psutil.Process().memory_info().rss
    spec.write_text(SPEC.replace("range: 2", "range: 16000"))
    found = ndt("plan", spec, "--store", tmp_path / "store")
    assert found.code == 0 and "a grid of 16,000 points: planning takes about" in found.err
    assert "16,000 trials in 1,000 packs" in found.out
    assert psutil.Process().memory_info().rss - before < 100e6


def test_parameters_of_analyses_are_for_all_or_for_one() -> None:
    found = _parameters(["jumps", "growth"], [("n", 1), ("jumps.n_surrogates", 37)])
    assert found == {"jumps": {"n": 1, "n_surrogates": 37}, "growth": {"n": 1}}
    with pytest.raises(SpecError, match="'events' is not among those to run"):
        _parameters(["jumps"], [("events.alpha", 0.1)])
