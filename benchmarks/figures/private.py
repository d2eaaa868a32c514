"""What private rounds cost: processor time of a device and of the coordinator, and bytes, by the number of devices.

    python -m benchmarks.figures.private

As many numbers as the default generalist of SmolLM2-135M has; a fifth of the devices is dropped after its shares, where the rest
can open the sum. A device checks everybody's keys four times. Times are of one thread in this process, without network and disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from benchmarks.common import result_file, write_json
from coordinator.protocol import keys
from coordinator.protocol.messages import encode
from coordinator.protocol.private import masks, steps
from coordinator.protocol.private.cohort import read_cohort, sign_terms
from coordinator.protocol.private.messages import Masked, Shares, Terms, Window
from coordinator.protocol.private.opening import open_sum

NUMBERS = 1_658_880  # 30 blocks of three matrices of 32 x 576
COUNTS = (3, 10, 20, 50)
WINDOW, HEAD = "0f" * 16, "ab" * 32
T = TypeVar("T")


class Clock:
    """Processor seconds by what they were for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, action: Callable[..., T], *values: Any) -> T:
        begin = time.process_time()
        found = action(*values)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - begin
        return found


def measure(count: int) -> dict[str, Any]:
    """One window of so many devices; a device's figures are the mean of all."""
    clock, coordinator = Clock(), keys.new_key()
    identities = {keys.device_id(keys.public_text(key)): key for key in (keys.new_key() for _ in range(count))}
    seeds = {device: device.encode() for device in identities}
    signed = sign_terms(coordinator, Terms(fleet="fleet", window=WINDOW, least=3, bound=100.0, numbers=NUMBERS))
    made = [clock.run("device", steps.make_keys, seeds[device], WINDOW, key) for device, key in identities.items()]
    cohort = clock.run("cohort", read_cohort, signed, keys.public_text(coordinator), made)
    boxes = {device: clock.run("device", steps.make_shares, seed, cohort, device).boxes for device, seed in seeds.items()}
    shared, dropped = sorted(seeds), min(count // 5, count - cohort.threshold)
    senders, masked = shared[: count - dropped], []
    update = {"a": (np.random.default_rng(0).standard_normal(NUMBERS) / 32).astype(np.float16)}
    for device in senders:
        masked.append(clock.run("masks", masks.to_ring, update))
        clock.run("masks", steps.mask, masked[-1], seeds[device], cohort, device, shared, HEAD)
    what = steps.confirmed(cohort, shared, senders, HEAD)
    agreed = {device: steps.confirm(what, identities[device]).signature for device in senders}
    inbox = {device: {other: each[device] for other, each in boxes.items() if other != device} for device in senders}
    answers = {
        device: clock.run("answers", steps.answer, seeds[device], cohort, device, what, inbox[device], agreed)
        for device in senders[: cohort.threshold]
    }  # fmt: skip
    total = clock.run("coordinator", open_sum, cohort, what, answers, masked)
    assert np.array_equal(total.view(np.int32), len(senders) * masks.to_ring(update).view(np.int32))
    clock.run("coordinator", masks.mean_change, total, len(senders), {"a": (NUMBERS,)}, 100.0)
    one = senders[0]
    given = [made[0], Shares(boxes=boxes[one]), Masked(sha256="ab" * 32, update_id="ab" * 8), answers[one]]
    up = 4 * NUMBERS + sum(len(encode(each)) for each in given)
    shown = Window(stage="answers", terms=signed, keys=made, shared=shared, boxes=inbox[one], head=HEAD, senders=senders,
                   confirmations=agreed)  # fmt: skip
    each = clock.seconds["masks"] / len(senders)
    others = clock.seconds["device"] / count + 4 * clock.seconds["cohort"] + clock.seconds["answers"] / len(answers)
    return {
        "devices": count, "dropped": dropped, "threshold": cohort.threshold,
        "device_cpu_seconds": round(each + others, 3), "masks_of_it": round(each, 3),
        "coordinator_cpu_seconds": round(clock.seconds["coordinator"], 3),
        "bytes_up": up, "times_plain_float16": round(up / (2 * NUMBERS), 3), "bytes_of_a_window_down": len(encode(shown)),
    }  # fmt: skip


def main() -> None:
    """Writes private.json."""
    rows = [measure(count) for count in COUNTS]
    facts = {"command": "make bench WHAT=private", "numbers": NUMBERS, "rows": rows}
    write_json(result_file("private.json"), facts)
    for row in rows:
        print("  ".join(f"{name} {value:,}" for name, value in row.items()))


if __name__ == "__main__":
    main()
