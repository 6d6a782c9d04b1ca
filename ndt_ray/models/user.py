"""Models of the user's own: `path/file.py:name`, where name is a factory or an nn.Module class."""

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ndt_ray.errors import SpecError, did_you_mean


def load_user_factory(target: str) -> Callable[..., Any]:
    """The callable that `path/file.py:name` names; the file is run once for each of its contents.

    Modules beside the file can be imported at its top. Raises SpecError, which says what to do, where the target is
    not of that form, the file is missing or raises, or the name is missing or cannot be called.
    """
    path, name = split_target(target)
    module = _run(path)
    public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    if not hasattr(module, name):
        raise SpecError(f"{path} defines no '{name}'{did_you_mean(name, public)}")
    factory = getattr(module, name)
    if not callable(factory):
        raise SpecError(
            f"{target}: '{name}' is a {type(factory).__name__}, not a function: name one that returns an nn.Module"
        )
    return factory  # type: ignore[no-any-return]


def split_target(target: str) -> tuple[Path, str]:
    """(path, name) of `path/file.py:name`; the file must exist."""
    text, _, name = target.rpartition(":")
    if not text.endswith(".py") or not name.isidentifier():
        raise SpecError(f"'{target}' is not of the form path/file.py:name, for example models/mine.py:build")
    path = Path(text).expanduser()
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, beside)
        raise SpecError(f"there is no file {path} (looked from {Path.cwd()}){hint}")
    return path, name


def source_hash(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of the file's bytes; of this file alone, not of what it imports."""
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()


def _run(path: Path) -> ModuleType:
    """The file as a module, under a name that only this path with these contents has."""
    absolute = path.resolve()
    key = hashlib.sha256(f"{absolute}:{source_hash(absolute)}".encode()).hexdigest()[:16]
    name = f"ndt_user_{key}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, absolute)
    assert spec is not None and spec.loader is not None, absolute
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        with _importable(absolute.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        at = _line(error, absolute)
        raise SpecError(f"{path}{at} raises on import: {type(error).__name__}: {error}") from error
    return module


def _line(error: BaseException, path: Path) -> str:
    """`:line` of the deepest frame of the error in the file, or of its syntax error."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder at the head of the search path, as for a script that is run."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
