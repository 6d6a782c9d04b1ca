"""Compiles the package's C source where it runs, once: there is no compiler at install time, and none is needed.

The library lies in the cache folder under a name that says what it was made from. Processes that build at once do not
meet: each compiles to a name of its own and renames. Where the folder cannot be written, the library is built in a
temporary one, and loaded, by every process anew.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ndt_ray.cache import cache_folder

SOURCES = [Path(__file__).with_name(name) for name in ("eigen.c", "sums.c")]
HEADER = Path(__file__).with_name("vectors.h")
# No contraction to fused operations, whose rounding would be the processor's: the bits are the source's alone.
FLAGS = "-std=gnu11 -O3 -fPIC -shared -ffp-contract=off -fno-math-errno -fno-trapping-math".split()
VECTORS = {
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"],
    "AVX2": ["-mavx2"],
}
"""Flags by what torch says of the processor (not `-march=native`: machines of one kind share what they build)."""

TIMEOUT = 120.0
"""Seconds for the compiler, which needs one."""


class NoCompiler(Exception):
    """This machine has none."""


class BuildError(Exception):
    """There is a compiler, and yet no library: the message says why."""


def load() -> ctypes.CDLL:
    """The library, built if need be; NoCompiler or BuildError."""
    flags = [*FLAGS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])]
    name = _name(flags)
    kept = cache_folder() / "native"
    try:
        if (kept / name).exists():
            return ctypes.CDLL(str(kept / name))
    except OSError:
        pass  # cut short, or of another C library: it is built again
    compiler = _compiler()
    try:
        kept.mkdir(parents=True, exist_ok=True)
        return ctypes.CDLL(str(_compile(compiler, flags, kept / name)))
    except OSError:
        pass  # a read-only home, or one whose libraries may not be loaded
    try:
        with tempfile.TemporaryDirectory(prefix="ndt-native-") as folder:
            return ctypes.CDLL(str(_compile(compiler, flags, Path(folder) / name)))
    except OSError as error:
        raise BuildError(f"neither {kept} nor {tempfile.gettempdir()} will do: {error}") from error


def _name(flags: list[str]) -> str:
    """The compiler is not in it, for what it gives is tested to be the same bits from any."""
    parts = [
        *(path.read_text() for path in (*SOURCES, HEADER)),
        *flags,
        sys.platform,
        platform.machine(),
        *platform.libc_ver(),
    ]
    return f"kernels-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"


def _compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC") or "cc")
    if sys.platform == "win32" or not command or shutil.which(command[0]) is None:
        raise NoCompiler(command[0] if command else "cc")
    return command


def _compile(compiler: list[str], flags: list[str], path: Path) -> Path:
    """`path`, whole or not at all; OSError where its folder cannot be written."""
    handle, own = tempfile.mkstemp(dir=path.parent, prefix=".building-", suffix=".so")
    os.close(handle)
    command = [*compiler, *flags, *map(str, SOURCES), "-o", own, "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, errors="replace")
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BuildError(f"{shlex.join(command)} failed: {said[0] if said else done.returncode}")
        os.replace(own, path)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{shlex.join(command)} took more than {TIMEOUT:.0f} s") from error
    finally:
        Path(own).unlink(missing_ok=True)
    return path
