"""Files and folders of a FAT16 or FAT32 file system inside an image: no root, no mounting, no other program."""

from __future__ import annotations

from datetime import datetime
from typing import BinaryIO, Final

from attrs import frozen

from coordinator.fleet.flash import entries
from coordinator.fleet.flash.entries import FILE, FOLDER, RECORD, Entry
from coordinator.fleet.flash.errors import FlashError
from coordinator.fleet.flash.partitions import Partition, Window, partitions
from coordinator.fleet.flash.table import Geometry, Table

_MAX_FILE: Final = 0xFFFFFFFF
_MAX_FOLDER: Final = 65536 * RECORD
_LABEL_AT: Final = {16: 43, 32: 71}


@frozen
class Item:
    """A file, or a folder, of size 0."""

    name: str
    size: int
    folder: bool


class Volume:
    """A file system; ``/`` parts the names of a path, case is kept and ignored. New entries carry the time ``at``.

    Content goes to disk before the tables, the tables before the entry that names it: whoever is cut off in between
    leaves lost clusters at worst. Every call leaves the file system whole.
    """

    def __init__(self, window: Window, at: datetime) -> None:
        self._window = window
        self._at = at
        self._geometry = Geometry.read(window)
        self._table = Table(window, self._geometry)

    @property
    def free(self) -> int:
        """Bytes of free clusters."""
        return self._table.free * self._geometry.cluster

    @property
    def bits(self) -> int:
        """16 or 32."""
        return self._geometry.bits

    @property
    def label(self) -> str:
        return self._window.read(_LABEL_AT[self.bits], 11).decode("cp437").rstrip()

    def room(self, sizes: list[int]) -> int:
        """Bytes of the clusters that files of these sizes take."""
        return sum(-(-size // self._geometry.cluster) for size in sizes) * self._geometry.cluster

    def items(self, path: str = "/") -> list[Item]:
        """What is in a folder, in the order on disk."""
        found = entries.parse(self._content(self._folder(path)))
        return [Item(one.name, one.size, one.folder) for one in found]

    def has(self, path: str) -> bool:
        return self._find(path) is not None

    def read(self, path: str) -> bytes:
        """The bytes of a file; FlashError if there is none."""
        entry = self._find(path)
        if entry is None or entry.folder:
            raise FlashError(f"There is no file {path!r} on the boot partition")
        chain = self._chain(entry)
        if len(chain) * self._geometry.cluster < entry.size:
            raise FlashError(f"{path!r} is damaged on the boot partition: repair it with fsck.vfat")
        return self._load(chain)[: entry.size]

    def write(self, path: str, content: bytes) -> None:
        """Make a file, or replace what it holds; its folder must exist."""
        if len(content) > _MAX_FILE:
            raise FlashError(f"{path!r} has {len(content)} bytes, a file on FAT holds at most {_MAX_FILE}")
        old = self._find(path)
        if old is not None and old.folder:
            raise FlashError(f"{path!r} is a folder on the boot partition")
        chain = self._table.allocate(-(-len(content) // self._geometry.cluster))
        try:
            self._store(chain, content)
            first = chain[0] if chain else 0
            if old is None:
                self._add(path, FILE, first, len(content))
            else:
                self._change(path, old, first, len(content))
        except FlashError:
            self._table.release(chain)
            raise
        self._table.flush()

    def make_folder(self, path: str) -> None:
        """Make a folder; nothing happens if there is one."""
        old = self._find(path)
        if old is not None:
            if not old.folder:
                raise FlashError(f"{path!r} is a file on the boot partition")
            return
        above = self._folder(_parent(path))
        chain = self._table.allocate(1)
        first = chain[0]
        try:
            dots = [
                entries.records(name, name.encode().ljust(11), FOLDER, cluster, 0, self._at)
                for name, cluster in ((".", first), ("..", 0 if self._is_root(above) else above))
            ]
            self._store(chain, b"".join(dots))
            self._add(path, FOLDER, first, 0)
        except FlashError:
            self._table.release(chain)
            raise
        self._table.flush()

    def remove(self, path: str) -> None:
        """Remove a file or an empty folder."""
        entry = self._find(path)
        if entry is None:
            raise FlashError(f"There is no {path!r} on the boot partition")
        chain = self._chain(entry)
        if entry.folder and entries.parse(self._content(entry.cluster)):
            raise FlashError(f"The folder {path!r} on the boot partition is not empty")
        folder = self._folder(_parent(path))
        content = bytearray(self._content(folder))
        for at in range(entry.begin, entry.end, RECORD):
            content[at] = 0xE5
        self._keep(folder, bytes(content))
        self._table.release(chain)
        self._table.flush()

    def relabel(self, label: str) -> None:
        """Give the volume another name: up to 11 letters, digits and underscores, in capitals."""
        name = label.encode("ascii").ljust(11)
        content = bytearray(self._content(0))
        places = range(0, entries.end_of(content), RECORD)
        labels = [at for at in places if content[at] != 0xE5 and content[at + 11] & 0x3F == entries.LABEL]
        if labels:
            content[labels[0] : labels[0] + 11] = name
            self._keep(0, bytes(content))
        else:
            self._insert(0, entries.records(".", name, entries.LABEL, 0, 0, self._at))
        self._window.write(_LABEL_AT[self.bits], name)
        self._table.flush()

    def flush(self) -> None:
        self._window.flush()

    def _find(self, path: str) -> Entry | None:
        *above, name = _names(path)
        folder = self._folder("/".join(above))
        wanted = entries.fold(name)
        found = entries.parse(self._content(folder))
        return next((one for one in found if entries.fold(one.name) == wanted), None)

    def _folder(self, path: str) -> int:
        """The first cluster of a folder, 0 for the root."""
        cluster = 0
        for name in path.strip("/").split("/") if path.strip("/") else []:
            wanted = entries.fold(name)
            found = entries.parse(self._content(cluster))
            entry = next((one for one in found if entries.fold(one.name) == wanted and one.folder), None)
            if entry is None:
                raise FlashError(f"There is no folder {path!r} on the boot partition")
            cluster = entry.cluster
        return cluster

    def _is_root(self, cluster: int) -> bool:
        return cluster in (0, self._geometry.root_cluster)

    def _clusters(self, folder: int) -> list[int]:
        found = self._table.chain(folder or self._geometry.root_cluster)
        if not found:
            raise FlashError("A folder of the boot partition is damaged: repair it with fsck.vfat")
        return found

    def _content(self, folder: int) -> bytes:
        if folder == 0 and self.bits == 16:
            return self._window.read(self._geometry.root, self._geometry.root_size)
        return self._load(self._clusters(folder))

    def _keep(self, folder: int, content: bytes) -> None:
        if folder == 0 and self.bits == 16:
            self._window.write(self._geometry.root, content)
        else:
            self._store(self._clusters(folder), content)

    def _add(self, path: str, attributes: int, cluster: int, size: int) -> None:
        *above, name = _names(path)
        entries.check(name)
        folder = self._folder("/".join(above))
        short = entries.new_short(name, (one.short for one in entries.parse(self._content(folder))))
        self._insert(folder, entries.records(name, short, attributes, cluster, size, self._at))

    def _insert(self, folder: int, record: bytes) -> None:
        """Put records into the first gap of a folder that takes them all; the folder grows if none does."""
        content = bytearray(self._content(folder))
        end = entries.end_of(content)
        content[end:] = bytes(len(content) - end)  # what lay behind the end must not come to life
        free = [content[at] in (0, 0xE5) for at in range(0, len(content), RECORD)]
        need = len(record) // RECORD
        place = next((at for at in range(len(free) - need + 1) if all(free[at : at + need])), None)
        if place is None:
            place = len(free) - next((back for back, empty in enumerate(reversed(free)) if not empty), len(free))
            content += bytes(self._grow(folder, (place + need - len(free)) * RECORD, len(content)))
        content[place * RECORD : place * RECORD + len(record)] = record
        self._table.flush()
        self._keep(folder, bytes(content))

    def _grow(self, folder: int, missing: int, size: int) -> int:
        """Lengthen a folder by clusters for ``missing`` bytes; the bytes it has gained."""
        if folder == 0 and self.bits == 16:
            raise FlashError(f"The root folder of the boot partition is full: it takes {size // RECORD} entries")
        count = -(-missing // self._geometry.cluster)
        if size + count * self._geometry.cluster > _MAX_FOLDER:
            raise FlashError("A folder of the boot partition is full")
        last = self._clusters(folder)[-1]
        self._table.extend(last, self._table.allocate(count)[0])
        return count * self._geometry.cluster

    def _change(self, path: str, old: Entry, cluster: int, size: int) -> None:
        folder = self._folder(_parent(path))
        content = bytearray(self._content(folder))
        short = slice(old.end - RECORD, old.end)
        content[short] = entries.changed(bytes(content[short]), cluster, size, self._at)
        self._table.flush()
        self._keep(folder, bytes(content))
        self._table.release(self._chain(old))

    def _chain(self, entry: Entry) -> list[int]:
        return self._table.chain(entry.cluster) if entry.cluster else []

    def _load(self, chain: list[int]) -> bytes:
        return b"".join(self._window.read(at, size) for at, size in self._pieces(chain))

    def _store(self, chain: list[int], content: bytes) -> None:
        """Fill clusters with ``content``, and the rest of the last with zeros."""
        done = 0
        for at, size in self._pieces(chain):
            self._window.write(at, content[done : done + size].ljust(size, b"\0"))
            done += size

    def _pieces(self, chain: list[int]) -> list[tuple[int, int]]:
        """(place, bytes) of what lies in one piece on disk."""
        found: list[tuple[int, int]] = []
        size = self._geometry.cluster
        for cluster in chain:
            place = self._geometry.place(cluster)
            if found and sum(found[-1]) == place:
                found[-1] = found[-1][0], found[-1][1] + size
            else:
                found.append((place, size))
        return found


def boot_partition(file: BinaryIO, at: datetime) -> tuple[Partition, Volume]:
    """The first partition with a FAT file system that can be read; FlashError if there is none."""
    why = "The image has no FAT partition"
    for one in partitions(file):
        if one.fat:
            try:
                return one, Volume(Window(file, one.start, one.size), at)
            except FlashError as error:
                why = error.detail
    raise FlashError(why)


def _names(path: str) -> list[str]:
    names = path.strip("/").split("/")
    if not names[-1]:
        raise FlashError("A file on the boot partition needs a name")
    return names


def _parent(path: str) -> str:
    return "/".join(_names(path)[:-1])
