"""The settings of a home, as each command begins."""

from __future__ import annotations

from comigs_edge.commands.console import late_bar
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home


def settings_of(home: Home) -> Config:
    """What `Home.settings` returns and raises; where it reads the whole base, that is shown."""
    with late_bar("the base's file was touched: reading it") as progress:
        return home.settings(progress)
