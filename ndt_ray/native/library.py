"""What the compiled library does, on NumPy arrays, and its test against known bits."""

import ctypes
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Places = NDArray[np.int64]

MOST_LEADING = 8
"""Eigenvectors of a matrix that can be asked for."""

KNOWN_BITS = "f816d1f9d8862b0fc8b23b9d5d72aadb599093489dca0beae982679446dc9d8d"
"""SHA-256 of what the kernels give for `_tests`: on every processor, from every compiler."""


class GramSums(NamedTuple):
    """As in `grams.Sums`, which says what they are."""

    centred: Floats
    uncentred: Floats
    mean_square: Floats
    stimulus: Floats
    k_k: Floats
    block: Floats
    means: Floats


def _room(count: int, stimuli: int, f: int, sums: int, blocks: int) -> GramSums:
    """Arrays for so many matrices of f features and sums of each stimulus; every block has the same room."""
    square, vector = (count, f, f), (count,)
    padded = (count, sums, -(-stimuli // blocks) * blocks)
    shapes = (square, square, vector, padded, vector, (count, 4, blocks), (count, stimuli, f))
    return GramSums(*(np.empty(shape) for shape in shapes))


class Kernels:
    """The functions of a loaded library; arrays must be contiguous."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def eigen(self, matrices: Floats, leading: int = 0) -> tuple[Floats, Floats]:
        """Eigenvalues `[k, n]` of symmetric matrices `[k, n, n]`, descending, and the first `leading` eigenvectors
        `[k, n, leading]`.

        Right to 1e-14 of the norm, and 3 to 5 times as fast as LAPACK one by one. A matrix that is not finite (or,
        never yet seen, does not converge in 30 sweeps an eigenvalue) gives NaN and vectors of 0. Householder and QL:
        Golub & Van Loan, Matrix Computations, 8.3.
        """
        matrices = np.ascontiguousarray(matrices, dtype=np.float64)
        count, n, _ = matrices.shape
        if not 0 <= leading <= min(n, MOST_LEADING):
            raise ValueError(f"0 <= leading <= {min(n, MOST_LEADING)} must hold, but got ({leading=}, {n=})")
        values, vectors = np.empty((count, n)), np.empty((count, n, leading))
        self._call("ndt_eigen", matrices, count, n, leading, values, vectors)
        return values, vectors

    def gram(self, x: Singles) -> Floats:
        """x'x `[k, f, f]` of matrices `[k, n, f]`, summed from the first row to the last."""
        count, n, f = x.shape
        out = np.empty((count, f, f))
        self._call("ndt_gram", x, count, n, f, out)
        return out

    def gram_sums(self, stacks: Sequence[Singles], blocks: int) -> GramSums:
        """All sums over stimuli of matrices `[k, n, f]` with one row a stimulus, of stacks alike in n and f, one after
        the other; row a is of block a mod `blocks`."""
        count, (n, f) = sum(map(len, stacks)), stacks[0].shape[1:]
        found = _room(count, n, f, 1, blocks)
        start = 0
        for x in stacks:
            own = (values[start : start + len(x)] for values in found)
            self._call("ndt_sums", x, len(x), n, f, blocks, *own)
            start += len(x)
        return found

    def stimulus_sums(self, x: Singles, blocks: int, across: bool = False) -> GramSums:
        """The same of lanes `[k, p, n, f]` with n rows a stimulus; of `[k, p, f, n]` if `across`."""
        count, p, n, f = (*x.shape[:2], x.shape[3], x.shape[2]) if across else x.shape
        found = _room(count, p, f, 5, blocks)
        self._call("ndt_stimulus_sums", x, count, p, n, f, int(across), blocks, *found)
        return found

    def squares(
        self,
        grads: Singles | None,
        before: Singles | None,
        weights: Singles,
        start: Singles,
        chosen: Places,
        starts: Places,
    ) -> Floats:
        """Sums of squares `[chosen, 4, layers]` of slices of the chosen rows of `[rows, width]`: of the gradient, of
        weights - before, of the weights, of weights - start. Layer l is from starts[l] to before starts[l + 1]. NaN for
        what is None."""
        rows, layers, width = len(chosen), len(starts) - 1, weights.shape[1]
        out = np.empty((rows, 4, layers))
        given = (grads, before, weights, start, ctypes.c_int64(width), chosen, rows, starts, layers)
        self._call("ndt_squares", *given, out)
        return out

    def cross(self, x: Singles, y: Singles) -> Floats:
        """|x'y|_F^2 `[k]` of matrices `[k, n, d]` and `[k, n, e]`, or one `[n, e]` for all: the inner products of the
        kernels xx' and yy'. Products in float32, summed from the first row to the last, their squares in float64."""
        (count, n, d), e = x.shape, y.shape[-1]
        out = np.empty(count)
        self._call("ndt_cross", x, y, count, n, d, e, int(y.ndim == 2), out)
        return out

    def _call(self, name: str, *arguments: Any) -> None:
        for a in arguments:
            assert not isinstance(a, np.ndarray) or a.flags.c_contiguous, f"{name} was given an array with gaps"
        given = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else a for a in arguments]
        if getattr(self._library, name)(*given):
            raise MemoryError(f"no memory for {name} of {[a.shape for a in arguments if isinstance(a, np.ndarray)]}")

    def bits(self) -> str:
        """SHA-256 of what they give for whole numbers, which are the same bits everywhere."""
        digest = hashlib.sha256()
        for found in self._tests():
            digest.update(found.astype("<f8").tobytes())
        return digest.hexdigest()

    def _tests(self) -> Iterator[Floats]:
        for n in (1, 2, 3, 10, 32, 33):
            i, j = np.arange(2 * n)[:, None], np.arange(n)
            x = ((37 * i + 101 * j + 13 * i * j + 7 * i * i) % 61 - 30).astype(np.float64)
            # Of full rank, of low rank, graded; products of these are exact.
            made = [rows.T @ rows for rows in (x, x[: max(1, n // 3)], x * 2.0 ** -(j % 40))]
            yield from self.eigen(np.stack([*made, np.diag(np.arange(n) % 4.0), np.zeros((n, n))] * 4), min(5, n))
            single = np.stack([x, x[::-1]]).astype(np.float32)
            yield self.gram(single)
            yield from self.gram_sums([single[:1], single[1:]], 16)
            for across in (False, True):
                yield from self.stimulus_sums(np.stack([single] * 9, 1), 16, across)
            yield self.cross(single, single[::-1, :, : n // 2 + 1].copy())
            yield self.cross(single, single[0])
            one, other = single.reshape(2, 1, -1)
            layers = np.array([0, n, n, one.shape[1]])
            yield self.squares(one, None, other, one * 0.3, np.array([0]), layers)[0, [0, 2, 3]]
