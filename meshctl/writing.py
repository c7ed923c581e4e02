"""Files that a person would miss: written beside, then renamed, so that a full disk or Ctrl-C leaves what was there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from meshctl.errors import UserError


def write(path: Path, data: str | bytes) -> None:
    """Makes `data` the content of `path`; a new file has the rights that the umask leaves. UserError."""
    content = data.encode() if isinstance(data, str) else data
    try:
        number, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), _rights(path))
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "make room, or mend its rights") from error


def _rights(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
