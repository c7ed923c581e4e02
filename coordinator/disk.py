"""The coordinator's data folder: claims it, keeps its marker, peers and manifests, and says what is wrong with it.

It lies on a volume that outlives the CVM's boots. Nothing in it is ever deleted here.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

from admission.protocol import MeshPeer
from coordinator import marker as markers
from coordinator.history import order
from coordinator.marker import MARKER, MEMBER, RECORDS, Marker, Owner
from coordinator.proposal import MAX_STORED
from topology.trees import ManifestError, from_tree

log = logging.getLogger(__name__)

MANIFESTS = "manifests"
"""Folder with the manifests that were in force, each under its epoch and digest (`coordinator.history`)."""
MAX_HISTORY = 16 << 20
"""Bytes of manifests that are read, the newest first: some 5,000 of the starter's, 80 of a mesh of 1,000 CVMs."""
PROBE = "probe"
"""Empty file that is written again and again, to see whether the disk takes writes."""
PEERS = "peers.json"
"""File with the peers that were admitted last: public keys and addresses, nothing secret."""
MIN_FREE = 128 << 20
"""Bytes. Consul's write-ahead log takes segments of 64 MiB (raft-wal, DefaultSegmentSize), a snapshot comes beside."""
MAX_BYTES = 4 << 20
"""Of a file that is read here. 10,000 peers take about 1.5 MB."""


class DiskError(Exception):
    """The data folder cannot be used now. The text says what is wrong and what to do."""


class Disk:
    """The data folder `folder` of the coordinator `owner`. `alone`: the manifest has no other coordinator."""

    def __init__(self, folder: Path, owner: Owner, alone: Callable[[], bool] = lambda: False) -> None:
        self._folder = folder
        self._owner = owner
        self._alone = alone
        self.marker: Marker | None = None
        """What the folder says, once it was claimed."""
        self._peers: tuple[MeshPeer, ...] | None = None
        self._manifests: dict[str, str] = {}
        """What is to be kept, by name."""
        """To be kept with the next `settle`; None when nothing is."""

    @property
    def folder(self) -> str:
        """The data folder, for people."""
        return str(self._folder)

    @property
    def records(self) -> Path:
        """The Consul server's own folder."""
        return self._folder / RECORDS

    def claim(self) -> Marker:
        """Makes sure that the folder is ours, and writes our name into an empty one. DiskError,
        marker.ForeignDataError.
        """
        folder = self._folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = [path.name for path in folder.iterdir()]
            text = _read(folder / MARKER) if MARKER in names else None
            found = markers.judge(str(folder), names, text, self._owner, self._alone())
            if found is None:
                found = markers.first(self._owner, str(uuid.uuid4()))
                _write_durably(folder / MARKER, markers.encode(found))
                log.info("the disk is empty", extra={"folder": str(folder), "server_id": found.server_id})
            else:
                # Found out now, not by Consul: a folder that cannot be written is no use.
                _write_durably(folder / MARKER, markers.encode(found))
        except (OSError, UnicodeDecodeError) as error:
            raise DiskError(
                f"{folder} cannot be used: {error}; {self.problem() or 'expected a folder that can be written'}. "
                f"Mount a volume there that outlives the CVM's boots (MESH_DATA_DIR)"
            ) from error
        if found.stage == MEMBER and not _has_log(self.records / "raft"):
            raise DiskError(self.lost_records())
        self.marker = found
        return found

    def advance(self, stage: str) -> None:
        """Notes how far the server got. DiskError."""
        assert self.marker is not None
        if self.marker.stage in (stage, MEMBER):
            return
        found = replace(self.marker, stage=stage)
        try:
            _write_durably(self._folder / MARKER, markers.encode(found))
        except OSError as error:
            raise DiskError(f"{self._folder}/{MARKER} cannot be written: {error}") from error
        self.marker = found

    def lost_records(self) -> str:
        """The reason when a member's Raft data is gone."""
        return (
            f"{self._folder} belongs to a member of the cluster, but its Raft data is gone or damaged"
            f"{'' if self._alone() else ': it must not vote as if it had it'}. "
            f"Restore the volume; or empty all of {self._folder}, and {markers.once_emptied(self._alone())}"
        )

    def damaged_records(self) -> str:
        """The reason when Consul does not start on the records."""
        return (
            f"the records in {self.records} are damaged: restore the volume; or empty all of {self._folder}, and "
            f"{markers.once_emptied(self._alone())}"
        )

    def problem(self) -> str | None:
        """What is wrong with the file system below the folder; None when nothing is."""
        try:
            found = os.statvfs(self._folder)
        except OSError as error:
            return f"{self._folder} cannot be used: {error}"
        if found.f_flag & os.ST_RDONLY:
            return f"the disk of {self._folder} is mounted read-only"
        free = found.f_bavail * found.f_frsize
        if free < MIN_FREE:
            return f"the disk of {self._folder} is full: {free >> 20} MiB free, expected at least {MIN_FREE >> 20} MiB"
        return None

    def remember(self, peers: Iterable[MeshPeer]) -> None:
        """Has the next `settle` keep `peers` for the next start: nobody waits here for a disk that may hang."""
        self._peers = tuple(peers)

    def settle(self) -> None:
        """Writes what is to be kept, or the probe's file. OSError, and it is tried again. Called in a thread."""
        manifests = dict(self._manifests)
        for name, envelope in manifests.items():
            path = self._folder / MANIFESTS / name
            path.parent.mkdir(mode=0o700, exist_ok=True)
            if not path.exists() or path.read_bytes() != envelope.encode():
                _write_durably(path, envelope)
            # What is kept never changes, so nothing else can stand here by now.
            self._manifests.pop(name, None)
        peers = self._peers
        if peers is None:
            if not manifests:
                _write_durably(self._folder / PROBE, "")
            return
        _write_durably(self._folder / PEERS, json.dumps([asdict(peer) for peer in peers]))
        if self._peers is peers:
            self._peers = None

    def remembered(self) -> tuple[MeshPeer, ...]:
        """The peers that were kept; none when there are none that can be read."""
        try:
            tree = json.loads(_read(self._folder / PEERS))
            peers: tuple[MeshPeer, ...] = from_tree(tuple[MeshPeer, ...], tree, PEERS)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, RecursionError, ManifestError) as error:
            log.warning("kept peers ignored", extra={"reason": str(error)})
            return ()
        return peers

    def keep_manifest(self, name: str, envelope: str) -> None:
        """Has the next `settle` keep `envelope` for good under `name`."""
        self._manifests[name] = envelope

    def manifests(self) -> dict[str, str]:
        """As `manifests` of the folder."""
        return manifests(self._folder)

    def make_alone(self, address: str) -> None:
        """Leaves Consul the order to start as the only server at `address` (host:port). DiskError.

        Consul's own way to go on after a loss of the quorum: `raft/peers.json`, read once at the start.
        """
        assert self.marker is not None
        servers = [{"id": self.marker.server_id, "address": address, "non_voter": False}]
        try:
            _write_durably(self.records / "raft" / "peers.json", json.dumps(servers))
        except OSError as error:
            raise DiskError(f"the records cannot go on alone: {error}") from error


def manifests(data_dir: Path) -> dict[str, str]:
    """What is kept of manifests in the data folder, by name; whatever cannot be read is there as nothing."""
    found: dict[str, str] = {}
    room = MAX_HISTORY
    try:
        names = [path.name for path in (data_dir / MANIFESTS).iterdir() if not path.name.startswith(".")]
    except FileNotFoundError:
        return found
    except OSError as error:
        log.warning("kept manifests not read", extra={"reason": str(error)})
        return found
    for name in sorted(names, key=order, reverse=True):
        try:
            with (data_dir / MANIFESTS / name).open("rb") as file:
                data = file.read(MAX_STORED + 1)
        except OSError:
            data = b""
        room -= len(data)
        if room < 0:
            log.warning("older manifests are left on the disk", extra={"before": name})
            break
        found[name] = data.decode("ascii", "replace")
    return found


def _has_log(raft: Path) -> bool:
    """Whether Raft's log is there: the write-ahead log, or the older BoltDB file."""
    files = (raft / "wal" / "wal-meta.db", raft / "raft.db")
    return any(path.is_file() and path.stat().st_size > 0 for path in files)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(f"{path} has more than {MAX_BYTES} bytes")
    return data.decode("utf-8")


def _write_durably(path: Path, text: str) -> None:
    """Writes `text` whole or not at all, and returns when a power cut cannot take it back."""
    partial = path.with_name(f".{path.name}.new")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
