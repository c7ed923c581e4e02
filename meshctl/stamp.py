"""When an environment is up to date: a key over everything that decides what `.venv` must hold.

Standard library only, few imports: every start of `./mesh` computes this before it hands over.
"""

from __future__ import annotations

import hashlib
import os

INPUTS = ("pyproject.toml", "tools/requirements/setup.txt", "tools/requirements/sources.txt", "meshctl/stamp.py")
"""Files, relative to the checkout, whose change means that the environment is installed again."""
INCOMPLETE = "incomplete"
"""The mark's content while an installation is under way; found later, the installation was interrupted."""


def python_in(root: str) -> str:
    """Path of the environment's interpreter."""
    return os.path.join(root, ".venv", "bin", "python")  # noqa: PTH118 (pathlib costs a third of the fast path)


def mark_path(root: str) -> str:
    """Path of the file that holds the key of what was installed, or INCOMPLETE."""
    return os.path.join(root, ".venv", ".mesh-stamp")  # noqa: PTH118 (as above)


def key(root: str) -> str:
    """The key that a complete environment for this checkout carries; "" when there is no working interpreter.

    The interpreter's real path is part of it: after the system's Python moved on to another minor version, the packages
    in the old `lib/python3.X` are out of reach. So is the checkout's place: a moved directory has a wrong pointer.
    """
    python = python_in(root)
    if not os.access(python, os.X_OK):
        return ""
    digest = hashlib.sha256(f"{os.path.realpath(python)}\0{root}\0".encode())
    for name in INPUTS:
        with open(os.path.join(root, name), "rb") as file:  # noqa: PTH118, PTH123 (as above)
            digest.update(file.read() + b"\0")
    return digest.hexdigest()


def installed(root: str) -> str | None:
    """What the mark says: a key, INCOMPLETE, or None when there is no mark."""
    try:
        with open(mark_path(root), encoding="ascii") as file:  # noqa: PTH123 (as above)
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None


def is_current(root: str) -> bool:
    """True when `.venv` is complete and belongs to these inputs."""
    wanted = key(root)
    return wanted != "" and installed(root) == wanted
