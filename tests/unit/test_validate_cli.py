"""`ndt validate`: options, exit codes, and what goes where."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ndt_ray.cli import main

SILENT = "def silent(steps, values):\n    return []\n"


def ndt(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.slow
def test_a_users_function_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "mine.py", tmp_path / "out"
    path.write_text(SILENT)
    asked = ("validate", "--detector", f"{path}:silent", "--share", 0.004, "--out", out, "--no-baselines")
    assert ndt(*asked) == 1  # it finds nothing
    said = capsys.readouterr()
    assert "✗ step, φ 0, 8 SD: recall: 0 (>= 0.95, n=2)" in said.out
    assert "✓ iid: P(any event): 0 (<= 0.05, n=10)" in said.out
    assert str(out / "validity.html") in said.out
    assert "tasks" in said.err and "from before" not in said.err
    assert {p.name for p in out.iterdir()} == {
        "parts", "scorecard.json", "cost.json", "validity.md", "validity.html", "validity_power.png",
    }  # fmt: skip
    assert ndt(*asked, "--json") == 1
    again = capsys.readouterr()
    assert "from before" in again.err
    card = json.loads(again.out)
    assert card["card"]["detector"].endswith("mine.py:silent")
    assert card["baselines"] == []


def test_wrong_options_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ndt("validate", "--detector", "rolling_levle", "--out", tmp_path) == 2
    assert "did you mean 'rolling_level'" in capsys.readouterr().err
    assert ndt("validate", "--quick", "--share", 0.5, "--out", tmp_path) == 2
    assert ndt("validate", "--set", "threshold", "--out", tmp_path) == 2
    assert ndt("validate", "--detector", "rolling_level", "--set", "treshold=3", "--out", tmp_path) == 2
    assert "no parameter 'treshold'" in capsys.readouterr().err
    assert not (tmp_path / "scorecard.json").exists()


def test_the_command_line_imports_nothing_heavy_for_it() -> None:
    code = "import sys, ndt_ray.cli.validate; print([m for m in ('scipy', 'numpy', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
