"""Who can learn what of a device, and what is in the clear: what `privacy` prints and docs/privacy.md tells."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.protocol.private.messages import LEAST


@dataclass(frozen=True)
class Looker:
    """Somebody who looks, and what they can learn: of a device in a fleet, and in a private one where that is something else."""

    who: str
    in_a_fleet: str
    in_a_private_fleet: str = "the same"
    is_always: bool = False  # also of a device without a fleet
    only_private: bool = False  # tells windows apart, of which a fleet that is not private has none
    with_roster: bool | None = None  # holds of a private fleet's device only with a key of a roster, or only without

    def learns(self, is_private: bool) -> str:
        """What, in such a fleet."""
        is_same = not is_private or self.in_a_private_fleet == "the same"
        return self.in_a_fleet if is_same else self.in_a_private_fleet


_SINGLE = "each device's update"
_ENGINE = Looker("whoever runs the server of NVIDIA FLARE, where that carries the fleet", _SINGLE, "it carries no private fleet")
LOOKERS = (
    Looker("strangers on the network", "sizes and times; what is said is encrypted (TLS)"),
    Looker(
        "the coordinator, which keeps to the protocol and all that it sees", _SINGLE, f"sums of {LEAST} updates or more",
    ),
    Looker("... with the secrets of some devices, t of n or more", "each update", "each update", only_private=True),
    Looker(
        "... of fewer, k of the n in a sum", "each update", "the sum of the n - k others: of n - 1, the last one's update",
        only_private=True,
    ),
    Looker(
        "a coordinator that lies to its devices: false lists of who is in, different ones for different devices, other "
        "generalists",
        "each update", "as above, while fewer than a third of the window's devices help it", only_private=True,
    ),
    Looker(
        "... that says of a sum that it does not count, or goes back behind it, so that its progress comes again", "each update",
        "sums, as above; in the next one the same progress together with what was learned since: the difference of two sums is "
        "blurred by that step only", only_private=True,
    ),
    Looker(
        "a coordinator that makes up devices", "each update", "each update: a sum less those that it made up itself",
        only_private=True, with_roster=False,
    ),
    Looker(
        "... where devices were told the key of a roster", "each update",
        f"sums of {LEAST} updates or more of devices that the owner signed", only_private=True, with_roster=True,
    ),
    Looker(
        "... with the owner's key, or an owner who signed devices that the coordinator named", "each update", "each update",
        only_private=True, with_roster=True,
    ),
    _ENGINE,
    Looker("another member", "the mean; of few, single updates", f"the mean of {LEAST} or more"),
    Looker("a member who was not in a round", "the difference of two generalists: the mean"),
    Looker("whoever has this device's disk, or a copy of its home", "text, chats, model: not encrypted", is_always=True),
    Looker("whoever may talk with your model, or has its file", "what it learned of your text, where it says it", is_always=True),
)  # fmt: skip
# What the coordinator sees of a device, whatever is masked; and whether so in private fleets only, or in others only.
IN_THE_CLEAR: tuple[tuple[str, bool | None], ...] = (
    ("times: when this device speaks, and so when it trains", None),
    ("places: the network's address that it speaks from", None),
    ("sizes: of every message and every update", None),
    ("names: its own, its base's and its version's", None),
    ("counts: the tokens that each update was trained on", False),
    ("counts: in which windows it takes part, and how many others", True),
    ("counts: in which rounds it is, and which generalists it knows and refuses", None),
)


def lookers(*, is_member: bool, is_private: bool, is_on_flare: bool, has_roster: bool = False) -> list[dict[str, str]]:
    """Who can learn what of such a device; as JSON."""
    held = (each for each in LOOKERS if (is_private or not each.only_private) and each.with_roster in (None, has_roster))
    shown = (each for each in held if each.is_always or (is_member and (is_on_flare or each is not _ENGINE)))
    return [{"who": each.who, "learns": each.learns(is_private)} for each in shown]


def in_the_clear(is_private: bool) -> list[str]:
    """What the coordinator of such a fleet sees, whatever is masked."""
    return [what for what, only in IN_THE_CLEAR if only in (None, is_private)]
