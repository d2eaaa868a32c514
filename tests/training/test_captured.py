"""A step that can be captured: it reads what lies at the same places, and does the same whatever the batch holds."""

import json
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from comigs_edge.arrays import digest
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from comigs_edge.planning import plan as planning
from comigs_edge.training import trainer as trainers
from comigs_edge.training.batches import Rows
from comigs_edge.training.caches import open_caches
from comigs_edge.training.captured import WARM_UP, Captured, CudaGraphs
from comigs_edge.training.closing import MixedRows, router_rows
from comigs_edge.training.trainer import Trainer
from tests.training.test_trainer import schedule

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "unique_consecutive", "equal"}  # for a number, or a size
READS = ("cpu", "numpy", "tolist")  # of a tensor, which no operation shows
FORMS = {"lora": {}, "parallel": {"optimiser": "muon"}}
QUANTISED = {"block_format": "Q4_0", "quantise_start": 0.5}
MODES = [("none", {}), ("none", QUANTISED), ("attention", {}), ("block", QUANTISED)]


class Tape(TorchDispatchMode):
    """What a CUDA graph is on a GPU: every operation in order, done again with the same memory and the same numbers."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name().split("::")[1].split(".")[0]
        assert name not in WAITS, name
        assert name not in ("index", "index_put_") or all(t.dtype == torch.int64 for t in tensors(arguments[1])), name
        out = function(*arguments, **(options or {}))
        self.calls.append((function, (arguments, options or {}), out))
        return out

    def signature(self):
        """Operations and numbers as they are; of a tensor its shape, and where it lies if it was there before."""
        own = set()

        def describe(value):
            if not isinstance(value, torch.Tensor):
                return value
            place = None if value.untyped_storage().data_ptr() in own else value.data_ptr()
            return value.dtype, value.shape, value.stride(), place

        found = []
        for function, arguments, out in self.calls:
            found.append((function, tree_map(describe, arguments)))
            own |= {tensor.untyped_storage().data_ptr() for tensor in tensors(out)}
        return found

    @torch.no_grad()
    def replay(self):
        for function, (arguments, options), out in self.calls:
            for place, value in zip(tensors(out), tensors(function(*arguments, **options)), strict=True):
                assert place.shape == value.shape
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class Tapes:
    """Captures on the processor; `tapes` has the steps that led to it and the captured one, a list for each kind of step."""

    def __init__(self):
        self.tapes = {}

    def warm_up(self, compute, batch):
        return self.capture(compute, batch)[0]

    def capture(self, compute, batch):
        with pytest.MonkeyPatch.context() as patch, Tape() as tape:
            for name in READS:
                patch.setattr(torch.Tensor, name, None)
            loss = compute(batch)
        self.tapes.setdefault(id(batch), []).append(tape)
        return loss, tape.replay


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def rows(seed, length=50):
    """Documents that end inside rows, and of whose tokens some do not count."""
    generator = torch.Generator().manual_seed(seed)
    documents = [torch.randint(3, 60, (length + number,), generator=generator).tolist() for number in range(40)]
    return Rows([Encoded(ids, [place % 5 > 0 for place in range(len(ids))]) for ids in documents], 32, 0)


@pytest.fixture
def on_gpu(monkeypatch):
    """The processor computes as a GPU would: where tensors say that they are on one, nobody looks at them."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)


def make(base, form, checkpointing="none", blocks=0, zero=False, caches=None, **changes):
    layout = ExpertsConfig(2, 4, 8.0, 2, False, form, 32 * (form == "parallel"), blocks, zero)
    model = Model(base, Adapters.initial(layout, base.hparams, 0).to(base.device), checkpointing=checkpointing)
    changes = FORMS[form] | {"steps": 14, "router_period": 6, "router_steps": 5, "router_offset_rate": 0.1} | changes
    text, plan = (rows(1), rows(2)), schedule(rates_by_weight=True, **changes)
    one = Trainer(model, *text, plan, caches and open_caches(caches, model, text, plan.batch, ""))
    one.defers_loss = True  # as on a GPU
    return one


def learned(trainer):
    losses = [event.loss for event in trainer.run()]
    assert torch.tensor(losses).isfinite().all()
    return losses, digest(trainer.adapters.arrays())


@pytest.mark.parametrize(("checkpointing", "changes"), MODES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("on_gpu")
def test_captured_steps_learn_the_same_to_the_last_bit(tiny_base, form, changes, checkpointing):
    plain, one = (make(tiny_base, form, checkpointing, **changes) for _ in range(2))
    one.captured = Captured(one.model, tapes := Tapes())
    assert learned(one) == learned(plain)
    assert [len(each) for each in tapes.tapes.values()] == [WARM_UP + 1] * (4 if changes else 2)


@pytest.mark.usefixtures("on_gpu")
def test_captured_steps_take_what_is_on_disk_from_the_same_place(tiny_base, tmp_path):
    plain, one = (make(tiny_base, "lora", blocks=1, caches=tmp_path, checkpointing="block") for _ in range(2))
    one.captured = Captured(one.model, Tapes())
    assert learned(one) == learned(plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("on_gpu")
def test_captured_steps_of_mixed_text_and_frozen_tensors_learn_the_same(tiny_base, form):
    plain, one = (make(tiny_base, form, zero=True, steps=18, router_steps=6) for _ in range(2))
    for each in (plain, one):
        each.training, each.router_rows = MixedRows(rows(1), rows(4), 0.5), router_rows(rows(2), rows(3))
        each.frozen = {name for name in each.adapters.named if name.startswith("generalist.")}
    one.captured = Captured(one.model, Tapes())
    assert learned(one) == learned(plain)


@pytest.mark.parametrize("changes", [{}, QUANTISED | {"quantise_start": 0.0}], ids=["plain", "quantised"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("on_gpu")
def test_steps_on_other_batches_start_the_same_operations_with_the_same_numbers(tiny_base, form, changes):
    one = make(tiny_base, form, **changes)
    one.captured = Captured(one.model, tapes := Tapes())
    learned(one)
    for tapes_of_kind in tapes.tapes.values():
        first, *others = (tape.signature() for tape in tapes_of_kind)  # the first one also takes memory
        assert len(others) == WARM_UP
        assert len(first) >= len(others[0]) > 100
        assert all(other == others[0] for other in others)


class OneDevice(TorchDispatchMode):
    """Refuses what torch refuses on a GPU: tensors of two devices, but for copies."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        devices = {tensor.device for tensor in tensors((arguments, options)) if tensor.dim()}
        assert len(devices) < 2 or "copy" in function.name(), function
        return function(*arguments, **(options or {}))


def gradients(one, batch):
    one._enable_gradients([one.experts, one.router])
    loss = one._backward(batch)
    return [loss, *(tensor.grad for tensor in one.adapters.named.values())]


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_at_which_nobody_looks_gives_the_same_loss_and_gradients(tiny_base, form, monkeypatch):
    one = make(tiny_base, form)
    for tensor in one.adapters.named.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    plain = rows(1).batch(0, 2)
    whole = replace(plain, scored=torch.ones_like(plain.scored), documents=torch.zeros_like(plain.documents))
    weighted = router_rows(rows(2), rows(3)).batch(0, 4)
    assert not plain.scored.all()
    assert not weighted.scored.all()
    for batch in (plain, whole, weighted):
        looked_at = gradients(one, batch)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "is_cuda", True)
            torch.testing.assert_close(gradients(one, batch), looked_at, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_elsewhere_mixes_in_no_tensor_of_the_processor(tiny_path, form, monkeypatch):
    """torch's device meta, which computes nothing, stands for the GPU."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.is_meta))
    monkeypatch.setattr(Adapters, "arrays", lambda self: {})
    one = make(open_base(tiny_path, device="meta"), form, zero=True)
    monkeypatch.setattr(one, "_read_loss", lambda loss: 0.0 if loss.is_meta else 1 / 0)
    for captured in (None, Captured(one.model, Broken())):
        one.captured = captured
        for batch in (rows(1).batch(0, 2), router_rows(rows(2), rows(3)).batch(0, 4)):
            with OneDevice():
                one._expert_step(batch)
                one._router_step(one.router, batch)


class Broken:
    """A GPU that cannot capture."""

    def capture(self, compute, batch):
        compute(batch)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    def warm_up(self, compute, batch):
        return compute(batch)


@pytest.mark.usefixtures("on_gpu")
def test_steps_that_cannot_be_captured_are_computed_as_before_and_it_is_said_once(tiny_base):
    plain, one = (make(tiny_base, "lora") for _ in range(2))
    one.captured = Captured(one.model, Broken())
    losses, problems = zip(*((event.loss, event.problem) for event in one.run()), strict=True)
    assert (list(losses), digest(one.adapters.arrays())) == learned(plain)
    (problem,) = (each for each in problems if each)
    assert "could not be captured as a CUDA graph (operation not permitted when stream is capturing): the" in problem


def test_a_pass_that_looks_at_its_batch_is_found_out(tiny_base):
    one = make(tiny_base, "lora")
    one.captured = Captured(one.model, Tapes())
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        one.step()


@pytest.mark.usefixtures("on_gpu")
def test_a_home_trains_by_captured_steps_to_its_end(ready, run, monkeypatch):
    made = []
    monkeypatch.setattr(trainers, "CudaGraphs", lambda: made.append(Tapes()) or made[-1])
    monkeypatch.setattr(planning, "_check_graph", lambda rates, fixed: None)  # it refuses a processor
    trained = json.loads(run("train", "--steps", "12", "--plan", "cuda_graph=true", "--plan", "threads=1", "--json").stdout)
    assert trained["validation_loss"] < trained["validation_loss_before"]
    kinds = [[len(each) for each in tapes.tapes.values()] for tapes in made]
    assert kinds == [[WARM_UP + 1] * 2, [WARM_UP + 1]]  # the closing phase has six steps of its own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("checkpointing", "changes"), MODES)
@pytest.mark.parametrize("form", FORMS)
def test_steps_that_a_gpu_has_captured_learn_the_same(tiny_path, form, changes, checkpointing):
    plain, one = (make(open_base(tiny_path, device="cuda"), form, checkpointing, **changes) for _ in range(2))
    one.captured = Captured(one.model, CudaGraphs())
    events = [list(each.run()) for each in (one, plain)]
    assert not any(event.problem for event in events[0])
    losses = [[event.loss for event in each] for each in events]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
