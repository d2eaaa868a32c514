"""A coordinator that lies about a private window gets no share that opens anything but one sum of enough devices."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.fleet.held import HeldWindows
from coordinator.ledger.window import OpenWindow
from coordinator.protocol import keys
from coordinator.protocol.private import masks, steps
from coordinator.protocol.private.opening import open_sum
from tests.fleet.liar import fleet
from tests.fleet.rig import step


def notes(liar):
    return " ".join(note for device in liar.devices.values() for note in device.folder.notes)


def test_an_honest_one_gets_the_sum(tmp_path):
    liar = fleet(tmp_path, 4)
    liar.run_to("answers")
    liar.touch()
    assert len(liar.given("answers")) == 4
    sent = [np.frombuffer(data, "<u4") for (data,) in liar.uploads.values()]
    total = open_sum(liar.window.cohort, liar.window.what, liar.window.answers, sent)
    plain = sum(masks.to_ring(device.folder.outbox().packed) for device in liar.devices.values())
    assert np.array_equal(total, plain)


def test_a_device_that_is_called_dropped_keeps_its_own_mask(tmp_path):
    liar = fleet(tmp_path, 4)
    liar.run_to("confirmations")
    victim = min(liar.devices)

    def without(window, device):
        window.senders = [each for each in window.senders if each != victim]
        return window

    liar.lie = without
    liar.touch()
    liar.go_on()
    liar.touch()
    assert len(liar.given("answers")) == 3  # the others open a sum without it, of three
    for answer in liar.given("answers"):  # of no device both kinds of share
        assert (set(answer.own), set(answer.keys)) == (set(liar.devices) - {victim}, {victim})
    assert not liar.devices[victim].transport._held.find(liar.window.terms.window).seed
    assert "leaves this device out" in notes(liar)


def test_two_lists_of_senders_are_both_never_opened(tmp_path):
    liar = fleet(tmp_path, 6)  # five answers open a sum
    liar.run_to("confirmations")
    names = sorted(liar.devices)

    def split(window, device):
        window.senders = names if device in names[:3] else names[1:]
        return window

    liar.lie = split
    liar.touch()
    liar.go_on()
    liar.touch()
    assert liar.given("answers") == []
    assert "devices confirm it and 5 are needed" in notes(liar)


def test_who_confirmed_one_list_answers_for_no_other(tmp_path):
    liar = fleet(tmp_path, 5)
    liar.run_to("answers")
    victim = min(liar.devices)

    def later(window, device):
        window.senders = [each for each in window.senders if each != victim]
        return window

    liar.lie = later
    liar.touch()
    assert liar.given("answers") == []
    assert "says something else now" in notes(liar)


def test_an_answer_is_given_once_and_sent_again_only_as_it_is(tmp_path):
    liar = fleet(tmp_path, 5)
    liar.run_to("answers")
    device = liar.devices[min(liar.devices)]
    liar.touch([device])
    (first,) = liar.given("answers")
    liar.window.parts["answers"].clear()
    liar.lie = lambda window, _: pytest.fail("nothing is asked any more") or window
    liar.touch([device])
    assert liar.given("answers") == [first, first]
    assert list(device.folder.windows.glob(".*.seed")) == []
    assert not device.transport._held.find(liar.window.terms.window).seed


@pytest.mark.parametrize("forged", ["repeated", "made up"])
def test_confirmations_that_nobody_signed_open_nothing(tmp_path, forged):
    liar = fleet(tmp_path, 4)
    liar.run_to("answers")

    def forge(window, device):
        others = {each: steps.confirm(liar.window.what, keys.new_key()).signature for each in window.senders}
        same = dict.fromkeys(window.senders, window.confirmations[device])
        window.confirmations = same if forged == "repeated" else others
        return window

    liar.lie = forge
    liar.touch()
    assert liar.given("answers") == []


def test_devices_that_were_shown_other_members_confirm_nothing_for_each_other(tmp_path):
    liar = fleet(tmp_path, 5)
    liar.touch()
    liar.go_on()
    made_up = keys.new_key()
    window = liar.window.terms.window
    stranger = steps.make_keys(bytes(32), window, made_up)
    names = sorted(liar.devices)

    def other(shown, device):
        if device in names[:2]:  # in place of the last device they see one that the coordinator made up
            gone = liar.window.parts["keys"][names[-1]]
            shown.keys = [stranger if each == gone else each for each in shown.keys]
            shown.shared = [each for each in shown.shared if each != names[-1]]
            shown.senders = [each for each in shown.senders if each != names[-1]]
        return shown

    liar.lie = other
    liar.run_to("answers")
    liar.touch()
    assert liar.given("answers") == []


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        (lambda shown, own: shown.keys[:2], "2 devices are in it"),
        (lambda shown, own: [each for each in shown.keys if each != own], "keys of this device"),
        (lambda shown, own: [*shown.keys, shown.keys[0]], "twice"),
        (lambda shown, own: [*shown.keys[:-1], steps.make_keys(bytes(32), "ab" * 16, keys.new_key())], "not signed"),
    ],
)
def test_a_list_of_members_that_does_not_fit_gets_no_shares(tmp_path, lie, sentence):
    liar = fleet(tmp_path, 4)
    liar.touch()
    liar.go_on()

    def show(window, device):
        window.keys = lie(window, liar.window.parts["keys"][device])
        return window

    liar.lie = show
    liar.touch()
    assert sentence in notes(liar)
    assert len(liar.given("shares")) <= 1


def test_terms_that_another_key_signed_get_no_shares(tmp_path):
    liar = fleet(tmp_path, 3, key=keys.new_key())
    liar.touch()
    liar.go_on()
    liar.touch()
    assert liar.given("shares") == []
    assert "not signed by the coordinator" in notes(liar)


def test_two_devices_are_no_window_whatever_the_coordinator_asks_for(tmp_path):
    liar = fleet(tmp_path, 2, least=1)
    liar.touch()
    liar.go_on()
    liar.touch()
    assert liar.given("shares") == []
    assert "2 devices are in it" in notes(liar)


@pytest.mark.parametrize("stage", ["masked", "confirmations", "answers"])
def test_two_survivors_of_three_get_nothing_whatever_least_is_said_to_be(tmp_path, stage):
    liar = fleet(tmp_path, 3, least=0)
    liar.run_to(stage)
    two = sorted(liar.devices)[:2]

    def few(window, device):
        window.shared = two if stage == "masked" else window.shared
        window.senders = two if stage != "masked" else window.senders
        return window

    liar.lie = few
    liar.touch()
    assert liar.given(stage) == []


@pytest.mark.parametrize("stage", ["masked", "confirmations"])
def test_too_few_that_are_left_get_nothing_more(tmp_path, stage):
    liar = fleet(tmp_path, 4)
    liar.run_to(stage)
    names = sorted(liar.devices)[:2]

    def few(window, device):
        window.shared, window.senders = (names, window.senders) if stage == "masked" else (window.shared, names)
        return window

    liar.lie = few
    liar.touch()
    assert liar.given(stage) == []


def test_another_generalist_than_the_device_knows_gets_nothing_masked(tmp_path):
    liar = fleet(tmp_path, 3)
    liar.run_to("masked")
    liar.window.head = "cd" * 32
    liar.touch()
    assert liar.uploads == {}


def test_a_device_that_sent_nothing_confirms_no_sum(tmp_path):
    liar = fleet(tmp_path, 4)
    liar.run_to("masked")
    silent = liar.devices[min(liar.devices)]
    liar.touch([device for device in liar.devices.values() if device is not silent])
    liar.go_on()
    liar.window.parts["masked"][min(liar.devices)] = liar.given("masked")[0]  # it says so
    liar.touch([silent])
    assert liar.given("confirmations") == []


def test_nothing_else_is_masked_in_a_window_where_something_was(tmp_path):
    liar = fleet(tmp_path, 4)
    liar.run_to("masked")
    device = liar.devices[min(liar.devices)]
    liar.touch([device])
    liar.window.parts["masked"].clear()  # as if it had not arrived, with other members now
    liar.lie = lambda window, _: setattr(window, "shared", window.shared[:3]) or window
    device.learn({name: array * 2 for name, array in device.local.items()})
    liar.touch([device])
    assert len(liar.uploads[min(liar.devices)]) == 1
    liar.lie = lambda window, _: window
    liar.begin()
    liar.run_to("masked")
    liar.touch([device])
    first, again = liar.uploads[min(liar.devices)]
    assert first != again


def learn_more(liar):
    for number, device in enumerate(liar.devices.values()):
        device.learn(step(100 + number, 1 / 4096))
        device.books.note(device.local, 10)


def answered(tmp_path):
    """A liar that can open its first sum."""
    liar = fleet(tmp_path, 4)
    liar.run_to("answers")
    liar.touch()
    assert len(liar.given("answers")) == 4
    return liar


def test_an_update_is_masked_in_no_window_while_another_has_it(tmp_path):
    liar = answered(tmp_path)
    liar.kept = [liar.window.terms.window]  # it says that it is not over
    liar.begin()
    learn_more(liar)
    liar.run_to("masked")
    liar.touch()
    assert [len(sent) for sent in liar.uploads.values()] == [1, 1, 1, 1]
    assert "another window has, which is not over" in notes(liar)


def test_what_was_in_an_opened_sum_comes_again_only_with_more(tmp_path):
    liar = answered(tmp_path)
    before = [device.folder.outbox() for device in liar.devices.values()]
    liar.begin()  # without having counted anything
    liar.touch()
    liar.touch()
    assert len(liar.given("keys")) == 4  # for the first window
    assert "a sum with it was opened already" in notes(liar)
    learn_more(liar)
    liar.run_to("masked")
    liar.touch()
    assert [len(sent) for sent in liar.uploads.values()] == [2, 2, 2, 2]
    after = [device.folder.outbox() for device in liar.devices.values()]
    assert not {digest(each.packed) for each in before} & {digest(each.packed) for each in after}


def test_what_counted_and_is_said_not_to_count_now_comes_only_with_more(tmp_path):
    liar = answered(tmp_path)
    for name, device in liar.devices.items():
        liar.counted[name].append(device.folder.outbox().id)
    liar.window = None
    liar.touch()
    assert all(device.books.standing.brought for device in liar.devices.values())
    liar.counted.clear()
    liar.touch()
    liar.begin()
    liar.run_to("masked")
    liar.touch()
    assert not any(device.books.standing.brought for device in liar.devices.values())
    assert [len(sent) for sent in liar.uploads.values()] == [1, 1, 1, 1]


def test_a_window_that_was_answered_gets_nothing_masked_any_more(tmp_path):
    liar = answered(tmp_path)
    liar.window.stage = "masked"  # now that the device has forgotten its seed
    liar.window.parts["masked"].clear()
    liar.touch()
    assert [len(sent) for sent in liar.uploads.values()] == [1, 1, 1, 1]


def test_what_is_no_number_is_never_masked_and_the_user_hears_so(tmp_path):
    liar = fleet(tmp_path, 3)
    device = liar.devices[min(liar.devices)]
    device.learn(float("nan"))
    device.books.note(device.local, 10)
    liar.run_to("masked")
    liar.touch()
    assert liar.uploads.keys() == liar.devices.keys() - {min(liar.devices)}
    assert device.folder.was_rejected
    assert "it has numbers that are none" in notes(liar)


def test_a_device_takes_part_in_four_windows_at_most(tmp_path):
    liar = fleet(tmp_path, 1)
    (device,) = liar.devices.values()
    for number in range(4):
        held = device.transport._held.begin(f"{number:032x}")
        held.fix(keys=("keys", "signature"), update_id=f"{number}")
        device.transport._held.save(held)
    liar.kept = [f"{number:032x}" for number in range(4)]
    liar.touch()
    assert liar.given("keys") == []
    liar.kept.pop()
    liar.touch()
    assert len(liar.given("keys")) == 1


class Killed(BaseException):
    """At one place of the code."""


@pytest.mark.parametrize("tidy", ["keep", "leave"])
def test_a_kill_while_tidying_comes_after_what_is_secret_is_gone(tmp_path, monkeypatch, tidy):
    windows, window = HeldWindows(tmp_path / "windows"), "ab" * 16
    held = windows.begin(window)
    windows.save(held)
    unlink, deleted = Path.unlink, []

    def dies(path, *arguments, **options):
        unlink(path, *arguments, **options)
        deleted.append(path.name)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(Killed):
            windows.keep([]) if tidy == "keep" else windows.leave(held)
    assert deleted == [f".{window}.seed"]
    assert windows.find(window).seed == ""


def test_a_seed_without_its_file_masks_nothing_a_second_time(tmp_path):
    liar = fleet(tmp_path, 3)
    liar.run_to("confirmations")  # all have masked an update
    name, device = next(iter(liar.devices.items()))
    over, rest = liar.window, set(liar.devices) - {name}
    update = masks.to_ring(device.folder.outbox().packed)
    (device.folder.windows / f"{over.terms.window}.json").unlink()  # a kill, or the disk
    liar.window = OpenWindow(terms=over.terms, signed=over.signed, signing_key=over.signing_key)  # listed again, as it was
    for each in rest:
        liar.window.put(each, over.parts["keys"][each], 0.0)
    device.learn(step(77))
    device.books.note(device.local, 100)
    for _ in range(4):
        device.exchange(tokens=100)
        if name in liar.window.parts.get(liar.window.stage, {}) and liar.window.stage in ("keys", "shares"):
            liar.go_on()
            for each in rest if liar.window.stage == "shares" else ():
                liar.window.put(each, over.parts["shares"][each], 0.0)
    first, *more = (np.frombuffer(data, "<u4") for data in liar.uploads[name])
    change = masks.to_ring(device.folder.outbox().packed) - update
    assert np.count_nonzero(change)
    assert not any(np.array_equal(second - first, change) for second in more)


def test_keys_and_shares_are_of_one_seed_although_a_write_failed(tmp_path):
    windows, window = HeldWindows(tmp_path / "windows"), "ab" * 16
    first = windows.begin(window)
    (tmp_path / "windows" / f"{window}.json").mkdir(parents=True)  # so that it cannot be written
    with pytest.raises(ComigsError):
        windows.save(first)
    (tmp_path / "windows" / f"{window}.json").rmdir()
    again = windows.begin(window)
    assert again.seed != first.seed  # nothing was given with that one
    windows.save(again)
    assert again.seed == windows.find(window).seed


def test_a_seed_is_forgotten_with_the_answer_although_a_kill_came_between(tmp_path):
    windows, window = HeldWindows(tmp_path / "windows"), "ab" * 16
    held = windows.begin(window)
    held.fix(keys=("keys", "signature"))
    windows.save(held)
    seed = (tmp_path / "windows" / f".{window}.seed").read_text()
    held.seed, held.answer = "", "{}"
    windows.save(held)
    (tmp_path / "windows" / f".{window}.seed").write_text(seed)  # as it lies there before it is deleted
    assert windows.find(window).seed == ""
    windows.save(windows.find(window))
    assert not (tmp_path / "windows" / f".{window}.seed").exists()


def test_a_window_that_an_earlier_version_wrote_down_goes_on(tmp_path):
    windows, window = HeldWindows(tmp_path / "windows"), "ab" * 16
    held = windows.begin(window)
    held.fix(keys=("keys", "signature"), cohort=[["keys", "signature"]])
    windows.save(held)
    path = tmp_path / "windows" / f"{window}.json"
    path.write_text(path.read_text().replace('"cohort"', '"roster"'))
    assert windows.find(window).cohort == [["keys", "signature"]]


def test_a_private_fleet_that_asks_for_single_updates_gets_none(tmp_path):
    liar = fleet(tmp_path, 3)
    liar.settings.update_format = "float16"
    for device in liar.devices.values():
        with pytest.raises(ComigsError, match="was private"):
            device.exchange(tokens=10)
    assert liar.updates == {}
    assert liar.uploads == {}


@pytest.mark.parametrize("turns", range(1, 6))
def test_a_private_fleet_that_turns_plain_between_two_answers_gets_no_single_update(tmp_path, turns):
    liar = fleet(tmp_path, 3)
    liar.run_to("masked")
    honest, said = liar.state, []

    def state(device):
        said.append(device)
        liar.settings.update_format = "masked" if len(said) < turns else "float16"
        return honest(device)

    liar.state = state
    device = next(iter(liar.devices.values()))
    with contextlib.suppress(ComigsError):
        device.exchange(tokens=10)
    with pytest.raises(ComigsError, match="was private"):
        device.exchange(tokens=10)
    assert liar.updates == {}


def test_a_claim_that_there_is_no_generalist_yet_gets_the_initial_one_only(tmp_path):
    liar = fleet(tmp_path, 3)
    liar.links = []
    for device in liar.devices.values():
        with pytest.raises(ComigsError):
            device.exchange(tokens=10)
    for update in liar.updates.values():
        assert all((array == 0).all() for array in update.packed.values())
    assert liar.uploads == {}


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"zz", b"\0" * 64], ids=["empty", "no text", "no number", "zeros"])
def test_a_damaged_secret_gives_nothing_more_and_its_device_goes_on(tmp_path, damage):
    liar = fleet(tmp_path, 3)
    liar.run_to("shares")
    device = next(iter(liar.devices.values()))
    (seed,) = device.folder.windows.glob(".*.seed")
    seed.write_bytes(damage)
    (device.folder.root / "answered").write_bytes(damage)
    liar.touch()
    assert len(liar.given("shares")) == 2
    liar.begin()
    liar.run_to("masked")
    liar.touch()
    assert len(liar.uploads) == 3
