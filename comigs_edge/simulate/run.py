"""A whole simulation: every method with every seed, kept in one folder, so that it can be interrupted and gone on with.

OUTPUT/simulation.json     what is simulated; another simulation is refused
OUTPUT/base.json           the base's scores
OUTPUT/METHOD-SEED/        rounds.jsonl, checkpoints while it runs, result.json when it is done
OUTPUT/report.md, *.png    see `report.py` and `plots.py`
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from comigs_edge import __version__, files
from comigs_edge.data.tokenizer import Encoded
from comigs_edge.errors import ComigsError
from comigs_edge.inference.evaluate import in_torch
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base
from comigs_edge.progress import SILENT, Progress
from comigs_edge.simulate import origin
from comigs_edge.simulate.fleet import Fleet
from comigs_edge.simulate.methods.method import Method
from comigs_edge.simulate.plan import Plan
from comigs_edge.simulate.recipe import Recipe, Size
from comigs_edge.simulate.texts import Text, digest
from comigs_edge.training import checkpoint
from comigs_edge.training.ordinary import OrdinaryText

NAMES = ("like", "judging")  # what a recipe says of itself, not of what is simulated


@dataclass(frozen=True)
class Simulation:
    """What is simulated, and where. `base_sha256`, `precision` and `hardware` are for the record."""

    recipe: Recipe
    size: Size
    texts: dict[str, Text]
    base: Base
    folder: Path
    leaky: bool = False
    base_sha256: str = ""
    precision: str = "float32"
    hardware: str = ""
    judge: bool = False  # whether the text is judging text
    ordinary: OrdinaryText | None = None  # with it the product's trainings end with a zero expert

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and keeps other processes out; raises `ComigsError` if another simulation is in it."""
        files.make_folder(self.folder)
        lock = filelock.FileLock(self.folder / ".lock", timeout=0, mode=0o600)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ComigsError(f"another process simulates in {self.folder}; wait for it, or name another --output") from None
        try:
            self._begin()
            yield
        finally:
            lock.release()

    def _begin(self) -> None:
        path, wanted = self.folder / "simulation.json", self._identity()
        if path.exists():
            earlier = json.loads(path.read_bytes())
            if changed := sorted(key for key in wanted.keys() | earlier.keys() if wanted.get(key) != earlier.get(key)):
                raise ComigsError(f"{self.folder} holds another simulation (other {', '.join(changed)}); name another --output")
        _write(path, wanted)

    def measure_base(self, progress: Progress) -> dict[str, dict[str, float]]:
        """Scores of the base on every device's test text; measured once."""
        path = self.folder / "base.json"
        if not path.exists():
            scores = {}
            for number, (name, text) in enumerate(self.texts.items(), 1):
                score = in_torch(Model(self.base, None), text.test)
                scores[name] = {"bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity}
                progress(number, len(self.texts))
            _write(path, scores)
        return dict(json.loads(path.read_bytes()))

    def write_ordinary(self, method: Method, progress: Progress = SILENT) -> list[Encoded]:
        """The ordinary text that the method's closing phase reads, made once."""
        if self.ordinary is None or not method.is_product:
            return []
        self.ordinary.make(self.base, progress)
        return self.ordinary.answers

    def run(self, method: Method, seed: int, progress: Progress) -> dict[str, Any]:
        """One method with one seed: what was done is read, what was begun is continued, bit for bit."""
        folder = self.folder / f"{method.name}-{seed}"
        path = folder / "result.json"
        if path.exists():
            return dict(json.loads(path.read_bytes()))
        plan = Plan(self.recipe, self.size, method, seed, self.leaky, zero_expert=self.ordinary is not None)
        fleet = Fleet(self.base, plan, self.texts, self.write_ordinary(method))
        made_by = {"commit": origin.commit(), "settings": json.loads(json.dumps(plan.record(self.base.hparams)))}
        records = resume(fleet, folder, made_by)
        progress(fleet.steps, fleet.total_steps)
        while not fleet.is_done:
            common = {"method": method.name, "seed": seed}
            records += [common | record for record in fleet.round(lambda _: progress(fleet.steps, fleet.total_steps))]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            files.write_atomic(folder / "rounds.jsonl", lines.encode())
            if not fleet.is_done:
                arrays, state = fleet.state()
                checkpoint.save(folder, arrays, {"fleet": state, "records": records, **made_by})
        result = {
            "method": method.name, "seed": seed, "digest": fleet.digest(), "hardware": self.hardware, "text": self.text_digest,
            "judged": self.judge, "version": __version__, **made_by, "records": records,
        }  # fmt: skip
        _write(path, result)
        checkpoint.clear(folder)
        return result

    @property
    def text_digest(self) -> str:
        """SHA-256 over everything that is trained on and measured."""
        return digest(self.texts)

    def _identity(self) -> dict[str, Any]:
        recipe = {key: value for key, value in asdict(self.recipe).items() if key not in NAMES}
        identity = {
            "recipe": recipe | {"sizes": None}, "size": asdict(self.size), "text": self.text_digest, "base": self.base_sha256,
            "leaky": self.leaky, "precision": self.precision,
            "training_tokens": {name: text.num_training_tokens for name, text in self.texts.items()},
        }  # fmt: skip
        # Folders of earlier versions have neither of these.
        identity |= ({} if self.ordinary is None else {"zero_expert": True}) | ({"judged": True} if self.judge else {})
        return dict(json.loads(json.dumps(identity)))  # as it comes back from the file


def resume(fleet: Fleet, folder: Path, made_by: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
    """Takes the fleet to where the newest sound checkpoint is; returns the records up to there.

    Raises `ComigsError` where that was not `made_by` this code and these settings: figures would be of both and name one.
    """
    saved = checkpoint.load(folder)
    if saved is None or not saved[1]:
        return []
    if made_by is not None and (other := sorted(key for key in made_by if saved[1].get(key) != made_by[key])):
        raise ComigsError(
            f"what was begun in {folder} is of other code (other {', '.join(other)}); finish it with that, remove the folder, or "
            "name another --output"
        )
    fleet.restore(saved[0], saved[1]["fleet"])
    return list(saved[1]["records"])


def _write(path: Path, value: Any) -> None:
    files.write_atomic(path, json.dumps(value, indent=1).encode())
