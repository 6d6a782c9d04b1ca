"""Optional compiled kernels for what measuring small layers costs: eigenproblems by the batch, Gram sums, norms.

They are compiled at first use where there is a C compiler (`build`), tested against known bits, and left aside where
there is none, where they fail, or where `NDT_NATIVE=0` says so: torch, LAPACK and NumPy then do the same work. The two
differ in the last bits, so `mark` says in a trial's fingerprint that the kernels measured it, and `as_recorded` goes on
with what did. What a kernel gives is the same bits whatever else is measured with it, on every processor and from every
compiler.
"""

import contextlib
import contextvars
import functools
import logging
import os
from collections.abc import Iterator

from ndt_ray.native.build import BuildError, NoCompiler, load
from ndt_ray.native.library import KNOWN_BITS, Kernels
from ndt_ray.native.library import GramSums as GramSums

log = logging.getLogger(__name__)

VARIABLE = "NDT_NATIVE"
"""Environment variable; 0 turns the kernels off."""

LARGEST = 64
"""Side of matrices up to which they are used: one of 64 alone takes 0.3 ms (LAPACK 0.1), of 128 already 1.3 (0.4)."""

_WORD = "native"
_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("wanted", default=True)


def active() -> bool:
    """Whether the kernels are used, here and now."""
    return _wanted.get() and not isinstance(_kernels(), str)


def mark() -> str:
    """What the kernels add to a fingerprint: nothing where they are not used."""
    return f" {_WORD}:{KNOWN_BITS[:8]}" if active() else ""


def status() -> str:
    """One line on what measures on this machine, and why."""
    found = _kernels()
    return f"torch and LAPACK ({found})" if isinstance(found, str) else f"compiled kernels {KNOWN_BITS[:8]}"


@contextlib.contextmanager
def as_recorded(fingerprint: str | None) -> Iterator[None]:
    """Inside, what measured for a trial of this fingerprint measures again, if it can; None or empty: no wish."""
    if not fingerprint:
        yield
        return
    token = _wanted.set(any(part.startswith(f"{_WORD}:") for part in fingerprint.split()))
    try:
        yield
    finally:
        _wanted.reset(token)


def kernels() -> Kernels:
    """They, where they are there; else RuntimeError."""
    found = _kernels()
    if isinstance(found, str):
        raise RuntimeError(f"there are no compiled kernels here: {found}")
    return found


@functools.cache
def _kernels() -> Kernels | str:
    """They, or why there are none. What fails against expectation is logged, once a process."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0"
    try:
        made = Kernels(load())
        found = made.bits()
    except NoCompiler as error:
        return f"no C compiler: '{error}' is not on the PATH"
    except (BuildError, OSError, AttributeError) as error:
        log.warning("spectra are left to torch and LAPACK: %s", error)
        return str(error)
    if found != KNOWN_BITS:
        log.warning("spectra are left to torch and LAPACK: the compiled kernels fail their test here (%s)", found)
        return f"they failed their test, giving {found[:8]}"
    return made
