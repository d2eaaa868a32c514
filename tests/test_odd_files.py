"""Files of any name, kind, content and mode, and homes of any name: an answer or one sentence, never more."""

import json
import os
import re
import shutil
import socket
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from comigs_edge.cli import app
from tests.tiny import some_text

NOBODY = 65534
WORDS = some_text(2, seed=7)
MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")  # what would move the cursor of whoever looks

bytes_of_a_name = st.binary(min_size=1, max_size=30).filter(lambda name: not {0, ord("/")} & set(name))
words_of_a_name = st.text(
    st.sampled_from("[]/\\:*?\"'\n\r\t\x1b\x7f\u202e\u2028 é字🙂ab{}$`").filter(lambda mark: mark != "/"), min_size=1, max_size=12
)
stems = bytes_of_a_name | words_of_a_name.map(os.fsencode)
names = st.builds(bytes.__add__, stems, st.sampled_from([b"", b".txt", b".md", b".jsonl", b".TXT"])).filter(
    lambda name: name not in (b".", b"..") and len(name) < 200
)
texts = st.text(st.characters(codec=None), max_size=60).map(lambda text: f"{text}\n\n{WORDS}")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts, lambda inner: st.lists(inner, max_size=3)
)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": texts})
lines = st.fixed_dictionaries({"messages": st.lists(turns, max_size=3)}) | st.fixed_dictionaries({"text": texts}) | anything
contents = (
    st.binary(max_size=80)
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | texts.map(lambda text: text.encode("utf-16", "surrogatepass"))
    | st.lists(lines, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
kinds = st.sampled_from(["file", "file", "file", "file", "folder", "pipe", "socket", "loop", "device"])
modes = st.sampled_from([0o600, 0o600, 0o400, 0o200, 0o000, 0o755])
entries = st.lists(st.tuples(names, kinds, contents, modes), min_size=1, max_size=3)


@contextmanager
def somebody():
    """Not root, for whom there are no rights."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(me)


@pytest.fixture(scope="module")
def place(tiny_path):
    """A folder of somebody's with a base in it."""
    folder = Path(tempfile.mkdtemp())
    shutil.copy(tiny_path, folder / "base.gguf")
    explore(
        folder,
        [
            (b"a.txt", "file", WORDS.encode(), 0o600),
            (b"b.md", "file", WORDS.encode("utf-16"), 0o600),
            (b"c.jsonl", "file", b'{"text": "a"}\n[1', 0o600),
        ],
    )  # imports what nobody may read
    if os.geteuid() == 0:
        for path in (folder, folder / "base.gguf"):
            os.chown(path, NOBODY, NOBODY)
    yield folder
    for path in folder.rglob("*"):
        with suppress(OSError):
            path.chmod(0o700)
    shutil.rmtree(folder)


def make(folder, name, kind, content, mode):
    path = os.path.join(os.fsencode(folder), name)
    if os.path.lexists(path):
        return
    if kind == "folder":
        os.mkdir(path)
        Path(os.fsdecode(path), "in.txt").write_bytes(content)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with suppress(OSError), socket.socket(socket.AF_UNIX) as server:  # a long path is no address
            server.bind(path)
        return
    elif kind in ("loop", "device"):
        os.symlink(name if kind == "loop" else b"/dev/zero", path)
        return
    else:
        Path(os.fsdecode(path)).write_bytes(content)
    os.chmod(path, mode)


def command(home, *words):
    """The result of a command that nothing may end but an exit code."""
    result = CliRunner().invoke(app, list(map(str, words)), env={"COMIGS_EDGE_HOME": str(home)})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert result.exit_code in (0, 1)
    assert not MOVES.search(result.output.replace("\r\n", "")), result.output
    if result.exit_code:
        assert "error: " in result.stderr
    return result


def explore(place, found):
    """Adds files to a home, and looks at everything."""
    folder = Path(tempfile.mkdtemp(dir=place))
    home = folder / "home"
    assert command(home, "init", "--base", place / "base.gguf").exit_code == 0
    (folder / "text").mkdir()
    for each in found:
        make(folder / "text", *each)
    command(home, "data", "add", folder / "text", *(folder / "text" / os.fsdecode(name) for name, *_ in found[:1]))
    command(home, "data", "add", folder / "text")
    command(home, "data", "add", folder / "text")
    listed = json.loads(command(home, "data", "list", "--json").stdout)
    command(home, "data", "list")
    assert command(home, "status").exit_code == 0
    for source in listed["files"]:
        assert command(home, "data", "remove", source["id"]).exit_code == 0


def explore_home(place, name, mode):
    """Makes a home of this name, closes it, and looks at it."""
    folder = Path(tempfile.mkdtemp(dir=place))
    home = folder / os.fsdecode(name)
    made = command(home, "init", "--base", place / "base.gguf")
    command(home, "status")
    if made.exit_code == 0:
        home.chmod(mode)
        for words in (["status"], ["status", "--json"], ["data", "list"], ["data", "add", place], ["init", "--force"], ["sync"]):
            command(home, *words)
        home.chmod(stat.S_IRWXU)


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # an example takes a second: smaller ones are not searched for
few = settings(
    max_examples=12, deadline=None, derandomize=True, database=None, phases=PHASES, suppress_health_check=list(HealthCheck)
)
many = settings(max_examples=2000, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))


@few
@given(entries)
def test_files_of_any_name_kind_content_and_mode_are_read_or_counted(place, found):
    with somebody():
        explore(place, found)


@few
@given(stems, modes)
def test_a_home_of_any_name_and_mode_answers_or_says_why_not(place, name, mode):
    with somebody():
        explore_home(place, name, mode)


@pytest.mark.torture
@many
@given(entries)
def test_many_files_of_any_name_kind_content_and_mode(place, found):
    with somebody():
        explore(place, found)


@pytest.mark.torture
@many
@given(stems, modes)
def test_many_homes_of_any_name_and_mode(place, name, mode):
    with somebody():
        explore_home(place, name, mode)
