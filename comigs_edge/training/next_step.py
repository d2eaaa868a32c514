"""What to type next in a home: one answer for all commands, and never a command that refuses."""

from __future__ import annotations

from comigs_edge.errors import ComigsError
from comigs_edge.home import folder as homes
from comigs_edge.home import holder
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.training import checkpoint
from comigs_edge.training.learned import find_remains

TRAIN, RESUME = "comigs-edge train", "comigs-edge train --resume"


def find_next(
    home: Home, settings: Config, has_new_text: bool = False, latest: checkpoint.Latest | None = None
) -> str:  # fmt: skip
    """The command; `has_new_text` says that there is something to learn although there may be a model already.

    `latest`: the state of the training, where that was read before.
    """
    made, corpus = versions(home.adapters), homes.corpus(home, settings)
    if holder.training(home.holder_file) is not None:
        return "comigs-edge status --follow"
    is_of_base = bool(made) and _is_of_base(home, settings, made[-1])
    if corpus.missing():
        return "comigs-edge chat" if is_of_base else "comigs-edge data add FOLDER"
    latest = latest or checkpoint.Latest(home.state)
    state, remains = latest.state, find_remains(home, corpus, latest=latest)
    interrupted = state is not None and state.is_interrupted
    holds_removed = remains.in_training if interrupted else bool(made) and made[-1] in remains.versions
    is_foreign = state is not None and state.progress.get("base_sha256", settings.base.sha256) != settings.base.sha256
    if holds_removed or (interrupted and is_foreign) or (state is not None and not state.progress):  # damaged: nothing goes on
        return "comigs-edge train --fresh"
    if interrupted:
        return RESUME
    if made and not is_of_base:
        return "comigs-edge train --fresh"
    return "comigs-edge chat" if made and not has_new_text else TRAIN


def _is_of_base(home: Home, settings: Config, version: int) -> bool:
    """Whether a version was trained on the home's base; a damaged one says so itself where it is used."""
    try:
        return bool(read_manifest(home.adapters, version)["base_sha256"] == settings.base.sha256)
    except ComigsError:
        return True
