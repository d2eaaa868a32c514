"""Everything that ever leaves a device in a fleet, by occasion: told by `sync --dry-run`, `privacy`, `report`, docs/privacy.md.

`wire` names where a thing is on the wire: a field of a message as /v1/PATH:FIELD, a header, a part of a path or query, or
"address" and "time", which every server sees. A test compares these with every byte that a real device sends.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from coordinator.protocol.private.messages import LEAST

Occasion = Literal["joining", "every request", "an update", "a private window", "a generalist", "a refusal"]


@dataclass(frozen=True)
class Leaves:
    """One thing that leaves: on which occasion, in words, where it is on the wire, and whether only `report_loss` sends it.

    `is_private`: only to a private fleet, or only to one that is not; None: to both. The first generalist of one, which says
    nothing of any text, is sent as an update to another is.
    """

    occasion: Occasion
    what: str
    wire: tuple[str, ...]
    only_with_report_loss: bool = False
    is_private: bool | None = None

    @property
    def sent(self) -> str:
        """To which fleets."""
        kinds = {None: "always", True: "private fleets", False: "other fleets"}
        return "`report_loss`" if self.only_with_report_loss else kinds[self.is_private]


_JOIN, _UPDATE, _REFUSAL, _WINDOW = "/v1/join:", "/v1/updates:", "/v1/refusals:", "/v1/windows/{window}"

LEAVES = (
    Leaves("joining", "the invitation's code", (_JOIN + "code",)),
    Leaves("joining", "the device's name", (_JOIN + "name",)),
    Leaves("joining", "the device's public key", (_JOIN + "public_key",)),
    Leaves("joining", "the id that it had with an earlier key, where that is lost", (_JOIN + "former",)),
    Leaves("joining", "the version of comigs-edge", (_JOIN + "version",)),
    Leaves("joining", "the base's name and SHA-256", (_JOIN + "generalist.base_name", _JOIN + "generalist.base_sha256")),
    Leaves("joining", "form and scale of the experts", (_JOIN + "generalist.form", _JOIN + "generalist.scale")),
    Leaves("joining", "names and shapes of the generalist's tensors", (_JOIN + "generalist.tensors",)),
    Leaves("every request", "the device's id, a time, a nonce and their signature", ("Signature-Input", "Signature")),
    Leaves("every request", "the coordinator's epoch, as it said it", ("Comigs-Epoch",)),
    Leaves("every request", "size, type and SHA-256 of its body", ("Content-Length", "Content-Type", "Content-Digest")),
    Leaves("every request", "the coordinator's own address", ("Host",)),
    Leaves(
        "every request", "what an HTTP client says of itself, the same on every device",
        ("User-Agent", "Accept-Encoding"),
    ),
    Leaves("every request", "by the nature of a network: when it came, and from which address", ("time", "address")),
    Leaves(
        "an update", "changes of the generalist's tensors, their names and shapes", ("/v1/uploads/{sha256}:tensors",),
        is_private=False,
    ),
    Leaves("an update", "its SHA-256", ("/v1/uploads/{sha256}", _UPDATE + "sha256"), is_private=False),
    Leaves("an update", "how much of it the coordinator has", ("Upload-Offset",), is_private=False),
    Leaves("an update", "the number of tokens that it was trained on", (_UPDATE + "tokens",), is_private=False),
    Leaves("an update", "the number of the generalist that it is a change of", (_UPDATE + "trained_from",), is_private=False),
    Leaves("an update", "the number of the round that is open", (_UPDATE + "expected_round",), is_private=False),
    Leaves("an update", "a random id", (_UPDATE + "update_id",), is_private=False),
    Leaves("an update", "the validation loss", (_UPDATE + "validation_loss",), only_with_report_loss=True, is_private=False),
    Leaves("a private window", "which one it asks about", (_WINDOW,), is_private=True),
    Leaves(
        "a private window", "public keys for this window alone, and their signature",
        (_WINDOW + "/keys", _WINDOW + "/keys:keys", _WINDOW + "/keys:signature"), is_private=True,
    ),
    Leaves(
        "a private window", "shares of its masks' keys, each encrypted for one other device",
        (_WINDOW + "/shares", _WINDOW + "/shares:boxes"), is_private=True,
    ),
    Leaves(
        "a private window", "changes of the generalist's tensors, masked", ("/v1/uploads/{sha256}:masked",), is_private=True,
    ),
    Leaves(
        "a private window", "their SHA-256, and a random id",
        ("/v1/uploads/{sha256}", *(_WINDOW + "/masked" + each for each in ("", ":sha256", ":update_id"))), is_private=True,
    ),
    Leaves("a private window", "how much of them the coordinator has", ("Upload-Offset",), is_private=True),
    Leaves(
        "a private window", "a signature under the list of the devices whose updates are in the sum",
        (_WINDOW + "/confirmations", _WINDOW + "/confirmations:signature"), is_private=True,
    ),
    Leaves(
        "a private window", "the shares that open this one sum",
        (_WINDOW + "/answers", _WINDOW + "/answers:own", _WINDOW + "/answers:keys"), is_private=True,
    ),
    Leaves("a generalist", "the number of the one that is wanted", ("/v1/generalists/{number}", "/v1/changes/{number}")),
    Leaves("a generalist", "from which byte on", ("Range",)),
    Leaves("a generalist", "the number of the last one that is known", ("/v1/manifests?after",)),
    Leaves("a refusal", "the number of the generalist that made the text worse", (_REFUSAL + "round",)),
    Leaves(
        "a refusal", "the validation losses before and after", (_REFUSAL + "loss_before", _REFUSAL + "loss_after"),
        only_with_report_loss=True,
    ),
)  # fmt: skip
STAYS = ("your text", "your chats", "specialists", "router", "optimiser state")


def leaving(reports_loss: bool, is_private: bool = False) -> list[dict[str, object]]:
    """The list for a device that reports its validation losses, or does not, in such a fleet; as JSON."""
    kept = (each for each in LEAVES if each.is_private in (None, is_private))
    return [asdict(each) for each in kept if reports_loss or not each.only_with_report_loss]


def staying(reports_loss: bool) -> tuple[str, ...]:
    """What never leaves such a device."""
    return STAYS if reports_loss else (*STAYS, "validation losses")


def who_reads(is_private: bool, has_roster: bool = False) -> str:
    """Who can read what a device brings to its fleet, in one sentence; `has_roster`: only with devices of its owner's."""
    if not is_private:
        return "its coordinator can read each of this device's updates"
    sums = f"learns only sums of {LEAST} or more devices' updates"
    if has_roster:
        return f"its coordinator {sums}, of devices in the roster that their owner signed"
    return f"its coordinator, as long as it keeps to the protocol, {sums}; one that makes up devices of its own learns more"
