"""Puts releases of the agent to use on this board. Runs as root, is no part of any release, needs openssl.

    shoal-update take      what the agent has asked for, and the trial of a release until its end
    shoal-update started   the agent is about to be started: counted while a release is on trial
    shoal-update back      the agent's unit has failed: a release on trial goes back

What the agent's user has written is believed by nobody: it is read without following links and within limits, copied to
where only root writes, and checked there. ``current`` is a link that is replaced in one step, to a folder that was
written whole before; what is going on is on disk before it is done, and can be done again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .download import MAX_BUNDLE, target
from .system import ROOM, Board, InstallError
from .trial import ASKED, RELEASES, Trials
from .units import HOME, USER
from .update_units import AGENT, INCOMING, KEY

MAX_REQUEST = 256 << 10  # bytes
LOOK = 1.0  # seconds
_DIGEST, _HEX, _ID = (re.compile(text) for text in (r"[0-9a-f]{64}", r"[0-9a-f]{128}", r"[0-9A-Za-z._:-]{1,80}"))


class Refusal(Exception):
    """A release that is not put to use; ``state`` is what the agent tells of it."""

    def __init__(self, text: str, state: str = "rejected", retry: bool = False) -> None:
        super().__init__(text)
        self.state, self.retry = state, retry


class Updater:
    """The updater of ``board``; ``fits`` names the bundle that runs on it."""

    def __init__(self, board: Board, fits: str) -> None:
        self._board, self._fits = board, fits
        self._trials = Trials(board)

    def take(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Until nothing is asked for and nothing is on trial."""
        asked = self._received()
        if asked is not None and not self._trials.on:
            self._deploy(asked)
        since = time.monotonic()
        while self._trials.step(self._confirmed, self._asked_back, time.monotonic() - since):
            sleep(LOOK)

    # -- what the agent wrote -------------------------------------------------------------------------------------

    def _received(self) -> dict[str, Any] | None:
        """The agent's request, out of its folder; if the power fails now, the agent asks again."""
        try:
            asked = self._incoming("request.json")
            if asked is not None and asked.get("back") is True:
                self._trials.back(ASKED)
                return None
            return None if asked is None else _request(asked)
        except Refusal as error:
            print(f"shoal-update: {error}", file=sys.stderr)
            return None
        finally:
            self._discard("request.json")

    def _incoming(self, name: str) -> dict[str, Any] | None:
        """A small file of the agent's as JSON; Refusal for what is none."""
        try:
            descriptor = self._open(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Refusal(f"{name} of the agent cannot be opened: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(MAX_REQUEST + 1)
        if len(content) > MAX_REQUEST:
            raise Refusal(f"{name} of the agent has more than {MAX_REQUEST} bytes")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refusal(f"{name} of the agent is no JSON") from error
        if not isinstance(found, dict):
            raise Refusal(f"{name} of the agent is no table")
        return found

    def _folder(self) -> int:
        """The folder in which the agent leaves things; its owner may put a link in its place at any time."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        home = os.open(self._board.path(HOME), flags)
        try:
            return os.open(INCOMING, flags, dir_fd=home)
        finally:
            os.close(home)

    def _open(self, name: str) -> int:
        """A descriptor of a plain file; OSError for anything else."""
        folder = self._folder()
        try:
            # Without waiting: a pipe in a file's place would hold us for ever.
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no file", name)
        return descriptor

    def _discard(self, name: str) -> None:
        """Whatever it is; while it is there, systemd calls again."""
        try:
            folder = self._folder()
        except OSError:
            return
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        except OSError:
            with suppress(RecursionError):
                shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        finally:
            os.close(folder)

    def _confirmed(self, trial: dict[str, Any]) -> bool:
        """Whether the agent on trial says that it is well."""
        with suppress(Refusal):
            said = self._incoming("confirm.json")
            return said is not None and said.get("manifest") == trial["manifest"]
        return False

    def _asked_back(self) -> bool:
        try:
            asked = self._incoming("request.json")
        except Refusal:
            asked = {}
        if asked is None:
            return False
        self._discard("request.json")  # for anything else there is no time during a trial: it is asked for again
        return asked.get("back") is True

    # -- a release ------------------------------------------------------------------------------------------------

    def _deploy(self, asked: dict[str, Any]) -> None:
        """From a request to the begin of a trial, or to a result that says why there is none."""
        try:
            manifest, bundle = self._checked(asked)
            release = bundle["sha256"][:16]
            place = self._board.path(f"{RELEASES}/{release}")
            if not (place / ".complete").exists():
                self._unpack(bundle["sha256"], bundle["size"], place)
            self._try(place)
        except Refusal as error:
            self._trials.told(asked["id"], error.state, str(error), error.retry)
        except (InstallError, OSError, tarfile.TarError) as error:
            # An error of the disk may go away; what the board lacks, or a bundle that does not run, will not.
            self._trials.told(asked["id"], "failed", str(error), isinstance(error, OSError))
        else:
            self._discard("confirm.json")
            self._discard(bundle["sha256"])
            digest = hashlib.sha256(asked["manifest"].encode()).hexdigest()
            self._trials.begin(asked["id"], release, digest, manifest, asked["trial"])

    def _checked(self, asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The manifest and its bundle for this board, once it is known whose they are and that they may be used."""
        self._verify(asked["manifest"], asked["signature"])
        state = self._trials.state
        try:
            manifest = json.loads(asked["manifest"])
            bundle = next((file for file in manifest.get("files", ()) if file["name"] == self._fits), None)
            if bundle is not None:
                bundle = {"sha256": _DIGEST.fullmatch(bundle["sha256"])[0], "size": int(bundle["size"])}  # type: ignore[index]
            manifest = {
                "kind": str(manifest["kind"]), "version": str(manifest["version"]), "number": int(manifest["number"]),
                "floor": int(manifest.get("floor", 0)), "expires_at": float(manifest["expires_at"]),
            }  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Refusal("its manifest is not one that this updater understands") from error
        if manifest["kind"] != "agent":
            raise Refusal("it is no release of the agent")
        if time.time() >= manifest["expires_at"]:
            raise Refusal("the release has expired")
        if manifest["number"] < state["floor"]:
            raise Refusal(f"its number is {manifest['number']}, and this board takes none below {state['floor']}")
        if hashlib.sha256(asked["manifest"].encode()).hexdigest() in state["bad"]:
            raise Refusal("this board was on trial with it before, and went back")
        if bundle is None:
            raise Refusal(f"the release has no bundle for {self._fits}")
        return manifest, bundle

    def _verify(self, manifest: str, signature: str) -> None:
        key = self._board.path(KEY)
        if not key.exists():
            raise Refusal("this board has no key to check releases with: install the agent again")
        folder = self._trials.folder / "check"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        (folder / "manifest").write_bytes(manifest.encode())
        (folder / "signature").write_bytes(bytes.fromhex(signature))
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(key), "-rawin"]
        command += ["-in", str(folder / "manifest"), "-sigfile", str(folder / "signature")]
        try:
            done = self._board.run(*command, check=False)
        except InstallError as error:
            raise Refusal(f"its signature cannot be checked: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if done.returncode:
            raise Refusal("its signature is not that of the key this board was given when the agent was installed")

    def _unpack(self, sha256: str, size: int, place: Path) -> None:
        """The agent's file, copied and then looked at, becomes a complete folder."""
        self._trials.prune()
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not 0 < size <= MAX_BUNDLE:
            raise Refusal(f"its bundle has {size} bytes, expected at most {MAX_BUNDLE}")
        if (free := shutil.disk_usage(place.parent).free) < size * ROOM:
            text = f"{place.parent} has {free >> 20} MiB free, expected {size * ROOM >> 20}"
            raise Refusal(text, "failed", retry=True)
        packed = place.with_name(place.name + ".tar.xz")
        found = hashlib.sha256()
        try:
            with os.fdopen(self._open(sha256), "rb") as file, open(packed, "wb") as copy:
                left = size + 1
                while left and (piece := file.read(min(1 << 16, left))):
                    left -= len(piece)
                    found.update(piece)
                    copy.write(piece)
            if left != 1 or found.hexdigest() != sha256:
                raise Refusal("the bundle is not what the release says", "failed", retry=True)
            self._board.extract(packed, place)
        finally:
            packed.unlink(missing_ok=True)

    def _try(self, place: Path) -> None:
        """InstallError if the agent of the release does not even say its version here; not as root."""
        self._board.complete(place)
        environment = (f"PYTHONPATH={place}", "PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1")
        command = ("/usr/bin/python3", "-m", "device_agent.cli", "--version")
        done = self._board.run("runuser", "-u", USER, "--", "env", *environment, *command, check=False)
        if done.returncode:
            raise InstallError(f"the agent does not start on this board: {done.stdout.strip()[-400:]}")


def _request(asked: dict[str, Any]) -> dict[str, Any]:
    """Those of its fields that count; Refusal if they are not what they should be."""
    id, manifest, signature = asked.get("id"), asked.get("manifest"), asked.get("signature")
    trial: Any = asked.get("trial")
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise Refusal("the request has no id")
    if not isinstance(manifest, str) or not isinstance(signature, str) or not _HEX.fullmatch(signature):
        raise Refusal("the request has no manifest with a signature")
    if type(trial) not in (int, float) or not 1 <= trial <= 86_400:
        raise Refusal("the request has no seconds for the trial")
    try:
        manifest.encode()
    except UnicodeEncodeError as error:
        raise Refusal("the request's manifest is no text") from error
    return {"id": id, "manifest": manifest, "signature": signature, "trial": float(trial)}


def main(words: list[str] | None = None) -> int:
    given = sys.argv[1:] if words is None else words
    board = Board()
    if given == ["take"]:
        Updater(board, target()).take()
    elif given == ["started"]:
        Trials(board).started()
    elif given == ["back"]:
        Trials(board).back(f"the unit {AGENT} has failed with it")
    else:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
