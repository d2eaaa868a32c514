"""`comigs-edge data add | list | remove`: the text that the model learns from."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.commands import owner, reading_report
from comigs_edge.commands.chats import agree
from comigs_edge.commands.console import bar, counted, fact, next_command, out, print_json, show_table, size, warn
from comigs_edge.commands.number import refuse_range
from comigs_edge.commands.secret_report import as_table, secret_lines
from comigs_edge.commands.settings import settings_of
from comigs_edge.data import documents
from comigs_edge.data.arrangement import SPLITS
from comigs_edge.data.corpus import Corpus, Report
from comigs_edge.data.document import Document
from comigs_edge.data.documents import Reading
from comigs_edge.data.folders import Manner
from comigs_edge.data.secrets import find_in_files
from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import Home
from comigs_edge.inference.history import History
from coordinator.protocol.text import printable

if TYPE_CHECKING:
    from comigs_edge.training.learned import Remains

app = typer.Typer(no_args_is_help=True, help="The text that your model learns from; it never leaves this device.")


@app.command("add")
def add(
    paths: Annotated[
        Optional[list[Path]], typer.Argument(metavar="PATH...", help="Folders and files; docs/guide.md says which kinds.")
    ] = None,
    chats: Annotated[bool, typer.Option("--chats", help="The answers of your chats that are marked as good or edited.")] = False,
    me: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help="Your name in conversations: your messages are learned. May be repeated; '' for none."),
    ] = None,
    local: Annotated[
        Optional[bool],
        typer.Option("--local/--shared", help="Local text teaches only the specialists: nothing of it leaves in a fleet, not "
                     "even as a gradient. What was added before stays as it was; new text is shared"),
    ] = None,
    without_secrets: Annotated[
        Optional[bool],
        typer.Option("--without-secrets/--with-secrets", help="Leave out passages and chats with what looks like keys, "
                     "passwords, card or phone numbers; stays so for these files and folders."),
    ] = None,
    forgotten: Annotated[
        bool, typer.Option("--forgotten", help="Also what was forgotten (comigs-edge forget): it is learned again.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, with every reason for which something was left out.")] = False,
) -> None:  # fmt: skip
    """Add text: notes, pages, chats, exports of messengers. A file that was added before is replaced."""
    from comigs_edge.training.learned import find_remains
    from comigs_edge.training.next_step import find_next

    if not paths and not chats:
        raise typer.BadParameter("name folders or files, or give --chats")
    home, paths = homes.locate(), paths or []
    settings = settings_of(home)
    corpus = homes.corpus(home, settings)
    marked = _read_chats(home, corpus) if chats else {}
    reading = _read(home, corpus, paths, me) if paths else Reading()
    reading.files |= marked
    manner = Manner(local, None if without_secrets is None else not without_secrets, forgotten)
    asked = manner.with_secrets
    secrets = find_in_files(reading.files, lambda path: not (corpus.with_secrets(path) if asked is None else asked))
    folders = [path for each in paths if (path := each.expanduser().absolute()).is_dir()]
    with bar("taking in") as progress:
        report = corpus.add(reading, folders, progress, manner)
    owner.remember(home.owner_file, reading.owners, reading.authors)
    for line in reading_report.warnings(reading):
        warn(line)
    sizes, missing = corpus.sizes(), corpus.missing()
    for line in (*reading_report.locality(report, local), *secret_lines(secrets)):
        warn(line)
    then = find_next(home, settings, has_new_text=True)
    if missing:
        warn(missing)
    if json:
        table = reading_report.as_table(reading, report) | as_table(secrets)
        print_json(table | {"splits": sizes, "missing": missing, "next": then})
        return
    _show(reading, report, [*map(str, paths), *(["--chats"] if chats else [])])
    for split in SPLITS:
        out.print(f"  {split:<11}{sizes[split]['documents']:>6} documents  {size(sizes[split]['bytes'])}")
    if report.gone:
        _say_remains(find_remains(home, corpus))
    next_command(then)


def _read(home: Home, corpus: Corpus, paths: list[Path], me: list[str] | None) -> Reading:
    with bar("reading") as progress:
        ask = owner.asker(home.owner_file, paths, progress.stop)
        try:
            return documents.read(paths, None if me is None else [name for name in me if name], ask, progress)
        except ComigsError as error:
            raise ComigsError(f"{error}{_staying(corpus, paths)}") from error


def _read_chats(home: Home, corpus: Corpus) -> dict[Path, list[Document]]:
    """What is learned of the chats that are kept, as the documents of their file; raises `ComigsError` where there is nothing."""
    history = History(home.chats_file)
    found = history.documents()
    if not found and not corpus.inside(home.chats_file):
        raise ComigsError("no answer of a kept chat is marked; in a chat, /good marks the last one and /edit mends it")
    agree(history)
    corpus.allow_files([home.chats_file])  # an answer that is marked after they were forgotten is to be learned
    return {home.chats_file: found}


def _show(reading: Reading, report: Report, named: list[str]) -> None:
    """What was done, and what else of what was `named` could be added."""
    for number, document in enumerate(report.samples, 1):
        fact(f"sample {number}", f" ({document.kind})")
        out.print(_excerpt(document), style="dim")
    repeats = f"{report.repeats} repeats, " if report.repeats else ""
    out.print(
        f"\n{report.added} documents added from {len(reading.files)} files; left out: {report.duplicates} that are there "
        f"already, {repeats}{report.near_duplicates} near-duplicates, {reading.empty} empty, {len(reading.skipped)} unreadable "
        f"files, {sum(reading.ignored.values())} files of other kinds",
        soft_wrap=True,
    )
    for line in (*reading_report.remarks(reading), *reading_report.forgotten(report, named), *_remarks(report)):
        out.print(f"  {line}", soft_wrap=True)


def _staying(corpus: Corpus, paths: Sequence[Path]) -> str:
    """What is said where nothing could be read, of files that were added from there and are gone: their text stays."""
    gone = {
        path: len(files) for path in paths if (files := corpus.inside(path)) and not any(map(os.path.lexists, files.values()))
    }
    if not gone:
        return ""
    count, where = counted(sum(gone.values()), "file"), " ".join(shlex.quote(str(path)) for path in gone)
    return f"; the text of {count} that were added from there before stays; to forget it: comigs-edge data remove {where}"


def _remarks(report: Report) -> list[str]:
    """What else is to be said of what was added."""
    files = {
        "moved": report.moved, "changed": report.changed, "gone": report.gone,
        "read anew (nobody touched them; they are read otherwise now)": report.read_anew,
    }  # fmt: skip
    left = reading_report.left_out({"unanswered": report.unanswered, "beginning": report.beginnings, "learned": report.learned})
    counts = {
        "of the files that were added before: " + ", ".join(f"{n} {what}" for what, n in files.items() if n): sum(files.values()),
        f"of the text of an earlier version left out: {reading_report.left_out(report.taken_over)}": report.taken_over.total(),
        f"left out: {left}": len(left),
        f'{report.unscored} answers are not learned: "weight": 0, or not marked': report.unscored,
        f"{report.control_tokens} documents have control tokens written out, which are read as plain text": report.control_tokens,
    }
    return [line for line, count in counts.items() if count]


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
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    settings = settings_of(home)
    corpus = Corpus(home.documents_file)
    sources = corpus.sources()
    if json:
        print_json({"files": sources, "splits": corpus.sizes(), "left_out": corpus.left_out()})
        return
    show_table(
        ("id", "file", "text", "documents", "size", *SPLITS),
        [
            (
                *(each["id"], each["path"], "local" if each["local"] else "shared", each["documents"], size(each["bytes"])),
                *(each[split] for split in SPLITS),
            )
            for each in sources
        ],
        long="file",
    )
    if left := reading_report.left_out(corpus.left_out()):
        out.print(f"left out: {left}", soft_wrap=True)
    next_command(find_next(home, settings))


@app.command("remove")
def remove(
    files: Annotated[
        Optional[list[str]], typer.Argument(metavar="ID|PATH...", help="Numbers of files, from `data list`, or their folder.")
    ] = None,
    learned: Annotated[
        bool, typer.Option("--learned", help="Delete the adapters, models and checkpoints that have learned removed text, too.")
    ] = False,
) -> None:
    """Forget files and their documents. What a model has learned from them stays until you delete it or train anew."""
    from comigs_edge.training.learned import delete_remains, find_remains
    from comigs_edge.training.next_step import find_next

    if not files and not learned:
        raise typer.BadParameter("give the ID of a file, --learned, or both")
    home = homes.locate()
    settings = settings_of(home)
    corpus = homes.corpus(home, settings)
    with home.lock("data remove") if learned else nullcontext():
        numbers = dict.fromkeys(number for each in files or () for number in find_numbers(corpus, each))
        folders = [Path(each).expanduser().absolute() for each in files or () if not each.isdecimal()]
        for path in corpus.remove(*numbers, folders=folders) if numbers else ():
            out.print(f"{printable(path)} was removed", soft_wrap=True)
        remains = find_remains(home, corpus)
        if learned:
            delete_remains(home, remains)
    if learned:
        out.print(f"deleted: {remains}" if remains else "nothing that is kept has learned removed text", soft_wrap=True)
    else:
        _say_remains(remains)
    next_command(find_next(home, settings))


def find_numbers(corpus: Corpus, file: str) -> Iterable[int]:
    """The files that a person names by a number or a path."""
    if file.isdecimal():
        return [int(file)]
    if not (known := corpus.inside(Path(file))):
        refuse_range(file)
        raise ComigsError(f"no file was added from {file}; see: comigs-edge data list")
    return known


def _say_remains(remains: Remains) -> None:
    if remains:
        out.print(f"removed text was learned by {remains}; delete with: comigs-edge data remove --learned", soft_wrap=True)
