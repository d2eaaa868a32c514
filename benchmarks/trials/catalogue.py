"""The trials, in order of worth. Of each: its name, its factors, what must be done before, and steps that it takes, about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from benchmarks.trials.text import PERSONS
from comigs_edge.nn.experts import Form
from comigs_edge.nn.form import OptimiserName

TOKENS = 102_400  # of training text: 100 steps of 8 rows of 128
SAMPLES = 67_000  # tokens of each source
SOURCES = ("start", "words", "chat")
F = TypeVar("F")


@dataclass(frozen=True, kw_only=True)
class Zero:
    """The zero expert's factors; a plan of experts alone is one of a generalist and a specialist."""

    source: str = "mixed"  # of ordinary text: start, words, chat, a third of each (mixed), or others (text of others)
    tokens: int = 50_000  # of it
    share: float = 0.5  # of ordinary rows in a router step
    closing: int = 60  # router steps behind the training; 0: in every turn of the router, from the start
    kl: bool = False  # KL divergence from the base on ordinary rows, in place of their loss
    k: int = 2
    offset: bool = True  # the zero expert's logit has one as the others have
    decay: bool = False  # the router's rates fall in a line to a tenth
    rows: int = 0  # of a closing step; 0: as many as of the others
    fit: bool = False  # the zero expert begins where least squares put it, as in the product
    experts: float = 0.0  # share of ordinary rows in expert steps
    specialists: int = 1


@dataclass(frozen=True, kw_only=True)
class Small:
    """The factors of small steps."""

    rows: int = 8
    rate: float = 1.0  # factor on the experts' rates
    beta: float = 0.95  # of the second moment
    period: int = 30
    router: int = 10  # steps of a turn
    router_rows: int = 0  # of a router step; 0: as many as of the others
    stable: bool = False  # warm-up, stable, decay
    optimiser: OptimiserName = "adamw"
    form: Form = "parallel"
    width: int | None = None  # of parallel experts; None: the product's
    tokens: int = TOKENS  # of training text


@dataclass(frozen=True)
class Trial:
    """One record; `kind` says what is done."""

    name: str
    kind: Literal["base", "samples", "person", "zero", "small"]
    factors: dict[str, Any]
    needs: tuple[str, ...] = ()
    steps: int = 0

    def person_and(self, kind: type[F]) -> tuple[str, F]:
        """Whose text it is about, and its factors, of this kind."""
        factors = dict(self.factors)
        return factors.pop("person"), kind(**factors)


def _zero(person: str, changes: dict[str, Any]) -> Trial:
    factors, label = Zero(**changes), _label(changes)
    needs = ["base"]
    if factors.source != "others":
        needs += [f"samples-{name}" for name in (SOURCES if factors.source == "mixed" else (factors.source,))]
    trains = not factors.closing or factors.experts
    if not trains:
        needs.append(person_name(person, factors.specialists))
    steps = factors.closing + (140 if trains else 0) + 30
    return Trial(f"zero-{person}-{label}", "zero", {"person": person, **asdict(factors)}, tuple(needs), steps)


def person_name(person: str, specialists: int) -> str:
    """Of the trial that makes a person's model without a zero expert."""
    return f"person-{person}" + ("" if specialists else "-alone")


def _small(person: str, changes: dict[str, Any]) -> Trial:
    factors = Small(**changes)
    expert = factors.tokens // (factors.rows * 128)
    steps = expert + expert * factors.router // factors.period + 40
    return Trial(f"small-{person}-{_label(changes)}", "small", {"person": person, **asdict(factors)}, (), steps)


def _label(changes: dict[str, Any]) -> str:
    return "-".join(f"{name}.{value}" for name, value in changes.items()) or "default"


ZERO: list[dict[str, Any]] = [  # each factor alone
    {}, {"source": "others"}, {"kl": True}, {"source": "chat"}, {"source": "words"}, {"source": "start"},
    {"tokens": 10_000}, {"tokens": 200_000}, {"closing": 20}, {"closing": 120}, {"share": 0.25}, {"share": 0.75}, {"k": 3},
    {"offset": False}, {"closing": 0}, {"experts": 0.125}, {"specialists": 0}, {"experts": 0.125, "kl": True},
]  # fmt: skip
TOGETHER: list[dict[str, Any]] = [
    {"tokens": 200_000, "closing": 120, "kl": True}, {"source": "others", "kl": True}, {"k": 3, "kl": True},
    {"share": 0.75, "kl": True}, {"tokens": 200_000, "closing": 120, "share": 0.75}, {"specialists": 0, "kl": True},
    {"closing": 0, "kl": True}, {"experts": 0.125, "closing": 0, "kl": True},
]  # fmt: skip
_CHAT = {"source": "chat", "tokens": 10_000}
_FIT = _CHAT | {"fit": True, "offset": False, "decay": True}
SHORT: list[dict[str, Any]] = [
    _CHAT | {"share": 0.25, "closing": 20}, _CHAT | {"rows": 4, "closing": 40, "decay": True, "offset": False},
    _FIT | {"closing": 1}, _FIT | {"closing": 10}, _FIT | {"closing": 10, "share": 0.25}, _FIT | {"closing": 20, "share": 0.25},
]  # fmt: skip

_HALF = {"rows": 2, "rate": 0.5, "beta": 0.987}
SMALL: list[dict[str, Any]] = [{}, {"rate": 0.5}, _HALF]
SMALLER: list[dict[str, Any]] = [
    {"rows": 4, "rate": 0.5, "beta": 0.975}, {"rows": 4, "beta": 0.975}, {"rows": 2, "beta": 0.987},
    {"rate": 2.0}, {"period": 60, "router": 5}, {"router_rows": 2}, {"router_rows": 4}, {"stable": True},
    _HALF | {"period": 60, "router": 5}, _HALF | {"router_rows": 8}, _HALF | {"period": 60, "router": 5, "router_rows": 8},
    _HALF | {"stable": True}, {"rows": 2, "rate": 0.5}, {"rows": 4, "rate": 0.5}, {"rows": 4}, {"rows": 2},
    {"rows": 1, "rate": 0.5, "beta": 0.995}, {"rows": 4, "rate": 2.0, "beta": 0.975},
]  # fmt: skip
_SHORTER = {"tokens": TOKENS // 2}
_MUON = _SHORTER | {"optimiser": "muon"}
OPTIMISERS: list[dict[str, Any]] = [
    _SHORTER, _MUON, _MUON | {"rate": 0.5}, _MUON | {"rate": 2.0}, _MUON | {"width": 96},
    _SHORTER | {"form": "lora"}, _MUON | {"form": "lora"},
    {"optimiser": "muon", "rate": 0.5}, {"optimiser": "muon", "rate": 0.71},
]  # fmt: skip
GRID: list[dict[str, Any]] = [
    {"rows": rows, "rate": rate, "beta": beta}
    for rows in (8, 4, 2, 1) for beta in (0.95, 0.975, 0.987, 0.995) for rate in (0.5, 1.0, 2.0)
]  # fmt: skip


def trials() -> list[Trial]:
    """All of them. What others wait for stands first."""
    samples = [Trial(f"samples-{source}", "samples", {"source": source}, (), 40) for source in SOURCES]
    first = [Trial("base", "base", {}, (), 30), *_persons(1), *samples, *_persons(0)]
    known = [Small(**changes) for changes in SMALL + SMALLER]
    grid = [point for point in GRID if Small(**point) not in known]
    order = [(_zero, ZERO), (_small, SMALL), (_zero, SHORT), (_zero, TOGETHER), (_small, OPTIMISERS + SMALLER + grid)]
    return first + [make(person, changes) for make, points in order for changes in points for person in PERSONS]


def _persons(specialists: int) -> list[Trial]:
    factors: list[dict[str, Any]] = [{"person": person, "specialists": specialists} for person in PERSONS]
    steps = 170 if specialists else 130
    return [Trial(person_name(each["person"], specialists), "person", each, (), steps) for each in factors]
