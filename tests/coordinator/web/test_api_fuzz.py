"""schemathesis against a running coordinator, by its own description: no 5xx, and every answer is one that is described.

Every request is signed by a member, so that it gets past the door; a new one is taken when one has asked too often.
"""

import contextlib
import itertools
import json
from pathlib import Path

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coordinator import admin
from coordinator.protocol import VERSION, signatures
from coordinator.web import openapi
from tests.coordinator.rig import Coordinator, Member, random_arrays

SCHEMA = schemathesis.openapi.from_dict(json.loads(openapi.document(VERSION)))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
CALM = list(HealthCheck)
ITS_OWN = {"signature", "signature-input", "content-digest", "comigs-epoch", "host", "content-length"}


@schemathesis.serializer(openapi.PIECE)
def piece(context, value):
    """Whatever was invented, as the bytes of an upload."""
    return value if isinstance(value, bytes) else str(value).encode()


class Signed:
    """A session whose requests are signed by one of many members."""

    def __init__(self, folder):
        self.coordinator = Coordinator(folder / "data", update_format="float32", goal=1)
        self.members = itertools.cycle([Member(self.invite()) for _ in range(30)])
        next(self.members).push(random_arrays(0))
        self.coordinator.until(lambda status: status["newest_round"] == 0)
        self.session = requests.Session()
        self.session.verify, self.session.trust_env = False, False
        self.session.mount("https://", next(self.members).remote._session.get_adapter("https://"))
        self.epoch = self.session.get(f"{self.coordinator.address}/v1/hello", timeout=10).json()["epoch"]
        self.count = 0

    def invite(self):
        return admin.call(self.coordinator.data, VERSION, "invite", name=None, address=None)["link"]

    def answer(self, case):
        wanted = case.as_transport_kwargs(base_url=self.coordinator.address)
        request = requests.Request(
            **{k: v for k, v in wanted.items() if k in ("method", "url", "headers", "params", "data", "json")}
        )
        for name in [name for name in request.headers if name.lower() in ITS_OWN]:
            del request.headers[name]
        prepared = self.session.prepare_request(request)
        body = prepared.body or b""
        member = next(self.members)
        signatures.sign(prepared, member.key, member.id, self.epoch, body.encode() if isinstance(body, str) else body)
        self.count += 1
        return self.session.send(prepared, timeout=20)


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    found = Signed(tmp_path_factory.mktemp("api"))
    yield found
    assert "a request failed" not in Path(found.coordinator.log.name).read_text()
    print(f"\n{found.count} requests")
    found.coordinator.stop()


def fuzz(signed, operation, examples):
    strategies = [
        operation.as_strategy(generation_mode=mode)
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    ]
    for strategy in strategies:
        profile = settings(
            max_examples=examples, deadline=None, suppress_health_check=CALM, phases=[Phase.explicit, Phase.generate]
        )

        @profile
        @given(strategy)
        def attempt(case):
            found = signed.answer(case)
            if found.status_code == 400 and signatures.EPOCH_HEADER not in found.headers:
                return  # the head is no HTTP, so it never came to the routes; the description says so in general
            case.validate_response(found, checks=CHECKS)

        with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no wrong ones
            attempt()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_invented_requests_get_answers_that_are_described(signed, operation):
    fuzz(signed, operation, 12)


@pytest.mark.torture
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_thousands_of_invented_requests_get_answers_that_are_described(signed, operation):
    fuzz(signed, operation, 1000)


def test_the_description_that_is_served_is_the_one_that_was_tested(signed):
    served = signed.session.get(f"{signed.coordinator.address}/openapi.json", timeout=10).content
    assert served == openapi.document(VERSION)
