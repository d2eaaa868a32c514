"""Talks to the coordinator: signed requests through TLS with a pinned certificate, again and again where the network is bad.

What was uploaded or downloaded stays: a broken connection costs one piece at most. Waits grow with every failure and are
drawn at random (exponential back-off with full jitter), so that a fleet does not come back all at once; `Retry-After` is
honoured. The device's clock need not be right: the coordinator's is learned from its answers.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import requests
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential
from urllib3.exceptions import SystemTimeWarning

from comigs_edge import files
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.transport import Offline
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import messages, signatures
from coordinator.protocol.messages import Commit, Join, Joined, Manifest, Problem, Receipt, Refusal, SignedManifest, State

PIECE = 1 << 18  # bytes sent or received at once: what a broken connection can cost
TIMEOUT = (10, 90)  # seconds to connect, and to wait for the next bytes
# The same on every device: the libraries would name themselves and their versions.
HEADERS = {"User-Agent": "comigs-edge", "Accept-Encoding": "identity"}
MAX_WAIT = 300.0  # seconds between two attempts
RENEW = ("stale_epoch", "bad_signature")  # refusals after which epoch and clock are learned anew, once
T = TypeVar("T")


class RemoteRefused(ComigsError):
    """The coordinator says no; the text is its own sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Pinned(HTTPAdapter):
    """Accepts the certificate with this SHA-256 and no other; dates and names do not matter."""

    def __init__(self, pin: bytes) -> None:
        self._pin = pin.hex()
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options, assert_fingerprint=self._pin)


class Remote:
    """One coordinator, as one device sees it. `patience` is how long (seconds) a call is retried."""

    def __init__(self, address: str, pin: bytes, key: Ed25519PrivateKey, device: str, patience: float = 60.0) -> None:
        self.address, self.patience = address, patience
        self._key, self._device = key, device
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy stands between a device and its pinned coordinator
        self._session.headers = CaseInsensitiveDict(HEADERS)
        self._session.verify = False  # the pin is checked in place of a chain of authorities
        self._session.mount("https://", _Pinned(pin))
        self._epoch: str | None = None
        self._offset = 0.0  # the coordinator's clock less this device's, seconds

    # Messages -----------------------------------------------------------------------------------------------------

    def join(self, wish: Join) -> Joined:
        """Becomes a member of the fleet."""
        return self._ask(Joined, "POST", "/v1/join", messages.encode(wish))

    def state(self) -> State:
        """Where the fleet stands."""
        return self._ask(State, "GET", "/v1/state")

    def manifests(self, after: int) -> list[SignedManifest]:
        """The chain from the generalist behind this number on; a thousand links at most."""
        return self._ask(list[SignedManifest], "GET", f"/v1/manifests?after={after}")

    def commit(self, wish: Commit) -> Receipt:
        """Makes an upload an update."""
        return self._ask(Receipt, "POST", "/v1/updates", messages.encode(wish))

    def refuse(self, refusal: Refusal) -> None:
        """Tells that this device keeps its generalist."""
        self.call("POST", "/v1/refusals", messages.encode(refusal))

    def _ask(self, kind: type[T], method: str, path: str, body: bytes = b"") -> T:
        return _understood(self.call(method, path, body), kind)

    # Files --------------------------------------------------------------------------------------------------------

    def upload(self, data: bytes, progress: Progress = SILENT) -> str:
        """Brings `data` to the coordinator, from where an earlier attempt ended; returns its SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        path, done = f"/v1/uploads/{sha256}", -1
        while done < len(data):
            if done < 0:
                done = int(self.call("HEAD", path).headers["Upload-Offset"])
                continue
            headers = {"Upload-Offset": str(done), "Content-Type": "application/offset+octet-stream"}
            try:
                answer = self.call("PATCH", path, data[done : done + PIECE], headers)
                done = int(answer.headers["Upload-Offset"])
            except RemoteRefused as error:
                if error.code != "wrong_offset":
                    raise
                done = -1  # a piece had arrived, its answer had not
            progress(max(done, 0), len(data))
        return sha256

    def download(self, manifest: Manifest, target: Path, progress: Progress = SILENT) -> None:
        """Brings the generalist of a manifest to `target`, from where an earlier attempt ended, and checks its SHA-256."""
        part = target.parent / f".{manifest.sha256[:16]}.part"
        files.make_folder(target.parent)
        while (here := part.stat().st_size if part.exists() else 0) < manifest.size:
            self._retrying(lambda here=here: self._receive(manifest, part, here, progress))  # type: ignore[misc]
        if files.sha256_file(part) != manifest.sha256:
            part.unlink()
            raise ComigsError(f"generalist {manifest.round} arrived damaged and was deleted; run: comigs-edge sync")
        part.replace(target)
        files.sync_folder(target.parent)

    def _receive(self, manifest: Manifest, part: Path, here: int, progress: Progress) -> None:
        headers = {"Range": f"bytes={here}-"} if here else {}
        answer = self._once("GET", f"/v1/generalists/{manifest.round}", b"", headers, stream=True)
        with answer, part.open("ab" if answer.status_code == 206 else "wb") as file:
            try:
                for piece in answer.iter_content(PIECE):
                    file.write(piece)
                    progress(file.tell(), manifest.size)
            except requests.RequestException as error:
                if file.tell() <= here:  # otherwise `download` continues behind what came, with new patience
                    raise Offline(self._sentence(error)) from error
            finally:
                file.flush()
                os.fsync(file.fileno())
        if part.stat().st_size > manifest.size:
            part.unlink()
            raise ComigsError(f"generalist {manifest.round} has more bytes than its manifest says; run: comigs-edge sync")

    # Requests -----------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> requests.Response:
        """One request, repeated while the network fails; raises `Offline` or `RemoteRefused`."""
        answer: requests.Response = self._retrying(lambda: self._once(method, path, body, headers or {}))
        return answer

    def _retrying(self, action: Callable[[], Any]) -> Any:
        backoff = wait_random_exponential(multiplier=1, max=MAX_WAIT)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            return backoff(state) + (getattr(error, "retry_after", None) or 0.0)

        stop = stop_before_delay(self.patience)
        return Retrying(retry=retry_if_exception_type(Offline), wait=wait, stop=stop, reraise=True)(action)

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str], stream: bool = False) -> requests.Response:
        try:
            if self._epoch is None:
                self._greet()
            answer = self._send(method, path, body, headers, stream)
            problem = _problem(answer)
            # The answer to a HEAD has no body, so no word for its reason.
            if problem and (problem.error in RENEW or (method == "HEAD" and answer.status_code == 401)):
                self._greet()
                answer = self._send(method, path, body, headers, stream)
                problem = _problem(answer)
        except requests.exceptions.SSLError as error:
            if "ingerprint" in str(error):
                raise ComigsError(
                    f"the coordinator at {self.address} shows another key than at joining, so it may be somebody else; nothing "
                    "was sent. If its folder was made anew, join again: comigs-edge join LINK"
                ) from error
            raise Offline(self._sentence(error)) from error
        except requests.RequestException as error:
            raise Offline(self._sentence(error)) from error
        if problem is None:
            return answer
        if answer.status_code in (408, 429, 500, 502, 503, 504):
            offline = Offline(f"the coordinator at {self.address} cannot answer now: {problem.message}")
            seconds = answer.headers.get("Retry-After", "")
            offline.retry_after = float(seconds) if seconds.isdigit() else None
            raise offline
        raise RemoteRefused(problem.error, problem.message)

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str], stream: bool) -> requests.Response:
        request = requests.Request(method, self.address + path, data=body or None, headers=HEADERS | headers).prepare()
        signatures.sign(request, self._key, self._device, self._epoch or "", body, self._offset)
        with _without_clock():
            return self._session.send(request, timeout=TIMEOUT, stream=stream)

    def _greet(self) -> None:
        """Learns the coordinator's epoch and clock."""
        with _without_clock():
            answer = self._session.get(f"{self.address}/v1/hello", timeout=TIMEOUT)
        if answer.status_code != 200:
            raise requests.ConnectionError(f"HTTP {answer.status_code}")
        self._epoch = _understood(answer, messages.Hello).epoch
        if date := answer.headers.get("Date"):
            self._offset = email.utils.parsedate_to_datetime(date).timestamp() - time.time()

    def _sentence(self, error: Exception) -> str:
        reason = "it did not answer in time" if isinstance(error, requests.Timeout) else "no connection"
        return f"the coordinator at {self.address} cannot be reached ({reason}); everything is kept, try: comigs-edge sync"


@contextlib.contextmanager
def _without_clock() -> Iterator[None]:
    """urllib3 warns of a wrong clock, because of certificates' dates; those do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SystemTimeWarning)
        yield


def _problem(answer: requests.Response) -> Problem | None:
    if (code := answer.status_code) < 400:
        return None
    try:
        return messages.decode(answer.content, Problem)
    except msgspec.DecodeError:
        return Problem(error=f"http_{code}", message=f"the coordinator answers {code} {answer.reason}")


def _understood(answer: requests.Response, kind: type[T]) -> T:
    try:
        return messages.decode(answer.content, kind)
    except msgspec.DecodeError as error:
        raise ComigsError(f"the coordinator's answer is not understood ({error}); upgrade comigs-edge here and there") from error
