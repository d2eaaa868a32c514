"""Forged and doubled requests against a real coordinator: `python benchmarks/torture/forgeries.py [--quick]`.

signatures    a signed upload with one character of a signed header, path, method or body changed; with a header left out or
              twice, the second one another member's; with another's key. None may be let in
at_once       one sound request 40 times at the same moment: it counts once
invitations   60 devices with one invitation at the same moment, five times: one joins each time
http          smuggled, folded, upgraded, unframed and giant heads, and 400 requests in one go: no 5xx, never two answers to one

JSON goes to `forgeries.json`. The kinds of bad input that are one request each are tests: tests/coordinator/test_bad_input.py.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from comigs_edge.errors import ComigsError  # noqa: E402
from coordinator.protocol import keys  # noqa: E402
from coordinator.protocol.signatures import EPOCH_HEADER  # noqa: E402
from tests.coordinator.rig import Member  # noqa: E402
from tests.coordinator.test_bad_input import OFFSET, SHAPES, Place  # noqa: E402

SIGNED = ("Signature", "Signature-Input", "Content-Digest", EPOCH_HEADER, "Host")
COUNT = itertools.count()
SMUGGLED = (
    "Content-Length: 5\nTransfer-Encoding: chunked\n\n0\n\nGET /v1/hello HTTP/1.1\nHost: x\n\n",
    "Transfer-Encoding: chunked\nContent-Length: 5\n\n0\n\n", "Transfer-Encoding: xchunked\n\n0\n\n",
    "Transfer-Encoding : chunked\n\n0\n\n", "Transfer-Encoding: identity, chunked\n\n0\n\n", " Content-Length: 2\n\n{}",
    "Transfer-Encoding: chunked\nTransfer-Encoding: identity\n\n0\n\n", "Content-Length: 2 2\n\n{}",
    "Content-Length: 0\nContent-Length: 44\n\nGET /v1/hello HTTP/1.1\nHost: x\n\n", "Content-Length: 0, 44\n\n",
    "Expect: 100-continue\nContent-Length: 2\n\n", "Content-Type: multipart/form-data; boundary=x\nContent-Length: 2\n\n{}",
)  # fmt: skip
ODD = (
    "GET /v1/hello HTTP/1.1\rHost: x\r\r", "GET /v1/state HTTP/1.1\nHost: x\nX: a\n b\n\n",
    "GET  /v1/state HTTP/1.1\nHost: x\n\n",
    "GET\t/v1/state\tHTTP/1.1\nHost: x\n\n", "get /v1/state HTTP/1.1\nHost: x\n\n", "GET /v1/state HTTP/1.1\nHost: x\nX\0: y\n\n",
    "GET /v1/state\0 HTTP/1.1\nHost: x\n\n", "CONNECT 127.0.0.1:22 HTTP/1.1\nHost: x\n\n", "TRACE / HTTP/1.1\nHost: x\n\n",
    "GET /../../etc/passwd HTTP/1.1\nHost: x\n\n", "GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\nHost: x\n\n",
    "PRI * HTTP/2.0\n\nSM\n\n", "GET / HTTP/1.1\nHost: x\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\n\n",
    "\n" * 5000, "A" * 20000, "GET /v1/state HTTP/1.1\nHost: x\nCookie: " + "c" * 9000 + "\n\n",
)  # fmt: skip


class Forge:
    """Signed uploads of one byte, and what comes of them when they are changed. 204 to a changed one is a breach."""

    def __init__(self, place: Place) -> None:
        self.place, self.random, self.answers = place, random.Random(1), Counter[int]()

    def lines(self, **options: object) -> list[str]:
        """The lines of a sound request's head."""
        path = "/v1/uploads/" + hashlib.sha256(str(next(COUNT)).encode()).hexdigest()
        headers = {"Upload-Offset": "0", "Content-Type": OFFSET}
        return (
            self.place.head("PATCH", path, b"x", headers, member=self.place.good, **options).decode("latin-1").split("\r\n")[:-2]
        )

    def send(self, lines: list[str], body: bytes = b"x") -> int:
        """The status of the answer."""
        return self.place.raw("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body, "PATCH").status

    def attempts(self, step: int) -> Iterator[tuple[list[str], bytes]]:
        """Every forgery; `step`: each so manieth character of a header is changed."""
        sound = self.lines()
        for number, line in enumerate(sound):
            name = line.split(":")[0]
            if number and name in SIGNED:
                for at in range(len(name) + 2, len(line), step):
                    changed = self.lines()
                    changed[number] = _altered(changed[number], min(at, len(changed[number]) - 1), self.random)
                    yield changed, b"x"
            if number and name not in ("Content-Type", "Upload-Offset"):
                yield [each for each in self.lines() if not each.startswith(f"{name}:")], b"x"
            if number and name in SIGNED:
                other = self.lines(key=keys.new_key())
                yield [*self.lines(), other[number] + "0"], b"x"
        for at in range(19, 80, step):
            changed = self.lines()
            changed[0] = _altered(changed[0], at, self.random)
            yield changed, b"x"
        for body in (b"y", b"", b"xx"):
            yield [f"Content-Length: {len(body)}" if line.startswith("Content-Length") else line for line in self.lines()], body
        for method in ("POST", "PUT", "GET", "patch"):
            first, *rest = self.lines()
            yield [first.replace("PATCH", method), *rest], b"x"
        for key_id in (None, self.place.good.id.upper(), "0" * 32):
            yield self.lines(key=keys.new_key(), **({} if key_id is None else {"key_id": key_id})), b"x"
        replayed = self.lines()
        assert self.send(replayed) == 204
        yield from ((replayed, b"x") for _ in range(5))

    def run(self, step: int) -> dict[str, object]:
        """Sends them all."""
        assert self.send(self.lines()) == 204
        self.answers = Counter(self.send(*attempt) for attempt in self.attempts(step))
        errors = sum(count for status, count in self.answers.items() if status >= 500)
        tried, let_in = self.answers.total(), self.answers[204] + self.answers[200]
        return {"tried": tried, "let_in": let_in, "server_errors": errors, "answers": dict(sorted(self.answers.items()))}

    def at_once(self) -> dict[str, object]:
        """One request many times, in as many connections."""
        lines, answers = self.lines(), []
        _together(40, lambda: answers.append(self.send(lines)))
        return {"tried": 40, "counted": answers.count(204)}


def _altered(line: str, at: int, rng: random.Random) -> str:
    return line[:at] + rng.choice([each for each in 'bB1_=";() ,:' if each != line[at]]) + line[at + 1 :]


def _together(count: int, action: Callable[[], object]) -> None:
    barrier = threading.Barrier(count)

    def go() -> None:
        barrier.wait()
        action()

    threads = [threading.Thread(target=go) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def invitations(place: Place, trials: int) -> dict[str, object]:
    """Many devices with one invitation at the same moment."""
    joined: list[str] = []
    for _ in range(trials):
        place.coordinator.stop()  # it forgets this address's failures, after which it would let nobody in from here
        place.coordinator.restart()
        link = place.invite()

        def join(link: str = link) -> None:
            with contextlib.suppress(ComigsError):
                joined.append(Member(link, shapes=SHAPES, patience=1.0).id)

        _together(60, join)
    return {"tried": 60 * trials, "expected": trials, "joined": len(joined)}


def http(place: Place) -> dict[str, object]:
    """Heads that servers in a row may read differently."""
    heads = [f"POST /v1/join HTTP/1.1\nHost: x\n{text}" for text in SMUGGLED] + list(ODD)
    answers = [place.raw(head.replace("\n", "\r\n").encode("latin-1"), count=2, patience=1.0) for head in heads]
    pipelined = place.raw(b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n" * 400, count=400)
    return {
        "tried": len(heads), "server_errors": sum(first.status >= 500 for first, _ in answers),
        "answered_twice": sum(bool(second.status) for _, second in answers),
        "pipelined_answered": sum(answer.status == 200 for answer in pipelined),
    }  # fmt: skip


def main() -> None:
    """Tries all, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="every fifth character, one invitation")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        forge = Forge(place)
        result = {"signatures": forge.run(5 if options.quick else 1), "at_once": forge.at_once(), "http": http(place)}
        result["invitations"] = invitations(place, 1 if options.quick else 5)
        result["tracebacks"] = place.log.read_text().count("Traceback")
        result["stop_code"] = place.coordinator.stop()
    write_json(options.output or result_file("forgeries.json"), result)
    for name, value in result.items():
        print(f"{name:14}{value}")
    held = not result["signatures"]["let_in"] and result["at_once"]["counted"] == 1 and not result["tracebacks"]
    held &= result["invitations"]["joined"] == result["invitations"]["expected"]
    held &= not any(result[part]["server_errors"] for part in ("signatures", "http"))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
