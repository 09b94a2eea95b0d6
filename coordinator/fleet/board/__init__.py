"""What runs on a board before there is an agent. Python's own library alone; travels as one file."""

from __future__ import annotations

import io
import pkgutil
import zipfile

MODULES = ("__init__", "units", "update_units", "system", "download", "install", "trial", "update")
_MAIN = "import sys\n\nfrom board.{} import main\n\nsys.exit(main())\n"
_END = "END_OF_SHOAL_FILE"


def program() -> bytes:
    """The installer for a card: ``python3 install.pyz``."""
    return _packed("install")


def updater() -> bytes:
    """What root keeps on the board beside the agent: ``shoal-update take``. The installer writes it, from itself."""
    return b"#!/usr/bin/python3 -IS\n" + _packed("update")


def script() -> str:
    """The installer for a board that runs already: ``sh install.sh``, to be read before it is run."""
    parts = [f"cat > \"$folder/{name}\" <<'{_END}'\n{text}{_END}\n" for name, text in _files("install").items()]
    return (
        "#!/bin/sh\n# Installs Shoal's agent on this board: sh install.sh --help\nset -eu\n"
        "python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||\n"
        '    { echo "shoal: Python 3.11 is needed on this board" >&2; exit 1; }\n'
        "folder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\nmkdir \"$folder/board\"\n\n"
        + "\n".join(parts)
        + '\npython3 "$folder/__main__.py" "$@"\n'
    )


def _packed(main: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in _files(main).items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return packed.getvalue()


def _files(main: str) -> dict[str, str]:
    """This package, wherever it is read from: a folder, or the very file that is being run."""
    texts = {name: pkgutil.get_data(__name__, f"{name}.py") or b"" for name in MODULES}
    return {"__main__.py": _MAIN.format(main), **{f"board/{name}.py": text.decode() for name, text in texts.items()}}
