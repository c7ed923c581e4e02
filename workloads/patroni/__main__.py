"""`python -m workloads.patroni`: the program of the PostgreSQL container, `/app/patroni`.

Without an argument it is the member's supervisor. `health` says whether a failover would work (exit code 0: yes),
`status` what each member has (0: a failover would work, and every member answers), and `lead` lets this member lead
where Consul does not remember the cluster.

Each of the two imports what it needs itself: the health check runs again and again, and on a busy machine the imports
of the supervisor alone (asyncio, psycopg, psutil) would take longer than the check may.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from workloads.patroni import versions

IDENTITY = Path("/run/mesh/identity.json")


def main(arguments: list[str]) -> int:
    """Runs until a signal, or answers a command. Exit code 2: the settings or the arguments are wrong, and no restart
    helps.
    """
    parser = argparse.ArgumentParser(prog="patroni", description="A member of a PostgreSQL cluster.")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("health", help="say whether a failover would work")
    status = actions.add_parser("status", help="say what each member has")
    status.add_argument("--own", action="store_true", help="say what this member has")
    lead = actions.add_parser("lead", help="let this member lead where Consul does not remember the cluster")
    lead.add_argument("--accept-loss", action="store_true", help="give up what only other members have")
    lead.add_argument("--yes", action="store_true", help="do not ask again")
    chosen = parser.parse_args(arguments)
    return _supervise() if chosen.action is None else _answer(chosen)


def _supervise() -> int:
    import asyncio
    import importlib.metadata

    from runtime import output, watchdog
    from runtime.env import ConfigError
    from runtime.log import configure
    from workloads.patroni import moves
    from workloads.patroni.settings import read
    from workloads.patroni.supervisor import Supervisor, find_postgres

    refused = versions.refusal(importlib.metadata.version("patroni"))
    if refused is not None:
        print(f"patroni: {refused}", file=sys.stderr)
        return 2
    try:
        settings = read(os.environ, IDENTITY.read_text(encoding="utf-8"))
        postgres = find_postgres(os.environ.get("PATH"))
    except (ConfigError, OSError) as error:
        print(f"patroni: {error}", file=sys.stderr)
        return 2
    output.begin()
    configure()

    async def live() -> int:
        with watchdog.watching():
            return await moves.live(Supervisor(settings, postgres).run(), settings.identity.peer_id, IDENTITY)

    return asyncio.run(live())


def _answer(chosen: argparse.Namespace) -> int:
    from runtime.confirm import confirm
    from workloads.patroni import commands

    try:
        member = commands.find(os.environ)
        if chosen.action == "health":
            done, reason = commands.health(member)
            lines = [reason]
        elif chosen.action == "status":
            done, lines = commands.status(member, own=chosen.own)
        else:
            done, lines = commands.lead(member, chosen.accept_loss, (lambda _: True) if chosen.yes else confirm)
    except commands.NotThereError as error:
        done, lines = False, [str(error)]
    print("\n".join(lines))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
