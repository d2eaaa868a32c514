"""A process that is killed at the Nth change of a folder: before a file is opened for writing, renamed or deleted there."""

import os
import signal
import sys
import traceback

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.chmod"}


def _changes(event, arguments, folder):
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    paths = [os.fspath(each) for each in arguments[:2] if isinstance(each, str | os.PathLike)]
    return (writes or event in CHANGES) and any(path.startswith(f"{folder}{os.sep}") or path == str(folder) for path in paths)


def is_killed(folder, number, action):
    """Whether a fork of this process, which does `action`, came to the Nth change; it must end well where it did not."""
    child = os.fork()
    if child == 0:
        left = number

        def hook(event, arguments):
            nonlocal left
            if event in CHANGES or event == "open":
                left -= _changes(event, arguments, folder)
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"change {number}: {status}"
    return status == signal.SIGKILL


def files_in(folder):
    """Paths relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
