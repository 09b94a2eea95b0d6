"""Releases are signed text that never changes; the key is made once, and may be taken elsewhere."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest
from attrs import fields

from coordinator.errors import ShoalError
from coordinator.fleet import releases
from coordinator.fleet.releases import ReleaseKey, verify
from coordinator.store.blobs import Blobs
from coordinator.store.database import Database
from coordinator.store.models import Event, Release
from device_agent.conditions import Conditions
from device_agent.settings import Settings
from protocol.deployments import ReleaseFile
from protocol.errors import ProtocolError
from protocol.remote_settings import REMOTE, read_settings

NOW = 1_700_000_000.0
PRE = bytes.fromhex("302a300506032b6570032100")
"""What stands in front of a raw Ed25519 key in DER."""


@pytest.fixture
def session(new_database):
    database = Database(new_database("sqlite"))
    with database.write() as session:
        yield session
    database.close()


@pytest.fixture
def key(tmp_path):
    return ReleaseKey.of(tmp_path)


def config(session, key, version="night", settings="heartbeat = 30\n", **given) -> Release:
    return releases.create(session, key, kind="config", version=version, settings=settings, now=NOW, by="ada", **given)


def test_the_key_is_made_once_and_readable_by_nobody_else(tmp_path):
    first = ReleaseKey.of(tmp_path)
    assert ReleaseKey.of(tmp_path).public == first.public
    assert len(first.public) == 64
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["release.key"]


def test_a_signature_is_for_one_text_and_one_key(tmp_path, key):
    signature = key.sign("a text")
    assert verify(key.public, "a text", signature)
    assert not verify(key.public, "a text ", signature)
    assert not verify(key.public, "a text", f"{int(signature[:2], 16) ^ 1:02x}" + signature[2:])
    assert not verify(key.public, "a text", "no signature")
    (tmp_path / "other").mkdir()
    assert not verify(ReleaseKey.of(tmp_path / "other").public, "a text", signature)


def test_openssl_reads_the_key_and_the_signature(tmp_path, key):
    """Devices check with the program, not with a library."""
    (tmp_path / "text").write_text("naïve\n")
    (tmp_path / "signature").write_bytes(bytes.fromhex(key.sign("naïve\n")))
    (tmp_path / "public.der").write_bytes(PRE + bytes.fromhex(key.public))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "public.der", "-rawin",
             "-in", "text", "-sigfile", "signature"]  # fmt: skip
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "text").write_text("naive\n")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_damaged_key_is_named_and_not_replaced(tmp_path, content):
    (tmp_path / "release.key").write_bytes(content)
    with pytest.raises(ShoalError, match=r"release\.key is damaged"):
        ReleaseKey.of(tmp_path)
    assert (tmp_path / "release.key").read_bytes() == content


def test_a_release_is_its_signed_text(session, key):
    file = ReleaseFile(name="aarch64-cp313", sha256="a" * 64, size=7)
    made = releases.create(session, key, kind="agent", version="0.2.0", files=[file], now=NOW, by="ada", notes="new")
    assert verify(key.public, made.manifest, made.signature)
    assert made.sha256 == hashlib.sha256(made.manifest.encode()).hexdigest()
    manifest = releases.manifest_of(made)
    assert (manifest.kind, manifest.version, manifest.files) == ("agent", "0.2.0", (file,))
    assert (manifest.created_at, manifest.expires_at) == (NOW, NOW + releases.LIFE)
    assert session.query(Event).one().text == "ada released agent 0.2.0"


def test_numbers_grow_within_a_kind(session, key):
    assert [config(session, key, version).number for version in ("a", "b")] == [1, 2]
    made = releases.create(session, key, kind="agent", version="a", now=NOW, by="ada")
    assert made.number == 1


@pytest.mark.parametrize(
    ("given", "code", "sentence"),
    [
        ({"version": "night"}, "conflict", "there is a release config night already"),
        ({"version": "über"}, "bad-request", "version is 'über', expected 1 to 40 letters"),
        ({"settings": "x = "}, "bad-request", "not valid TOML"),
        ({"settings": "data = 'x'"}, "bad-request", "not to be set from afar: 'data'"),
        ({"settings": "# " + "ü" * 7000}, "bad-request", "expected at most 24576"),
        ({"settings": "#" * 9000}, "bad-request", "expected at most 8000 characters"),
        ({"floor": 3}, "bad-request", "floor is 3, expected at most the release's number 2"),
    ],
)
def test_what_cannot_be_released(session, key, given, code, sentence):
    config(session, key)
    with pytest.raises(ShoalError) as refused:
        config(session, key, **{"version": "day", **given})
    assert refused.value.code == code
    assert sentence.lower() in refused.value.detail.lower()


def test_a_withdrawn_release_is_withdrawn_once(session, key):
    made = config(session, key)
    releases.withdraw(session, made.id, NOW + 5, by="ada")
    assert made.withdrawn_at == NOW + 5
    with pytest.raises(ShoalError, match="withdrawn already"):
        releases.withdraw(session, made.id, NOW + 6, by="ada")


class TestElsewhere:
    """The private key is taken out of the home; releases are signed where it is."""

    def test_it_is_the_same_key_and_signs_no_more_here(self, tmp_path, session):
        away = tmp_path / "stick"
        away.mkdir()
        before = ReleaseKey.of(tmp_path)
        left = releases.take_out(tmp_path, away / "release.key")
        assert left.public == before.public == ReleaseKey.of(tmp_path).public
        assert not (tmp_path / "release.key").exists()
        assert (away / "release.key").stat().st_mode & 0o777 == 0o600
        with pytest.raises(ShoalError, match="kept elsewhere"):
            config(session, ReleaseKey.of(tmp_path))
        assert session.query(Release).count() == 0
        assert ReleaseKey.read(away / "release.key").public == before.public

    def test_what_was_signed_there_is_taken_in(self, tmp_path, session, key):
        blobs = Blobs(tmp_path / "blobs")
        file = releases.stored(blobs, "model.json", b"{}")
        text = releases.draft(session, kind="model", version="1", files=[file], now=NOW)
        made = releases.admit(session, key, blobs, text, key.sign(text), now=NOW, by="ada", notes="n")
        assert (made.manifest, made.number, made.notes) == (text, 1, "n")

    def test_what_is_refused_there(self, tmp_path, session, key):
        blobs = Blobs(tmp_path / "blobs")
        file = ReleaseFile(name="model.json", sha256="a" * 64, size=2)
        text = releases.draft(session, kind="model", version="1", files=[file], now=NOW)
        older = releases.draft(session, kind="config", version="day", settings="", now=NOW)
        config(session, key)
        for refused, signature, sentence in (
            (text, "0" * 128, "is not one of the key"),
            (text, key.sign(text), "model.json .* is not here"),
            (older, key.sign(older), "number 1, and 1 is there already"),
            ("{}", key.sign("{}"), "cannot be read"),
        ):
            with pytest.raises(ShoalError, match=sentence):
                releases.admit(session, key, blobs, refused, signature, now=NOW, by="ada")


class TestAgents:
    def bundle(self, folder, version, target, content):
        sha256 = hashlib.sha256(content).hexdigest()
        folder.mkdir(exist_ok=True)
        path = folder / f"shoal-agent-{version}-{target}-{sha256}.tar.xz"
        path.write_bytes(content)
        return path

    def test_the_files_outlive_the_folder_of_bundles(self, tmp_path):
        folder, blobs = tmp_path / "bundles", Blobs(tmp_path / "blobs")
        old = self.bundle(folder, "0.1.0", "armv7l-cp311", b"old")
        paths = [self.bundle(folder, "0.2.0", target, target.encode()) for target in ("aarch64-cp313", "x86_64-cp311")]
        os.utime(old, (NOW, NOW))
        version, files = releases.agent_files(folder, blobs)
        for path in paths:
            path.unlink()
        assert version == "0.2.0"
        assert {file.name: blobs.get(file.sha256) for file in files} == {
            "aarch64-cp313": b"aarch64-cp313",
            "x86_64-cp311": b"x86_64-cp311",
        }
        assert [file.name for file in releases.agent_files(folder, blobs, "0.1.0")[1]] == ["armv7l-cp311"]

    def test_a_damaged_bundle_is_not_released(self, tmp_path):
        folder = tmp_path / "bundles"
        self.bundle(folder, "0.2.0", "aarch64-cp313", b"good").write_bytes(b"bad!")
        with pytest.raises(ShoalError, match="is damaged"):
            releases.agent_files(folder, Blobs(tmp_path / "blobs"))

    def test_without_bundles_it_says_how_to_make_some(self, tmp_path):
        with pytest.raises(ShoalError, match="shoal bundle build"):
            releases.agent_files(tmp_path, Blobs(tmp_path / "blobs"))


class TestRemoteSettings:
    def test_what_may_come_from_afar_is_what_agents_know(self):
        """Every name is a setting of the agent, of the same type and range."""
        known = {one.name: one for one in fields(Settings)}
        known |= {f"conditions.{one.name}": one for one in fields(Conditions)}
        for name, bound in REMOTE.items():
            mine = known[name].metadata
            assert (mine["low"], mine["high"], mine["one_of"]) == (bound.low, bound.high, bound.one_of), name
            assert bound.kind.__name__ in str(known[name].type), name

    def test_who_it_talks_to_where_its_data_lies_and_what_it_tells_may_not(self):
        assert not {"url", "data", "home", "privacy", "backend", "log_file"} & {n.partition(".")[0] for n in REMOTE}

    def test_settings_are_read_by_name(self):
        text = 'threads = 2\n[conditions]\nhours = ["22:00-06:00"]\nmains = true\n'
        assert read_settings(text) == {
            "threads": 2,
            "conditions.hours": ["22:00-06:00"],
            "conditions.mains": True,
        }
        assert read_settings("") == {}

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("threads = 0", "threads is 0, expected a whole number from 1 to 64"),
            ("threads = 1.0", "threads is 1.0, expected a whole number"),
            ("threads = true", "threads is True"),
            ("heartbeat = nan", "heartbeat is nan"),
            ('log_level = "loud"', "expected one of debug, info, warning, error"),
            ("conditions = 3", r"expected a table \[conditions\]"),
            ('[conditions]\nhours = ["22-6"]', "a list of spans such as 22:00-06:00"),
            ('[conditions]\nhours = "22:00-06:00"', "a list of spans"),
            ("[privacy]\nlabel_histogram = true", "not to be set from afar: 'privacy'"),
            ("[threads]\na = 1", "threads is {'a': 1}"),
            ('url = "https://elsewhere"', "not to be set from afar: 'url'"),
        ],
    )
    def test_what_is_refused(self, text, sentence):
        with pytest.raises(ProtocolError, match=sentence):
            read_settings(text)
