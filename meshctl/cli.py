"""The table of commands. A command's module is imported when the command runs, so that each starts fast."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One command of the table."""

    module: str
    """Where it lives."""
    attribute: str
    """Name of the click command in that module."""
    help: str
    """The line in `./mesh --help`; here, so that help imports no module."""


def _lab(attribute: str, text: str) -> Entry:
    return Entry(module="meshctl.lab_commands", attribute=attribute, help=text)


def _fault(attribute: str, text: str) -> Entry:
    return Entry(module="meshctl.fault_commands", attribute=attribute, help=text)


COMMANDS: dict[str, Entry] = {
    "demo": _lab("demo", "Bring up a mesh (starter, patroni; trust, emojivoto: owner's walks) and show it."),
    "up": _lab("up", "Bring up a cluster on this machine."),
    "down": _lab("down", "End the mesh and remove everything that it made."),
    "status": _lab("status", "Show every peer: address, admission, link, children, routes."),
    "logs": _lab("logs", "Show what a peer logs."),
    "exec": _lab("exec_", "Run a program in the app container's view of a peer."),
    "sh": _lab("sh", "Open a shell in the app container's view of a peer."),
    "kill": _fault("kill", "Kill a peer as a power cut would, or one process in it."),
    "stop": _fault("stop", "Stop a peer cleanly."),
    "start": _fault("start", "Start a killed or stopped peer again."),
    "cut": _fault("cut", "Cut a peer off from the network, one way or both."),
    "heal": _fault("heal", "End the cuts of a peer."),
    "redeploy": _fault("redeploy", "Deploy a peer anew with its compose file as that is now."),
    "database": Entry(
        module="meshctl.database", attribute="command", help="Show what a database's members have; say who leads."
    ),
    "compose": Entry(
        module="meshctl.compose_commands", attribute="compose", help="Run a cluster on a Docker engine, from its files."
    ),
    "images": Entry(
        module="meshctl.images_command", attribute="images", help="Build this project's images; pin compose files."
    ),
    "list": Entry(module="meshctl.info", attribute="clusters", help="List the clusters in this checkout."),
    "tools": Entry(
        module="meshctl.tools_command", attribute="command", help="Install the tools and show where they are."
    ),
    "plan": Entry(
        module="meshctl.plan",
        attribute="command",
        help="Show what a change to a cluster will do, before it is applied.",
    ),
    "keygen": Entry(
        module="meshctl.manifest_keys", attribute="keygen", help="Make the owner key and put its public half in place."
    ),
    "generate": Entry(
        module="meshctl.generate",
        attribute="command",
        help="Make the manifest of a cluster as it runs, to read and sign.",
    ),
    "sign": Entry(module="meshctl.manifest", attribute="sign", help="Sign the manifest, as one of its owners."),
    "manifest": Entry(
        module="meshctl.manifest", attribute="command", help="Show what is signed, and what an app measured."
    ),
    "set": Entry(module="meshctl.set_command", attribute="command", help="Set the next manifest on a mesh that runs."),
    "evict": Entry(module="meshctl.evict", attribute="command", help="Take a slot away, from a mesh that runs."),
    "verify": Entry(
        module="meshctl.verify", attribute="command", help="Verify from outside which manifest a mesh enforces."
    ),
    "connect": Entry(
        module="meshctl.connect", attribute="command", help="A local port that leads to a public route, verified."
    ),
    "test": Entry(module="meshctl.testing", attribute="command", help="Run every test; arguments go to pytest."),
    "chaos": Entry(
        module="meshctl.chaos", attribute="command", help="Break a database cluster under load and count what is lost."
    ),
    "bench": Entry(
        module="meshctl.bench", attribute="command", help="Measure, beside the anchor, and write the report."
    ),
    "version": Entry(
        module="meshctl.info", attribute="version", help="Print the version of cvm-mesh and of its tools."
    ),
}


class LazyGroup(click.Group):
    """A group that takes its commands from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Names in the table's order: what one uses first comes first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (as above)
        """The command, imported now; None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        assert isinstance(command, click.Command), f"{entry.module}.{entry.attribute} is no click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a guess at what was meant when the name is unknown."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see ./mesh --help"
            raise click.UsageError(f"no such command {name!r}; {hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (as above)
        """Writes the table without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First steps: ./mesh demo, then ./mesh status. Each command has its own --help.",
)
def cli() -> None:
    """An attested service mesh for dstack Confidential VMs, on one machine."""
