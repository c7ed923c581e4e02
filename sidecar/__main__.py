"""`python -m sidecar [health | config-reference]`: reads the environment once and decides nothing."""

from __future__ import annotations

import os
import sys


def main(argv: list[str]) -> int:
    """The exit code: 0 stopped, 1 failed, 2 the operator has to change something, 75 start anew as another peer."""
    if argv == ["health"]:
        from sidecar import health

        return health.main(os.environ.get("MESH_STATE_DIR") or "/run/mesh-private")
    if argv == ["config-reference"]:
        from sidecar.config import reference

        print(reference(), end="")
        return 0
    if argv:
        print(f"unknown arguments {argv!r}, expected none, 'health' or 'config-reference'", file=sys.stderr)
        return 2
    from sidecar.process import run

    return run(os.environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
