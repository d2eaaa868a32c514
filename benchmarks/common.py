"""What the benchmarks share: commands in a home, settings, and where figures are written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comigs_edge.errors import ComigsError
from comigs_edge.simulate import origin

if TYPE_CHECKING:
    from comigs_edge.nn.weights import Base

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "benchmark-work"  # homes, and the figures of those who try it
RESULTS = ROOT / "benchmarks" / "results"  # the figures that are shipped
PRECISIONS = ("float32", "tf32", "bfloat16")  # of products; tf32 on a GPU
COMMAND = [sys.executable, "-m", "comigs_edge"]


def result_file(name: str) -> Path:
    """Where figures go: `RESULTS` with RECORD=1 in the environment, else benchmark-work/results."""
    folder = RESULTS if os.environ.get("RECORD") == "1" else WORK / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def write_json(path: Path, table: Any) -> None:
    """Writes figures and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    print(f"wrote {path}")


def text_file(folder: Path, text: str, judging: bool = False) -> Path:
    """As `comigs_edge.simulate.texts.find`; raises `SystemExit`."""
    from comigs_edge.simulate import texts  # loads torch

    with plainly():
        return texts.find(folder, text, judging)


def frozen_commit(named: str = "") -> str:
    """The commit that a judgement is of: git's own, and where there is no git the one that is `named`; else `SystemExit`."""
    with plainly():
        found = origin.frozen_commit() or named
    if not found:
        raise SystemExit(
            "what judges is of one commit, and there is no git to say which; name it with COMMIT=... in the environment"
        )
    return found


@contextmanager
def plainly() -> Iterator[None]:
    """What a user would read ends the benchmark."""
    try:
        yield
    except ComigsError as error:
        raise SystemExit(str(error)) from None


def open_base(path: Path, device: str, precision: str, threads: int) -> Base:
    """The dequantised base on `device`, for products in one of `PRECISIONS`; `threads` of the process compute."""
    import torch

    from comigs_edge.nn import weights

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; leave --device (DEVICE) out")
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return weights.open_base(path, threads, True, dtype, device)


def environment(home: Path) -> dict[str, str]:
    """That of a command in this home."""
    return os.environ | {"COMIGS_EDGE_HOME": str(home), "PYTHONPATH": str(ROOT)}


def run(home: Path, *arguments: Any) -> str:
    """One command of comigs-edge in this home; its standard output. Progress goes to the terminal."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, env=environment(home), check=True, stdout=subprocess.PIPE, text=True).stdout


def make_home(home: Path, text: Path, *options: Any, settings: Mapping[str, str]) -> None:
    """A home with this text. `options` are those of `init`; `settings` has lines of config.toml for each section."""
    run(home, "init", *options)
    change_settings(home, settings)
    run(home, "data", "add", text)


def change_settings(home: Path, settings: Mapping[str, str]) -> None:
    """Adds lines to sections of a new home's config.toml, where all defaults are comments."""
    path = home / "config.toml"
    content = path.read_text()
    for section, lines in settings.items():
        content, count = re.subn(rf"^\[{section}\].*\n", rf"\g<0>{lines.rstrip()}\n", content, flags=re.M)
        if count != 1:
            raise SystemExit(f"config.toml has no section [{section}]")
    path.write_text(content)
