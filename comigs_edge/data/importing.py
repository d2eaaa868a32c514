"""Files whose readers are other people's libraries are read in a process of its own, which has limits and may be ended.

What a damaged or hostile file does to a library (endless loops, gigabytes) costs that file only.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import comigs_edge
from comigs_edge.data.decode import INSTALL
from comigs_edge.data.document import Unreadable

SECONDS = 120  # for one file of ordinary size, and one more for each megabyte
MEMORY = 1 << 30  # bytes of address space
_COMMAND = [sys.executable, "-m", "comigs_edge.data.importing"]
_LIBRARIES = {".html": "lxml", ".htm": "lxml", ".epub": "lxml", ".docx": "docx", ".pdf": "pypdf"}
SUFFIXES = (*_LIBRARIES, ".mbox")


def is_missing(suffix: str) -> bool:
    """Whether files of this kind need the extra `import`, which is not installed."""
    return suffix in _LIBRARIES and find_spec(_LIBRARIES[suffix]) is None


class Importer:
    """Reads such files, one after the other; the process starts with the first and ends with `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path) -> list[str | None]:
        """The texts in a file, None in the place of a damaged one; raises `Unreadable` where there are none, with the reason."""
        if is_missing(path.suffix.lower()):
            raise Unreadable(f"to read it: {INSTALL}")
        try:
            seconds = SECONDS + path.stat().st_size / 1e6
            process = self._process = self._process or _start()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            answer = _ask(process, path)
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            raise Unreadable(f"its reader broke down over it, or took longer than {seconds:,.0f} seconds")
        if "reason" in answer:
            raise Unreadable(str(answer["reason"]))
        return list(answer["texts"])

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _COMMAND, cwd=Path(comigs_edge.__file__).parent.parent, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def _ask(process: subprocess.Popen[bytes], path: Path) -> dict[str, list[str]] | None:
    """The answer for one file, or None from a process that ended."""
    if process.stdin is None or process.stdout is None:
        return None
    try:
        process.stdin.write(json.dumps(str(path)).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        answer: dict[str, list[str]] | None = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return answer


# In that process ------------------------------------------------------------------------------------------------------


def _serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in asked:
        answers.write(json.dumps(_answer(Path(json.loads(line)))).encode() + b"\n")
        answers.flush()


def _answer(path: Path) -> dict[str, str | list[str | None]]:
    try:
        return {"texts": list(_texts(path))}
    except Unreadable as error:
        return {"reason": str(error)}
    except MemoryError:
        return {"reason": f"takes more than {MEMORY >> 20} MB of memory"}
    except RecursionError:
        return {"reason": "nested too deeply"}
    except Exception:  # whatever a library raises over a file costs this file only
        return {"reason": f"damaged, or no {path.suffix.lower()} file"}


def _texts(path: Path) -> Iterator[str | None]:
    from comigs_edge.data import pages  # needed in this process only

    if path.suffix.lower() == ".mbox":
        yield from pages.mails(path)
    else:
        yield pages.READERS[path.suffix.lower()](path.read_bytes())


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _serve(sys.stdin.buffer, answers)
