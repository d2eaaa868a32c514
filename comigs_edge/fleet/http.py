"""The transport over HTTP: resumable uploads to the fleet's coordinator, each made an update by one message."""

from __future__ import annotations

import contextlib
from functools import partial

from comigs_edge.base.hparams import HParams
from comigs_edge.fleet.books import Books
from comigs_edge.fleet.client import Remote, RemoteRefused
from comigs_edge.fleet.folder import FleetFolder
from comigs_edge.fleet.generalist import initial_generalist
from comigs_edge.fleet.standing import Sealed
from comigs_edge.fleet.transport import Leave, News
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.nn.experts import ExpertsConfig, generalist_shapes
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol import compress, wire
from coordinator.protocol.messages import Commit, Receipt, Refusal, State

REJECTED = ("too_stale", "wrong_generalist", "bad_update", "too_large", "wrong_digest")  # for ever
HOPELESS = ("bad_update", "too_large")  # with this content
WAITS = ("stale_round", "already_counted", "disk_full", "incomplete")  # another time it may count


class HTTPTransport(Remote):
    """One coordinator, as a `Transport`."""

    def exchange(self, update: Sealed | None, leaves: Leave, progress: Progress = SILENT) -> News:
        """Uploads the update and makes it count."""
        return self.bring(update, self.state(), leaves, progress)

    def bring(self, update: Sealed | None, state: State, leaves: Leave, progress: Progress = SILENT) -> News:
        """The same, where the fleet is known to stand; nothing is sent to one that takes no single updates."""
        if update is not None and update.trained_from >= 0 and state.settings.update_format == compress.MASKED:
            return News(state=state)
        if update is None or state.has_contributed or update.id in state.counted:
            return News(state=state)
        try:
            data = wire.encode(update.packed)
            was_tried = leaves(len(data), state.settings)
            sha256 = self.upload(data, progress, is_new=not was_tried)
            receipt = self._commit(update, sha256, state.open_round)
        except RemoteRefused as error:
            if error.code not in REJECTED + WAITS:
                raise
            reason = str(error) if error.code in (*HOPELESS, "disk_full") else ""
            return News(state=self.state(), is_rejected=error.code in REJECTED, reason=reason)
        return News(state=receipt.state or self.state(), receipt=receipt)

    def _commit(self, update: Sealed, sha256: str, open_round: int) -> Receipt:
        wish = Commit(
            sha256=sha256, update_id=update.id, trained_from=update.trained_from, tokens=update.tokens,
            expected_round=open_round, validation_loss=update.validation_loss,
        )  # fmt: skip
        try:
            return self.commit(wish)
        except RemoteRefused as error:
            if error.code == "stale_round":  # a round closed while the update was on its way
                wish.expected_round = self.state().open_round
            elif error.code == "bad_message":  # a coordinator from before updates had ids
                wish.update_id = None
            else:
                raise
            return self.commit(wish)

    def refuse(self, refusal: Refusal) -> None:
        """Of the newest generalist; another one may have been published meanwhile."""
        with contextlib.suppress(RemoteRefused):
            super().refuse(refusal)


def open_books(home: Home, settings: Config, layout: ExpertsConfig, hparams: HParams) -> Books:
    """This home's books, which need neither the network nor the device's key. Raises `ComigsError`."""
    shapes = generalist_shapes(layout, hparams)
    initial = partial(initial_generalist, layout, hparams, settings.train.seed)
    folder, fleet = FleetFolder(home), settings.fleet
    return Books(folder, shapes, initial, settings.base.sha256, fleet.gate, fleet.report_loss)
