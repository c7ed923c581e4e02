"""Variables of an environment: what a name is, and which names somebody else than the application obeys. Pure."""

from __future__ import annotations

import re

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""A name that a shell takes for a variable."""
SHELLS_OWN = re.compile(
    r"LD_[A-Za-z0-9_]*|BASH(_[A-Za-z0-9_]*|OPTS|PID)?|_|CDPATH|COLUMNS|DIRSTACK|ENV|EPOCHREALTIME|EPOCHSECONDS|EUID"
    r"|EXECIGNORE|FPATH|FUNCNAME|FUNCNEST|GCONV_PATH|GLIBC_TUNABLES|GLOBIGNORE|GROUPS|HOSTNAME|HOSTTYPE|IFS|LINENO"
    r"|LINES|MACHTYPE|OLDPWD|OPTARG|OPTERR|OPTIND|OSTYPE|PATH|PIPESTATUS|POSIXLY_CORRECT|PPID|PS[0-4]|PWD|RANDOM"
    r"|SECONDS|SHELLOPTS|SHLVL|SRANDOM|TMOUT|UID"
)
"""Names that a shell (dash, busybox, bash), or the loader that starts it, sets or obeys itself: what `exec.sh` sees of
them is not what the container was given, or it is not itself any more."""
COMPOSES_OWN = re.compile(r"(COMPOSE|DOCKER|BUILDKIT|BUILDX)_[A-Za-z0-9_]*")
"""Names that Docker Compose and Docker's command line obey themselves, out of the file of variables that they are
given: with COMPOSE_FILE, COMPOSE_PROFILES or DOCKER_HOST whoever sets them decides what is started, and where."""


def why_obeyed(name: str) -> str | None:
    """Who acts by the variable `name` before an application could be kept from it, as the end of a sentence; None for
    a name that only applications read.
    """
    if SHELLS_OWN.fullmatch(name):
        return "is set or obeyed by the shell of exec.sh or its loader"
    if COMPOSES_OWN.fullmatch(name):
        return "is obeyed by Docker Compose itself, which starts what it says"
    return None
