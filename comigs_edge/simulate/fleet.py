"""All virtual devices of one method and seed, round by round.

A round is `local_steps` expert steps on every device, the router's steps where they are due, and the method's exchange, before
or after those: what each device has learned passes through the wire format and the mean of the real coordinator. All devices take
part in every round and none is late. The validation loss is that of the model that a device has at the end of the round, so that
it means the same for every method. What float16 takes away from an update is lost here; a real device sends it later.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from comigs_edge.arrays import digest, select, subtract
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.inference.evaluate import Score
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.nn.weights import Base
from comigs_edge.progress import Advance
from comigs_edge.simulate.device import Device, Leaky, Local, new_model
from comigs_edge.simulate.methods.method import Round
from comigs_edge.simulate.plan import Plan
from comigs_edge.simulate.pruning import Pruning
from comigs_edge.simulate.texts import Text
from comigs_edge.training.batches import Rows
from comigs_edge.training.trainer import Trainer
from coordinator.protocol import compress, rounds, wire
from coordinator.protocol.rounds import Rules
from coordinator.protocol.wire import Arrays

POOL = "all"  # the name of the one device of `centralized`
MEMORY = "memory."  # before names of arrays that a method keeps between rounds
OTHER_ORDER = 1 << 20  # added to the seed of rows that a router learns from in place of validation rows


class Fleet:
    """The devices. `number` is that of the last round that was done.

    With `ordinary` text a training of the product ends as in an installation: its best state gets a zero expert.
    """

    def __init__(self, base: Base, plan: Plan, texts: dict[str, Text], ordinary: Sequence[Encoded] = ()) -> None:
        self.plan, self.number = plan, 0
        self.ordinary = Rows(ordinary, plan.size.context, plan.seed) if ordinary and plan.method.is_product else None
        self.devices = _make_pooled(base, plan, texts) if plan.method.text == "pooled" else _make_apart(base, plan, texts)
        self.names = [  # of the tensors that each device shares
            sorted(filter(plan.method.shares, device.adapters.named)) if len(self.devices) > 1 else [] for device in self.devices
        ]
        self.memories: list[Arrays] = [{} for _ in self.devices]  # what the method keeps between rounds
        self._start_together()

    @property
    def is_done(self) -> bool:
        """Whether all rounds are."""
        return self.number >= self.plan.size.rounds

    @property
    def total_steps(self) -> int:
        """Expert and router steps of all devices."""
        closing = 0 if self.ordinary is None else sum(device.trainer.schedule.closing for device in self.devices)
        return sum(device.trainer.total_steps for device in self.devices) + closing

    @property
    def steps(self) -> int:
        """Those that were done."""
        return sum(each.trainer.expert_steps + each.trainer.router_steps + each.closing_steps for each in self.devices)

    def round(self, advance: Advance) -> list[dict[str, Any]]:
        """The next round; a record for each device."""
        number = self.number + 1
        kept = [(device.trainer.best_loss, device.trainer.best) for device in self.devices]
        before = [self._shared_arrays(index) for index in range(len(self.devices))]
        averaging = self.plan.method.averaging or self.plan.recipe.exchange.averaging
        freezes = self.plan.method.freezes
        trained = [rounds.trained_names(itertools.filterfalse(freezes, names), averaging, number) for names in self.names]
        until, first = number * self.plan.size.local_steps, self.plan.method.exchanges_first
        done = []
        for device, names, learns in zip(self.devices, self.names, trained, strict=True):
            device.trainer.frozen = set(names) - set(learns)
            done.append(device.train(until, advance, ends_before_router=first))
        exchanges = any(self.names) and number == self.plan.size.rounds
        found = [device.measure() for device in self.devices] if exchanges and self.plan.scores_before else None
        sent, received = self._exchange(number, before, trained, [local.tokens for local in done])
        too_early = [
            local.validation_loss is not None and (any(self.names) or device.is_within_period)
            for device, local in zip(self.devices, done, strict=True)
        ]
        if first:
            done = [local.then(d.train(until, advance)) for d, local in zip(self.devices, done, strict=True)]
        for device, local, again in zip(self.devices, done, too_early, strict=True):
            if again:
                local.validation_loss = device.trainer.validate()
        self._keep_best(kept, done)
        records = [{"round": number, "device": d.name, **asdict(x)} for d, x in zip(self.devices, done, strict=True)]
        self.number = number
        for record, up, down in zip(records, sent, received, strict=True):
            record |= {"bytes_sent": up, "bytes_received": down}
        if self.is_done or number in self.plan.size.measured_rounds:
            records = self._add_scores(records, found, advance)
        return records

    def digest(self) -> str:
        """SHA-256 of the adapters of all devices: equal fleets have equal digests."""
        return digest({f"{d.name}/{name}": array for d in self.devices for name, array in d.adapters.arrays().items()})

    def _keep_best(self, kept: list[tuple[float, Arrays]], done: list[Local]) -> None:
        """Makes each trainer's best state one of those that a round has ended with; the first is what it began with."""
        for device, (loss, best), local in zip(self.devices, kept, done, strict=True):
            trainer = device.trainer
            assert trainer.first_loss is not None
            trainer.best_loss, trainer.best = trainer.first_loss if math.isinf(loss) else loss, best
            if local.validation_loss is not None and local.validation_loss < trainer.best_loss:
                trainer.best_loss, trainer.best = local.validation_loss, device.adapters.arrays()

    def _exchange(
        self, number: int, before: list[Arrays], trained: list[list[str]], tokens: list[int]
    ) -> tuple[list[int], list[int]]:
        """Lets the method work; returns the bytes that each device sent and received."""
        if not any(self.names) or number < self.plan.rounds_alone:
            return [0] * len(self.devices), [0] * len(self.devices)
        rules, method = Rules(weights=self.plan.recipe.exchange.weights), self.plan.method
        sent, changes = [], []
        for index, names in enumerate(trained):
            data, change = self._over_the_wire(before[index], self._shared_arrays(index), names)
            sent.append(data)
            changes.append(change)
        weights = [rounds.weight(rules, 0, count) for count in tokens]
        state = Round(before, changes, weights, self._loss, number, self.plan.size.rounds, self.memories)
        results = method.exchange(state)
        for device, result in zip(self.devices, results, strict=True):
            device.load(result)
            if method.resets_moments(number, self.plan.size.rounds):
                device.forget_moments(result)
        whole = [wire.encoded_size(compress.table(_shapes(arrays), "float32")) for arrays in results]
        return sent, [size * method.downloads(len(self.devices)) for size in whole]

    def _over_the_wire(self, before: Arrays, now: Arrays, names: list[str]) -> tuple[int, Arrays]:
        """Bytes of a device's update, and the update as the coordinator reads it."""
        change = subtract({name: now[name] for name in names}, before)
        shapes, format_name = _shapes(change), self.plan.recipe.exchange.update_format
        data = wire.encode(compress.pack(change, format_name))
        packed = wire.decode_expected(data, compress.table(shapes, format_name), "an update")
        return len(data), compress.unpack(packed, shapes, format_name)

    def _loss(self, index: int, arrays: Arrays) -> float:
        device, now = self.devices[index], self._shared_arrays(index)
        device.load(arrays)
        loss = device.loss_to_choose_by()
        device.load(now)
        return loss

    def _shared_arrays(self, index: int) -> Arrays:
        arrays = self.devices[index].adapters.arrays()
        return {name: arrays[name] for name in self.names[index]}

    def _start_together(self) -> None:
        """All devices begin with the shared tensors of the largest; everything else starts differently."""
        shared = [self._shared_arrays(index) for index in range(len(self.devices))]
        common = max(shared, key=lambda arrays: sum(array.size for array in arrays.values()))
        for device, own in zip(self.devices, shared, strict=True):
            device.load({n: common[n][tuple(slice(0, size) for size in a.shape)] for n, a in own.items()})

    def _add_scores(
        self, records: list[dict[str, Any]], found: list[dict[str, Score]] | None, advance: Advance
    ) -> list[dict[str, Any]]:
        """The records with test scores; a device that stands for several has one record for each text.

        At the end the scores are of each device's state with the lowest validation loss; beside it is the last state's where
        the plan wants it, and with a zero expert that of the best state without it. `found` has those of the models that the
        exchange found.
        """
        scored = []
        for index, (device, record) in enumerate(zip(self.devices, records, strict=True)):
            is_best = not self.is_done or record["validation_loss"] == device.trainer.best_loss
            last = device.measure() if is_best or self.plan.scores_last else None
            best = device.measure_best() if last is None or not is_best else last
            closed = device.close(self.ordinary, self.plan.seed, advance) if self.is_done and self.ordinary is not None else None
            chosen = best if closed is None else closed.scores
            if closed is not None:
                record = record | {"tokens": record["tokens"] + closed.tokens, "seconds": record["seconds"] + closed.seconds}
            for name, score in chosen.items():
                figures = {"bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity, "windows": list(score.windows)}
                scored.append(record | {"device": name} | figures)
                if last is not None:
                    scored[-1]["last_bits_per_byte"] = last[name].bits_per_byte
                if closed is not None:
                    scored[-1]["bits_per_byte_without_zero_expert"] = best[name].bits_per_byte
                    scored[-1]["windows_without_zero_expert"] = list(best[name].windows)
                if found is not None:
                    scored[-1]["bits_per_byte_before_exchange"] = found[index][name].bits_per_byte
                # What was trained for all is counted once.
                record = record | {"tokens": 0, "seconds": 0.0}
        return scored

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        """Everything that later rounds depend on; to be taken between rounds."""
        arrays: Arrays = {}
        progress: dict[str, Any] = {"round": self.number, "devices": {}}
        for device, memory in zip(self.devices, self.memories, strict=True):
            own, progress["devices"][device.name] = device.trainer.state()
            arrays |= {f"{device.name}/{name}": array for name, array in own.items()}
            arrays |= {f"{device.name}/{MEMORY}{name}": array for name, array in memory.items()}
        return arrays, progress

    def restore(self, arrays: Arrays, progress: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.number = progress["round"]
        for device, memory in zip(self.devices, self.memories, strict=True):
            own = select(arrays, f"{device.name}/")
            memory.clear()
            memory.update(select(own, MEMORY))
            device.trainer.restore(own, progress["devices"][device.name])


def _make_apart(base: Base, plan: Plan, texts: dict[str, Text]) -> list[Device]:
    """Every device with its own text."""
    devices = []
    for index, (name, text) in enumerate(texts.items()):
        learned, measured = halves(text.validation) if plan.method.text == "both" else ([], text.validation)
        layout = plan.layout(base.hparams, plan.recipe.devices[name].specialists)
        trainer = _trainer(base, plan, layout, (text.training + learned, measured), index, len(texts))
        devices.append(Device(name, trainer, {name: text.test}))
    return devices


def halves(documents: list[Encoded]) -> tuple[list[Encoded], list[Encoded]]:
    """Two parts of about as many tokens; a single document is cut.

    As with the rows of a router: what chooses a state has not been learned.
    """
    parts: tuple[list[Encoded], list[Encoded]] = [], []
    if len(documents) == 1:
        (whole,) = documents
        middle = len(whole.ids) // 2
        documents = [
            whole._replace(ids=whole.ids[part], scored=whole.scored[part]) for part in (slice(middle), slice(middle, None))
        ]
    for document in documents:
        min(parts, key=lambda part: sum(len(each.ids) for each in part)).append(document)
    return parts


def _make_pooled(base: Base, plan: Plan, texts: dict[str, Text]) -> list[Device]:
    """One device with the text of all."""
    training = [each for text in texts.values() for each in text.training]
    validation = [each for text in texts.values() for each in text.validation]
    trainer = _trainer(base, plan, plan.layout(base.hparams, 1), (training, validation), 0, len(texts))
    return [Device(POOL, trainer, {name: text.test for name, text in texts.items()})]


def _trainer(
    base: Base, plan: Plan, layout: ExpertsConfig, text: tuple[list[Encoded], list[Encoded]], index: int, devices: int
) -> Trainer:
    context, schedule = plan.size.context, plan.schedule(base.hparams, devices)
    # Devices draw other numbers for what is their own; seeds lie so far apart that no two runs share a device.
    seed = plan.seed * 1009 + index
    adapters = Adapters.initial(layout, base.hparams, seed)
    if plan.method.router == "even":  # equal logits are equal weights
        for tensor in adapters.group(router=True):
            tensor.zero_()
    training, validation = (Rows(part, context, seed) for part in text)
    again = Rows(text[0], context, seed + OTHER_ORDER) if plan.method.router == "training" else None
    model = new_model(base, adapters, schedule.batch * context)
    kind = Leaky if plan.leaky else Pruning if plan.method.prunes else Trainer
    return kind(model, training, validation, schedule, router_rows=again)


def _shapes(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
