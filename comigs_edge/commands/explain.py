"""`comigs-edge explain`: which expert speaks for each token of a text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.cells import cell_len, chop_cells
from rich.style import Style
from rich.text import Text

from comigs_edge.commands import page
from comigs_edge.commands.console import bar, next_command, notes, out, place_for, print_json, show_table
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import Home
from comigs_edge.progress import count_up
from coordinator.protocol.text import readable, well_formed
from coordinator.web.tables import table

if TYPE_CHECKING:
    from comigs_edge.data.document import Document
    from comigs_edge.inference.explain import Explanation

MOST = 1_000_000  # characters of standard input
# As a marker leaves them; what a zero expert leaves to the base stays as it is.
STYLES = {
    "e0": "black on green", "e1": "black on yellow", "e2": "black on cyan", "e3": "black on magenta", "e4": "white on blue",
    "e5": "white on red", "zero": "",
}  # fmt: skip
Piece = tuple[str, int]  # a token's text, and its speaker


def explain(
    text: Annotated[str, typer.Argument(metavar="TEXT|FILE|-", help="A text, a file as `data add` reads it, or standard input.")],
    tokens: Annotated[int, typer.Option(min=1, max=1 << 15, help="Of the text, at most.")] = 512,
    html: Annotated[Optional[Path], typer.Option(metavar="FILE", help="Also write one page that needs nothing else.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the weight of every expert for each token and block.")
    ] = False,
) -> None:
    """Show which expert speaks for each token, in the first, the middle and the last block with experts."""
    home, place = homes.locate(), place_for(html)
    documents = _read(text)
    found, is_cut = _explain(home, documents, tokens)
    about = f"{'the first ' if is_cut else ''}{len(found.tokens):,} tokens{' of a longer text' if is_cut else ''}"
    if place is not None:
        page.write_page(place, "Which expert speaks", f"For {about}.", _body(found))
    if json:
        print_json(_facts(found, is_cut))
        return
    _show(found, f"{about}; --tokens shows more" if is_cut else about)
    if html is not None:
        out.print(f"wrote {html}", soft_wrap=True)
    next_command("comigs-edge report")


def _read(text: str) -> list[Document]:
    """The documents of a file, or the text itself."""
    from comigs_edge.data import documents
    from comigs_edge.data.document import Document

    if text == "-":
        text = sys.stdin.read(MOST)
    elif _is_file(text) or (documents.kind(Path(text)) in documents.SUFFIXES and not any(map(str.isspace, text))):
        reading = documents.read([Path(text)], me=())
        return [document for found in reading.files.values() for document in found]
    if not text.strip():
        raise ComigsError("there is no text to explain; name a file, or write a text: comigs-edge explain 'Some words.'")
    return [Document(text=well_formed(text))]


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # no name of a file: too long, or of a user without a home
        return False


def _explain(home: Home, documents: list[Document], most: int) -> tuple[Explanation, bool]:
    """What the routers decide, and whether the text is longer."""
    settings = settings_of(home)
    with notes.status("loading"):
        import torch

        from comigs_edge.commands.evaluate import open_base_to_measure
        from comigs_edge.data.tokenizer import Tokenizer
        from comigs_edge.export import folder as models
        from comigs_edge.inference import explain as explaining
        from comigs_edge.nn.model import Model

        torch.set_num_threads(settings.threads("train"))
        adapters, _ = models.newest_adapters(home, settings)
        explaining.check_choice(adapters.layout)  # tells at once if there is nothing to explain
        tokenizer = Tokenizer(home.base_file, settings.model.thinking)
        most = min(most, adapters.hparams.context_length)
        ids, is_cut = explaining.cut(map(tokenizer.encode, documents), most)
        model = Model(open_base_to_measure(home, settings), adapters)
        model.block_format = settings.storage().fake_format
    pieces = [tokenizer.piece(token) for document in ids for token in document]
    with bar("asking the routers") as progress:
        return explaining.explain(model, ids, pieces, count_up(progress, len(pieces))), is_cut


def _facts(found: Explanation, is_cut: bool) -> dict[str, Any]:
    shares = found.shares().round(4).tolist()
    tokens = zip(found.tokens, found.texts, found.documents, found.weights.round(4).tolist(), strict=True)
    return {
        "experts": list(found.experts), "blocks": list(found.blocks), "is_cut": is_cut, "mean_shares": shares,
        "tokens": [
            {"id": token, "text": text, "document": document, "weights": weights} for token, text, document, weights in tokens
        ],
    }  # fmt: skip


# In a terminal -------------------------------------------------------------------------------------------------------


def _show(found: Explanation, about: str) -> None:
    has_colours = out.color_system is not None and not out.no_color
    for place in found.shown:
        out.print(Text(f"block {found.blocks[place]}", "bold"))
        for line in _lines(_pieces(found, place), out.width):
            _show_line(line, found.experts, has_colours)
        out.print()
    key = Text("who speaks: ")
    for number, name in enumerate(found.experts):
        key.append(f" {name} " if has_colours else f"{_letter(number, found.experts)} {name}", _style(number, found.experts))
        key.append("  ")
    out.print(key)
    shares = found.shares()
    rows = [(str(found.blocks[place]), *(f"{share:.1%}" for share in shares[place])) for place in found.shown]
    rows.append(("all", *(f"{share:.1%}" for share in shares.mean(0))))
    out.print(f"mean shares of {about}:", soft_wrap=True)
    show_table(("block", *found.experts), rows, long="block")


def _pieces(found: Explanation, place: int) -> Iterator[Piece]:
    """Tokens with their speakers; an empty line between two documents."""
    last = 0
    for text, document, speaker in zip(found.texts, found.documents, found.speakers(place), strict=True):
        if document != last:
            yield "\n\n", speaker
        yield readable(text.replace("\t", "    ").replace("\r", "")), speaker
        last = document


def _lines(pieces: Iterator[Piece], width: int) -> Iterator[list[Piece]]:
    """Lines of at most `width` columns; a token is broken only where it is wider than that."""
    line: list[Piece] = []
    room = width
    for text, speaker in pieces:
        for number, part in enumerate(text.split("\n")):
            if number or (cell_len(part) > room and line):
                yield line
                line, room = [], width
            if cell_len(part) > width:
                *whole, part = chop_cells(part, width)
                yield from ([(each, speaker)] for each in whole)
            if part:
                line.append((part, speaker))
                room -= cell_len(part)
    yield line


def _show_line(line: list[Piece], experts: tuple[str, ...], has_colours: bool) -> None:
    """In colours; without those the letters of the speakers stand below."""
    if has_colours:
        out.print(Text.assemble(*((text, _style(speaker, experts)) for text, speaker in line)), soft_wrap=True)
        return
    out.print("".join(text for text, _ in line), soft_wrap=True)
    if line:
        out.print("".join(_letter(speaker, experts) * cell_len(text) for text, speaker in line), soft_wrap=True)


def _style(expert: int, experts: tuple[str, ...]) -> Style:
    return Style.parse(STYLES[page.colour(expert, experts, _silent())])


def _letter(expert: int, experts: tuple[str, ...]) -> str:
    """G for the generalist, the number of a specialist, a dot for the base alone."""
    if page.colour(expert, experts, _silent()) == "zero":
        return "."
    return "G" if expert == 0 else str(expert % 10)


def _silent() -> str:
    from comigs_edge.inference.explain import ZERO

    return ZERO


# As a page -----------------------------------------------------------------------------------------------------------


def _body(found: Explanation) -> str:
    silent, parts = _silent(), [page.legend(found.experts, _silent())]
    for place in found.shown:
        note = "each token in the colour of the expert with the largest weight; point at it for the others"
        parts.append(page.card(f"Block {found.blocks[place]}", note, _coloured(found, place, silent)))
    shares = found.shares()
    heads = ("Block", *(f"#{name}" for name in found.experts))
    rows = [(str(block), *(f"{share:.1%}" for share in shares[place])) for place, block in enumerate(found.blocks)]
    rows.append(("all", *(f"{share:.1%}" for share in shares.mean(0))))
    parts.append(page.card("Mean shares", "the mean weight of each expert over these tokens", table(heads, rows)))
    return "".join(parts)


def _coloured(found: Explanation, place: int, silent: str) -> str:
    speakers, paragraphs = found.speakers(place), [""] * (1 + max(found.documents, default=0))
    for number, (text, document) in enumerate(zip(found.texts, found.documents, strict=True)):
        if text:
            weights = zip(found.experts, found.weights[number, place], strict=True)
            said = ", ".join(f"{name}: {weight:.0%}" for name, weight in weights)
            kind = page.colour(speakers[number], found.experts, silent)
            paragraphs[document] += f'<span class="{kind}" title="{page.say(said)}">{page.say(text)}</span>'
    return "".join(f'<p class="text">{paragraph}</p>' for paragraph in paragraphs)
