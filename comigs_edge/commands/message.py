"""What a model is to answer: from options and pipes, or as a person types it."""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from comigs_edge.commands.console import out, warn
from comigs_edge.data.decode import decode
from comigs_edge.data.document import Unreadable
from comigs_edge.errors import ComigsError
from coordinator.protocol.text import well_formed

QUOTES = '"""'
NO_MESSAGE = "there is no message to answer; give one: comigs-edge chat --prompt TEXT"


def find_message(prompt: str | None, file: Path | None) -> str | None:
    """What is to be answered once; None where a person types. Raises `ComigsError` where there is not a word."""
    if prompt is None and file is None and is_typed():
        return None
    from_input = prompt == "-" or str(file) == "-" or (prompt is None and file is None)
    if not from_input and prompt is not None and file is None and _is_unread():
        warn("standard input is not read beside --prompt; to put it below the prompt: --file -")
    parts = [prompt if prompt and prompt != "-" else "", sys.stdin.read() if from_input else ""]
    if file is not None and str(file) != "-":
        parts.append(_text(file.expanduser()))
    if any("\0" in part for part in parts):
        raise ComigsError("standard input is binary data; give text")
    message = well_formed("\n\n".join(part.strip("\n") for part in parts if part.strip()))
    if not message:
        raise ComigsError(NO_MESSAGE)
    return message


def _text(file: Path) -> str:
    try:
        return decode(file.read_bytes())[0]
    except Unreadable as error:
        raise ComigsError(f"{file} cannot be read: {error}; name a file with text") from error


def is_typed() -> bool:
    """Whether a person types what is to be answered."""
    return sys.stdin.isatty()


def _is_unread() -> bool:
    """Whether a pipe or a file with something in it is standard input."""
    with suppress(OSError, ValueError):
        return not is_typed() and any(fcntl.ioctl(sys.stdin, termios.FIONREAD, bytes(4)))
    return False


def is_dumb() -> bool:
    """Whether the terminal can do nothing but print lines."""
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")


def enable_line_editing() -> None:
    """Cursor keys and a history for `input`; and what is pasted comes as one message."""
    with suppress(ImportError):
        import readline

        if not is_dumb():
            readline.parse_and_bind("set enable-bracketed-paste on")


def read_message(prompt: str = "\n> ") -> str:
    """What a person typed: a line, what they pasted, or all lines between two marks of three quotes."""
    text = input(prompt).strip()
    if text.startswith(QUOTES):
        text = text.removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            text += "\n" + input("... ")
        text = text.rstrip().removesuffix(QUOTES).strip()
    return well_formed(text)


def edit(text: str) -> str:
    """The text as a person changes it, in their $EDITOR or by typing it anew; unchanged where they leave it empty."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if editor and sys.stdin.isatty() and not is_dumb():
        return _edit_in(editor, text)
    hint = "" if editor or is_dumb() else "; with EDITOR set it opens in your editor"
    out.print(f"the answer as it should have been; nothing leaves it as it is{hint}", style="dim", soft_wrap=True)
    with _prefilled("" if is_dumb() or "\n" in text else text):
        return read_message("edit> ") or text


@contextmanager
def _prefilled(text: str) -> Iterator[None]:
    """The next line that is typed begins as this text."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        yield
    finally:
        readline.set_startup_hook(None)


def _edit_in(editor: str, text: str) -> str:
    """Raises `ComigsError` if the editor cannot be started, or ends with an error."""
    number, name = tempfile.mkstemp(prefix="answer-", suffix=".txt")  # for the owner alone
    path = Path(name)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
        try:
            subprocess.run([*shlex.split(editor), name], check=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise ComigsError(f"EDITOR = {editor} could not edit the answer ({error}); it stays as it was") from error
        return well_formed(path.read_text(encoding="utf-8", errors="replace")).strip() or text
    finally:
        path.unlink(missing_ok=True)
