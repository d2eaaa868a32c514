"""How far a private window has come, as the coordinator sees it: who may give what now, and what ends a stage. No disk, no clock.

A stage ends with everybody whom it waits for, or at its deadline with enough; with too few then, the window is given up: nobody's
progress is lost by that, it is in the books of its device and comes with the next window.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.protocol import keys, rounds
from coordinator.protocol.errors import Refused
from coordinator.protocol.messages import encode
from coordinator.protocol.private.cohort import Cohort, Distrust, is_signed, open_keys, read_cohort
from coordinator.protocol.private.messages import (
    MOST,
    Answer,
    Confirmation,
    Confirmed,
    Masked,
    Shares,
    SignedKeys,
    SignedTerms,
    Stage,
    Terms,
    Window,
)  # fmt: skip
from coordinator.protocol.private.steps import confirmed
from coordinator.protocol.rounds import Rules

Part = SignedKeys | Shares | Masked | Confirmation | Answer
KINDS: dict[Stage, type[Part]] = {
    "keys": SignedKeys, "shares": Shares, "masked": Masked, "confirmations": Confirmation, "answers": Answer,
}  # fmt: skip
NEXT: dict[Stage, Stage] = {
    "keys": "shares", "shares": "masked", "masked": "confirmations", "confirmations": "answers",
}  # fmt: skip


@dataclass(kw_only=True)
class OpenWindow:
    """`parts`: what came, by stage and device; `since`: when the stage began, or its first part came where it waits for one."""

    terms: Terms
    signed: SignedTerms
    signing_key: str  # that signed them
    stage: Stage = "keys"
    since: float | None = None
    head: str = ""  # hash of the newest manifest when the masked updates were asked for
    parts: dict[Stage, dict[str, Part]] = field(default_factory=lambda: {stage: {} for stage in KINDS})
    _cohort: Cohort | None = None

    @property
    def cohort(self) -> Cohort:
        """The devices that gave keys; raises `Distrust` where they are too few."""
        if self._cohort is None or self.stage == "keys":
            signed = [each for each in self.parts["keys"].values() if isinstance(each, SignedKeys)]
            self._cohort = read_cohort(self.signed, self.signing_key, signed)
        return self._cohort

    @property
    def what(self) -> Confirmed:
        """What its senders confirm."""
        return confirmed(self.cohort, list(self.parts["shares"]), list(self.parts["masked"]), self.head)

    @property
    def answers(self) -> dict[str, Answer]:
        """The shares that came."""
        return {device: each for device, each in self.parts["answers"].items() if isinstance(each, Answer)}

    @property
    def needed(self) -> int:
        """Devices that the stage needs at least."""
        if self.stage == "keys":
            return self.terms.least
        return self.cohort.threshold if self.stage in ("confirmations", "answers") else self.cohort.needed

    def wants(self, device: str) -> bool:
        """Whether this device may give what the stage is for."""
        given = self.parts[self.stage]
        if self.stage == "keys":
            return device not in given and len(given) < MOST
        before: Stage = {"shares": "keys", "masked": "shares"}.get(self.stage, "masked")  # type: ignore[assignment]
        return device in self.parts[before] and device not in given

    def check(self, device: str, part: Part) -> None:
        """Raises `Refused` unless this device may give this now, and it can be used."""
        if not self.wants(device):
            raise Refused(409, "not_wanted", f"the window is at its {self.stage} and wants none of this device")
        try:
            flaw = self._flaw(device, part)
        except Distrust as error:
            flaw = str(error)
        if flaw:
            raise Refused(422, "bad_part", f"the {self.stage} of a private window cannot be used: {flaw}")

    def _flaw(self, device: str, part: Part) -> str | None:
        if isinstance(part, SignedKeys):
            made = open_keys(part, self.terms.window)
            return None if keys.device_id(made.public_key) == device else "they are another device's"
        if isinstance(part, Shares):
            return None if part.boxes.keys() == self.cohort.devices.keys() - {device} else "they are not for all the others"
        if isinstance(part, Confirmation):
            public_key = self.cohort.devices[device].public_key
            is_right = is_signed(public_key, Confirmed, encode(self.what), part.signature)
            return None if is_right else "the device knows other members, another generalist or other senders"
        if isinstance(part, Answer):
            what = self.what
            is_right = part.own.keys() <= set(what.senders) and part.keys.keys() <= set(what.shared) - set(what.senders)
            return None if is_right else "they are not those that open the sum"
        return None

    def put(self, device: str, part: Part, now: float) -> None:
        """Takes what was checked."""
        self.parts[self.stage][device] = part
        self.since = now if self.since is None else self.since

    def advance(self, now: float, rules: Rules, awaited: int, is_free: bool) -> Stage | None:
        """The stage that begins now; None where it still waits. Raises `Distrust` where the window must be given up.

        `awaited`: devices that may give keys; `is_free`: no window before is on its way.
        """
        stage, given, waited = self.stage, len(self.parts[self.stage]), now - (now if self.since is None else self.since)
        if stage == "keys":
            is_complete = given == MOST or rounds.is_complete(rules, 1, given, awaited, waited)
            return "shares" if given >= self.terms.least and is_complete else None
        if stage == "shares" and not is_free:
            return None
        needed = self.needed
        wanted = {"shares": len(self.parts["keys"]), "masked": len(self.parts["shares"])}.get(stage, needed)
        is_late = waited >= rules.deadline_seconds
        if stage != "answers" and (given >= wanted or (is_late and given >= needed)):
            return NEXT[stage]
        if is_late and (given < needed or stage == "answers"):
            raise Distrust(f"{given} of {len(self.cohort.devices)} devices gave their {stage} in time, {needed} are needed")
        return None

    @property
    def can_be_opened(self) -> bool:
        """Whether there are as many answers as it takes."""
        return self.stage == "answers" and len(self.parts["answers"]) >= self.cohort.threshold

    def seen_by(self, device: str) -> Window:
        """The window for one device."""
        at = list(KINDS).index(self.stage)
        boxes = {
            sender: each.boxes[device] for sender, each in self.parts["shares"].items()
            if isinstance(each, Shares) and device in each.boxes
        }  # fmt: skip
        signed = [each for each in self.parts["keys"].values() if isinstance(each, SignedKeys)]
        agreed = {
            sender: each.signature for sender, each in self.parts["confirmations"].items() if isinstance(each, Confirmation)
        }
        return Window(
            stage=self.stage, terms=self.signed, keys=signed if at > 0 else [],
            shared=sorted(self.parts["shares"]) if at > 1 else [], boxes=boxes if at > 1 else {}, head=self.head,
            senders=sorted(self.parts["masked"]) if at > 2 else [], confirmations=agreed if at > 3 else {},
        )  # fmt: skip
