"""A board in QEMU: Debian 13 on a card that is laid out like Raspberry Pi OS, with a FAT boot partition first."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from attrs import define, field, frozen

from .debian import NotPossible, _run

MIB = 1 << 20
BOOT_START, BOOT_SIZE, CARD_SIZE = 8 * MIB, 256 * MIB, 3072 * MIB
DISK_ID = "3f2a1b0c"
PACKAGES = (
    "cloud-init", "systemd-sysv", "systemd-resolved", "dbus", "udev", "python3", "ca-certificates", "openssl", "kmod",
    "iproute2", "netplan.io", "sudo",
)  # fmt: skip
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "vfat", "nls_cp437", "nls_ascii", "nls_utf8")
PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "sfdisk": "fdisk", "mkfs.vfat": "dosfstools", "mke2fs": "e2fsprogs", "mcopy": "mtools",
}  # fmt: skip
FSTAB = f"""\
PARTUUID={DISK_ID}-01 /boot/firmware vfat defaults 0 2
PARTUUID={DISK_ID}-02 / ext4 defaults,noatime 0 1
"""
FILES = {
    "etc/fstab": FSTAB,
    "etc/hostname": "raspberrypi\n",
    "etc/machine-id": "",
    "etc/systemd/network/50-wired.network": "[Match]\nName=e*\n\n[Network]\nDHCP=yes\n",
    # As Raspberry Pi OS has it.
    "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": (
        "datasource_list: [ NoCloud, None ]\ndatasource:\n  NoCloud:\n    seedfrom: file:///boot/firmware\n"
    ),
    "etc/systemd/system/cloud-init-main.service.d/boot.conf": "[Unit]\nRequiresMountsFor=/boot/firmware\n",
    "etc/systemd/system/cloud-init-local.service.d/boot.conf": "[Unit]\nRequiresMountsFor=/boot/firmware\n",
}
FIRMWARE = {
    "cloudinit": {
        "user-data": "#cloud-config\nruncmd: [[touch, /boot/firmware/theirs]]\n", "meta-data": "dsmode: local\n",
    },
    "systemd": {},
}  # fmt: skip
"""What the boot partition holds before it is flashed, beside cmdline.txt; somebody's own user-data among it."""


@frozen
class Machine:
    """``arch`` as Debian calls it, ``target`` of its bundle."""

    arch: str
    kernel: str
    target: str
    program: str
    options: tuple[str, ...]
    console: str

    @property
    def name(self) -> str:
        return f"trixie-{self.arch}-boot"

    def make(self, cache: Path) -> Path:
        """The folder with the system; takes a quarter of an hour the first time, where it is emulated."""
        folder = cache / self.name
        if folder.exists():
            return folder
        new = cache / f"{self.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        _run(
            "mmdebstrap", "--variant=minbase", f"--arch={self.arch}", '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
            f"--include={','.join((self.kernel, *PACKAGES))}", f"--essential-hook={_hook()}", "trixie", str(new),
            mirror(),
        )  # fmt: skip
        new.rename(folder)
        return folder

    def card(self, system: Path, method: str, card: Path) -> Path:
        """The image of a card that nobody has touched yet."""
        for name, text in FILES.items():
            (system / name).parent.mkdir(parents=True, exist_ok=True)
            (system / name).write_text(text)
        (system / "boot/firmware").mkdir(exist_ok=True)
        _run("chroot", str(system), "systemctl", "enable", "systemd-networkd", "systemd-resolved")
        with open(card, "wb") as file:
            file.truncate(CARD_SIZE)
        second = (BOOT_START + BOOT_SIZE) // 512
        layout = (
            f"label: dos\nlabel-id: 0x{DISK_ID}\nunit: sectors\n\nstart={BOOT_START // 512}, size={BOOT_SIZE // 512}, "
            f"type=c\nstart={second}, type=83\n"
        )
        subprocess.run(["sfdisk", "-q", str(card)], input=layout, text=True, check=True, capture_output=True)
        _run("mkfs.vfat", "-F", "32", "-s", "1", "-n", "bootfs", "--offset", str(BOOT_START // 512), str(card),
             str(BOOT_SIZE >> 10))  # fmt: skip
        _run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", str(system), "-E", f"offset={second * 512}", str(card),
             str((CARD_SIZE - second * 512) // 4096))  # fmt: skip
        # Raspberry Pi OS 12 has no cloud-init: here it is told to keep still.
        still = "" if method == "cloudinit" else " cloud-init=disabled"
        line = f"console=serial0,115200 console=tty1 root=PARTUUID={DISK_ID}-02 rootfstype=ext4 rootwait{still}\n"
        for name, text in {"cmdline.txt": line, "config.txt": "# board\n", **FIRMWARE[method]}.items():
            beside = card.with_name(f".{name}")
            beside.write_text(text)
            _run("mcopy", "-o", "-i", f"{card}@@{BOOT_START}", str(beside), f"::{name}")
            beside.unlink()
        return card


def _hook() -> str:
    modules = "\\n".join(MODULES)
    return (
        'mkdir -p "$1/etc/initramfs-tools/conf.d" && '
        'printf "COMPRESS=gzip\\nMODULES=list\\n" > "$1/etc/initramfs-tools/conf.d/board" && '
        f'printf "{modules}\\n" > "$1/etc/initramfs-tools/modules"'
    )


MACHINES = {
    "arm64": Machine(
        "arm64", "linux-image-arm64", "aarch64-cp313", "qemu-system-aarch64",
        ("-M", "virt", "-cpu", "cortex-a72", "-accel", "tcg,thread=multi"), "ttyAMA0",
    ),
    "amd64": Machine(
        "amd64", "linux-image-amd64", "x86_64-cp313", "qemu-system-x86_64",
        ("-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi"), "ttyS0",
    ),
}  # fmt: skip


@define
class Board:
    """One board with its card; its power is ``on`` and ``off``."""

    machine: Machine
    system: Path
    card: Path
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def on(self) -> None:
        """Start as the firmware does: the kernel gets the line that stands on the card now."""
        line = self.read("cmdline.txt").decode().strip()
        line = re.sub(r"console=serial0,115200 console=tty1", f"console={self.machine.console}", line)
        boot = self.system / "boot"
        kernel, first = next(boot.glob("vmlinuz-*")), next(boot.glob("initrd.img-*"))
        command = [
            self.machine.program, *self.machine.options, "-smp", "2", "-m", "1024", "-no-reboot", "-display", "none",
            "-kernel", str(kernel), "-initrd", str(first), "-append", line,
            "-drive", f"file={self.card},if=virtio,format=raw,cache=unsafe", "-netdev", "user,id=n0",
            "-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-rng-pci",
            "-serial", f"file:{self.log}", "-monitor", "none",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def off(self) -> None:
        """Pull the plug."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def read(self, name: str) -> bytes:
        """A file of the card's boot partition."""
        command = ["mtype", "-i", f"{self.card}@@{BOOT_START}", f"::{name}"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def has(self, name: str) -> bool:
        command = ["mdir", "-b", "-i", f"{self.card}@@{BOOT_START}", f"::{name}"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


def mirror() -> str:
    """Where this machine's apt takes Debian from, unless SHOAL_ARM_MIRROR names another."""
    if named := os.environ.get("SHOAL_ARM_MIRROR"):
        return named
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    found = subprocess.run(command, check=False, capture_output=True, text=True).stdout.splitlines()
    if not found:
        raise NotPossible("apt names no mirror of Debian: set SHOAL_ARM_MIRROR")
    return found[0]


def check_host(machine: Machine) -> None:
    """NotPossible unless systems and cards can be made and started here."""
    if os.geteuid() != 0:
        raise NotPossible("only root may make another system's folder: sudo make test-arm-boot")
    packages = {**PROGRAMS, machine.program: "qemu-system-arm" if machine.arch == "arm64" else "qemu-system-x86"}
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if missing:
        raise NotPossible(f"programs are missing: apt-get install {' '.join(missing)}")
