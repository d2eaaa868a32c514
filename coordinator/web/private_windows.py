"""Private windows on the page, by counts alone."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from coordinator.ledger.overview import Facts
from coordinator.protocol.private.messages import Stage
from coordinator.web.parts import count, listed, moment, span, tile

STAGES: dict[Stage, str] = {
    "keys": "keys are exchanged", "shares": "shares are exchanged", "masked": "masked updates come",
    "confirmations": "who is in is confirmed", "answers": "the sum is opened",
}  # fmt: skip


def tile_of(facts: Facts) -> str:
    """The window that is furthest on its way, in place of the open round's updates."""
    name = f"Round {facts['open_round']}, private window"
    if not facts["private"]:
        return tile(name, "none", "windows begin with the first generalist")
    window = max(facts["private"], key=lambda each: list(STAGES).index(each["stage"]))
    if window["deadline"] is None:
        due = f"waits for its first devices, {window['needed']} at least"
    else:
        left = window["deadline"] - facts["now"]
        due = f"deadline {f'in {span(left)}' if left > 0 else f'since {span(-left)}'}, then {window['needed']} will do"
    wanted = max(window["devices"], window["needed"])
    bar = f'<span class="bar-of"><span style="width:{100 * window["given"] / wanted:.0f}%"></span></span>'
    return tile(name, f"{window['given']}<small> of {count(wanted, 'device')}</small>", f"{bar}{STAGES[window['stage']]}; {due}")


def listing(facts: Facts) -> str:
    """The windows on their way, and how the last ones ended; nothing of a fleet that has none."""
    if facts["private"] is None:
        return ""
    heads = ("Window", "When", "Stage", "#Devices", "#Answered", "Outcome")
    return listed("Private windows", heads, _rows(facts))


def _rows(facts: Facts) -> Iterator[tuple[str, ...]]:
    for each in facts["private"]:
        yield "on its way", "now", STAGES[each["stage"]], *_counts(each), f"{each['needed']} are needed"
    for each in facts["ended"]:
        is_summed = each["reason"] is None
        state = '<span class="state">summed</span>' if is_summed else '<span class="state silent">given up</span>'
        outcome = f"round {each['round']}" if is_summed else f'<span class="words">{escape(each["reason"])}</span>'
        yield state, moment(each["ended"], facts["now"]), STAGES[each["stage"]], *_counts(each), outcome


def _counts(window: Facts) -> tuple[str, str]:
    return str(window["devices"]), str(window["given"])
