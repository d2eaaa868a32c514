"""The page that `comigs-edge report --html` writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from comigs_edge.commands import drawing, page
from comigs_edge.commands.console import counted, size
from comigs_edge.commands.drawing import Bar
from comigs_edge.commands.receipt import by_occasion, what_left
from comigs_edge.inference.elsewhere import Elsewhere
from comigs_edge.inference.explain import ZERO
from coordinator.web.tables import table

Facts = dict[str, Any]  # what `report --json` prints
TITLE = "What your model has learned"
YOURS = "your model"
_LINES = re.compile(r"[ \t]*\n\s*")


def write_report(path: Path, facts: Facts) -> None:
    """One file."""
    about = (
        f"Version {facts['version']} on {facts['base']}, measured on {size(facts['test_bytes'])} of your text "
        f"({facts['test_tokens']:,} tokens) that nothing was trained on."
    )
    body = page.section("tiles", *_tiles(facts)) + page.section("charts", *_charts(facts)) + _places(facts) + _receipt(facts)
    page.write_page(path, TITLE, about, body)


def _tiles(facts: Facts) -> list[str]:
    bits, words, lost, fleet = (facts[name] for name in ("bits_per_byte", "next_words", "elsewhere", "fleet"))
    gained = f"{facts['against_base']['mixture']:+.1%}"
    said = Elsewhere(**lost) if lost else None
    sent, came = (sum(each[name] for each in facts["left"]) for name in ("bytes_sent", "bytes_received"))
    return [
        page.tile("Bits per byte", f"{bits['mixture']:.3f}", f"{gained} against the base's {bits['base']:.3f}; less is better"),
        page.tile("Next word", f"{words['personal'][0]:.1%}", f"right at the first guess; the base {words['base'][0]:.1%}"),
        page.tile(
            "Elsewhere", f"{said.change:+.1%}" if said else "–",
            f"bits on the base's own answers; divergence {said.divergence:.3f}" if said else "not measured: --elsewhere does it",
        ),
        page.tile(
            "Shared", size(sent) if facts["left"] else "nothing",
            f"with {'the fleet' if fleet else 'a fleet that it has left'}; {size(came)} came back"
            if facts["left"] else "this device is in no fleet",
        ),
    ]  # fmt: skip


def _charts(facts: Facts) -> list[str]:
    bits, words, curves = facts["bits_per_byte"], facts["next_words"], facts["training"]["curves"]

    def change(name: str) -> str:
        return f" ({facts['against_base'][name]:+.1%})"

    scores = [
        Bar(YOURS if name == "mixture" else name, value, f"{value:.3f}{'' if name == 'base' else change(name)}", name == "base")
        for name, value in bits.items()
        if value is not None
    ]
    hits = [
        Bar(f"{guess}, {name}", words[key][place], f"{words[key][place]:.1%}", key == "base")
        for place, guess in enumerate(("first guess", "one of three"))
        for key, name in (("base", "base"), ("personal", YOURS))
    ]
    drawn = [page.figure("Losses", "nats a token over expert steps; pale: training, dots: validation", _curves(curves))]
    drawn.append(page.figure("Bits per byte", "of the test text; shorter is better", drawing.bars("Bits per byte", scores)))
    if facts["expert_shares"]:
        kinds = [page.colour(number, facts["experts"], ZERO) for number in range(len(facts["experts"]))]
        stacks = drawing.stacks("Who speaks", facts["blocks"], facts["expert_shares"], facts["experts"], kinds)
        note = ", ".join(f"{name}: {share:.0%}" for name, share in facts["mean_shares"].items())
        inside = stacks + page.legend(facts["experts"], ZERO)
        drawn.append(page.figure("Who speaks", f"mean weights by block; in all: {note}", inside))
    note = f"of {counted(words['words'], 'word')}, counted by their beginnings; longer is better"
    drawn.append(page.figure("Next words", note, drawing.bars("Next words", hits)))
    return drawn


def _curves(curves: Facts | None) -> str:
    if not curves or not curves["training"] or not curves["validation"]:
        return '<p class="note">The training that made this model kept no curves.</p>'
    return drawing.curves("Losses over steps", curves["training"], curves["validation"])


def _places(facts: Facts) -> str:
    heads, parts = ("In your text", "#base", f"#{YOURS}", "#bits"), ""
    note = "how likely the marked piece was before it was read, and the bits that it takes more or less"
    for name, title in (("gained", "Where it gained most"), ("lost", "Where it lost most")):
        inside = table(heads, map(_row, facts[name])) if facts[name] else '<p class="note">Nowhere.</p>'
        parts += page.card(title, note, inside)
    return parts


def _row(place: Facts) -> tuple[str, ...]:
    base, personal = (page.say(page.likely(place[name])) for name in ("base", "personal"))
    return _quoted(place), base, personal, f"{-place['bits']:+.1f}"


def _quoted(place: Facts) -> str:
    """The marked token between what stands around it, on one line."""
    before, token, after = (page.say(_LINES.sub(" ⏎ ", place[name])) for name in ("before", "token", "after"))
    return f'<span class="quote">{before}</span><mark>{token}</mark><span class="quote">{after}</span>'


def _receipt(facts: Facts) -> str:
    """What leaves the device and what stays."""
    left = "".join(f"<p>Has left so far: {page.say(line)}.</p>" for line in what_left(facts["left"]))
    stays = f"{left}<p>Stays on this device: {page.say(', '.join(facts['stays']))}.</p>"
    if facts["fleet"] is None:
        never = "" if left else "nothing has left it, and "
        return page.card("Privacy", f"This device is in no fleet: {never}nothing leaves it.", stays)
    listed = "".join(f"<li>{page.say(name)}: {page.say(what)}</li>" for name, what in by_occasion(facts["leaves"]).items())
    name = facts["fleet"]["name"] or "this device"
    return page.card("Privacy", f"{name} is in a fleet. Everything that leaves, by occasion:", f"<ul>{listed}</ul>{stays}")
