"""The images of this project: what each is built from, the build itself, and the base for places without a registry.

The build context is a tar archive made here, byte for byte the same for the same sources, so that times and modes of
a checkout do not get into layers. Standard library only.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshctl import tools, tools_build
from meshctl.console import Progress, elapsed, stream
from meshctl.engine import Engine
from meshctl.errors import UserError
from meshctl.info import ROOT, project_version
from meshctl.locks import exclusive

REPOSITORY = "ghcr.io/dstack-mesh/cvm-mesh-"
"""Where the images are published; compose files name them so."""
EPOCH = 1793491200
"""Time of everything in a layer that the build itself wrote, 2026-11-01, unless SOURCE_DATE_EPOCH says another. After
the times of the base's files, so that those are left alone."""
LOCAL_BASE = "cvm-mesh/base:bookworm"
SUITE = "bookworm"
_PULL_SECONDS = 120.0
_DPKG = (
    "force-unsafe-io\npath-exclude /usr/share/doc/*\npath-exclude /usr/share/man/*\npath-exclude /usr/share/locale/*\n"
)
"""What the published slim images set too: no syncs while a layer is made, no documentation."""


PROGRAM = "program"
"""Folder of the Dockerfile that makes every demo program's image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image of the project."""

    name: str
    sources: tuple[str, ...]
    """What of the checkout its build needs."""
    tools: tuple[str, ...] = ()
    """Built tools that it takes from the cache."""
    needs: str | None = None
    """Another image that it is built on; None: the base."""
    published: bool = True
    about: str = ""
    """What it is, where one Dockerfile makes several images; empty: it has a Dockerfile of its own."""

    @property
    def dockerfile(self) -> str:
        """Its Dockerfile's path in the checkout."""
        return f"images/{PROGRAM if self.about else self.name}/Dockerfile"

    @property
    def local(self) -> str:
        """Its reference in the local engine."""
        return f"cvm-mesh/{self.name}:local"

    @property
    def repository(self) -> str:
        """Its published name, without tag."""
        return REPOSITORY + self.name


_MESH = ("admission", "coordinator", "dns", "evidence", "peer", "runtime", "sidecar", "topology", "vip", "xds")
_TOOLING = tuple(
    f"meshctl/{name}.py"
    for name in (
        "__init__",
        "console",
        "errors",
        "locks",
        "requirements",
        "tools",
        "tools_archive",
        "tools_build",
        "tools_install",
    )
)
_PROGRAMS = {
    "api": "Public demo service: calls the worker by its route name",
    "worker": "Demo service behind a route name",
    "web": "Emoji vote, the public page",
    "emoji": "Emoji vote, the emoji that there are",
    "voting": "Emoji vote, the votes",
}
"""What each demo program's image is, by its name and its module's in `workloads`."""
IMAGES: dict[str, Image] = {
    image.name: image
    for image in (
        Image(
            name="sidecar",
            sources=("pyproject.toml", "tools", *_TOOLING, *_MESH),
            tools=("consul", "wireguard-go"),
        ),
        *(Image(name=name, sources=("workloads",), about=about) for name, about in _PROGRAMS.items()),
        Image(name="webdemo", sources=("tools/requirements", "workloads")),
        Image(name="patroni", sources=("tools/requirements", "runtime", "workloads")),
        Image(name="lab", sources=("lab",), needs="sidecar", published=False),
    )
}


def of_reference(reference: str) -> Image | None:
    """The image of ours that a compose file means by `reference`, whatever its tag or digest; None: somebody else's."""
    name = reference.partition("@")[0]
    head, _, tail = name.rpartition("/")
    repository = f"{head}/{tail.partition(':')[0]}"
    return next((image for image in IMAGES.values() if image.published and image.repository == repository), None)


def with_needs(names: Iterable[str]) -> list[Image]:
    """`names` and what they are built on, in building order."""
    order: dict[str, Image] = {}
    for name in names:
        image = IMAGES[name]
        for item in (*((IMAGES[image.needs],) if image.needs else ()), image):
            order.setdefault(item.name, item)
    return list(order.values())


def epoch(environ: Mapping[str, str]) -> int:
    """SOURCE_DATE_EPOCH, or the project's own."""
    text = environ.get("SOURCE_DATE_EPOCH", str(EPOCH))
    if not text.isdigit():
        raise UserError(f"SOURCE_DATE_EPOCH is {text!r}, expected whole seconds since 1970", "unset it")
    return int(text)


def snapshot(text: str) -> str:
    """`text`, a moment of Debian's archive as snapshot.debian.org names them; UserError when it is none."""
    if re.fullmatch(r"20\d{6}T\d{6}Z", text) is None:
        raise UserError(f"--snapshot {text!r} is no moment of Debian's archive", "--snapshot 20261101T000000Z")
    return text


def context(root: Path, image: Image, built: Mapping[str, Path]) -> bytes:
    """The build context of `image` as a tar archive, from the checkout `root` and `built` tools (name to path)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for source in sorted((image.dockerfile, *image.sources)):
            for path in _files(root / source):
                _add(archive, path, str(path.relative_to(root)))
        for name, path in sorted(built.items()):
            tool = tools.TOOLS[name]
            _add(archive, path, f"tools-cache/tools/{name}-{tool.version}/{name}")
    return buffer.getvalue()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for entry in sorted(path.rglob("*")):
        if entry.is_file() and "__pycache__" not in entry.parts:
            yield entry


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    item = tarfile.TarInfo(name)
    item.size = path.stat().st_size
    item.mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
    with path.open("rb") as content:
        archive.addfile(item, content)


def pinned_base(root: Path) -> str:
    """The base that the Dockerfiles name."""
    text = (root / "images" / "sidecar" / "Dockerfile").read_text(encoding="utf-8")
    match = re.search(r"^ARG BASE=(\S+@sha256:[0-9a-f]{64})$", text, re.MULTILINE)
    if match is None:
        raise AssertionError("images/sidecar/Dockerfile names no base with a digest")
    return match[1]


def build(
    engine: Engine,
    names: Iterable[str],
    progress: Progress,
    *,
    base: str | None = None,
    fresh: bool = False,
    debian: str = "",
) -> dict[str, str]:
    """Builds images in the engine under their local references; image IDs by name. `fresh` ignores the layer cache,
    `debian` is the moment of Debian's archive to install from (empty: as it is now).
    """
    chosen = with_needs(names)
    wanted = [tools.TOOLS[name] for image in chosen for name in image.tools]
    built, failures = tools_build.build(wanted, os.environ, progress) if wanted else ({}, {})
    if failures:
        raise UserError(
            "cannot build " + "\n".join(f"{name}: {'; '.join(why)}" for name, why in failures.items()),
            "give this machine Go (golang.org/dl) or PyPI, and access to a Go module proxy",
        )
    foundation = base or ensure_base(engine, progress)
    made: dict[str, str] = {}
    for image in chosen:
        arguments = _arguments(image, foundation, debian)
        made[image.name] = _build(
            engine, image, arguments, {name: built[name] for name in image.tools}, progress, fresh
        )
    return made


def _arguments(image: Image, base: str, debian: str) -> dict[str, str]:
    """The build arguments of `image`. What stands on another image has its base and its Debian from there."""
    if image.needs:
        return {"SIDECAR": IMAGES["sidecar"].local}
    moment = epoch(os.environ)
    arguments = {
        "BASE": base,
        "SOURCE_DATE_EPOCH": str(moment),
        "VERSION": project_version(),
        "REVISION": revision(ROOT),
        "CREATED": dt.datetime.fromtimestamp(moment, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if debian:
        arguments["SNAPSHOT"] = debian
    if image.about:
        arguments |= {"PROGRAM": image.name, "ABOUT": image.about}
    return arguments


def _build(
    engine: Engine,
    image: Image,
    arguments: Mapping[str, str],
    built: Mapping[str, Path],
    progress: Progress,
    fresh: bool,
) -> str:
    options = [item for name, value in arguments.items() for item in ("--build-arg", f"{name}={value}")]
    if not _has_bridge(engine):
        options += ["--network", "host"]
    if fresh:
        options.append("--no-cache")
    step = ""

    def tick(line: str, seconds: float) -> None:
        nonlocal step
        if line.startswith(("Step ", "#")):
            step = line
        progress.update(f"building image {image.name} ({elapsed(seconds)}) {step}")

    with tempfile.TemporaryFile() as archive:
        archive.write(context(ROOT, image, built))
        archive.seek(0)
        argv = [engine.docker, "build", "-t", image.local, "-f", image.dockerfile, *options, "-"]
        outcome = stream(argv, on_tick=tick, env=_builder(engine), stdin=archive)
    if outcome.code != 0:
        raise UserError("\n".join((f"image {image.name} could not be built:", *outcome.tail[-8:])), exit_code=1)
    found = engine.run("image", "inspect", "--format", "{{.Id}}", image.local).stdout.strip()
    progress.line(f"image {image.local} {found.removeprefix('sha256:')[:12]} in {elapsed(outcome.seconds)}")
    return found


def layers(engine: Engine, name: str) -> list[str]:
    """The layers of an image in the engine, by the digests of their content."""
    form = "{{range .RootFS.Layers}}{{println .}}{{end}}"
    return engine.run("image", "inspect", "--format", form, IMAGES[name].local).stdout.split()


def _builder(engine: Engine) -> dict[str, str]:
    environ = engine.environ
    if "DOCKER_BUILDKIT" not in environ and engine.run("buildx", "version", check=False).returncode != 0:
        # Without the plugin the engine's first builder is the one that is there; unasked, newer clients refuse it.
        environ["DOCKER_BUILDKIT"] = "0"
    return environ


def _has_bridge(engine: Engine) -> bool:
    return "bridge" in engine.lines("network", "ls", "--format", "{{.Name}}")


def revision(root: Path) -> str:
    """The commit of the checkout, with `-dirty` where it was changed; `unknown` outside git."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    asked = ([git, "rev-parse", "HEAD"], [git, "status", "--porcelain", "--untracked-files=no"])
    answers = [subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False) for argv in asked]
    if answers[0].returncode != 0:
        return "unknown"
    return answers[0].stdout.strip() + ("-dirty" if answers[1].stdout.strip() else "")


def ensure_base(engine: Engine, progress: Progress) -> str:
    """The base to build on: the pinned one where it is or can be pulled, else one made by debootstrap."""
    pinned = pinned_base(ROOT)
    for reference in (pinned, LOCAL_BASE):
        if engine.has_image(reference):
            return reference
    progress.update(f"pulling {pinned}")
    pulled = _pull(engine, pinned)
    if pulled is None:
        return pinned
    progress.line(f"the base image cannot be pulled ({pulled}); making one with debootstrap")
    with rootfs(progress) as archive:
        engine.run("import", str(archive), LOCAL_BASE, seconds=300)
    return LOCAL_BASE


def _pull(engine: Engine, reference: str) -> str | None:
    """None when the image is there now, else why not."""
    try:
        done = engine.run("pull", "--quiet", reference, seconds=_PULL_SECONDS, check=False)
    except UserError as error:
        return error.message
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]


@contextmanager
def rootfs(progress: Progress) -> Iterator[Path]:
    """A minimal Debian as a tar archive, made once and kept in the cache. UserError where that is impossible."""
    room = tools.cache_root(os.environ) / "images"
    archive = room / f"debian-{SUITE}.tar"
    with exclusive(room / ".lock", lambda seconds: progress.update(f"another run makes the base ({elapsed(seconds)})")):
        if not archive.exists():
            _debootstrap(room, archive, progress)
        yield archive


def _debootstrap(room: Path, archive: Path, progress: Progress) -> None:
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None or os.geteuid() != 0:
        missing = "this user is not root" if program else "debootstrap is not installed"
        raise UserError(
            f"the base image is neither in the engine nor can it be pulled, and it cannot be made: {missing}",
            f"docker pull {pinned_base(ROOT)}, or as root: apt-get install debootstrap, and run it again",
        )
    for stale in room.glob(".rootfs-*"):
        shutil.rmtree(stale, ignore_errors=True)
    root = Path(tempfile.mkdtemp(prefix=".rootfs-", dir=room))
    try:
        outcome = stream(
            [program, "--variant=minbase", SUITE, str(root / "fs")],
            on_tick=lambda line, seconds: progress.update(f"debootstrap {SUITE} ({elapsed(seconds)}) {line}"),
        )
        if outcome.code != 0:
            raise UserError("\n".join(("debootstrap failed:", *outcome.tail[-4:])), exit_code=1)
        settle(root / "fs")
        with tarfile.open(root / "fs.tar", "w") as made:
            made.add(root / "fs", ".")
        (root / "fs.tar").rename(archive)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    progress.line(f"made a Debian base with debootstrap in {elapsed(outcome.seconds)}")


def settle(root: Path) -> None:
    """Adds to a fresh root what builds in it need: dpkg's settings and the certificates that this machine trusts."""
    (root / "etc/dpkg/dpkg.cfg.d/cvm-mesh").write_text(_DPKG, encoding="ascii")
    place = root / "usr/local/share/ca-certificates"
    place.mkdir(parents=True, exist_ok=True)
    for certificate in Path("/usr/local/share/ca-certificates").glob("*.crt"):
        shutil.copy(certificate, place)
    stale = ("var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*_*", "var/log/*.log")
    for path in (path for pattern in stale for path in root.glob(pattern)):
        path.unlink()
