"""Starts a demo program: settings, then the server, then the exit code. IO: as `workloads.server`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from workloads import calls
from workloads.server import Answer, Paths, document, serve, text
from workloads.settings import Settings, SettingsError, read


def hello(settings: Settings) -> Answer:
    """`/hello`: who answers."""
    return text(f"hello from {settings.peer()}\n")


def all_answers(settings: Settings) -> Answer:
    """`/all`: who answers when the target is called `settings.samples` times in parallel."""
    results = calls.fan_out(settings.target, settings.samples)
    return document({"from": settings.peer(), "samples": settings.samples, "results": results})


def passed_on(settings: Settings) -> Answer:
    """The target's own answer, or 502 with the reason."""
    try:
        return text(calls.fetch(settings.target))
    except calls.CallError as error:
        return document({"error": str(error), "url": settings.target}, 502)


def run(
    name: str,
    paths: Callable[[Settings], Paths],
    *,
    port: int,
    target: str = "",
    target_variable: str = "",
    public: bool,
) -> int:
    """Runs until the end; returns the exit code: 0 after a signal, 1 when a listener failed, 2 for bad settings.

    `paths` raises SettingsError for settings that only this program has.
    """
    try:
        settings = read(os.environ, port=port, target=target, target_variable=target_variable, public=public)
        answered = paths(settings)
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    addresses = [("127.0.0.1", settings.port)]
    if settings.public is not None:
        addresses.append((settings.public, settings.port))
    return serve(name, addresses, answered)
