"""`comigs-edge data add | list | remove`: the text that the model learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from comigs_edge.commands import owner, reading_report
from comigs_edge.commands.console import fact, next_command, notes, out, print_json, show_table, size, warn
from comigs_edge.data import documents
from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.data.documents import Document
from comigs_edge.home import folder as homes
from coordinator.protocol.text import printable

app = typer.Typer(no_args_is_help=True, help="The text that your model learns from; it never leaves this device.")


@app.command("add")
def add(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders and files; docs/guide.md says which kinds.")],
    me: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help="Your name in conversations: your messages are learned. May be repeated; '' for none."),
    ] = None,
) -> None:
    """Add text: notes, pages, chats, exports of messengers. A file that was added before is replaced."""
    home = homes.locate()
    corpus = homes.corpus(home, home.settings())
    with notes.status("reading") as spinner:
        ask = owner.asker(home.owner_file, paths, spinner.stop)
        reading = documents.read(paths, None if me is None else [name for name in me if name], ask)
        report = corpus.add(reading)
    owner.remember(home.owner_file, reading.owners)
    for number, document in enumerate(report.samples, 1):
        fact(f"sample {number}", f" ({document.kind})")
        out.print(_excerpt(document), style="dim")
    for line in reading_report.warnings(reading):
        warn(line)
    out.print(
        f"\n{report.added} documents added from {len(reading.files)} files; left out: {report.duplicates} that are there "
        f"already, {report.near_duplicates} near-duplicates, {reading.empty} empty, {len(reading.skipped)} unreadable "
        f"files, {sum(reading.ignored.values())} files of other kinds",
        soft_wrap=True,
    )
    for line in reading_report.remarks(reading):
        out.print(f"  {line}", markup=False, soft_wrap=True)
    sizes = corpus.sizes()
    for split in SPLITS:
        out.print(f"  {split:<11}{sizes[split]['documents']:>6} documents  {size(sizes[split]['bytes'])}")
    next_command("comigs-edge train")


def _excerpt(document: Document) -> str:
    if not document.messages:
        return _short(document.text, 240)
    lines = [f"{message.role}: {_short(message.content, 70)}" for message in document.messages[:4]]
    return "\n".join(lines + (["..."] if len(document.messages) > 4 else []))


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


@app.command("list")
def list_(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the files that were added, and how their documents are split."""
    home = homes.locate()
    home.settings()
    corpus = Corpus(home.documents_file)
    sources = corpus.sources()
    if json:
        print_json({"files": sources, "splits": corpus.sizes()})
        return
    show_table(
        ("id", "file", "documents", "size", *SPLITS),
        [
            (each["id"], each["path"], each["documents"], size(each["bytes"]), *(each[split] for split in SPLITS))
            for each in sources
        ],
        long="file",
    )
    next_command("comigs-edge train" if sources else "comigs-edge data add FOLDER")


@app.command("remove")
def remove(source: Annotated[int, typer.Argument(metavar="ID", help="Number of a file, from `data list`.")]) -> None:
    """Forget a file and its documents. What a model has learned from them stays until you train anew."""
    home = homes.locate()
    path = homes.corpus(home, home.settings()).remove(source)
    out.print(f"{printable(path)} was removed", soft_wrap=True)
    next_command("comigs-edge train --fresh")
