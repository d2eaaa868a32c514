"""The research trials: their list, the base's own writing, and what counts on ordinary rows."""

import gzip
import json
import re
import tarfile
from argparse import Namespace
from functools import partial

import torch

from benchmarks.trials.catalogue import trials
from benchmarks.trials.learning import Mixed, Rehearsing, divergence, settings, with_zero
from benchmarks.trials.processes import pack, work
from benchmarks.trials.text import MEASURED, OTHERS
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.training.batches import Rows
from comigs_edge.training.schedule import make_schedule


def rows(seed, context=16):
    ids = torch.randint(3, 260, (200,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Rows([Encoded(ids, [True] * len(ids))], context, seed)


def test_trials_have_names_of_files_each_once_and_need_what_stands_before_them():
    seen = set()
    for trial in trials():
        assert re.fullmatch(r"[\w.-]+", trial.name)
        assert seen.issuperset(trial.needs)
        seen.add(trial.name)
    assert len(seen) == len(trials())


def test_every_kind_of_trial_leaves_a_record_and_all_go_into_one_file(tmp_path, tiny_path, request):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))

    def ids(length, seed):
        return torch.randint(3, 260, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    texts = {
        name: {split: [[ids(900, 1), [True] * 900]] for split in ("training", "validation", "test")} for name in MEASURED + OTHERS
    }
    asked = {name: [ids(4, number) for number in range(3)] for name in ("instructions", "rehearsed", "first_words", "starts")}
    with gzip.open(tmp_path / "inputs.json.gz", "wt") as file:
        json.dump({"texts": texts, **asked, "ends": [2]}, file)
    records = tmp_path / "records"
    (records / "claims").mkdir(parents=True)
    options = Namespace(
        paths=[tmp_path / "inputs.json.gz", tiny_path], records=records, device="cpu", precision="float32", jobs=1, tiny=True,
        only="zero-de-default,zero-de-closing.0,small-de-stable",
    )  # fmt: skip
    work(options, float("inf"))
    assert not (records / "failed").exists()
    made = {path.stem: json.loads(path.read_text()) for path in records.glob("*.json")}
    assert {record["kind"] for record in made.values()} == {"base", "samples", "person", "zero", "small"}
    assert made["zero-de-closing.0"]["closing"] == 0
    assert made["small-de-stable.True"]["stable"]
    pack(records, tmp_path / "all.tgz")
    with tarfile.open(tmp_path / "all.tgz") as packed:
        assert sorted(packed.getnames()) == sorted(path.name for path in records.glob("*.json"))


def test_ordinary_rows_count_by_their_divergence_from_the_base_and_the_others_by_their_loss(tiny_base):
    layout = ExpertsConfig(1, form="parallel", expert_width=32)
    adapters = with_zero(Adapters.initial(layout, tiny_base.hparams, 0), 2)
    for tensor in adapters.group(router=False):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    model, base = Model(tiny_base, adapters, checkpointing="none"), Model(tiny_base, None)
    trainer = Rehearsing(model, rows(0), rows(1), make_schedule(settings(), 4, 1))
    trainer.by_kl = True
    batch = Mixed(rows(1), rows(2), 0.5).batch(0, 4)
    assert torch.equal(batch.tokens[-batch.ordinary :], rows(2).batch(0, 2).tokens)
    loss, _ = trainer._loss(batch)
    with torch.no_grad():
        logits, expected = (each.logits(each(batch.tokens, batch.documents).hidden) for each in (model, base))
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    kl = (expected.softmax(-1) * (expected.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
    by_hand = torch.where(torch.arange(len(losses)) < 32, losses, kl)[batch.scored].mean()
    torch.testing.assert_close(loss.detach(), by_hand, rtol=1e-4, atol=1e-5)
    hidden = base(batch.tokens).hidden
    assert divergence(base, hidden, hidden).abs().max() < 1e-5
