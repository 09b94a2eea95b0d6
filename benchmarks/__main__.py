"""``python -m benchmarks [--only NAME] [--json FILE]``: run benchmarks and write docs/benchmarks.md."""

from __future__ import annotations

import os
import sys

_ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    # Keep glibc from handing freed memory back to the kernel after every step: PyTorch's CNN step is a fifth slower
    # where that happens, and whether it does depends on what else the process has allocated.
    **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 30)),
}


def _start() -> int:
    """BLAS and malloc read their settings when they are loaded: set them first, in a process of our own."""
    if not _ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**os.environ, **_ENVIRONMENT})
    from .command import main

    return main()


if __name__ == "__main__":
    raise SystemExit(_start())
