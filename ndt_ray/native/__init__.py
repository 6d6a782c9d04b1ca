"""An optional kernel that solves many small symmetric eigenproblems at once, 3 to 5 times as fast as LAPACK one by one.

It is compiled at first use where there is a C compiler (`build`), tested against known bits, and left aside where
there is none, where it fails, or where `NDT_NATIVE=0` says so: LAPACK then does the same work. The two differ in the
last bits, so `mark` says in a trial's fingerprint which of them measured it, and `as_recorded` goes on with that one.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import logging
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ndt_ray.native.build import BuildError, NoCompiler, load

Floats = NDArray[np.float64]

log = logging.getLogger(__name__)

VARIABLE = "NDT_NATIVE"
"""Environment variable; 0 turns the kernel off."""

LARGEST = 64
"""Side up to which it is used: a single matrix of 64 takes it 0.3 ms (LAPACK 0.1), of 128 already 1.3 ms (0.4)."""

MOST_LEADING = 8
"""Eigenvectors of a matrix that it can be asked for."""

KNOWN_BITS = "31c5a7a69597877d6d12967a96021d92499b9d40ad999247094542c26014b181"
"""SHA-256 of what the kernel gives for the matrices of `_test_matrices`: on every processor, from every compiler."""

_WORD = "eigen"
_wanted: contextvars.ContextVar[bool] = contextvars.ContextVar("wanted", default=True)


def active() -> bool:
    """Whether the kernel solves, here and now."""
    return _wanted.get() and not isinstance(_kernel(), str)


def mark() -> str:
    """What the kernel adds to a fingerprint: nothing where LAPACK solves."""
    return f" {_WORD}:{KNOWN_BITS[:8]}" if active() else ""


def status() -> str:
    """One line on what solves eigenproblems on this machine, and why."""
    found = _kernel()
    return f"LAPACK, one by one ({found})" if isinstance(found, str) else f"batched kernel {KNOWN_BITS[:8]}"


@contextlib.contextmanager
def as_recorded(fingerprint: str | None) -> Iterator[None]:
    """Inside, what solved for a trial of this fingerprint solves again, if it can; None or empty: no wish."""
    if not fingerprint:
        yield
        return
    token = _wanted.set(any(part.startswith(f"{_WORD}:") for part in fingerprint.split()))
    try:
        yield
    finally:
        _wanted.reset(token)


def eigen(matrices: Floats, leading: int = 0) -> tuple[Floats, Floats]:
    """Eigenvalues `[k, n]` of symmetric matrices `[k, n, n]`, descending, and the first `leading` eigenvectors
    `[k, n, leading]`.

    Right to 1e-14 of the norm. A matrix's numbers are the same bits whatever stands beside it. One that is not finite
    (or, never yet seen, does not converge in 30 sweeps an eigenvalue) gives NaN and vectors of 0. Householder and QL:
    Golub & Van Loan, Matrix Computations, 8.3. RuntimeError where the kernel is not `active`.
    """
    solve = _kernel()
    if isinstance(solve, str):
        raise RuntimeError(f"there is no batched kernel here: {solve}")
    return solve(matrices, leading)


class _Kernel:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._function = library.ndt_eigen
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._function.argtypes = [pointer, number, number, number, pointer, pointer]
        self._function.restype = number

    def __call__(self, matrices: Floats, leading: int = 0) -> tuple[Floats, Floats]:
        matrices = np.ascontiguousarray(matrices, dtype=np.float64)
        count, n, _ = matrices.shape
        if not 0 <= leading <= min(n, MOST_LEADING):
            raise ValueError(f"0 <= leading <= {min(n, MOST_LEADING)} must hold, but got ({leading=}, {n=})")
        values, vectors = np.empty((count, n)), np.empty((count, n, leading))
        failed = self._function(
            matrices.ctypes.data, count, n, leading, values.ctypes.data, vectors.ctypes.data if leading else None
        )
        if failed:
            raise MemoryError(f"no memory to solve {count} matrices of side {n}")
        return values, vectors


@functools.cache
def _kernel() -> "_Kernel | str":
    """The kernel, or why there is none. What fails against expectation is logged, once a process."""
    if os.environ.get(VARIABLE) == "0":
        return f"{VARIABLE}=0"
    try:
        kernel = _Kernel(load())
        found = _bits(kernel)
    except NoCompiler as error:
        return f"no C compiler: '{error}' is not on the PATH"
    except (BuildError, OSError, AttributeError) as error:
        log.warning("eigenvalues are left to LAPACK: %s", error)
        return str(error)
    if found != KNOWN_BITS:
        log.warning(
            "eigenvalues are left to LAPACK: the batched kernel gives other bits here (%s) than it should", found
        )
        return f"it failed its test, giving {found[:8]}"
    return kernel


def _bits(kernel: _Kernel) -> str:
    digest = hashlib.sha256()
    for matrices in _test_matrices():
        for part in kernel(matrices, min(5, matrices.shape[1])):
            digest.update(part.astype("<f8").tobytes())
    return digest.hexdigest()


def _test_matrices() -> Iterator[Floats]:
    """Made of whole numbers, so that the same bits everywhere: of full rank, of low rank, graded, diagonal, zero."""
    for n in (1, 2, 3, 10, 32, 33):
        i, j = np.arange(2 * n)[:, None], np.arange(n)
        x = ((37 * i + 101 * j + 13 * i * j + 7 * i * i) % 61 - 30).astype(np.float64)
        low = x[: max(1, n // 3)]
        graded = x * 2.0 ** -(j % 40)
        squares = [rows.T @ rows for rows in (x, low, graded)]
        yield np.stack([*squares, np.diag(np.arange(n) % 4.0), np.zeros((n, n))] * 4)
