"""``python -m tests.arm``: what ``make test-arm`` runs. Exit codes: 0 all right, 1 something off, 2 not possible here.

Folders are kept below SHOAL_ARM_CACHE (default ~/.cache/shoal-arm). SHOAL_ARM_MIRROR is a Debian mirror to take instead
of Debian's own with its updates. Names of machines as arguments run only these.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from . import goldens
from .debian import MACHINES, NotPossible, check_host

SOURCES = Path(__file__).resolve().parents[2]
SECONDS = 600
"""That one machine may take."""


def main(wanted: list[str]) -> int:
    cache = Path(os.environ.get("SHOAL_ARM_CACHE") or Path.home() / ".cache" / "shoal-arm")
    try:
        check_host()
        cache.mkdir(parents=True, exist_ok=True)
        chosen = [debian for debian in MACHINES if not wanted or debian.name in wanted]
        folders = []
        for debian in chosen:
            print(f"{debian.name}: {cache / debian.name}", file=sys.stderr, flush=True)
            folders.append(debian.make(cache))
    except NotPossible as error:
        print(f"make test-arm: {error}", file=sys.stderr)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        goldens.write(work)
        shutil.copy(Path(__file__).with_name("check.py"), work)
        for debian, folder in zip(chosen, folders, strict=True):
            arguments = ("/opt/shoal/work/check.py", "/opt/shoal/work", *debian.runtimes)
            process = debian.run(folder, SOURCES, work, *arguments)
            out, complaints = process.communicate(timeout=SECONDS)
            rows = [json.loads(line) for line in out.splitlines()]
            for row in rows:
                print(f"{debian.name:16}" + "  ".join(f"{key} {value}" for key, value in row.items()))
            if process.returncode or len(rows) != len(goldens.MODELS) * len(debian.runtimes):
                failed += 1
                print(f"{debian.name}: exit code {process.returncode}\n{complaints}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
