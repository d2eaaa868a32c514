"""`make demo`: every command once, on a real model and one person's real messages, in a home of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

from rich.console import Console
from rich.table import Table

from benchmarks.common import COMMAND, ROOT, change_settings, environment
from benchmarks.text import chitchat

HOME = ROOT / "demo-home"
MINUTES = "6"
PERSON = 2  # by the amount of text in the dataset; 0 has the most
TEST_TOKENS = 6000
console = Console(highlight=False)


def run(*arguments: str, capture: bool = False) -> str:
    """Runs a command as a person would, and shows it."""
    console.print(f"\n[bold green]$ comigs-edge {' '.join(arguments)}[/]", soft_wrap=True)
    done = subprocess.run([*COMMAND, *arguments], env=environment(HOME), stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def main() -> None:
    """Runs the demo and ends with the table."""
    started = time.monotonic()
    shutil.rmtree(HOME, ignore_errors=True)
    run("init")
    text = HOME / "messages.jsonl"
    chitchat.write(text, PERSON)
    # No pauses: the demo is short and watched.
    change_settings(HOME, {"evaluate": f"max_tokens = {TEST_TOKENS}", "pause": "enabled = false"})
    run("data", "add", str(text))
    run("train", "--minutes", MINUTES)
    run("export")
    scores = json.loads(run("evaluate", "--json", capture=True))
    run("chat", "--prompt", "hey, how was your weekend?", "--seed", "1")
    bits, perplexity = scores["bits_per_byte"], scores["perplexity"]
    table = Table("model", "bits per byte", "perplexity", title="Text of this person that nothing was trained on")
    table.add_row("base", f"{bits['base']:.3f}", f"{perplexity['base']:.1f}")
    table.add_row("personal model", f"[bold]{bits['mixture']:.3f}[/]", f"[bold]{perplexity['mixture']:.1f}[/]")
    console.print()
    console.print(table)
    console.print(
        f"{1 - bits['mixture'] / bits['base']:.1%} fewer bits, both measured in llama.cpp on {scores['test_bytes']:,} "
        f"bytes; the whole demo took {(time.monotonic() - started) / 60:.1f} minutes.\n"
        f"Talk with it: COMIGS_EDGE_HOME={HOME.name} .venv/bin/comigs-edge chat"
    )


if __name__ == "__main__":
    main()
