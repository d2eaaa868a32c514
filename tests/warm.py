"""Processes of Python that have their libraries: forks of one that has imported them, which every process needs a second for.

The program itself is imported anew in each, on streams, in a folder and with an environment of its own, and it is a child of
the one that asks, which signals it and waits for it as for any other. What is about the start of a process, or about streams
and terminals, starts one without this.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

COORDINATOR = ("aiohttp.web", "cryptography.x509", "http_message_signatures", "msgspec", "numpy", "safetensors")
DEVICE = (
    "torch", "llama_cpp", "typer", "rich.console", "rich.progress", "requests", "tenacity", "jinja2", "filelock", "psutil",
    "platformdirs", *COORDINATOR,
)  # fmt: skip
LIBRARIES = {"comigs_edge": DEVICE, "coordinator": COORDINATOR}
AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "OMP_", "GOMP_", "MKL_", "MALLOC_")  # what a process reads when it starts
ENVIRONMENT = dict(os.environ)
ROOT = Path(__file__).parents[1]
STREAMS = (("stdin", "r", {}), ("stdout", "w", {}), ("stderr", "w", {"buffering": 1, "errors": "backslashreplace"}))
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
REQUEST = 1 << 17  # bytes, at most


class Process(subprocess.Popen):
    """As `subprocess.Popen([sys.executable, *words])`, where `words` begin with `-m comigs_edge`, `-m coordinator`, or `-c` and a
    program for the device."""

    def __init__(self, words, **options):
        super().__init__([sys.executable, *map(str, words)], **options)

    def _execute_child(
        self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *rest
    ):
        environment = dict(os.environ if env is None else env)
        assert not preexec_fn
        assert not pass_fds
        if _at_start(environment) != _at_start(ENVIRONMENT):
            super()._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *rest
            )
            return
        pipes = rest[:6]
        streams = [pipe if pipe >= 0 else number for number, pipe in enumerate(pipes[place] for place in (0, 3, 5))]
        package = args[2] if args[1] == "-m" else "comigs_edge"
        self.pid = _nursery(package).fork({"words": args[1:], "cwd": cwd or os.getcwd(), "environment": environment}, streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def run(words, *, check=False, capture_output=False, timeout=None, **options):
    """As `subprocess.run`, without input."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(words, **options) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


class Nursery:
    """The process that is forked."""

    def __init__(self, libraries):
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, "-m", "tests.warm", str(theirs.fileno()), *libraries]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        self._process = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=ENVIRONMENT, cwd=ROOT, **quiet)
        theirs.close()
        self._lock = threading.Lock()

    def fork(self, request, streams):
        """The process id of a new child of this process."""
        with self._lock:
            _adopt(True)  # the child of a child that ends is ours
            try:
                data = array.array("i", streams)
                self._ours.sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, data)])
                return int(self._ours.recv(100))
            finally:
                _adopt(False)

    def close(self):
        self._ours.close()
        self._process.wait()


_nurseries: dict[tuple[str, ...], Nursery] = {}


def _nursery(package):
    libraries = LIBRARIES[package]
    if libraries not in _nurseries:
        _nurseries[libraries] = Nursery(libraries)
        atexit.register(_nurseries[libraries].close)
    return _nurseries[libraries]


def _at_start(environment):
    return {name: value for name, value in environment.items() if name.startswith(AT_START)}


def _adopt(wanted):
    assert ctypes.CDLL(None).prctl(SUBREAPER, int(wanted), 0, 0, 0) == 0


def _serve(server):
    """Forks until nobody asks any more; returns the request in the child that is to do it."""
    while True:
        data, ancillary, _, _ = server.recvmsg(REQUEST, socket.CMSG_SPACE(3 * array.array("i").itemsize))
        if not data:
            sys.exit()
        streams = array.array("i", ancillary[0][2]).tolist()
        reader, writer = os.pipe()
        between = _fork()
        if between == 0:
            child = _fork()
            if child:
                os.write(writer, str(child).encode())
                os._exit(0)
            server.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for each in (*streams, reader, writer):
                os.close(each)
            return json.loads(data)
        os.close(writer)
        for stream in streams:
            os.close(stream)
        child = os.read(reader, 100)
        os.close(reader)
        os.waitpid(between, 0)
        server.send(child)


def _fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's idle threads; it is made for this
        return os.fork()


def _prepare(request):
    """What a process has at its start."""
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = os.getcwd()
    for number, (name, mode, settings) in enumerate(STREAMS):
        stream = open(number, mode, encoding=sys.stdout.encoding, closefd=False, **settings)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    words = request["words"]
    sys.orig_argv = [sys.executable, *words]
    return words


def main():
    """Serves on the socket that the first argument names, with the libraries that the others name."""
    server = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()
    words = _prepare(_serve(server))
    sys.argv = ["-c", *words[2:]]
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)


if __name__ == "__main__":
    main()
