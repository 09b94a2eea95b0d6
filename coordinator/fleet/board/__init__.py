"""What runs on a board before there is an agent. Python's own library alone; travels as one file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

MODULES = ("__init__", "units", "system", "download", "install")
_MAIN = "import sys\n\nfrom board.install import main\n\nsys.exit(main())\n"
_END = "END_OF_SHOAL_FILE"


def program() -> bytes:
    """The installer for a card: ``python3 install.pyz``."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in _files().items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return packed.getvalue()


def script() -> str:
    """The installer for a board that runs already: ``sh install.sh``, to be read before it is run."""
    parts = [f"cat > \"$folder/{name}\" <<'{_END}'\n{text}{_END}\n" for name, text in _files().items()]
    return (
        "#!/bin/sh\n# Installs Shoal's agent on this board: sh install.sh --help\nset -eu\n"
        "python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||\n"
        '    { echo "shoal: Python 3.11 is needed on this board" >&2; exit 1; }\n'
        "folder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\nmkdir \"$folder/board\"\n\n"
        + "\n".join(parts)
        + '\npython3 "$folder/__main__.py" "$@"\n'
    )


def _files() -> dict[str, str]:
    folder = Path(__file__).parent
    return {"__main__.py": _MAIN, **{f"board/{name}.py": (folder / f"{name}.py").read_text() for name in MODULES}}
