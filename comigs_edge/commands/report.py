"""`comigs-edge report`: what the training has brought, on one page."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from comigs_edge.commands import page
from comigs_edge.commands.console import bar, next_command, notes, out, place_for, print_json, show_table, size
from comigs_edge.commands.receipt import what_left
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.progress import count_up
from coordinator.protocol.text import printable, readable

if TYPE_CHECKING:
    from comigs_edge.inference.report import Findings, Hits

SHOWN = 3  # tokens that are quoted in the terminal, gained and lost


def report(
    html: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Also write one page that needs nothing else.")] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Also measure what is lost on answers of the base itself, which it writes once; "
                           "always done where those are there or the model has a zero expert.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Report what the newest training has brought: curves, scores on test text, experts, tokens, words, and what has left."""
    home, place = homes.locate(), place_for(html)
    facts = _collect(home, settings_of(home), elsewhere)
    if place is not None:
        from comigs_edge.commands.report_page import write_report

        write_report(place, facts)
    if json:
        print_json(facts)
        return
    _show(facts)
    if html is not None:
        out.print(f"wrote {html}", soft_wrap=True)
    next_command("comigs-edge chat" if html else "comigs-edge report --html report.html")


def _collect(home: Home, settings: Config, elsewhere: bool) -> dict[str, Any]:
    """Everything, as JSON."""
    from comigs_edge.commands.evaluate import Opened, find_elsewhere, open_test

    adapters, manifest, tokenizer, text = open_test(home, settings)
    layout, opened = adapters.layout, Opened(home, settings, adapters)
    with notes.status("loading"):
        from comigs_edge.inference.explain import names
        from comigs_edge.inference.report import MODELS, find

        base = opened.base
    tokens = sum(len(window.ids) for window in text.windows)
    with bar("measuring the test text") as progress:
        advance = count_up(progress, tokens * (len(MODELS) - (not layout.num_specialists)))
        found = find(base, adapters, settings.storage().fake_format, text, tokenizer, advance)
    lost = find_elsewhere(opened, tokenizer, may_write=elsewhere or layout.zero_expert)
    return {
        "base": settings.base.name, "version": manifest["version"], "training": _training(home, manifest),
        "test_bytes": text.num_bytes, "test_tokens": text.num_tokens, **_measured(found, names(layout)),
        "elsewhere": lost and lost._asdict(),
        "experts": list(names(layout)), "blocks": list(range(adapters.first_block, adapters.hparams.num_blocks)),
        **_fleet(home, settings),
    }  # fmt: skip


def _training(home: Home, manifest: dict[str, Any]) -> dict[str, Any]:
    """Of the newest version; the curves are those of the newest training, None where it kept none."""
    from comigs_edge.training import checkpoint
    from comigs_edge.training.curves import KEY

    names = ("validation_loss_before", "validation_loss", "expert_steps", "router_steps")
    state = checkpoint.load(home.state, with_arrays=False)
    kept = state.progress.get(KEY) if state is not None else None
    curves = kept and {name: kept[name] for name in ("training", "validation")}
    return {name: manifest[name] for name in names} | {"curves": curves}


def _measured(found: Findings, names: tuple[str, ...]) -> dict[str, Any]:
    def shares(hits: Hits) -> list[float]:
        return [count / max(1, hits.words) for count in hits.hits]

    bits = {name: score and score.bits_per_byte for name, score in found.scores.items()}
    means = [sum(column) / len(column) for column in zip(*found.shares, strict=True)]
    return {
        "bits_per_byte": bits, "against_base": {name: each and each / (bits["base"] or 1) - 1 for name, each in bits.items()},
        "expert_shares": found.shares, "mean_shares": dict(zip(names, means, strict=bool(means))),
        "gained": [place._asdict() for place in found.gained], "lost": [place._asdict() for place in found.lost],
        "next_words": {
            "words": found.base_hits.words, "base": shares(found.base_hits), "personal": shares(found.personal_hits)
        },
    }  # fmt: skip


def _fleet(home: Home, settings: Config) -> dict[str, Any]:
    """What has left this device, and the list of everything that can."""
    from comigs_edge.fleet.folder import FleetFolder
    from comigs_edge.fleet.leaving import leaving, staying
    from comigs_edge.fleet.privacy import left

    folder, reports_loss = FleetFolder(home), settings.fleet.report_loss
    facts: dict[str, Any] = {"fleet": None, "left": left(folder), "leaves": [], "stays": list(staying(reports_loss))}
    if not folder.is_member:
        return facts
    name = address = None
    is_private = False
    with suppress(ComigsError):  # a damaged membership is told by `status`, and the books are there all the same
        name, address = (member := folder.membership()).name, member.address
        is_private = member.is_private
    standing = folder.standing()
    newest = None if standing.trained_from < 0 else standing.trained_from
    fleet = {
        "name": name, "address": address, "generalist": newest, "updates": len(standing.brought),
        "bytes_sent": standing.bytes_sent, "bytes_received": standing.bytes_received,
    }  # fmt: skip
    return facts | {"fleet": fleet, "leaves": leaving(reports_loss, is_private)}


# In a terminal -------------------------------------------------------------------------------------------------------


def _show(facts: dict[str, Any]) -> None:
    bits, training = facts["bits_per_byte"], facts["training"]
    before, after = training["validation_loss_before"], training["validation_loss"]
    losses = "" if before is None or after is None else f", validation loss {before:.4f} before, {after:.4f} after"
    version = f"version {facts['version']} of your model, on {printable(facts['base'])}"
    out.print(f"{version}: {training['expert_steps']} expert steps{losses}", soft_wrap=True)
    out.print(f"{size(facts['test_bytes'])} of test text ({facts['test_tokens']:,} tokens) that nothing was trained on:")
    rows = []
    for name, value in bits.items():
        if value is not None:
            label, against = (f"{name} (your model)" if name == "mixture" else name), f"{facts['against_base'][name]:+.1%}"
            rows.append((label, f"{value:.4f}", "" if name == "base" else against))
    show_table(("model", "bits per byte", "against the base"), rows, long="model")
    words = facts["next_words"]
    out.print(
        f"next words, of {words['words']:,}: the first guess is right for {words['personal'][0]:.1%} (base "
        f"{words['base'][0]:.1%}), one of three for {words['personal'][1]:.1%} (base {words['base'][1]:.1%})",
        soft_wrap=True,
    )
    if shares := facts["mean_shares"]:
        out.print(f"who speaks: {', '.join(f'{name}: {share:.1%}' for name, share in shares.items())}", soft_wrap=True)
    for name in ("gained", "lost"):
        for place in facts[name][:SHOWN]:
            out.print(f"{name}: {_quotation(place)}", soft_wrap=True)
    if facts["elsewhere"] is not None:
        from comigs_edge.inference.elsewhere import Elsewhere

        out.print(f"elsewhere, on answers of the base itself: {Elsewhere(**facts['elsewhere'])}", soft_wrap=True)
    out.print(_shared(facts), soft_wrap=True)


def _shared(facts: dict[str, Any]) -> str:
    """What has left this device."""
    if not facts["left"]:
        return "shared: nothing, this device is in no fleet"
    return f"shared: {'; '.join(what_left(facts['left']))}; who can learn what: comigs-edge privacy"


def _quotation(place: dict[str, Any]) -> str:
    before, token, after = (readable(" ".join(place[name].splitlines())) for name in ("before", "token", "after"))
    chances = f"{page.likely(place['base'])} to {page.likely(place['personal'])}"
    return f"{-place['bits']:+.1f} bits ({chances}) in: {before[-40:]}[{token}]{after}"
