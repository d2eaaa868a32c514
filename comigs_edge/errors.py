"""The errors that are meant for the user: one sentence, what happened and what to do next."""

from __future__ import annotations

from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.wire import WireError
from profiles import ProfileError
from quantize.formats import QuantizeError


class ComigsError(Exception):
    """Anything the user can put right; the text is one sentence, shown without a traceback."""


# What the command line turns into one line and exit code 1.
USER_ERRORS = (ComigsError, QuantizeError, ProfileError, WireError, CoordinatorError)
