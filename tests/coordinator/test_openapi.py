"""The document of the API, held against a coordinator that runs: every call, with bodies that fit and that do not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from admission.protocol import Code
from coordinator import openapi
from coordinator.server import application
from tests.coordinator.test_server import Api
from tests.coordinator.world import Applicant, cluster

EXAMPLES = 25
"""Bodies of each kind for each call."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def test_every_route_is_in_the_document() -> None:
    """And nothing else."""
    api = Api()
    app = application(api.broker, api.feed, lambda: None, api.standing, api, api.asked, estate=api.estate)
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    named = {(operation.method, operation.path) for operation in openapi.OPERATIONS}
    assert routes == named
    assert len(named) == len({operation.name for operation in openapi.OPERATIONS}) == len(openapi.OPERATIONS)


def test_every_error_code_is_in_the_document() -> None:
    """A code that no call names is none of this API; a nonce is made by the system's generator, which cannot fail."""
    named = {code for operation in openapi.OPERATIONS for code in operation.refusals}
    assert named == set(Code) - {Code.NONCE_GENERATION_FAILED}


def ask(url: str, document: dict[str, Any]) -> set[str]:
    """Sends bodies of both kinds to every call; the calls that were made."""
    called: set[str] = set()
    # A connection of its own for each body would be most of the work.
    with requests.Session() as session:
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            operation = found.ok()
            for mode in GenerationMode:
                if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
                    continue
                send_all(operation.as_strategy(generation_mode=mode), url, session)
                called.add(operation.label)
    return called


def send_all(bodies: Any, url: str, session: requests.Session) -> None:
    """Sends bodies of one kind to one call."""

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=bodies)
    def send(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=url, session=session, verify=False, timeout=30, checks=CHECKS)

    send()


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
async def test_a_coordinator_is_as_the_document_says() -> None:
    """It answers what is named and nothing else, refuses what does not fit, and none of it is too much for it."""
    async with cluster() as mesh:
        await mesh.start()
        lead = await mesh.ready()
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
            session.get(lead.url + openapi.PATH) as answer,
        ):
            document = json.loads(await answer.read())
        called = await asyncio.to_thread(ask, lead.url, document)
        assert len(called) == len(openapi.OPERATIONS)
        assert (await Applicant(url=lead.url, manifest=mesh.manifest).admitted())["peer_id"] == "api-0"
