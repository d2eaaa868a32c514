"""Talks to the coordinator: signed requests through TLS with a pinned certificate, again and again where the network is bad.

What was uploaded or downloaded stays: a broken connection costs one piece at most. Waits grow with every failure and are
drawn at random (exponential back-off with full jitter), so that a fleet does not come back all at once; `Retry-After` is
honoured. The device's clock need not be right: the coordinator's is learned from its answers.

Whatever the coordinator answers, a call ends within its patience (a file's: and a second for every `SLOWEST` bytes) with what
was asked for, `Offline`, or `ComigsError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential
from urllib3.exceptions import ReadTimeoutError

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.answers import clock, epoch, problem, refusal_sentence, understood, upload_offset
from comigs_edge.fleet.outbox import check_settings
from comigs_edge.fleet.session import FAILURES, Session, pieces, read
from comigs_edge.fleet.transport import Offline
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import messages, signatures
from coordinator.protocol.messages import Commit, Hello, Join, Joined, Manifest, Receipt, Refusal, SignedManifest, State

MIN_PIECE, MAX_PIECE = 1 << 15, 1 << 20  # bytes sent at once: what a broken connection can cost; more is not accepted
PIECE = 1 << 18  # the first one
QUICK = 2.0  # seconds: after a piece that took less the next is twice as large, after one that failed half
SLOWEST = 8_000  # bytes a second: a file that comes or goes more slowly is left for another time
TIMEOUT = (10, 90)  # seconds to connect, and to wait for the next bytes
# The same on every device: the libraries would name themselves and their versions.
HEADERS = {"User-Agent": "comigs-edge", "Accept-Encoding": "identity"}
ATTEMPT = 30.0  # seconds that one request may take, whatever the patience: a board checks a large update for a while
KEPT_PARTS = 2  # files that came in part and may be continued
MAX_WAIT = 300.0  # seconds between two attempts
HELLO = "/v1/hello"  # the one request that nobody signs
RENEW = ("stale_epoch", "bad_signature")  # refusals after which epoch and clock are learned anew, once
T = TypeVar("T")


class RemoteRefused(ComigsError):
    """The coordinator says no; the text is its own sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AnotherKey(ComigsError):
    """Who answers has another certificate than the one that is expected."""


class Remote:
    """One coordinator, as one device sees it. `patience` is how long (seconds) a call is retried."""

    def __init__(self, address: str, pin: bytes, key: Ed25519PrivateKey, device: str, patience: float = 60.0) -> None:
        self.address, self.patience, self.attempt = address, patience, max(patience, ATTEMPT)
        self._key, self._device = key, device
        self._session = Session(pin)
        self._piece, self._largest = PIECE, MAX_PIECE
        self._epoch: str | None = None
        self._offset = 0.0  # the coordinator's clock less this device's, seconds

    # Messages -----------------------------------------------------------------------------------------------------

    def join(self, wish: Join, check: Callable[[Hello], None] = lambda hello: None) -> Joined:
        """Becomes a member of the fleet, unless `check` raises for what it says of itself: then the invitation stays good."""
        try:
            hello = self._ask(Hello, "GET", HELLO)
            if hello.settings is not None:
                check_settings(hello.settings)
            check(hello)
            joined = self._ask(Joined, "POST", "/v1/join", messages.encode(wish))
        except AnotherKey as error:
            raise ComigsError(
                f"the coordinator at {self.address} shows another key than the invitation names, so it may be somebody else; "
                "nothing was sent. Ask for a new one: comigs-coordinator invite"
            ) from error
        check_settings(joined.settings)
        return joined

    def state(self) -> State:
        """Where the fleet stands."""
        state = self._ask(State, "GET", "/v1/state")
        check_settings(state.settings)
        return state

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain from the generalist behind this number on; a thousand links at most, one at least."""
        links = self._ask(list[SignedManifest], "GET", f"/v1/manifests?after={after}")
        if not links:
            raise ComigsError(f"the coordinator shows no manifest behind {after} and names a later one; tell whoever runs it")
        return links

    def commit(self, wish: Commit) -> Receipt:
        """Makes an upload an update."""
        receipt = self._ask(Receipt, "POST", "/v1/updates", messages.encode(wish))
        if receipt.state is not None:
            check_settings(receipt.state.settings)
        return receipt

    def refuse(self, refusal: Refusal) -> None:
        """Tells that this device keeps its generalist."""
        self.call("POST", "/v1/refusals", messages.encode(refusal))

    def _ask(self, kind: type[T], method: str, path: str, body: bytes = b"") -> T:
        return understood(self.call(method, path, body), kind)

    # Files --------------------------------------------------------------------------------------------------------

    def upload(self, data: bytes, progress: Progress = SILENT, is_new: bool = False) -> str:
        """Brings `data` to the coordinator, from where an earlier attempt ended; returns its SHA-256.

        `is_new`: there was none, so nobody needs to ask. Each answer must bring it further: otherwise `Offline`.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path, self._largest = f"/v1/uploads/{sha256}", MAX_PIECE
        with self._session.within(self.patience + len(data) / SLOWEST):
            done = 0 if is_new else self._offset_of(path)
            while done < len(data):
                try:
                    done = self._retrying(lambda done=done: self._bring(path, data, done))  # type: ignore[misc]
                except RemoteRefused as error:
                    here = self._offset_of(path) if error.code == "wrong_offset" else done
                    if here <= done:
                        raise
                    done = here  # a piece had arrived, its answer had not
                progress(min(done, len(data)), len(data))
        return sha256

    def _offset_of(self, path: str) -> int:
        return upload_offset(self.call("HEAD", path))

    def _bring(self, path: str, data: bytes, done: int) -> int:
        """One piece; returns where the next one begins."""
        piece, begin = data[done : done + self._piece], time.monotonic()
        headers = {"Upload-Offset": str(done), "Content-Type": "application/offset+octet-stream"}
        try:
            with self._session.within(self.patience + len(piece) / SLOWEST):
                here = upload_offset(self._once("PATCH", path, piece, headers))
        except Offline:
            self._largest = PIECE  # a bad link wastes what it cuts
            self._piece = max(MIN_PIECE, min(self._piece, PIECE) // 2)
            raise
        if here != done + len(piece):
            raise ComigsError(
                f"the coordinator has {here:,} bytes of an upload of which {done + len(piece):,} arrived; try: comigs-edge sync"
            )
        if time.monotonic() - begin < QUICK:
            self._piece = min(self._largest, 2 * self._piece)
        return here

    def download(self, manifest: Manifest, target: Path, progress: Progress = SILENT) -> None:
        """Brings the generalist of a manifest to `target`, from where an earlier attempt ended, and checks its SHA-256."""
        self._fetch(f"/v1/generalists/{manifest.round}", manifest.sha256, manifest.size, target, progress)

    def download_change(self, manifest: Manifest, target: Path, progress: Progress = SILENT) -> None:
        """The same of what the generalist of a manifest adds to the one before."""
        sha256, size = str(manifest.change_sha256), manifest.change_size or 0
        self._fetch(f"/v1/changes/{manifest.round}", sha256, size, target, progress)

    def _fetch(self, address: str, sha256: str, size: int, target: Path, progress: Progress) -> None:
        part = target.parent / f".{sha256[:16]}.part"
        try:
            files.make_folder(target.parent)
            _forget_parts(target.parent)
            with self._session.within(self.patience + size / SLOWEST):
                while (here := part.stat().st_size if part.exists() else 0) < size:
                    self._retrying(lambda here=here: self._receive(address, part, here, size, progress))  # type: ignore[misc]
            if here > size or files.sha256_file(part) != sha256:
                part.unlink()
                raise ComigsError(f"{address} of the coordinator arrived damaged and was deleted; run: comigs-edge sync")
            part.replace(target)
            files.sync_folder(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)  # the room is wanted for what this device has learned
            raise ComigsError(
                f"{target} cannot be written ({error.strerror or error}); make room, then: comigs-edge sync"
            ) from error

    def _receive(self, address: str, part: Path, here: int, size: int, progress: Progress) -> None:
        answer = self._once("GET", address, b"", {"Range": f"bytes={here}-"} if here else {}, is_file=True)
        if answer.status_code == 206 and answer.headers.get("Content-Range") != f"bytes {here}-{size - 1}/{size}":
            answer.close()
            raise ComigsError(f"the coordinator sends another part of {address} than was asked for; tell whoever runs it")
        begin = here if answer.status_code == 206 else 0
        with part.open("ab" if begin else "wb") as file:
            try:
                for piece in pieces(answer, size - begin):
                    file.write(piece)
                    progress(file.tell(), size)
            except FAILURES as error:
                if isinstance(error, OSError) and not isinstance(
                    error, requests.RequestException | TimeoutError | ConnectionError
                ):
                    raise  # the disk's
                if file.tell() <= here:  # otherwise `_fetch` continues behind what came, with new patience
                    raise Offline(self._sentence(error)) from error
            finally:
                file.flush()
                os.fsync(file.fileno())
            if file.tell() <= here:
                raise Offline(self._sentence(ConnectionError()))

    # Requests -----------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> requests.Response:
        """One request, repeated while the network fails; raises `Offline` or `ComigsError`."""
        answer: requests.Response = self._retrying(lambda: self._once(method, path, body, headers or {}))
        return answer

    def _retrying(self, action: Callable[[], Any]) -> Any:
        backoff, deadline = wait_random_exponential(multiplier=1, max=MAX_WAIT), self._session.deadline
        end = time.monotonic() + self.patience

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return backoff(state) + (getattr(error, "retry_after", None) or 0.0)

        def stop(state: RetryCallState) -> bool:
            return time.monotonic() + state.upcoming_sleep >= min(end, deadline.at)

        return Retrying(retry=retry_if_exception_type(Offline), wait=wait, stop=stop, reraise=True)(action)

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str], is_file: bool = False) -> requests.Response:
        """The answer, read unless it `is_file`; raises `Offline` where asking again may help, else `RemoteRefused`."""
        with self._session.within(self.attempt + len(body) / SLOWEST):
            try:
                if self._epoch is None:
                    self._greet()
                answer = self._send(method, path, body, headers, is_file)
                refusal = problem(answer)
                # The answer to a HEAD has no body, so no word for its reason.
                if refusal and (refusal.error in RENEW or (method == "HEAD" and answer.status_code == 401)):
                    self._greet()
                    answer = self._send(method, path, body, headers, is_file)
                    refusal = problem(answer)
            except requests.exceptions.SSLError as error:
                if "ingerprint" in str(error):
                    raise AnotherKey(
                        f"the coordinator at {self.address} shows another key than at joining, so it may be somebody else; "
                        "nothing was sent. If its folder was made anew, join again: comigs-edge join LINK"
                    ) from error
                raise Offline(self._sentence(error)) from error
            except FAILURES as error:
                raise Offline(self._sentence(error)) from error
        if refusal is None:
            return answer
        if answer.status_code in (408, 429, 500, 502, 503, 504):
            offline = Offline(f"the coordinator at {self.address} cannot answer now: {refusal.message}")
            seconds = re.fullmatch("[0-9]{1,9}", answer.headers.get("Retry-After", ""))
            offline.retry_after = min(float(seconds[0]), MAX_WAIT) if seconds else None
            raise offline
        raise RemoteRefused(refusal.error, refusal_sentence(refusal, self.address))

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str], stream: bool) -> requests.Response:
        """The answer; its body is read, unless it is a file's that is streamed."""
        request = requests.Request(method, self.address + path, data=body or None, headers=HEADERS | headers).prepare()
        if path != HELLO:
            signatures.sign(request, self._key, self._device, self._epoch or "", body, self._offset)
        answer = self._session.send(request, timeout=TIMEOUT)
        if not (stream and answer.status_code in (200, 206)):
            read(answer)
        return answer

    def _greet(self) -> None:
        """Learns the coordinator's epoch and clock."""
        answer = self._send("GET", HELLO, b"", {}, stream=False)
        if answer.status_code != 200:
            raise requests.ConnectionError(f"HTTP {answer.status_code}")
        self._epoch, self._offset = epoch(answer), clock(answer)

    def _sentence(self, error: Exception) -> str:
        reason = (
            "it did not answer in time"
            if isinstance(error, requests.Timeout | TimeoutError | ReadTimeoutError)
            else "no connection"
        )
        return f"the coordinator at {self.address} cannot be reached ({reason}); everything is kept, try: comigs-edge sync"


def _forget_parts(folder: Path) -> None:
    """Deletes what came in part, but for the newest."""
    for path in sorted(folder.glob(".*.part"), key=lambda path: path.stat().st_mtime)[:-KEPT_PARTS]:
        path.unlink()
