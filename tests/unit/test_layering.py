"""Imports go one way: no module imports one of a higher layer, none reaches itself, none uses what its layer may not.

A new module is placed in `PLACES`; the table is the architecture, the test only reads it. The same test holds the
promise that the command line starts without torch, ray or pandas.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLACES: dict[str, int] = {
    # 0: names, specs and plans
    "errors": 0, "registry": 0, "inputs": 0, "layer_views": 0, "spec": 0, "schedule": 0, "branching": 0, "plan": 0,
    "cache": 0, "architectures": 0,
    # 1: training and measuring, in memory
    "data": 1, "models": 1, "lanes": 1, "measurement": 1, "native": 1, "train": 1, "sink": 1, "catalogue": 1,
    "online": 1, "ring": 1, "triggers": 1,
    # 2: files
    "store": 2, "original": 2,
    # 3: running
    "cluster": 3, "doctor": 3, "spot": 3, "worker": 3, "launch": 3, "tuning": 3, "lease": 3, "progress": 3,
    "analysis": 3, "jobs": 3, "replay": 3, "founding": 3, "onnx_export": 3,
    # 4: showing
    "summary": 4, "verdicts": 4, "figures": 4, "report": 4, "paper": 4,
    # 5: the surfaces
    "run": 5, "fork": 5, "cli": 5, "tracking": 5, "service": 5, "__main__": 5, "": 5,
}  # fmt: skip
"""First part of the module name below ndt_ray ("" is the package itself) -> layer."""

LAYER_0 = {"pydantic", "yaml"}
LAYER_1 = {"numpy", "torch", "psutil", "threadpoolctl"}
HEAVY = {
    "torch", "ray", "pandas", "pyarrow", "duckdb", "scipy", "sklearn", "matplotlib", "numpy", "fastapi", "uvicorn",
    "starlette", "vl_convert",
}  # fmt: skip
FORBIDDEN = {
    "measurement.measures": {"torch", "ray", "pandas", "pyarrow", "duckdb", "scipy", "sklearn"},
    "store": {"torch", "ray"},
    "figures": {"torch", "ray"},
    "report": {"torch", "ray"},
    "paper": {"torch", "ray"},
    "service": {"torch", "ray"},
}
RAY_IN_ANALYSIS = {"ndt_ray.analysis.running.pool"}


def modules() -> dict[str, Path]:
    """Every module of the package, by the name it is imported under."""
    found = {}
    for top, package in ((ROOT / "ndt_ray", ("ndt_ray",)), (ROOT / "analysis", ("ndt_ray", "analysis"))):
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            found[".".join((*package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imports(name: str, path: Path, for_types: bool = True) -> list[tuple[int, str]]:
    """(line, module) of every import statement of a file, those inside functions and type-checking blocks too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(), filename=str(path))
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def inner(target: str, known: dict[str, Path]) -> str | None:
    """The longest known module that a dotted name begins with; None for other packages."""
    while target:
        if target in known:
            return target
        target = target.rpartition(".")[0]
    return None


def place(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


MODULES = modules()


def test_every_module_has_a_place() -> None:
    unplaced = {place(name) for name in MODULES} - PLACES.keys()
    assert not unplaced, f"give these a layer in PLACES (tests/unit/test_layering.py): {sorted(unplaced)}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_goes_up(name: str) -> None:
    layer = PLACES.get(place(name), 9)
    for line, target in imports(name, MODULES[name]):
        to = inner(target, MODULES)
        if to is not None and to != "ndt_ray":
            assert PLACES.get(place(to), 0) <= layer, f"{MODULES[name]}:{line}: layer {layer} imports {to}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_layer_uses_what_it_may_not(name: str) -> None:
    where, layer = place(name), PLACES.get(place(name), 9)
    for line, target in imports(name, MODULES[name]):
        package = target.split(".")[0]
        allowed = True
        if layer == 0:
            allowed = package in sys.stdlib_module_names | LAYER_0 | {"ndt_ray"}
        elif layer == 1 and where != "data":
            allowed = package in sys.stdlib_module_names | LAYER_0 | LAYER_1 | {"ndt_ray"}
        elif where == "data":  # readers of data files; scikit-learn holds the digits
            allowed = package not in {"ray", "pyarrow", "pandas", "duckdb"}
        elif where == "analysis" and package == "ray":
            allowed = name in RAY_IN_ANALYSIS
        assert allowed, f"{MODULES[name]}:{line}: {package} has no place in layer {layer} ({where})"
        forbidden = FORBIDDEN.get(where, set()) | FORBIDDEN.get(name.removeprefix("ndt_ray."), set())
        assert package not in forbidden, f"{MODULES[name]}:{line}: {where} does not use {package}"


@pytest.mark.slow
def test_no_module_reaches_itself() -> None:
    """Imports inside functions count; those for type checkers do not, for nothing is imported."""
    edges = {
        name: {
            to
            for _, target in imports(name, path, for_types=False)
            if (to := inner(target, MODULES)) not in (None, name)
        }
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "imports go in a circle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for to in sorted(t for t in edges[name] if t is not None and t != "ndt_ray"):
                visit(to, (*trail, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def loaded_after(code: str) -> set[str]:
    """Heavy packages that are in memory once `code` has run in a fresh interpreter."""
    report = f"import sys; print('\\n' + ' '.join(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert loaded_after("import ndt_ray") == set()


@pytest.mark.parametrize(
    "name", ["errors", "registry", "spec", "spec.axes", "plan", "schedule", "inputs", "cluster", "doctor"]
)
def test_light_modules_import_nothing_heavy(name: str) -> None:
    assert loaded_after(f"import ndt_ray.{name}") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["serve", "--help"], ["list", "models"]])
def test_the_command_line_starts_light(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['ndt', *{arguments!r}]\n"
        "from ndt_ray.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded_after(code) == set()
