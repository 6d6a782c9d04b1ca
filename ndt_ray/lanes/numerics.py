"""What a trajectory's bits depend on besides the trial: set the same way everywhere, and written down."""

import ctypes
import functools
import os
import platform

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from ndt_ray import native


def configure(device: torch.device, threads: int = 1) -> None:
    """One thread, no reduced precision, deterministic kernels. Process-wide; call it before any engine is made.

    Intra-op threads lose time on every shape measured, and with two of them results depend on the pack's size. NumPy's
    own, for LAPACK, are limited too: Ray's workers begin with one, a process that trains inline does not.
    """
    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)
    _keep_memory()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device.type == "cuda":
        # cuBLAS is bitwise repeatable only with a workspace of fixed size.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _keep_memory() -> None:
    """Freed blocks stay with the process: glibc hands large ones back, and faulting their pages in again at the next
    step costs about a tenth of it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold, largest = -1, -3, 2**30
        mallopt(trim_threshold, largest)
        mallopt(mmap_threshold, largest)


def fingerprint(device: torch.device) -> str:
    """Library versions, instruction set or GPU model, threads, and what solves for spectra if it is not LAPACK: equal
    strings promise equal bits."""
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        where = f"{p.name} sm{p.major}{p.minor} {p.multi_processor_count}sm cuda{torch.version.cuda}"
    else:
        blas = f"mkl:{os.environ.get('MKL_CBWR')}" if has_mkl() else "blas"
        isa = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        moving = "" if products_stand_still() else " moving"
        where = f"{isa} {blas}{moving} threads{torch.get_num_threads()}"
    return f"torch{torch.__version__} numpy{np.__version__} {where}{native.mark()}"


def has_mkl() -> bool:
    """Whether this torch multiplies with MKL."""
    return bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


@functools.cache
def products_stand_still() -> bool:
    """Whether products of matrices are the same bits wherever in memory their operands lie.

    MKL that was first called before `MKL_CBWR` was set breaks it on some processors; a lane's measurements then depend
    on the pack around it, in the last bits.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for rows, inner, columns in ((5, 64, 5), (32, 64, 32), (64, 64, 1)):
            left, right = (_moved(torch.randn(n, inner, generator=generator, dtype=dtype)) for n in (rows, columns))
            first = torch.mm(left[0], right[0].mT)
            if not all(torch.equal(torch.mm(x, y.mT), first) for x in left for y in right):
                return False
    return True


def _moved(matrix: Tensor) -> list[Tensor]:
    """Copies that begin one number further each from where the allocator would put them: 8 doubles are 64 bytes."""
    copies = []
    for offset in range(8):
        room = matrix.new_empty(matrix.numel() + offset)
        copies.append(room[offset:].view(matrix.shape).copy_(matrix))
    return copies


def pick_device(gpus: float) -> torch.device:
    """The GPU that was asked for, else the CPU."""
    return torch.device("cuda", 0) if gpus > 0 else torch.device("cpu")
