"""Runnable comparisons: each figure comes from one interleaved run, its record holds hardware and n."""

import os

# Before torch or numpy is imported: they read these once. Every comparison is between single threads.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
