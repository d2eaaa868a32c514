"""Who may talk with the model, how many at once, and how it starts and ends."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.inference.served import Served, make_home, refused

TALK = [{"role": "user", "content": "the hen?"}]


def test_pages_in_a_browser_are_not_answered(served):
    body = {"messages": TALK, "max_tokens": 1}
    evil = "evil.example:8484"  # a name that leads here
    odd = [{"Origin": "http://["}, {"Host": "["}, {"Host": "localhost@evil.example"}]
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": evil},
                    {"Origin": f"http://{evil}", "Host": evil}, *odd):  # fmt: skip
        refused(served.post("/chat/completions", body, headers=headers), 403)
    port = served.address.split(":")[2].split("/")[0]
    for name in ("localhost", "127.0.0.1"):
        assert served.get("/models", headers={"Host": f"{name}:{port}"}).status_code == 200
    assert not {name for name in served.get("/models").headers if name.startswith("Access-Control")}


def test_who_goes_away_stops_the_answer(served):
    for stream in (True, False):
        before = len(served.notes())
        with socket.create_connection(("127.0.0.1", int(served.address.split(":")[2].split("/")[0]))) as client:
            body = json.dumps({"messages": TALK, "max_tokens": 450, "temperature": 2, "stream": stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            if stream:
                client.recv(100)
        served.ask(max_tokens=1)  # is answered after it, and says so
        (line,) = served.notes()[before:]
        assert "+ 1 tokens in" in line


def test_more_requests_than_may_wait_are_refused(served):
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: served.ask(temperature=2, max_tokens=200), range(20)))
    statuses = [each.status_code for each in answers]
    assert statuses.count(200) >= 9
    assert statuses.count(429) + statuses.count(200) == 20
    for each in answers:
        if each.status_code == 429:
            assert refused(each, 429)["code"] == "rate_limit_exceeded"
            assert each.headers["Retry-After"]
    assert served.ask(max_tokens=1).status_code == 200


def test_elsewhere_a_key_is_made_shown_once_and_needed(trained):
    first = Served(trained, "--host", "0.0.0.0")
    try:
        key = first.printed[2].split()[1]
        assert (trained.root / "serve-key").stat().st_mode & 0o777 == 0o600
        for headers in ({}, {"Authorization": f"Bearer {key}x"}, {"Authorization": key},
                        {"Authorization": b"Bearer \xff"}):  # fmt: skip
            assert refused(first.get("/models", headers=headers), 401)["code"] == "invalid_api_key"
        allowed = {"Authorization": f"Bearer {key}", "Host": "board.local:8484"}
        assert first.get("/models", headers=allowed).status_code == 200
        assert requests.get(first.address.removesuffix("/v1") + "/health", timeout=10).status_code == 200
        assert "unencrypted" in "".join(first.notes())
    finally:
        first.stop()
    second = Served(trained, "--host", "0.0.0.0")
    try:
        assert key not in "".join(second.printed)
        assert second.get("/models", headers=allowed).status_code == 200
    finally:
        second.stop()


def test_a_key_of_ones_own_and_a_page_that_is_allowed(trained, tmp_path):
    (tmp_path / "key").write_text("a-key-of-my-own-24\n")
    page = "https://notes.example"
    served = Served(trained, "--key", str(tmp_path / "key"), "--origin", page)
    try:
        refused(served.get("/models"), 401)
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        preflight = requests.options(f"{served.address}/chat/completions", headers=asked, timeout=10)
        assert (preflight.status_code, preflight.headers["Access-Control-Allow-Origin"]) == (204, page)
        answer = served.get("/models", headers={"Origin": page, "Authorization": "Bearer a-key-of-my-own-24"})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, page)
    finally:
        served.stop()


def test_a_key_that_is_short_is_refused(ready, run, tmp_path, monkeypatch):
    (tmp_path / "key").write_text("secret\n")
    assert "must be 16 or more ASCII characters" in run("serve", "--key", tmp_path / "key", "--port", 0, code=1).output
    monkeypatch.setenv("COMIGS_EDGE_KEY", "secret")
    assert "the key in COMIGS_EDGE_KEY must be" in run("serve", "--port", 0, code=1).output


def test_a_port_that_is_taken_is_one_sentence(ready, run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("serve", "--port", port, code=1).output
    assert f"error: port {port} of 127.0.0.1 cannot be used (Address already in use); choose another with --port" in said
    assert "is no address of this machine" in run("serve", "--host", "no.such.invalid", code=1).output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_also_in_the_middle_of_an_answer(tmp_path, tiny_path, number):
    served = Served(make_home(tmp_path / "new", tiny_path))  # nothing was learned: the base alone
    assert [each["id"] for each in served.get("/models").json()["data"]] == ["base"]
    response = served.ask(temperature=2, max_tokens=450, stream=True)
    lines = response.iter_lines()
    next(lines)
    served.process.send_signal(number)
    rest = list(lines)
    assert served.process.wait(30) == 0
    served.process.stdout.close()
    assert b"the server is stopping" in b"".join(rest) or rest[-2] == b"data: [DONE]"
    assert "Traceback" not in "".join(served.notes())
