"""What a coordinator's answers say, read with nothing taken for granted: each is what was asked for, or `ComigsError`."""

from __future__ import annotations

import email.utils
import re
import time
from typing import TypeVar

import msgspec
import requests

from comigs_edge.errors import ComigsError
from coordinator.protocol import messages
from coordinator.protocol.messages import Hello, Problem

LAST = 7e9  # seconds since 1970 (2191): a coordinator's clock beyond is not listened to; a board without a battery is in 1970
T = TypeVar("T")


def problem(answer: requests.Response) -> Problem | None:
    """Why the coordinator did not do what was asked; None where it did."""
    if 200 <= (code := answer.status_code) < 300:
        return None
    try:
        return messages.decode(answer.content, Problem)
    except msgspec.DecodeError:
        return Problem(error=f"http_{code}", message=f"the coordinator answers {code} {str(answer.reason)[:80]}")


def refusal_sentence(refusal: Problem, address: str) -> str:
    """The refusal's sentence; of a coordinator from before unknown fields were ignored, what that means."""
    unknown = re.search(r"unknown field \W?(\w{1,40})", refusal.message)
    if refusal.error != "bad_message" or unknown is None:
        return refusal.message
    return (
        f"the coordinator at {address} is older than this device's comigs-edge and does not know {unknown[1]!r}; nothing is "
        "lost, whoever runs it installs this version there and starts it again"
    )


def understood(answer: requests.Response, kind: type[T]) -> T:
    """The message in an answer's body; raises `ComigsError`."""
    try:
        return messages.decode(answer.content, kind)
    except msgspec.DecodeError as error:
        raise ComigsError(f"the coordinator's answer is not understood ({error}); upgrade comigs-edge here and there") from error


def upload_offset(answer: requests.Response) -> int:
    """Bytes of an upload that the coordinator has; raises `ComigsError` where it does not say so."""
    text = answer.headers.get("Upload-Offset", "")
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ComigsError(f"the coordinator says {text[:40]!r} in place of an upload's bytes; tell whoever runs it")
    return int(text)


def epoch(answer: requests.Response) -> str:
    """The word that requests are signed with; raises `ComigsError` for a coordinator that this version cannot speak with."""
    hello = understood(answer, Hello)
    if hello.protocol > messages.PROTOCOL:
        raise ComigsError(
            f"the coordinator speaks version {hello.protocol} of the protocol and this device {messages.PROTOCOL}; "
            "upgrade comigs-edge"
        )
    if not re.fullmatch("[!-~]+", hello.epoch):
        raise ComigsError(f"the coordinator's epoch {hello.epoch[:40]!r} is no word; tell whoever runs it")
    return hello.epoch


def clock(answer: requests.Response) -> float:
    """The coordinator's clock less this device's, seconds; 0 where it cannot be."""
    try:
        now = email.utils.parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return 0.0
    return now - time.time() if 0 <= now < LAST else 0.0
