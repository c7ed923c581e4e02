"""The arguments of `exec`: our options stand before or after PEER, and the command's own are the command's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click


def in_order(arguments: Sequence[str], known: Mapping[str, bool]) -> list[str]:
    """`arguments` as `[our options…] -- PEER COMMAND…`, which click reads without guessing. Pure.

    `known` has each option's name, and whether a value follows it. Ours are those before the first word of the command;
    `--` ends them too. Raises click.NoSuchOption for another option in their place: a command does not begin with `-`.
    """
    options: list[str] = []
    rest = list(arguments)
    peer: list[str] = []
    while rest and rest[0] != "--":
        name, equals, _ = rest[0].partition("=")
        if name in known:
            size = 2 if known[name] and not equals else 1
            options += rest[:size]
            del rest[:size]
        elif rest[0].startswith("-"):
            raise click.NoSuchOption(rest[0], possibilities=sorted(known))
        elif not peer:
            peer.append(rest.pop(0))
        else:
            break
    command = rest[1:] if rest[:1] == ["--"] else rest
    return [*options, "--", *peer, *command]


class ExecCommand(click.Command):
    """A command `exec [OPTIONS] PEER [OPTIONS] [--] COMMAND…`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with the arguments put in order first."""
        options = [item for item in self.get_params(ctx) if isinstance(item, click.Option)]
        known = {name: not item.is_flag for item in options for name in (*item.opts, *item.secondary_opts)}
        return super().parse_args(ctx, in_order(args, known) if args else args)
