"""mypy over the package as it is imported: `python tools/typecheck.py [mypy options]`.

mypy cannot follow the mapping of the folder `analysis/` to `ndt_ray.analysis`, so it is run over a throw-away tree of
links that has them as one package. Paths in its messages are turned back into those of the repository.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / ".check" / "types"
MAPPED = {"analysis": ROOT / "analysis", "sweeps": ROOT / "sweeps"}


def build_tree() -> None:
    """`.check/types/ndt_ray/` with a link to each part of the package; made anew each time."""
    shutil.rmtree(TREE, ignore_errors=True)
    package = TREE / "ndt_ray"
    package.mkdir(parents=True)
    parts = {p.name: p for p in (ROOT / "ndt_ray").iterdir() if p.name != "__pycache__"}
    for name, path in (parts | MAPPED).items():
        (package / name).symlink_to(path)


def original(line: str) -> str:
    """A message about a linked file, naming the file it links to."""
    return re.sub(r"\bndt_ray/(analysis|sweeps)/", r"\1/", line)


def main(options: list[str]) -> int:
    build_tree()
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "ndt_ray", *options]
    cache = ROOT / ".mypy_cache"
    env = {**os.environ, "MYPY_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=TREE, env=env, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        print(original(line))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
