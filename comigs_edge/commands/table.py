"""Which commands there are: the file of each, and the sentence that the list of them shows.

Only the command that is asked for is imported: all of them together cost a tenth of a second on a fast processor, on every
press of the tab key too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command, get_group

# name: the file of this package, which holds a function of that name or a group `app`; the first paragraph of its help
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Make the home of your model: its base, its settings, and a place for your text."),
    "plan": ("plan", "Show how this device would train: experts, batch, threads, memory, time, each with its reason."),
    "train": ("train", "Train your model. Ctrl-C stops after the current step and keeps everything."),
    "evaluate": ("evaluate", "Measure test text, which nothing was trained on: bits per byte and perplexity; lower is better."),
    "explain": ("explain", "Show which expert speaks for each token, in the first, the middle and the last block with experts."),
    "report": (
        "report",
        "Report what the newest training has brought: curves, scores on test text, experts, tokens, words, and what has left.",
    ),
    "export": ("export", "Write your model as one GGUF file for llama.cpp, Ollama and others."),
    "chat": ("chat", "Talk with your model. It is exported first if it has been trained since."),
    "serve": ("serve", "Offer your model to other programs, as OpenAI's API: chat and text completions, also streamed."),
    "join": (
        "join",
        "Join a fleet: this device's generalist is averaged with the others'. Text, specialists and router never leave.",
    ),
    "leave": (
        "join",
        "Leave the fleet; your model stays, and what the fleet has not received yet waits for the day you join it again.",
    ),
    "sync": ("sync", "Exchange generalists with the fleet now. `train` does it by itself."),
    "rollback": (
        "sync",
        "Return to an older generalist of the fleet; the three newest are kept. (models rollback: to an older model of yours.)",
    ),
    "privacy": (
        "privacy",
        "Show who can learn what of this device as it is now: what leaves it, what stays, what is in the clear, what has left.",
    ),
    "forget": ("forget", "Remove files and what was learned from them: the model goes back to what it was before it saw them."),
    "status": ("status", "Show the home, its base, text, training and models, and what to do next."),
    "paths": ("paths", "Show where everything lies: the home, and each thing in it; what is not there yet too."),
    "doctor": ("doctor", "Look at this device and say what would hinder training and chat. Exit code 1 if something is bad."),
    "bench": ("bench", "Measure llama.cpp's tokens a second here: the base against each form of expert. No training needed."),
    "simulate": ("simulate", "Train a fleet of virtual devices on this machine and compare methods. Run it again to continue."),
    "data": ("data", "The text that your model learns from; it never leaves this device."),
    "chats": ("chats", "The conversations that this device keeps; they never leave it."),
    "models": ("models", "Versions of your model: what is kept, going back, deleting. (Bases: comigs-edge bases.)"),
    "bases": ("bases", "Bases: what can be had by name and fits this device, getting one, deleting one."),
    "home": ("home", "Move everything to another board, in one file."),
    "service": ("service", "Train every night by itself, on mains power; a timer of systemd."),
    "flare": ("flare", "Train with a large fleet on NVIDIA FLARE, the extra `flare`."),
}


class Loaded(Mapping[str, Any]):
    """The commands by their names, each imported when it is asked for, and made ready by `complete`."""

    def __init__(self, complete: Any) -> None:
        self._complete = complete
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name)
            self._complete(self._loaded[name], name)
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def outline(name: str) -> TyperCommand:
    """What the list of commands needs to know of one."""
    return TyperCommand(name, help=COMMANDS[name][1])


def _load(name: str) -> Any:
    module = import_module(f"comigs_edge.commands.{COMMANDS[name][0]}")
    group: typer.Typer | None = getattr(module, "app", None)
    if group is None:
        alone = typer.Typer(add_completion=False)
        alone.command(name)(getattr(module, name))
        return get_command(alone)
    command = get_group(group)
    command.name = name
    return command
