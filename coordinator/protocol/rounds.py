"""When a round closes, how much an update counts, how often a device polls: no sockets, no clock, no disk.

    round r is open ──► updates come in ──► goal reached, or deadline past and enough of the fleet in ──► generalist r
                        each device once                                                                  round r + 1 is open

Round 0 makes the first generalist: it closes with the first update, which is an initial generalist. A device never
waits: it trains from the newest generalist there is, and its progress is sent to whichever round is open then.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Literal

from coordinator.protocol.settings import SettingsError, setting

Weights = Literal["uniform", "tokens"]  # the paper's mean over devices; or by tokens trained on
Averaging = Literal["separate", "freeze-a", "alternate"]  # the paper's; or exact ones, see `trained_names`
ONE = 1 << 16  # the fixed-point weight of a fresh update
MAX_UPDATES = 1024  # of one round: what `aggregate` sums exactly
INNER = (".lora_a", ".ffn_gate.weight", ".ffn_up.weight")  # of tensors that read an expert's input
TOKEN_CAP = 1 << 20  # tokens beyond which an update's weight does not grow: bounds what one device can claim
REFUSED, OF = 3, 5  # one that refused so many of the fleet's last generalists is not believed
SILENT = 5  # rounds without an update after which a device that is in touch is named
MOST_SILENT = 100  # ... after which none is waited for, whatever `max_staleness`
TOKEN_FACTOR = 4  # ... and times the median of its round's claims


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How rounds go. The defaults are meant for 1 to 50 devices."""

    goal: Annotated[int, setting("updates that close a round; 0: one of every active device that brings some", 0, 1024)] = 0
    deadline_seconds: Annotated[float, setting("after a round's first update it closes with those that are in ...", 0, 31e6)] = (
        1800.0
    )
    min_fraction: Annotated[float, setting("... if they are this share of the active devices", 0.01, 1)] = 0.5
    min_devices: Annotated[
        int,
        setting(
            "updates without which no round closes, whatever the deadline; from 3 on no mean shows a member one update", 1, 1024
        ),
    ] = 1
    active_seconds: Annotated[float, setting("a device that was not heard of for this long is not waited for", 1, 31e7)] = (
        172800.0
    )
    max_staleness: Annotated[
        int, setting("generalists: an update further behind is refused; its device pulls and brings it the next time", 0, 10**6)
    ] = 20
    weights: Annotated[Weights, setting('or "tokens": an update counts by the tokens it was trained on')] = "uniform"
    averaging: Annotated[Averaging, setting('the paper\'s; "freeze-a" and "alternate" average low-rank products exactly')] = (
        "separate"
    )
    private: Annotated[
        bool, setting("the coordinator sees sums of 3 or more updates only; devices take part in nothing else from then on")
    ] = False
    norm_bound: Annotated[float, setting("L2 norm to which a device of a private fleet holds an update", 1e-3, 1e6)] = 100.0

    def __post_init__(self) -> None:
        """Raises `SettingsError` for a private fleet with anything but equal weights and the same tensors in every round."""
        if self.private and (self.weights != "uniform" or self.averaging == "alternate"):
            raise SettingsError('private = true goes with weights = "uniform", and not with averaging = "alternate"')


def awaited_since(rules: Rules, round_number: int) -> int:
    """The round since which a device must have brought something, or joined, to be waited for: what is older is too stale."""
    return round_number - min(max(SILENT, rules.max_staleness), MOST_SILENT)


def goal(rules: Rules, round_number: int, active: int) -> int:
    """Updates that close the round at once."""
    if round_number == 0:
        return 1
    return max(rules.min_devices, min(rules.goal or active, active, MAX_UPDATES))


def quorum(rules: Rules, active: int) -> int:
    """Updates that close the round at its deadline."""
    return max(rules.min_devices, math.ceil(rules.min_fraction * active - 1e-9))  # 0.07 x 100 is a little more than 7


def waits_for(rules: Rules, round_number: int, updates: int) -> int:
    """More devices that the round needs whatever the deadline; none where one is enough."""
    return max(0, rules.min_devices - updates) if round_number > 0 and rules.min_devices > 1 else 0


def is_complete(rules: Rules, round_number: int, updates: int, active: int, seconds: float) -> bool:
    """Whether a round closes with this number of updates, the first of which came `seconds` ago."""
    if updates >= goal(rules, round_number, active):
        return True
    return seconds >= rules.deadline_seconds and updates >= quorum(rules, active)


def staleness(newest: int, trained_from: int) -> int:
    """How many generalists an update is behind."""
    return max(0, newest - trained_from)


def weight(rules: Rules, stale: int, tokens: int) -> int:
    """The fixed-point weight of an update, from 1 to `ONE`: 1 / sqrt(1 + staleness) (FedBuff, arXiv:2106.06639).

    By tokens it is multiplied by the share of `TOKEN_CAP`.
    """
    share = min(max(tokens, 1), TOKEN_CAP) / TOKEN_CAP if rules.weights == "tokens" else 1.0
    return max(1, round(ONE * share / math.sqrt(1 + stale)))


def token_cap(tokens: Sequence[int]) -> int:
    """Tokens of one update that are believed in a round with these claims: `TOKEN_FACTOR` times the (lower) median."""
    return TOKEN_FACTOR * max(1, statistics.median_low(tokens))


def capped(weight: int, tokens: int, cap: int) -> int:
    """The `weight` by these tokens as if they were `cap` at most."""
    believed = min(max(tokens, 1), TOKEN_CAP)
    return max(1, weight * min(believed, cap) // believed)


def trained_names(names: Iterable[str], averaging: str, round_number: int) -> list[str]:
    """The tensors that devices train, and send, for this round, sorted.

    A mean of A and a mean of B are not a mean of BA. `separate`, the paper's, takes it nevertheless. Where one side is the
    same on every device the mean of the products is exact: `freeze-a` trains the out side only (FFA-LoRA, arXiv:2403.12313),
    `alternate` the out side in odd and the in side in even rounds (RoLoRA, arXiv:2502.01755): an expert whose out side is
    still zero has no gradient for its in side, so a first round of that side would be lost.
    """
    ordered = sorted(names)
    if round_number == 0 or averaging == "separate":
        return ordered
    inner = averaging == "alternate" and round_number % 2 == 0
    return [name for name in ordered if name.endswith(INNER) == inner]


def refusal_quorum(active: int) -> int:
    """Devices that must refuse the newest generalist before the one before it is published again.

    A third, at least two; one of one or two.
    """
    return max(math.ceil(active / 3), min(2, active - 1))


def believed(refusing: Set[str], habitual: Set[str], active: int) -> Set[str]:
    """Those of the `refusing` devices that count: not the `habitual` ones, unless more than half of the fleet refuses."""
    return refusing if 2 * len(refusing) > active else refusing - habitual


def generalist_before(number: int, again: Mapping[int, int]) -> int:
    """The round whose generalist came before that of `number`; `again`: round -> the earlier one that it published again.

    Generalists that were refused are passed over: after 0, 1, 2, 3 = 1 again, what came before 3 is 0.
    """
    first = again.get(number, number)  # the round that made this generalist
    return again.get(first - 1, first - 1)


def next_poll_seconds(active: int) -> float:
    """Poll interval of a device that has nothing to send: all devices together ask at most 20 times a second."""
    return max(5.0, active / 20)
