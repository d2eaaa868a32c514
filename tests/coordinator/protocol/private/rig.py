"""Devices of a window without a coordinator: each step is called as a device would."""

from __future__ import annotations

import numpy as np

from coordinator.protocol import keys
from coordinator.protocol.private import masks, steps
from coordinator.protocol.private.cohort import read_cohort, sign_terms
from coordinator.protocol.private.messages import Terms

WINDOW, HEAD = "0f" * 16, "ab" * 32
COORDINATOR = keys.new_key()


class Party:
    """One device."""

    def __init__(self, number, numbers=32):
        self.seed, self.identity = bytes([number]) * 32, keys.new_key()
        self.id = keys.device_id(keys.public_text(self.identity))
        rng = np.random.default_rng(number)
        self.update = {"a": (rng.standard_normal(numbers) / 8).astype(np.float16)}
        self.keys = steps.make_keys(self.seed, WINDOW, self.identity)


class Round:
    """A window of these devices as far as its shares."""

    def __init__(self, count, numbers=32, least=3):
        self.parties = sorted((Party(number + 1, numbers) for number in range(count)), key=lambda party: party.id)
        self.by_id = {party.id: party for party in self.parties}
        terms = Terms(fleet="fleet", window=WINDOW, least=least, bound=100.0, numbers=numbers)
        self.terms = sign_terms(COORDINATOR, terms)
        self.cohort = read_cohort(self.terms, keys.public_text(COORDINATOR), [party.keys for party in self.parties])
        self.boxes = {party.id: steps.make_shares(party.seed, self.cohort, party.id).boxes for party in self.parties}

    def inbox(self, device):
        return {sender: boxes[device] for sender, boxes in self.boxes.items() if device in boxes}

    def masked(self, party, shared, head=HEAD):
        numbers = masks.to_ring(party.update)
        steps.mask(numbers, party.seed, self.cohort, party.id, shared, head)
        return numbers

    def confirmations(self, what, by):
        return {each: steps.confirm(what, self.by_id[each].identity).signature for each in by}

    def answer(self, device, what, confirmations):
        seed = self.by_id[device].seed
        return steps.answer(seed, self.cohort, device, what, self.inbox(device), confirmations)
