"""Counter-based randomness (Philox-4x64): any number of any step is had without drawing those before it.

Only raw 64-bit words are taken from numpy's bit generator: their stream is guaranteed, that of `Generator` is not
(NEP 19).
"""

import functools
import hashlib

import numpy as np

_MASK_64 = (1 << 64) - 1


@functools.lru_cache(maxsize=65536)
def key(purpose: str, seed: int) -> int:
    """A 64-bit key for one purpose of one seed: neighbouring seeds and purposes share nothing."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:8], "little")


def words(purpose: str, seed: int, stream: int, counter: int, n: int) -> np.ndarray:
    """`n` uint64 words, a pure function of the arguments; each (stream, counter) has 2^66 words to itself."""
    bits = np.random.Philox(key=[key(purpose, seed), stream & _MASK_64], counter=[0, counter, 0, 0])
    raw: np.ndarray = bits.random_raw(n)
    return raw


def gaussian(purpose: str, seed: int, stream: int, counter: int, n: int) -> np.ndarray:
    """`n` standard normal numbers (float32) by Box and Muller, from the words of the same arguments."""
    u = (words(purpose, seed, stream, counter, 2 * n) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(np.sqrt(-2 * np.log1p(-u[:n])) * np.cos(2 * np.pi * u[n:]), dtype=np.float32)


def permutation(seed: int, epoch: int, n: int, branch: int = 0) -> np.ndarray:
    """Order of `n` samples in one epoch (int64): the stable rank of `n` random words, others for every branch."""
    return np.argsort(words("order", seed, branch, epoch, n), kind="stable")


def keep_mask(seed: int, site: int, step: int, shape: tuple[int, ...], p: float) -> np.ndarray:
    """Dropout mask (float32): 0 with probability `p` (to 1/65536), else 1 / (1 - p).

    `site` numbers the dropout layers of a model; `step` is the update that the mask belongs to.
    """
    n = int(np.prod(shape))
    sixteen = words("dropout", seed, site, step, -(-n // 4)).view(np.uint16)[:n]
    kept = sixteen >= np.uint16(round(p * 65536))
    return np.multiply(kept, np.float32(1.0 / (1.0 - p)), dtype=np.float32).reshape(shape)
