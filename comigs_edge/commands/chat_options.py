"""The options of `comigs-edge chat` on how answers are drawn, and on what is kept."""

from typing import Annotated, Any, Optional

import typer

from comigs_edge.commands import completion


def _option(panel: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **settings)


_SAMPLING, _KEEPING = "How answers are drawn", "What is kept"

Temperature = Annotated[Optional[float], _option(_SAMPLING, min=0.0, help="Randomness; 0 = always the likeliest token.")]
TopP = Annotated[
    Optional[float], _option(_SAMPLING, min=0.0, max=1.0, help="Only the likeliest tokens that have this probability together.")
]
TopK = Annotated[Optional[int], _option(_SAMPLING, min=0, help="Only so many of the likeliest tokens; 0 = all.")]
MinP = Annotated[
    Optional[float],
    _option(_SAMPLING, min=0.0, max=1.0, help="No token with less than this share of the likeliest one's probability."),
]
RepeatPenalty = Annotated[Optional[float], _option(_SAMPLING, min=1.0, max=10.0, help="Of the last 64 tokens; 1 = none.")]
Seed = Annotated[Optional[int], _option(_SAMPLING, min=0, help="The same seed gives the same answers.")]
MaxTokens = Annotated[Optional[int], _option(_SAMPLING, min=1, metavar="TOKENS", help="An answer's length at most.")]
Stop = Annotated[
    Optional[list[str]], _option(_SAMPLING, metavar="TEXT", help="An answer ends before this text; may be given several times.")
]
GoOn = Annotated[bool, _option(_KEEPING, "--continue", "-c", help="Go on with the last chat.")]
Number = Annotated[
    Optional[int],
    _option(
        _KEEPING, "--chat", metavar="ID", autocompletion=completion.chats, help="Go on with this one of: comigs-edge chats list."
    ),
]
Keep = Annotated[
    Optional[bool],
    _option(_KEEPING, "--keep/--no-keep", help="Whether this chat is kept; else conversations are, and what goes on with one.",
            show_default=False),
]  # fmt: skip
