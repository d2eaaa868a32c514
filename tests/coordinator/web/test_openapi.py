"""The description of the API: valid by the specification's own schema, complete, and true of a running coordinator."""

import io
import json
import warnings

import pytest
import requests
import urllib3
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from comigs_edge.fleet.client import RemoteRefused
from coordinator.ledger.config import Config
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import signatures
from coordinator.protocol.keys import new_key
from coordinator.protocol.messages import Commit, Refusal, decode
from coordinator.web import openapi
from coordinator.web.server import Server
from tests.coordinator.rig import Coordinator, Member, random_arrays

DOCUMENT = json.loads(openapi.document("1.2.3"))


def operations():
    return {(method.upper(), path): operation for path, item in DOCUMENT["paths"].items()
            for method, operation in item.items() if method != "parameters"}  # fmt: skip


def test_the_document_is_valid():
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["info"]["version"] == "1.2.3"


def test_every_route_is_described_and_nothing_else(tmp_path):
    database = Database(tmp_path / "coordinator.db")
    server = Server(Fleet(database, Payloads(tmp_path), new_key(), Config(), lambda: 0.0), "1")
    routes = {(route.method, route.resource.canonical) for route in server.application().router.routes()}
    database.close()
    assert routes == set(operations())


def test_signed_operations_name_the_four_headers():
    for (_, path), operation in operations().items():
        is_signed = path.startswith("/v1/") and path != "/v1/hello"
        names = {"Signature", "Signature-Input", "Content-Digest", signatures.EPOCH_HEADER}
        assert [set(wanted) for wanted in operation["security"]] == ([names] if is_signed else [])


def test_examples_in_json_are_what_the_messages_accept():
    body = {"sha256": "ab" * 32, "trained_from": 0, "tokens": 1, "expected_round": 1, "validation_loss": None}
    check({"$ref": "#/components/schemas/Commit"}, body)
    assert decode(json.dumps(body).encode(), Commit).tokens == 1
    check({"$ref": "#/components/schemas/Commit"}, {**body, "update_id": "0f", "more": 1})
    for wrong in ({**body, "update_id": "x"}, {**body, "tokens": "1"}, {key: body[key] for key in body if key != "tokens"}):
        assert not validator({"$ref": "#/components/schemas/Commit"}).is_valid(wrong)


def validator(schema):
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def check(schema, instance):
    validator(schema).validate(instance)


class Recorded:
    """Holds every answer that a device gets against the description."""

    def __init__(self, member):
        self.seen, session = set(), member.remote._session
        send = session.send

        def checked(request, **options):
            answer = send(request, **options)
            answer._content = answer.raw.read()
            answer.raw = urllib3.HTTPResponse(io.BytesIO(answer._content), preload_content=False)
            self.hold(request.method, request.path_url.split("?")[0], answer)
            return answer

        session.send = checked

    def hold(self, method, path, answer):
        path = next(known for known in DOCUMENT["paths"] if fits(known, path))
        described = operations()[method, path]["responses"].get(str(answer.status_code))
        assert described, f"{method} {path} answered {answer.status_code}, which is not described: {answer.text[:200]}"
        self.seen.add((method, path, answer.status_code))
        for name, header in described.get("headers", {}).items():
            header = DOCUMENT["components"]["headers"][header["$ref"].split("/")[-1]]
            assert name in answer.headers or not header.get("required"), (method, path, answer.status_code, name)
        if method == "HEAD" or not described.get("content"):
            assert not answer.content
            return
        kind = answer.headers["Content-Type"].split(";")[0]
        schema = described["content"][kind]["schema"]
        if kind == "application/json":
            check(schema, answer.json())


def fits(known, path):
    ours, theirs = known.split("/"), path.split("/")
    return len(ours) == len(theirs) and all(a == b or a.startswith("{") for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def coordinator(tmp_path):
    running = Coordinator(tmp_path / "data", goal=2)
    yield running
    running.stop()


def test_a_fleets_whole_life_is_as_described(coordinator, tmp_path):
    first, second = Member(coordinator.invite("first")), Member(coordinator.invite("second"))
    record = Recorded(first)
    first.remote.join(first.wish)
    first.push(random_arrays(0), loss=2.5)
    first.pull(tmp_path)
    first.push(random_arrays(1))
    second.push(random_arrays(2))
    first.pull(tmp_path, at_least=1)
    first.remote.manifests(-1)
    first.remote.refuse(Refusal(round=1, loss_before=1.0, loss_after=2.0))
    for range_, code in (("bytes=8-", 206), ("bytes=99999999-", 416)):
        send(record, first, "GET", "/v1/generalists/1", code, headers={"Range": range_})
    send(record, first, "GET", "/v1/generalists/1", 412, headers={"If-Match": '"x"'})
    send(record, first, "GET", "/v1/generalists/99", 404)
    send(record, first, "GET", "/v1/generalists/x", 400)
    send(record, first, "HEAD", "/v1/generalists/1", 200)
    send(record, first, "HEAD", "/v1/state", 200)
    send(record, first, "HEAD", "/v1/uploads/short", 400)
    piece = {"Upload-Offset": "0", "Content-Type": openapi.PIECE}
    send(record, first, "PATCH", "/v1/uploads/" + "ab" * 32, 413, b"x" * 900_000, piece)
    send(record, first, "PATCH", "/v1/uploads/" + "ab" * 32, 409, b"x", {**piece, "Upload-Offset": "5"})
    send(record, first, "PATCH", "/v1/uploads/" + "ab" * 32, 415, b"x", {**piece, "Content-Type": "text/plain"})
    for path in ("/v1/join", "/v1/updates", "/v1/refusals"):
        send(record, first, "POST", path, 422, b"{}")
    with pytest.raises(RemoteRefused, match="is not open"):
        first.remote.commit(Commit(sha256="ab" * 32, trained_from=0, tokens=1, expected_round=9))
    with pytest.raises(RemoteRefused, match="cannot be refused"):
        first.remote.refuse(Refusal(round=7, loss_before=1.0, loss_after=2.0))
    coordinator.command("revoke", "first")
    with pytest.raises(RemoteRefused, match="removed"):
        first.remote.state()
    assert len(record.seen) > 20


def send(record, member, method, path, code, body=b"", headers=None):
    answer = member.remote._send(method, path, body, headers or {}, False)
    assert answer.status_code == code, answer.text


def test_what_strangers_see_is_as_described(coordinator):
    record = Recorded(Member(coordinator.invite("first")))
    with requests.Session() as session:
        session.verify, session.trust_env = False, False
        for (method, path), operation in operations().items():
            address = (
                path.replace("{number}", "0").replace("{sha256}", "ab" * 32).replace("{window}", "w").replace("{stage}", "keys")
            )
            for headers in ({}, {"Expect": "a miracle"}):
                answer = ask(session, method, coordinator.address + address, headers)
                record.hold(method, address, answer)
                if operation["security"] and not headers and path != "/v1/join":
                    assert answer.status_code == 401


def ask(session, method, address, headers):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the certificate is the coordinator's own
        return session.request(method, address, headers=headers, timeout=10)
