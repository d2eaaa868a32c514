"""The OpenAPI 3.1 description of `server`'s routes: requests, and every possible answer.

Schemas are made from the messages themselves, limits from the code that holds them, so they cannot drift.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import msgspec

from coordinator.protocol import messages, signatures
from coordinator.protocol.messages import Commit, Hello, Join, Joined, Problem, Receipt, Refusal, SignedManifest, State
from coordinator.protocol.private.messages import Answer, Confirmation, Masked, Shares, SignedKeys, Stage, Window

PARTS = (SignedKeys, Shares, Masked, Confirmation, Answer)  # of a private window, in the order of its stages
JSON, TEXT, OCTETS, PIECE = ("application/json", "text/plain", "application/octet-stream", "application/offset+octet-stream")
MESSAGES = (Commit, Hello, Join, Joined, messages.Manifest, Problem, Receipt, Refusal, SignedManifest, State, Window, *PARTS)
Table = dict[str, Any]

REFUSALS = {
    400: "Something in the request is not what it must be: a number, a SHA-256, a body that can be read.",
    401: "Unsigned, signed for another start of the coordinator, seen before, or not by a member: `error` is one of unsigned, "
    "stale_epoch, bad_signature, bad_digest, replayed, unknown_device, wrong_key_id. "
    "After stale_epoch ask /v1/hello and sign anew.",
    403: "Not for this asker: removed from the fleet, an invitation that is not good (any more), or shown on the "
    "coordinator's own machine only.",
    404: "Not here (any more).",
    408: "The body came too slowly.",
    409: "It does not fit to where the fleet stands; nothing was changed.",
    411: "A body wants a Content-Length.",
    413: "The body, or the upload in all, is too large.",
    415: "The body is compressed or has the wrong type.",
    416: "The range is outside the file.",
    422: "The message or the upload cannot be used; nothing was changed.",
    429: "Too many requests.",
    500: "A bug of the coordinator; its log says more.",
    503: "The coordinator is busy; the same request again is served.",
    507: "The coordinator's disk is full; what a device has, it keeps.",
}
BODY, SIGNED = (400, 408, 411, 413, 415), (401, 403, 429)

ABOUT = """\
How devices and their coordinator talk. Every refusal has a `Problem` as its body: `error` for programs, `message` for people.
Unknown addresses are answered with 404, methods that an address does not have with 405, in the same form; bytes that are not
HTTP, and heads beyond the limits, with 400 and plain text.

A device first asks `/v1/hello` for the epoch, joins once, and signs every other request (RFC 9421)."""


@cache
def document(version: str) -> bytes:
    """The description as JSON."""
    _, schemas = msgspec.json.schema_components(MESSAGES, ref_template="#/components/schemas/{name}")
    return msgspec.json.encode({
        "openapi": "3.1.0",
        "info": {"title": "comigs-coordinator", "version": version, "description": ABOUT,
                 "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "paths": {path: _with_head(item) for path, item in _paths().items()},
        "components": {"schemas": schemas, "securitySchemes": _security_schemes(), "headers": _headers()},
    })  # fmt: skip


def _paths() -> Table:
    number = _parameter("number", "path", {"type": "integer"}, "The round that made the generalist.", True)
    sha256 = _parameter("sha256", "path", {"type": "string", "pattern": messages.SHA256_PATTERN}, "Of the whole upload.", True)
    before = _parameter("Upload-Offset", "header", {"type": "integer"}, "Bytes before this piece.", True)
    after = _parameter(
        "after", "query", {"type": "integer", "default": -1}, "Number of the generalist behind which the answer begins."
    )
    counts = ["refusals", "active", "newest"]
    window = _parameter("window", "path", {"type": "string"}, "Its id, as `State` names it.", True)
    stage = _parameter("stage", "path", {"type": "string", "enum": list(get_args(Stage))}, "For which it is given.", True)
    return {
        "/": {"get": _operation("page", "The status page.", _content("text/html", {"type": "string"}), (403,))},
        "/metrics": {"get": _operation("metrics", "Prometheus' text format.", _content(TEXT, {"type": "string"}), (403,))},
        "/openapi.json": {"get": _operation("openapi", "This description.", _content(JSON, {"type": "object"}))},
        "/v1/hello": {"get": _operation("hello", "The fleet, and the epoch that requests are signed for.", _message(Hello))},
        "/v1/join": {"post": _operation(
            "join", "Becomes a member, with an invitation's code; signed with the key that the message brings.",
            _message(Joined), (409, 422, 507), _signed=True, requestBody=_body(Join))},
        "/v1/state": {"get": _operation("state", "Where the fleet stands, for this device.", _message(State), _signed=True)},
        "/v1/manifests": {"get": _operation(
            "manifests", "The chain of published generalists, oldest first, a thousand at most.",
            _content(JSON, {"type": "array", "items": _ref(SignedManifest)}), _signed=True, parameters=[after])},
        "/v1/generalists/{number}": {"parameters": [number], "get": _file("generalist", "A published generalist,")},
        "/v1/changes/{number}": {"parameters": [number], "get": _file(
            "change", "What a generalist adds to the one before, as float16,")},
        "/v1/uploads/{sha256}": {
            "parameters": [sha256],
            "head": _operation("uploaded", "How much of an upload is here.", _offset(), _signed=True),
            "patch": _operation(
                "upload", "Adds the next piece of an upload.", _offset(), (409, 507), _signed=True, _success=204,
                parameters=[before], requestBody={"required": True, **_content(PIECE, {"type": "string"})})},
        "/v1/updates": {"post": _operation(
            "commit", "Makes a complete upload an update of the open round. Asked again, it gives the same receipt.",
            _message(Receipt), (409, 422, 507), _signed=True, requestBody=_body(Commit))},
        "/v1/refusals": {"post": _operation(
            "refuse", "This device keeps its generalist; where a third of the fleet does, the one before is published again.",
            _content(JSON, {"type": "object", "properties": {name: {"type": "integer"} for name in counts}, "required": counts}),
            (409, 422, 507), _signed=True, requestBody=_body(Refusal))},
        "/v1/windows/{window}": {"parameters": [window], "get": _operation(
            "window", "A private window, as far as it has come.", _message(Window), (404,), _signed=True)},
        "/v1/windows/{window}/{stage}": {"parameters": [window, stage], "post": _operation(
            "give", "What a device gives for a stage of a private window. Asked again, it counts once.", _message(State),
            (404, 409, 422, 507), _signed=True,
            requestBody={"required": True, **_content(JSON, {"anyOf": [_ref(kind) for kind in PARTS]})})},
    }  # fmt: skip


def _operation(
    name: str, summary: str, success: Table, refusals: tuple[int, ...] = (), _signed: bool = False, _success: int = 200,
    **more: Any,
) -> Table:  # fmt: skip
    """Signed operations read a body (an empty one has its digest signed too), so they refuse bad ones."""
    codes = {*refusals, 500, 503, *((*BODY, *SIGNED) if _signed else ())}
    answers: Table = {str(_success): {"description": "As asked.", **success}}
    answers |= {str(code): _refusal(code) for code in codes}
    answers["417"] = {"description": "An Expect header other than 100-continue.", **_content(TEXT, {"type": "string"})}
    security: list[Table] = [{name: [] for name in _security_schemes()}] if _signed else []
    for answer in answers.values():
        answer.setdefault("headers", {})["Comigs-Epoch"] = {"$ref": "#/components/headers/Comigs-Epoch"}
    del answers["417"]["headers"]
    return {"operationId": name, "summary": summary, "security": security, **more, "responses": dict(sorted(answers.items()))}


def _file(name: str, what: str) -> Table:
    """An answer that is a file, with HTTP's ranges and conditions."""
    parameters = [
        _parameter("Range", "header", {"type": "string"}, "As in bytes=1000-, to resume."),
        _parameter("If-None-Match", "header", {"type": "string"}, "An ETag that is here."),
    ]
    file = _content(OCTETS, {"type": "string", "description": "safetensors"})
    operation = _operation(name, f"{what} whole or in part.", file, (404, 416), _signed=True, parameters=parameters)
    operation["responses"]["200"] = {"description": "All of it.", **file}
    operation["responses"] |= {
        "206": {"description": "The range that was asked for.", **file},
        "304": {"description": "It has the ETag that was named."},
        "412": {"description": "It does not have the ETag or date that If-Match or If-Unmodified-Since name."},
    }
    return operation


def _with_head(item: Table) -> Table:
    """Where GET is, HEAD is: the same answer without its body."""
    if "get" not in item or "head" in item:
        return item
    get = item["get"]
    bare = {code: {key: value for key, value in answer.items() if key != "content"} for code, answer in get["responses"].items()}
    head = {**get, "operationId": f"{get['operationId']}_head", "responses": bare}
    return {**item, "head": {**head, "summary": f"{get['summary']} Headers only."}}


# Parts --------------------------------------------------------------------------------------------------------------


def _ref(kind: type) -> Table:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _parameter(name: str, place: str, schema: Table, text: str, is_required: bool = False) -> Table:
    required = {"required": True} if is_required else {}
    return {"name": name, "in": place, **required, "schema": schema, "description": text}


def _content(kind: str, schema: Table) -> Table:
    return {"content": {kind: {"schema": schema}}}


def _message(kind: type) -> Table:
    return _content(JSON, _ref(kind))


def _body(kind: type) -> Table:
    return {"required": True, **_message(kind)}


def _offset() -> Table:
    return {"headers": {"Upload-Offset": {"$ref": "#/components/headers/Upload-Offset"}}}


def _refusal(code: int) -> Table:
    answer = {"description": REFUSALS[code], **_message(Problem)}
    if code in (429, 503, 507):
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer


def _headers() -> Table:
    count = {"type": "integer", "minimum": 0}
    return {
        "Comigs-Epoch": {"description": "Changes with every start of the coordinator.", "required": True,
                         "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"}},
        "Upload-Offset": {"description": "Bytes of the upload that are here.", "required": True, "schema": count},
        "Retry-After": {"description": "Seconds to wait.", "schema": count},
    }  # fmt: skip


def _security_schemes() -> Table:
    """Four headers that belong together; OpenAPI has no scheme for RFC 9421."""
    covered = " ".join(f'"{name}"' for name in signatures.COVERED)
    texts = {
        "Signature-Input": f"RFC 9421. Covers at least {covered}; parameters: created (valid for {signatures.WINDOW_SECONDS} "
        f'seconds), keyid (the device\'s id), alg="ed25519", a nonce that is used once, tag="{signatures.TAG}".',
        "Signature": "RFC 9421: the Ed25519 signature, by the device's key.",
        "Content-Digest": "RFC 9530, sha-256 or sha-512 of the body, also of an empty one.",
        signatures.EPOCH_HEADER: "The epoch that /v1/hello tells.",
    }
    return {name: {"type": "apiKey", "in": "header", "name": name, "description": text} for name, text in texts.items()}
