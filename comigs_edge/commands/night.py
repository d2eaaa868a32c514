"""One run of the service: what was added is read again, the model is trained on, generalists are exchanged."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from comigs_edge.commands import owner
from comigs_edge.commands.console import bar, counted, notes, unbroken_output
from comigs_edge.commands.settings import settings_of
from comigs_edge.data import documents
from comigs_edge.data.corpus import Corpus, Report
from comigs_edge.data.folders import folders_of, stored_name
from comigs_edge.data.secrets import find_in_files
from comigs_edge.errors import EXPECTED, sentence
from comigs_edge.home import folder as homes
from comigs_edge.home.folder import Home
from comigs_edge.home.night import Night, write_night


def run_night(home: Home) -> None:
    """Does all of it, and writes what was done and what was left; raises what ended the training."""
    began, left = time.strftime("%Y-%m-%d %H:%M"), list[str]()
    read, trained = "nothing was read", "nothing was trained"
    try:
        read = _read_again(home, left)
        notes.print(read, soft_wrap=True)
        trained = _train_on(home, left)
    except EXPECTED as error:
        left.append(sentence(error))
        raise
    except BaseException as error:
        left.append(f"it was ended early ({type(error).__name__})")
        raise
    finally:
        with suppress(*EXPECTED):  # a full disk, which the training has told
            write_night(home.night_file, Night(began=began, read=read, trained=trained, left=tuple(left)))


def _read_again(home: Home, left: list[str]) -> str:
    """Reads folders and files as they were added. Nobody can be asked: what would need an answer is left."""
    corpus = homes.corpus(home, settings_of(home))
    folders, alone, kept_out = corpus.added()
    counts, forgotten = Counter[str](), 0
    for path in [*folders, *(path for path in alone if path != home.chats_file and path.is_file())]:
        if not path.exists():
            left.append(f"{path} is not there: its text stays; to forget it: comigs-edge data remove {path}")
            continue
        try:
            report = _read_path(home, corpus, path, kept_out)
        except EXPECTED as error:
            left.append(f"{path} was not read: {sentence(error)}")
            continue
        counts.update({"added": report.added, "changed": report.changed, "moved": report.moved, "gone": report.gone})
        forgotten += report.forgotten
    files = ", ".join(f"{counts[name]} {name}" for name in ("changed", "moved", "gone") if counts[name])
    where = counted(len(folders), "folder")
    told = f"{where} read again: {counted(counts['added'], 'document')} new{f'; files: {files}' if files else ''}"
    return f"{told}; {counted(forgotten, 'forgotten document')} left out" if forgotten else told


def _read_path(home: Home, corpus: Corpus, path: Path, kept_out: set[Path]) -> Report:
    with bar("reading") as progress:
        reading = documents.read([path], None, owner.asker(home.owner_file, [path], progress.stop), progress)
    for found in [*reading.files]:
        if kept_out.intersection([Path(stored_name(found)), *map(Path, folders_of(found))]):
            del reading.files[found]
    find_in_files(reading.files, lambda file: not corpus.with_secrets(file))
    with bar("taking in") as progress:
        return corpus.add(reading, [path] if path.is_dir() else [], progress)


def _train_on(home: Home, left: list[str]) -> str:
    from comigs_edge.commands.train import perform
    from comigs_edge.fleet.folder import FleetFolder
    from comigs_edge.training.checkpoint import Latest
    from comigs_edge.training.known import is_learned
    from comigs_edge.training.learned import find_remains

    settings = settings_of(home)
    corpus = homes.corpus(home, settings)
    if remains := find_remains(home, corpus):
        left.append(f"text that is gone was learned by {remains}; to be without it: comigs-edge data remove --learned")
    if missing := corpus.missing():
        left.append(missing)
        return "nothing was trained"
    is_alone = not FleetFolder(home).is_member
    if is_alone and is_learned(home, settings, Latest(home.state).state):
        return "nothing was trained: there is nothing new to learn from"
    with unbroken_output():
        result = perform(None, None, None, pause=True, sync=True, profile=None, lines=None, json=False)
    if not result["finished"]:
        left.append("the training was stopped, and goes on with the next one")
    fleet = result["fleet"]
    if fleet is not None and (why := fleet["trouble"] or fleet["kept_out"] or fleet["round_waits"]):
        left.append(str(why))
    elif not is_alone and not settings.fleet.sync:
        left.append("nothing was exchanged with the fleet: sync = false in config.toml")
    return _tell(result)


def _tell(result: dict[str, Any]) -> str:
    losses = f"validation loss {result['validation_loss_before']:.4f} before, {result['validation_loss']:.4f} after"
    version, fleet = result["adapters_version"], result["fleet"]
    taken = "nothing better was found, the model stays as it was" if version is None else f"version {version} is used from now on"
    exchanged = ""
    if fleet:
        exchanged = f"; {counted(fleet['updates'], 'update')} brought, {counted(fleet['generalists'], 'generalist')} taken over"
    return f"{result['expert_steps']} steps trained: {losses}; {taken}{exchanged}"
