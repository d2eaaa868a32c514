"""An engine's tasks and answers against the real coordinator: the same updates make the same generalists, byte for byte."""

import contextlib
import time
from dataclasses import replace

import numpy as np
import pytest

from comigs_edge.errors import ComigsError
from comigs_edge.fleet.outcome import Judgement
from coordinator.protocol import tasks
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.tasks import Task
from tests.coordinator.rig import Coordinator, random_arrays
from tests.flare.rig import Site, open_desk, round_of
from tests.fleet.rig import Device

LEARNED = ((1, 2), (3, 4), (5, 6), (7, 8))  # seeds of what the two devices learn before each round


def learn(devices, seeds, factor=0.1):
    for device, seed in zip(devices, seeds, strict=True):
        device.learn({name: array * np.float32(factor) for name, array in random_arrays(seed).items()})


def published(manifests):
    """What is the same whoever signed it."""
    facts = ("round", "sha256", "size", "devices", "base_sha256", "change_sha256", "change_size")
    return [tuple(getattr(manifest, name) for name in facts) for manifest in manifests]


def on_http(running, root):
    """Two devices and four rounds, the second device twice as far in the last."""
    devices = [Device(root / name).join_coordinator(running.invite(name)) for name in ("a", "b")]
    devices[0].exchange(tokens=0)
    running.until(lambda status: status["newest_round"] == 0)
    for number, seeds in enumerate(LEARNED, 1):
        learn(devices, seeds, 0.1 if number < 4 else 3.0)
        for device in devices:
            device.exchange()
        running.until(lambda status, number=number: status["newest_round"] == number)
    device = devices[0]
    return [device.books.check(link) for link in device.transport.manifests(-1)], devices


def on_engine(desk, root):
    sites = [Site(root / name, name).join(desk) for name in ("a", "b")]
    round_of(desk, sites)
    assert desk.fleet.chain.newest_number == 0
    for number, seeds in enumerate(LEARNED, 1):
        learn([site.device for site in sites], seeds, 0.1 if number < 4 else 3.0)
        round_of(desk, sites)
        assert desk.fleet.chain.newest_number == number
    return [sites[0].device.books.check(link) for link in desk.fleet.chain.manifests(-1)], sites


@pytest.fixture
def desk(tmp_path):
    with open_desk(tmp_path / "coordinator") as desk:
        yield desk


def test_the_same_updates_make_the_same_generalists_whichever_way_they_came(coordinator, desk, tmp_path):
    expected, _ = on_http(coordinator, tmp_path / "http")
    found, _ = on_engine(desk, tmp_path / "engine")
    assert len(expected) == len(LEARNED) + 1
    assert published(found) == published(expected)
    for manifest in expected:
        theirs = (coordinator.data / "payloads" / manifest.sha256).read_bytes()
        assert desk.fleet.payloads.path(manifest.sha256).read_bytes() == theirs


def test_a_fleet_moves_to_an_engine_and_back_without_losing_a_generalist(coordinator, tmp_path):
    manifests, devices = on_http(coordinator, tmp_path / "http")
    newest = len(manifests) - 1
    coordinator.stop()
    ways = [device.transport for device in devices]
    with open_desk(coordinator.data) as desk:
        sites = [Site(device.folder.root.parent, name, device) for device, name in zip(devices, "ab", strict=True)]
        for site in sites:
            site.open()
        for number in (1, 2):
            learn(devices, (8 + number, 18 + number))
            round_of(desk, sites)
            assert desk.fleet.chain.newest_number == newest + number
    coordinator.restart()
    for device, way in zip(devices, ways, strict=True):
        device.transport = way
        device.transport.address = coordinator.address
        device.open()
    learn(devices, (13, 14))
    for device in devices:
        device.exchange()
    coordinator.until(lambda status: status["newest_round"] == newest + 3)
    chain = [devices[0].books.check(link) for link in ways[0].manifests(-1)]
    assert published(chain[: newest + 1]) == published(manifests)
    assert [manifest.devices for manifest in chain] == [1] + [2] * (newest + 3)


def read(sent):
    return tasks.unpack(b"".join(sent), Task)


def begin(desk, tmp_path, names="ab"):
    """Sites with generalist 0."""
    sites = [Site(tmp_path / name, name).join(desk) for name in names]
    round_of(desk, sites)
    return sites


def test_a_site_that_is_gone_is_waited_for_no_longer_than_the_deadline(tmp_path):
    now = [time.time()]
    with open_desk(tmp_path / "data", lambda: now[0], deadline_seconds=60) as desk:
        sites = begin(desk, tmp_path)
        learn([site.device for site in sites], (1, 2))
        round_of(desk, sites[:1])
        assert desk.fleet.chain.newest_number == 0
        now[0] += 61
        desk.tick()
        assert desk.fleet.chain.newest_number == 1
        round_of(desk, sites)  # what it has learned meanwhile is in the next one
        norms = desk.fleet.database.rows("SELECT device, norm FROM updates WHERE round = 2")
        assert {row["device"]: row["norm"] > 0 for row in norms} == {sites[0].id: False, sites[1].id: True}


def test_an_update_that_died_with_the_server_comes_with_the_next_task(desk, tmp_path):
    [site] = begin(desk, tmp_path, "a")
    learn([site.device], (1,))
    [(_, task)] = desk.tasks(["a"])
    site.hear(task)
    site.device.exchange()
    assert site.answer  # and nobody enters it
    learned = site.device.local
    round_of(desk, [site])
    round_of(desk, [site])
    newest = site.device.books.kept.read(1)
    assert all(np.allclose(newest[name], learned[name], rtol=2**-10, atol=1e-4) for name in newest)  # means are rounded


def test_an_answer_that_comes_twice_counts_once(desk, tmp_path):
    [site] = begin(desk, tmp_path, "a")
    learn([site.device], (1,))
    [(_, task)] = desk.tasks(["a"])
    site.hear(task)
    site.device.exchange()
    answer = site.answer
    assert desk.enter("a", answer) is None
    desk.tick()
    assert desk.enter("a", answer) is None
    assert desk.fleet.database.value("SELECT count(*) FROM updates WHERE update_id IS NOT NULL AND round > 0") == 1


def test_a_site_cannot_speak_as_another(desk, tmp_path):
    first, _ = begin(desk, tmp_path)
    learn([first.device], (1,))
    [(_, task)] = desk.tasks(["a"])
    first.hear(task)
    first.device.exchange()
    task, _ = read(desk.enter("b", first.answer))
    assert task.problem.error == "other_site"
    assert desk.fleet.updates_in()[0] == 0


def test_a_site_is_admitted_under_its_own_name_only(desk, tmp_path):
    begin(desk, tmp_path, "a")
    other = Site(tmp_path / "other", "a")
    with pytest.raises(ComigsError, match="there is a device a already"):
        other.join(desk)


def test_a_device_that_was_removed_is_not_let_in_by_its_kit(desk, tmp_path):
    first, _ = begin(desk, tmp_path)
    desk.fleet.revoke("a")
    learn([first.device], (1,))
    with pytest.raises(ComigsError, match="was removed from the fleet"):
        first.join(desk)
    [(_, task)] = desk.tasks("a")
    first.hear(task)
    assert read(task)[1] == b""  # it hears of no generalist
    first.carried.read()
    first.carried.answer(device=first.id)
    assert read(first.answer_of(desk))[0].problem.error == "revoked"


def test_a_home_that_lost_its_membership_becomes_the_same_member_again(desk, tmp_path):
    [site] = begin(desk, tmp_path, "a")
    identity = site.id
    assert site.join(desk).id == identity
    assert len(desk.fleet.members.devices) == 1


def test_a_stranger_hears_of_no_generalist_and_a_newcomer_of_no_change(desk, tmp_path):
    sites = begin(desk, tmp_path, "a")
    for seed in (1, 2):
        learn([site.device for site in sites], (seed,))
        round_of(desk, sites)
    newcomer = Site(tmp_path / "b", "b")
    joined, _ = read(newcomer.ask_to_join(desk))
    told = [read(task) for _, task in desk.tasks("abc")]
    assert [(task.change > 0, task.whole > 0, len(data) > 0) for task, data in told] == [
        (True, False, True), (False, True, True), (False, False, False)
    ]  # fmt: skip
    assert (joined.change, joined.whole > 0) == (0, True)


def test_a_device_that_was_away_for_long_asks_for_what_it_lacks(desk, tmp_path):
    here, away = begin(desk, tmp_path)
    desk.fleet.members.move_contacts(lambda _: 0.0)
    for seed in range(tasks.LINKS + 5):
        learn([here.device], (seed,))
        round_of(desk, [here])
    assert desk.fleet.chain.newest_number == tasks.LINKS + 5
    [(_, task)] = desk.tasks(["b"])
    away.hear(task)
    for _ in range(4):  # it asks for links, then for the whole generalist
        outcome = away.device.exchange()
        if outcome.taken_over is not None:
            break
        assert outcome.offline is not None
        assert away.answer_of(desk) is not None
    assert outcome.taken_over == tasks.LINKS + 5


def test_an_update_that_never_counts_is_put_on_top_and_comes_again(tmp_path):
    with open_desk(tmp_path / "data", max_staleness=1, deadline_seconds=0, min_fraction=0.1) as desk:
        here, behind = begin(desk, tmp_path)
        learn([behind.device], (9,))
        [(_, task)] = desk.tasks(["b"])
        behind.hear(task)
        behind.device.exchange()
        late = behind.answer
        for seed in (1, 2, 3):
            learn([here.device], (seed,))
            round_of(desk, [here])
        task, _ = read(desk.enter("b", late))
        assert task.mine.rejected.problem.error == "too_stale"
        round_of(desk, [behind])
        query = "SELECT trained_from, norm > 0 AS is_something FROM updates WHERE device = ? AND round > 0"
        assert desk.fleet.database.rows(query, behind.id) == [{"trained_from": 3, "is_something": True}]


def test_a_refusal_goes_with_the_next_answer(desk, tmp_path):
    sites = begin(desk, tmp_path)
    learn([site.device for site in sites], (1, 2))
    round_of(desk, sites)
    [(_, task)] = desk.tasks("a")
    sites[0].hear(task)
    sites[0].device.exchange(judge=lambda before, after: Judgement(1.0, 2.0, True))
    sites[0].answer_of(desk)
    assert desk.fleet.chain.newest_number == 2  # one of two is a quorum
    assert sites[0].device.books.check(desk.fleet.chain.newest).rolled_back_to == 0


def test_a_home_takes_no_task_that_is_none(tmp_path):
    site = Site(tmp_path / "a", "a")
    (site.folder / "task").write_bytes(b"\xff\xff\xff\x7fnothing")
    with pytest.raises(ComigsError, match="use the same version"):
        site.carried.read()


@pytest.mark.parametrize("is_masked_first", [False, True])
def test_a_device_of_a_private_fleet_sends_nothing_through_an_engine(desk, tmp_path, is_masked_first):
    [site] = begin(desk, tmp_path, "a")
    folder = site.device.folder
    folder.save_membership(replace(folder.membership(), update_format="masked"))
    site.open()
    learn([site.device], (1,))
    plain, masked = desk.fleet.config, desk.fleet.config.with_values({"private": True})
    for config in (masked, plain) if is_masked_first else (plain,):
        desk.fleet.config = config
        [(_, task)] = desk.tasks("a")
        site.hear(task)
        with contextlib.nullcontext() if config is masked else pytest.raises(ComigsError, match="was private"):
            site.device.exchange()
    assert not site.answer
    assert desk.fleet.updates_in()[0] == 0


def test_a_desk_does_not_serve_a_fleet_that_was_private_at_its_last_start(tmp_path):
    Coordinator(tmp_path / "data", private=True).stop()
    desk = open_desk(tmp_path / "data")
    with pytest.raises(CoordinatorError, match="private fleet, and FLARE carries no private rounds"):
        desk.__enter__()


def test_what_came_late_and_was_rolled_back_comes_again(tmp_path):
    now = [time.time()]
    with open_desk(tmp_path / "data", lambda: now[0], deadline_seconds=60, min_fraction=0.1) as desk:
        late, *others = begin(desk, tmp_path, "bac")
        learn([late.device], (9,))
        learned = late.device.local
        [(_, task)] = desk.tasks(["b"])
        late.hear(task)
        late.device.exchange()
        answer = late.answer
        for seed in (1, 2):
            learn([other.device for other in others], (seed, 10 + seed))
            round_of(desk, others)
            now[0] += 61
            desk.tick()
        assert desk.enter("b", answer) is None  # it counts in round 3, and the device knows of generalist 0 only
        now[0] += 61
        desk.tick()
        assert desk.fleet.chain.newest_number == 3
        desk.fleet.chain.roll_back(3, desk.fleet.members.generalist)  # as refusals make it
        assert late.device.books.check(desk.fleet.chain.newest).rolled_back_to == 2
        round_of(desk, [late])
        assert late.device.books.standing.trained_from == 4
        again = late.device.books.kept.read(4)
        change = {name: learned[name] - late.device.initial[name] for name in learned}
        expected = {name: again[name] + change[name] for name in again}
        assert all(np.allclose(late.device.local[name], expected[name], atol=1e-5) for name in again)
        row = desk.fleet.database.row("SELECT norm FROM updates WHERE device = ? ORDER BY round DESC", late.id)
        assert row["norm"] > 0
