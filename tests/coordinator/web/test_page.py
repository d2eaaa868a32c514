"""The status page, read by an HTML parser and an XML parser: what it shows, what it escapes, what it never loads."""

import shutil
import ssl
import urllib.request
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from coordinator.ledger import overview
from coordinator.ledger.config import Config
from coordinator.ledger.database import Database
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.payloads import Payloads
from coordinator.protocol import keys
from coordinator.protocol.messages import Join
from coordinator.web import charts, page
from coordinator.web.charts import Point
from tests.coordinator.rig import Coordinator, Member, generalist

EVIL = '<script>alert("1")</script>'
SVG = "{http://www.w3.org/2000/svg}"
EMPTY = {"meta", "br", "link", "input", "img"}


class Read(HTMLParser):
    """Tags, attributes and text; ends that do not fit are an error."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


class Clock:
    now = 1_700_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fleet(tmp_path, clock):
    database = Database(tmp_path / "coordinator.db")
    yield Fleet(database, Payloads(tmp_path), keys.new_key(), Config(), clock)
    database.close()


def join(fleet, name, version="0.1.0"):
    link = fleet.members.invite(name, "https://a:1", bytes(32))["link"]
    public = keys.public_text(keys.new_key())
    wish = Join(code=keys.read_link(link)[1], name=None, public_key=public, generalist=generalist(), version=version)
    return fleet.join(wish).device


def update(fleet, device, number, loss, size=1000):
    fleet.database.run(
        "INSERT INTO updates (device, round, sha256, trained_from, weight, tokens, size, format, averaging, validation_loss, "
        "received) VALUES (?, ?, ?, 0, 65536, 500, ?, 'float16', 'separate', ?, ?)",
        device, number, f"{device}{number}", size, loss, fleet.clock(),
    )  # fmt: skip


def close(fleet, number, rolled_back_to=None):
    fleet.database.run(
        "UPDATE rounds SET closed = ?, published = ?, sha256 = ?, rolled_back_to = ? WHERE number = ?",
        fleet.clock(), fleet.clock(), "ab" * 32, rolled_back_to, number,
    )  # fmt: skip
    fleet.database.run("INSERT INTO rounds (number, opened) VALUES (?, ?)", number + 1, fleet.clock())


def drawings(html):
    """The charts by their titles, as XML."""
    pieces = [piece.split("</svg>")[0] for piece in html.split("<svg")[1:]]
    roots = [ElementTree.fromstring(f'<svg xmlns="http://www.w3.org/2000/svg"{piece}</svg>') for piece in pieces]
    return {root.find(f"{SVG}title").text: root for root in roots}


def test_an_empty_fleet_says_what_to_type(fleet):
    words = Read(page.render(fleet, fleet.clock(), "1")).words
    assert {"comigs-coordinator invite", "comigs-edge join LINK", "comigs-edge train"} <= set(words)
    assert "No base yet: the first device brings it." in words


def test_bars_are_as_high_as_their_numbers(fleet):
    first, second = join(fleet, "a"), join(fleet, "b")
    update(fleet, first, 0, 3.0, size=4000)
    close(fleet, 0)
    update(fleet, first, 1, 2.0, size=1000)
    update(fleet, second, 1, 1.0, size=1000)
    found = drawings(page.render(fleet, 0.0, "1"))
    heights = {title: [float(bar.get("height")) for bar in found[title].iter(f"{SVG}rect")] for title in found}
    assert heights["Devices by round"][1] == pytest.approx(2 * heights["Devices by round"][0], abs=0.2)
    assert heights["Bytes received by round"][0] == pytest.approx(2 * heights["Bytes received by round"][1], abs=0.2)
    close(fleet, 1)
    loss = drawings(page.render(fleet, 0.0, "1"))["Validation loss by round"]
    assert [dot.find(f"{SVG}title").text for dot in loss.iter(f"{SVG}circle")] == ["round 0: 3", "round 1: 1.5"]
    assert loss.find(f"{SVG}desc").text == "Round 0: 3; round 1: 1.5; lowest 1.5, highest 3."


def test_refusals_stand_beside_the_updates_of_their_round_and_with_their_device(fleet):
    first, second = join(fleet, "a"), join(fleet, "b")
    for number in range(2):
        update(fleet, first, number, 2.0)
        update(fleet, second, number, 2.0)
        close(fleet, number)
    fleet.database.run("INSERT INTO refusals VALUES (?, 1, 2, 3)", second)
    html = page.render(fleet, 0.0, "1")
    chart = drawings(html)["Devices by round"]
    bars = {bar.get("class"): float(bar.get("height")) for bar in chart.iter(f"{SVG}rect")}  # the last of each kind
    refused = [bar.find(f"{SVG}title").text for bar in chart.iter(f"{SVG}rect") if bar.get("class") == "refused"]
    assert refused == ["round 1: refused by 1"]
    full = max(float(bar.get("height")) for bar in chart.iter(f"{SVG}rect"))
    assert bars["refused"] == pytest.approx(full / 2, abs=0.2)  # of two updates
    assert "updates in each round; narrow: devices that refused its generalist" in Read(html).words
    assert [device["refusals"] for device in overview.devices(fleet)] == [0, 1]


def test_the_round_its_deadline_and_contacts_are_in_words(fleet, clock):
    device = join(fleet, "kitchen-pi")
    close(fleet, 0)
    update(fleet, device, 1, None)
    clock.now += 600
    words = " ".join(Read(page.render(fleet, clock.now - 7200, "9.9")).words)
    assert "Round 1, open" in words
    assert "deadline in 20 minutes, then 1 update will do" in words  # 1,800 seconds after the first update
    assert "10 minutes ago" in words
    assert "comigs-coordinator 9.9, running for 2 hours" in words


def test_devices_that_are_silent_or_revoked_are_named_so(fleet, clock):
    join(fleet, "old")
    clock.now += fleet.config.rounds.active_seconds + 1
    join(fleet, "new")
    join(fleet, "out")
    fleet.revoke("out")
    words = Read(page.render(fleet, 0.0, "1")).words
    names = [word for word in words if word in ("old", "new", "out", "silent", "active", "revoked")]
    assert names == ["old", "silent", "new", "active", "out", "revoked"]


def test_a_generalist_that_was_turned_back_is_shown(fleet):
    device = join(fleet, "a")
    for number in range(3):
        update(fleet, device, number, 2.0 + number)
        close(fleet, number, rolled_back_to=0 if number == 2 else None)
    html = page.render(fleet, 0.0, "1")
    assert {"0 again", "round 2 was the last"} <= set(Read(html).words)
    turns = [line for line in drawings(html)["Validation loss by round"].iter(f"{SVG}line") if line.get("class") == "turn"]
    assert len(turns) == 1


def test_a_disk_that_is_nearly_full_stands_out(fleet, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 10**10 - 10**8, 10**8))
    found = Read(page.render(fleet, 0.0, "1"))
    assert {"100 MB", "little is left: make room"} <= set(found.words)
    assert ("div", "class", "tile bad") in found.attributes


def test_whatever_devices_choose_is_text_and_nothing_else(fleet):
    device = join(fleet, "a", version=EVIL)
    fleet.database.run("UPDATE devices SET name = ? WHERE id = ?", EVIL, device)
    bad = generalist().__class__(base_name=EVIL, base_sha256="ab" * 32, form='"><script>', scale=1.0, tensors={"a": (1,)})
    fleet.database.set_fact("generalist", keys.encode(bad).decode())
    found = Read(page.render(fleet, 0.0, EVIL))
    assert "script" not in found.tags
    assert " ".join(found.words).count(EVIL) >= 3


def test_the_page_loads_nothing_and_every_reference_is_met(fleet):
    device = join(fleet, "a")
    update(fleet, device, 0, 2.0)
    close(fleet, 0)
    found = Read(page.render(fleet, 0.0, "1"))
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(found.tags)
    assert {value for _, name, value in found.attributes if name in ("href", "src")} == {"/metrics", "/openapi.json"}
    assert "url(" not in page.CSS
    assert "@import" not in page.CSS
    ids = [value for _, name, value in found.attributes if name == "id"]
    named = [part for _, name, value in found.attributes if name == "aria-labelledby" for part in value.split()]
    assert len(ids) == len(set(ids))
    assert set(named) <= set(ids)
    scopes = [value for tag, name, value in found.attributes if (tag, name) == ("th", "scope")]
    assert found.tags.count("th") == len(scopes)


@example(0.0, 5e-324, False)
@given(some.floats(-1e9, 1e9), some.floats(0, 1e9), some.booleans())
def test_ticks_are_few_evenly_spaced_and_hold_all_values(low, span, is_count):
    high = low + span
    ticks = charts.ticks(low, high, is_count)
    gap = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 7
    assert ticks[0] <= low + gap * 1e-6
    assert ticks[-1] >= high - gap * 1e-6
    assert all(b - a == pytest.approx(gap, rel=1e-3) for a, b in pairwise(ticks))


@pytest.mark.parametrize("values", [[], [None], [0.0], [2.5], [2.5, None, 2.5], [1e-9, 1e9]])
def test_any_number_of_rounds_can_be_drawn(values):
    points = [Point(number, value) for number, value in enumerate(values)]
    for drawing in (charts.line("a", "A", points, str), charts.bars("a", "A", points, str, is_count=True)):
        assert "nan" not in ElementTree.tostring(ElementTree.fromstring(drawing)).decode()


def test_the_served_page_forbids_scripts_and_foreign_things(tmp_path):
    coordinator = Coordinator(tmp_path / "data")
    try:
        Member(coordinator.invite("kitchen-pi"))
        with urllib.request.urlopen(coordinator.address, context=ssl._create_unverified_context()) as answer:
            headers, html = answer.headers, answer.read().decode()
    finally:
        coordinator.stop()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert "script-src" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "kitchen-pi" in Read(html).words
