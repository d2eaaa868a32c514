"""What trainings in this home have shown that a plan guesses: from the first training on it knows better.

How much longer steps took than the plan had said: what lies between the products differs from processor to processor, and only
whole steps measure it. `state/pace.json` keeps one factor for each form of expert, processor and mode of a plan. Keys without a
mode, of earlier versions, correct nothing. And of how many bytes the base makes a token, which differs from language to language.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from comigs_edge import files
from comigs_edge.errors import EXPECTED
from comigs_edge.home.folder import Home
from comigs_edge.nn.experts import Form
from profiles.cost import Plan, Processor, Rates

FEWEST = 5  # steps that say something
OUTLIER = 2.0  # times the quick ones: what another program did
BOUNDS = (0.3, 5.0)  # of a factor: beyond, something else was measured; and of the bytes of a token
BYTES_A_TOKEN = 4.0  # of text: a rough mean over languages
TOKEN = "bytes a token"


def with_experience(home: Home, form: Form, rates: Rates) -> Rates:
    """The rates, and by mode the factor on what they predict."""
    own = _key(form, rates.device, "")
    slower = {key.removeprefix(own): factor for key, factor in _read(home).items() if key.startswith(own)}
    return replace(rates, slower=slower)


def remember(home: Home, form: Form, plan: Plan, seconds: Sequence[float]) -> None:
    """Takes note of what expert steps took (seconds each) that the plan gave `step_seconds`; a full disk does without."""
    if len(seconds) < FEWEST or not plan.step_seconds or plan.cache:
        return
    quick = statistics.quantiles(seconds, n=4)[0]
    took = statistics.mean(each for each in seconds if each <= OUTLIER * quick)
    known, key = _read(home), _key(form, plan.device, plan.mode)
    known[key] = round(_bounded(known.get(key, 1.0) * took / plan.step_seconds), 3)
    with suppress(*EXPECTED):
        files.write_atomic(home.state / "pace.json", json.dumps(known).encode())


def remember_text(home: Home, num_bytes: int, tokens: int) -> None:
    """Takes note of how long a token of the home's text is; a full disk does without."""
    with suppress(*EXPECTED):
        known = _read(home) | {TOKEN: round(_bounded(num_bytes / tokens), 3)}
        files.write_atomic(home.state / "pace.json", json.dumps(known).encode())


def bytes_a_token(home: Home) -> float:
    """As the last training has counted them, or a guess."""
    return _read(home).get(TOKEN, BYTES_A_TOKEN)


def _bounded(factor: float) -> float:
    return min(max(factor, BOUNDS[0]), BOUNDS[1])


def _key(form: Form, device: Processor, mode: str) -> str:
    return f"{form} {device} {mode}"


def _read(home: Home) -> dict[str, float]:
    """Nothing where the file is missing or damaged: it is made anew."""
    try:
        known = json.loads((home.state / "pace.json").read_bytes())
        return {str(key): _bounded(float(value)) for key, value in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
