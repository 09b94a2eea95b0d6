from __future__ import annotations

import email
import json

import pytest

from coordinator.fleet.flash import firstboot
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.firstboot import Existing
from coordinator.fleet.flash.wifi import wifi

STOCK = Existing(
    user=b"#cloud-config\n# hostname: raspberrypi\n",
    meta=b"dsmode: local\ninstance_id: rpios-image\n",
    network=b"# network:\n#   version: 2\n",
    cmdline=b"console=serial0,115200 console=tty1 root=PARTUUID=1-02 rootwait\n",
)
THEIRS = b"#cloud-config\nhostname: theirs\nruncmd:\n  - touch /root/theirs\n"


def test_the_method_follows_from_what_the_image_has() -> None:
    assert firstboot.detect(STOCK) == "cloudinit"
    assert firstboot.detect(Existing(cmdline=b"quiet")) == "systemd"
    with pytest.raises(FlashError, match="--seed-only"):
        firstboot.detect(Existing())


def test_foreign_user_data_is_not_among_what_is_written() -> None:
    files = firstboot.cloudinit(Existing(user=THEIRS, meta=STOCK.meta), "kitchen", "shoal-1", None)
    assert set(files) == {"meta-data", "vendor-data"}
    assert files["vendor-data"].startswith(b"#!/bin/sh\n")
    assert files["meta-data"] == STOCK.meta + b'instance-id: "shoal-1"\nlocal-hostname: "kitchen"\n'


def test_meta_data_that_names_an_instance_and_a_host_stays() -> None:
    theirs = b"instance-id: theirs-7\nlocal-hostname: theirs"
    files = firstboot.cloudinit(Existing(user=b"", meta=theirs, cmdline=b"quiet"), "kitchen", "shoal-1", None)
    assert files["meta-data"] == theirs
    assert files["cmdline.txt"] == b"quiet ds=nocloud;i=theirs-7\n"


def test_foreign_vendor_data_is_carried_out_beside_ours() -> None:
    files = firstboot.cloudinit(Existing(user=b"", meta=b"", vendor=THEIRS), "kitchen", "shoal-1", None)
    theirs, ours = email.message_from_bytes(files["vendor-data"]).get_payload()
    assert theirs.get_payload(decode=True) == THEIRS
    assert ours.get_content_type() == "text/x-shellscript"
    assert b"install.pyz" in ours.get_payload(decode=True)
    again = firstboot.cloudinit(Existing(user=b"", vendor=files["vendor-data"]), "kitchen", "shoal-1", None)
    assert again["vendor-data"] == files["vendor-data"]


def test_a_bare_image_gets_all_that_makes_a_seed() -> None:
    files = firstboot.cloudinit(Existing(), "kitchen", "shoal-1", None)
    assert files["user-data"] == b"#cloud-config\n"
    assert set(files) == {"user-data", "meta-data", "vendor-data"}


def test_wifi_becomes_a_network_of_netplan_and_a_country_for_the_radio() -> None:
    files = firstboot.cloudinit(STOCK, "kitchen", "shoal-1", wifi('Ada\'s "net" λ', "correct horse", "DE", hidden=True))
    network = json.loads(files["network-config"])["network"]
    point = network["wifis"]["wlan0"]["access-points"]['Ada\'s "net" λ']
    assert point["hidden"] is True
    assert b"correct horse" not in b"".join(files.values())
    assert files["cmdline.txt"].endswith(b" rootwait ds=nocloud;i=shoal-1 cfg80211.ieee80211_regdom=DE\n")


def test_wifi_does_not_replace_somebody_elses_network() -> None:
    theirs = Existing(user=b"", meta=b"", network=b"network:\n  version: 2\n")
    with pytest.raises(FlashError, match="leave --wifi out"):
        firstboot.cloudinit(theirs, "kitchen", "shoal-1", wifi("net", "correct horse", "DE"))
    assert "network-config" not in firstboot.cloudinit(theirs, "kitchen", "shoal-1", None)


def test_the_key_of_a_network_is_that_of_the_standard() -> None:
    """IEEE 802.11i-2004, H.4.3, test case 1."""
    made = wifi("IEEE", "password", "US")
    assert made.psk == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert made.psk not in repr(made)
    assert wifi("IEEE", made.psk.upper(), "US").psk == made.psk


@pytest.mark.parametrize(
    ("ssid", "passphrase", "country"),
    [("", "correct horse", "DE"), ("x" * 33, "correct horse", "DE"), ("a\nb", "correct horse", "DE"),
     ("net", "short", "DE"), ("net", "pässword", "DE"), ("net", "correct horse", "Germany")],
)  # fmt: skip
def test_what_no_wifi_has_is_refused(ssid, passphrase, country) -> None:
    with pytest.raises(FlashError) as refused:
        wifi(ssid, passphrase, country)
    assert passphrase not in refused.value.detail


def test_systemd_runs_the_script_once_and_flashing_again_changes_nothing() -> None:
    files = firstboot.systemd(Existing(cmdline=STOCK.cmdline), None)
    line = files["cmdline.txt"].decode()
    assert line.startswith(STOCK.cmdline.decode().strip() + " systemd.run=/boot/firmware/shoal/firstrun.sh ")
    assert line.count("\n") == 1
    assert firstboot.systemd(Existing(cmdline=files["cmdline.txt"]), None) == files


def test_systemd_refuses_a_card_that_somebody_else_has_customised() -> None:
    with pytest.raises(FlashError, match="as it was downloaded"):
        firstboot.systemd(Existing(cmdline=b"quiet systemd.run=/boot/firstrun.sh"), None)
    with pytest.raises(FlashError, match=r"no cmdline\.txt"):
        firstboot.systemd(Existing(), None)
