"""What the agent logs: lines of ``event key=value …`` as text or as JSON, and where to read them again."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import HomeError, UsageError
from .service import UNIT
from .settings import Settings

FILE_BYTES, FILES = 1 << 20, 3  # a log file and how many are kept
_FIELD = re.compile(r"(\w+)=%")


class JsonLines(logging.Formatter):
    """A line as one JSON object: at, level, event, and a field for every ``key=%…`` of the message."""

    def format(self, record: logging.LogRecord) -> str:
        event, fields = _parts(record)
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"at": at, "level": record.levelname.lower(), "event": event, **fields}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _parts(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """The event and its fields; a message of another form is the event as a whole."""
    template, arguments = str(record.msg), record.args
    keys = _FIELD.findall(template)
    if not isinstance(arguments, tuple) or not keys or len(keys) != len(arguments):
        return record.getMessage(), {}
    return template.partition(" ")[0], dict(zip(keys, arguments, strict=True))


def set_up(settings: Settings) -> None:
    """Log as the settings say: to stderr, or to ``log_file``, which is rotated at 1 MiB."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if settings.log_file is not None:
        from logging.handlers import RotatingFileHandler  # not loaded into a small memory for nothing

        try:
            settings.log_file.parent.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(settings.log_file, maxBytes=FILE_BYTES, backupCount=FILES - 1)
        except OSError as error:
            raise HomeError(f"the log file {settings.log_file} cannot be written: {error.strerror}") from error
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])


def show(settings: Settings, lines: int, follow: bool) -> Iterator[str]:
    """The last ``lines`` of the log, then what comes if ``follow``; UsageError where nothing is kept."""
    if settings.log_file is not None:
        yield from _from_file(settings.log_file, lines, follow)
        return
    journal = shutil.which("journalctl")
    if journal is None:
        raise UsageError("there is no log to show: the agent logs to stderr; set log_file in agent.toml")
    command = [journal, "--unit", UNIT, "--lines", str(lines), "--no-pager", "--output", "cat"]
    with subprocess.Popen([*command, *(["--follow"] if follow else [])], stdout=subprocess.PIPE, text=True) as process:
        yield from process.stdout or ()


def _from_file(path: Path, lines: int, follow: bool) -> Iterator[str]:
    try:
        file = open(path, errors="replace")  # noqa: SIM115  # opened anew when the log was rotated
    except OSError as error:
        raise UsageError(f"there is no log to show: {path}: {error.strerror}") from error
    try:
        yield from deque(file, maxlen=lines)
        while follow:
            if line := file.readline():
                yield line
                continue
            time.sleep(0.2)
            if path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                file.close()
                file = open(path, errors="replace")  # noqa: SIM115
    finally:
        file.close()

