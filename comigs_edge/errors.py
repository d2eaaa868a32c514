"""The errors that are meant for the user: one sentence, what happened and what to do next."""

from __future__ import annotations

import errno
import os

from coordinator.protocol.errors import CoordinatorError, WireError
from profiles import ProfileError
from quantize.formats import QuantizeError


class ComigsError(Exception):
    """Anything the user can put right; the text is one sentence, shown without a traceback."""

    exit_code = 1


class Away(ComigsError):
    """The coordinator cannot be reached now; nothing is lost, and the same command helps later."""

    exit_code = 75  # sysexits' EX_TEMPFAIL


USER_ERRORS = (ComigsError, QuantizeError, ProfileError, WireError, CoordinatorError)
# What the command line turns into one line and exit code 1: those, and what a disk, a right or a byte does to any line of code.
EXPECTED = (*USER_ERRORS, OSError, UnicodeError)

_REMEDIES = {
    errno.EROFS: "the disk is read-only: make it writable, or name another folder with COMIGS_EDGE_HOME",
    errno.ENOSPC: "make room on that disk",
    errno.EIO: "the disk or card fails: save what is on it, and replace it",
    errno.EMFILE: "raise the number of open files with: ulimit -n 4096",
    errno.ENOLCK: "that disk has no locks: name a folder on another one with COMIGS_EDGE_HOME",
}
_REMEDIES |= {
    errno.EDQUOT: _REMEDIES[errno.ENOSPC],
    errno.ENOTSUP: _REMEDIES[errno.ENOLCK],
    errno.ENOSYS: _REMEDIES[errno.ENOLCK],
}


def sentence(error: BaseException) -> str:
    """What a user reads of an error, whatever raised it."""
    if isinstance(error, USER_ERRORS):
        return str(error)
    if isinstance(error, OSError):
        path = error.filename2 or error.filename
        where = f"{os.fsdecode(path)} cannot be used" if isinstance(path, (str, bytes, os.PathLike)) else "the system refused"
        return f"{where} ({error.strerror or error}); {remedy(error)}"
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8 ({error}); save it as UTF-8, and use a UTF-8 terminal: export LC_ALL=C.UTF-8"
    return f"{type(error).__name__}: {error}"


def remedy(error: OSError) -> str:
    """What to do about an error of the system."""
    if error.errno in (errno.EACCES, errno.EPERM):
        name = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
        return f"{name} may not do that: run the command as the owner, or take the folder over with: sudo chown -R $USER FOLDER"
    return _REMEDIES.get(error.errno or 0, "look at that path, then run the command again")
