"""Texts that somebody else chose reach a terminal and a log without what steers them."""

import io
import logging

import msgspec

from comigs_edge.commands import console
from comigs_edge.fleet.client import Remote
from coordinator import __main__ as program
from coordinator.log import WARNINGS, Harmless, Sparing
from coordinator.protocol import keys
from coordinator.protocol.messages import Join
from coordinator.protocol.text import printable
from tests.coordinator.rig import generalist

EVIL = "smol\x1b]0;owned\x07\x1b[2J\n\rbase fine\u202e[/bold][link=x]"


def test_what_cannot_be_seen_is_written_out_and_all_else_stays():
    assert printable("a\x1b[2J\u202eb\n") == "a\\x1b[2J\\u202eb\\n"
    assert printable("émile, 東京, 3 µs [x]") == "émile, 東京, 3 µs [x]"


def test_a_hostile_name_of_a_base_reaches_the_operator_harmlessly(coordinator, capsys):
    address, code, pin = keys.read_link(coordinator.invite())
    key = keys.new_key()
    public = keys.public_text(key)
    brought = msgspec.structs.replace(generalist(), base_name=EVIL)
    wish = Join(code=code, name=None, public_key=public, generalist=brought, version=EVIL[:30])
    Remote(address, pin, key, keys.device_id(public), 2.0).join(wish)
    for command in ("status", "devices", "rounds"):
        program.main([command, "--data", str(coordinator.data)])
    shown = capsys.readouterr().out
    assert "\\x1b]0;owned" in shown
    assert all(mark.isprintable() or mark == "\n" for mark in shown)


def test_a_warning_shows_a_coordinators_sentence_as_it_is(capsys, monkeypatch):
    console.warn(EVIL)
    shown = "".join(capsys.readouterr())
    assert "\\x1b[2J" in shown
    assert "[/bold][link=x]" in shown
    assert "\x1b" not in shown


def test_the_log_is_harmless_and_bounded_whatever_strangers_do():
    stream, logger = io.StringIO(), logging.Logger("strangers")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Harmless())
    handler.addFilter(Sparing())
    logger.addHandler(handler)
    for number in range(1000):
        logger.warning("no connection: %s", f"{EVIL}{number}")
    logger.info("a device joined")
    lines = stream.getvalue().splitlines()
    assert len(lines) == WARNINGS + 1
    assert all(line.isprintable() for line in lines)
