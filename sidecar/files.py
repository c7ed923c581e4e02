"""`/run/mesh`, the folder that app containers see: what its files say (pure functions), and `RunFiles`, which writes
them.

Every file appears whole: written beside its place, then renamed. A file whose content is already right is left alone,
because a container may have mounted that very file. All are world-readable, those in `secrets/` apart: only their group
may read them.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dns import resolvconf
from dns.zone import APEX, peer_name
from runtime.secret import Secret

HOSTS_BEGIN = "# cvm-mesh begin"
HOSTS_END = "# cvm-mesh end"
"""exec.sh copies the lines from begin to end; it knows these two by heart."""
_EXEC_SH = Path(__file__).with_name("exec.sh")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this CVM is in the mesh; the content of `identity.json`."""

    cluster: str
    group: str
    peer_id: str
    address: str
    """Mesh address."""


def hosts(routes: Mapping[str, str], own: Identity | None) -> str:
    """A hosts file: loopback, then between markers each route (name to VIP) and our own peer name."""
    lines = [f"{vip} {name} {name}.{APEX.decode()}" for name, vip in sorted(routes.items())]
    if own is not None:
        lines.append(f"{own.address} {peer_name(own.peer_id)}")
    loopback = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    return "\n".join([*loopback, HOSTS_BEGIN, *lines, HOSTS_END]) + "\n"


def resolv_conf(original: str, nameserver: str) -> str:
    """A resolv.conf that asks only `nameserver`, with the search domains and options of the `original` text.

    `mesh` is searched first, so that `worker` is asked for as `worker.mesh`, which no other server sees (dns.zone
    says more). Option `ndots` is as it was, 1 where nothing was said; `rotate` goes, as there is one server to turn
    to.
    """
    old = resolvconf.parse(original)
    search = dict.fromkeys([APEX.decode(), *old.search])
    options = [option for option in old.options if option != "rotate"]
    if not any(option.startswith("ndots:") for option in options):
        options.append("ndots:1")
    return f"nameserver {nameserver}\nsearch {' '.join(search)}\noptions {' '.join(options)}\n"


def environment(values: Mapping[str, str]) -> str:
    """The file `environment`: the variables that the manifest names, a line each; what follows a line break in a value
    stands on a line that begins with a space. exec.sh holds a container's own against them.
    """
    return "".join(f"{name}={value}".replace("\n", "\n ") + "\n" for name, value in sorted(values.items()))


def identity_json(identity: Identity) -> str:
    """`identity.json`: one object with the fields of `Identity`."""
    return json.dumps(asdict(identity), indent=2) + "\n"


class RunFiles:
    """The folder. Methods raise OSError when the file system refuses; each leaves either the old file or the new."""

    def __init__(self, folder: Path, secrets_gid: int | None = None) -> None:
        """`secrets_gid`: group of the secrets; None leaves them to the process's own."""
        self._folder = folder
        self._secrets = folder / "secrets"
        self._gid = os.getegid() if secrets_gid is None else secrets_gid

    def prepare(self) -> None:
        """Makes the folder, takes back a `ready` that an earlier run left, and puts `exec.sh` there. First of all
        calls."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # mkdir's mode is subject to the umask; app containers run as any user.
        self._folder.chmod(0o755)
        self.mark_not_ready(("the sidecar is starting",))
        self._write("exec.sh", _EXEC_SH.read_text(), mode=0o755)
        self._prepare_secrets()

    def _prepare_secrets(self) -> None:
        """An empty folder for secrets. What an earlier run left may no longer be granted; the folder itself stays if it
        is one, because a container may have mounted it.
        """
        if self._secrets.is_symlink() or not self._secrets.is_dir():
            self._secrets.unlink(missing_ok=True)
            self._secrets.mkdir(mode=0o700)
        for entry in self._secrets.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if self._secrets.stat().st_gid != self._gid:
            os.chown(self._secrets, -1, self._gid)
        self._secrets.chmod(0o750)

    def write_secrets(self, secrets: Mapping[str, Secret]) -> None:
        """Writes each secret into the file of its name, without a line end, and takes all other files away."""
        for entry in self._secrets.iterdir():
            if entry.name not in secrets:
                entry.unlink()
        for name, secret in secrets.items():
            self._write(f"secrets/{name}", secret.reveal(), mode=0o440, gid=self._gid)

    def write_environment(self, values: Mapping[str, str]) -> None:
        """Writes `environment`. Where that fails the file is gone, and exec.sh starts nothing: an older one would let
        start what the newest manifest does not.
        """
        try:
            self._write("environment", environment(values))
        except OSError:
            (self._folder / "environment").unlink(missing_ok=True)
            raise

    def write_hosts(self, routes: Mapping[str, str], own: Identity | None) -> None:
        """Writes `hosts` for routes (name to VIP) and, once it is known, our own peer name."""
        self._write("hosts", hosts(routes, own))

    def write_resolv_conf(self, original: str, nameserver: str) -> None:
        """Writes `resolv.conf` from the text of the machine's own and the address of the mesh's DNS."""
        self._write("resolv.conf", resolv_conf(original, nameserver))

    def write_identity(self, identity: Identity) -> None:
        """Writes `identity.json`."""
        self._write("identity.json", identity_json(identity))

    def mark_ready(self, line: str) -> None:
        """Writes `ready`, one line, for which app containers wait; `reasons` goes."""
        self._write("ready", _one_line(line) + "\n")
        (self._folder / "reasons").unlink(missing_ok=True)

    def mark_not_ready(self, reasons: Sequence[str]) -> None:
        """Takes `ready` away and writes why into `reasons`, a line each; exec.sh shows them when it waits in vain."""
        (self._folder / "ready").unlink(missing_ok=True)
        self._write("reasons", "".join(_one_line(reason) + "\n" for reason in reasons))

    def _write(self, name: str, text: str, mode: int = 0o644, gid: int | None = None) -> None:
        path = self._folder / name
        data = text.encode()
        if _has(path, data, mode, gid):
            return
        beside = path.with_name(f".{path.name}.new")
        # One process writes here; what a killed one left beside is overwritten, never followed as a link.
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if gid is not None and os.fstat(file.fileno()).st_gid != gid:
                os.fchown(file.fileno(), -1, gid)
            os.fchmod(file.fileno(), mode)
        beside.replace(path)


def _has(path: Path, data: bytes, mode: int, gid: int | None) -> bool:
    try:
        found = path.lstat()
        as_meant = stat.S_ISREG(found.st_mode) and found.st_mode & 0o7777 == mode and gid in (None, found.st_gid)
        return as_meant and path.read_bytes() == data
    except OSError:
        return False


def _one_line(text: str) -> str:
    return " ".join(text.split())
