"""The cache holds the numbers of the forward pass, and a training has the same bits with a cold and a warm one."""

import errno
import os
import signal
import subprocess
import time

import pytest
import torch

from comigs_edge.arrays import digest
from comigs_edge.errors import ComigsError
from comigs_edge.nn.model import Model
from comigs_edge.training import activation_cache as cache
from comigs_edge.training.activation_cache import ActivationCache, clear, record_bytes
from comigs_edge.training.trainer import Trainer
from tests import warm
from tests.training.test_resume import finish, generations, words
from tests.training.test_trainer import rows, schedule

SIZE = 4  # rows of a batch


@pytest.fixture
def model(tiny_base, make_adapters):
    return Model(tiny_base, make_adapters(form="parallel", blocks=1))


@pytest.fixture
def make(tmp_path, model):
    def opened(split=1, compute=None, key="base"):
        compute = compute or (lambda group: model.below(group.tokens, group.documents))
        return ActivationCache(tmp_path, rows(split, tokens=600), SIZE, 64, (key,), compute)

    return opened


def test_what_comes_back_is_the_forward_pass_rounded_to_eleven_bits(make, model):
    stored = make()
    for number in (0, 3, 11):  # the last one is of a later epoch
        batch = stored.rows.batch(number, SIZE)
        exact = model.below(batch.tokens, batch.documents).clone()
        assert ((stored(batch) - exact).abs().amax(-1) <= exact.abs().amax(-1) * 2**-11).all()


def test_every_row_is_computed_once_and_a_later_process_finds_it(make):
    calls = []

    def compute(group):
        calls.append(len(group.places))
        return torch.ones(group.tokens.numel(), 64)

    stored = make(compute=compute)
    for number in range(15):  # 19 rows: more than three epochs
        stored(stored.rows.batch(number, SIZE))
    assert calls == [4, 4, 4, 4, 3]
    make(compute=compute)(stored.rows.batch(2, SIZE))
    assert len(calls) == 5


def test_what_another_base_or_text_gave_is_not_read(make):
    first = make(compute=lambda group: torch.ones(group.tokens.numel(), 64))
    first(first.rows.batch(0, SIZE))
    for options in ({"key": "another"}, {"split": 2}):
        other = make(compute=lambda group: torch.full((group.tokens.numel(), 64), 2e6), **options)
        assert (other(other.rows.batch(0, SIZE)) == 2e6).all()  # more than float16 holds


def test_a_damaged_row_is_computed_again(make):
    stored = make()
    batch = stored.rows.batch(1, SIZE)
    before = stored(batch)
    data = bytearray(stored.path.read_bytes())
    data[5 * record_bytes(32, 64) + 100] ^= 1
    stored.path.write_bytes(data)
    assert torch.equal(make()(batch), before)


def trained(model, caches, start=None, steps=8):
    trainer = Trainer(model, rows(1, tokens=600), rows(2, tokens=600), schedule(steps=8, batch=SIZE), caches)
    if start is not None:
        trainer.restore(*start)
    for event in trainer.run():
        if event.expert_steps == steps and not trainer._router_is_due:
            break
    return trainer


def test_a_resumed_training_ends_with_the_same_bits_with_a_cold_and_a_warm_cache(tmp_path, make, tiny_base, make_adapters):
    def fresh():
        return Model(tiny_base, make_adapters(form="parallel", blocks=1))

    straight = trained(fresh(), (make(1), make(2)))
    clear(tmp_path)
    interrupted = trained(fresh(), (make(1), make(2)), steps=5)
    state = interrupted.state()
    state = ({name: array.copy() for name, array in state[0].items()}, state[1])
    ends = [trained(fresh(), (make(1), make(2)), state)]
    clear(tmp_path)
    ends.append(trained(fresh(), (make(1), make(2)), state))
    for end in ends:
        assert digest(end.adapters.arrays()) == digest(straight.adapters.arrays())
        assert end.best_loss == straight.best_loss
    # Without a cache nothing is rounded: nearly the same.
    assert trained(fresh(), None).best_loss == pytest.approx(straight.best_loss, rel=1e-3)


def test_a_new_training_deletes_what_an_older_one_stored(tmp_path, make):
    other = tmp_path / "below-0123.bin"
    other.write_bytes(b"old")
    stored = make()
    clear(tmp_path, (stored.path,))
    assert stored.path.exists()
    assert not other.exists()


def test_a_disk_without_room_is_a_sentence(make, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, "posix_fallocate", refuse)
    with pytest.raises(ComigsError, match=r"take 0 MB, which the disk of .* has not \(No space left.*cache=false"):
        make()


def test_a_killed_training_of_the_last_block_goes_on_with_the_same_bits(ready):
    flags = ("--plan", "blocks=1", "--plan", "threads=1")
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", "[train]\ncheckpoint_minutes = 0.0\n"))
    straight = finish("--steps", "12", *flags)
    for version in (ready / "adapters").iterdir():
        version.rename(ready / version.name)
    for path in (ready / "state").glob("checkpoint-*"):
        path.unlink()
    kill_after_a_checkpoint(ready, *flags)
    assert list((ready / "state").glob("below-*.bin"))
    resumed = finish("--resume")
    assert resumed["best_sha256"] == straight["best_sha256"]
    assert not list((ready / "state").glob("below-*.bin"))


def kill_after_a_checkpoint(home, *flags):
    process = warm.Process(words("--steps", "12", *flags), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not generations(home):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
