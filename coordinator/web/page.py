"""The status page: one string of HTML, made anew for every visit; no script, no other request.

Everything on it comes from `overview`; what devices chose (names, versions, the base's name) is escaped.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from coordinator.ledger import overview
from coordinator.ledger.fleet import Fleet
from coordinator.ledger.overview import Facts
from coordinator.ledger.private import PrivateRounds
from coordinator.web import charts, private_windows
from coordinator.web.charts import Point
from coordinator.web.parts import ago, count, listed, loss, moment, or_dash, size, span, tile, utc

CSS = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
REFRESH_SECONDS = 30
DRAWN, LISTED = 60, 12  # rounds in the charts and in the table
LOW_DISK = 10**9  # bytes


def render(fleet: Fleet, started: float, version: str, private: PrivateRounds | None = None) -> str:
    """The page as HTML; `private` are the private rounds of a fleet that has such."""
    facts, devices = overview.overview(fleet, started, version), overview.devices(fleet)
    facts |= overview.windows(fleet, private)
    rounds = overview.rounds_table(fleet, DRAWN)
    silent_since = facts["now"] - fleet.config.rounds.active_seconds
    parts = [_first_steps()]
    if devices:
        listings = _devices(devices, facts["now"], silent_since), private_windows.listing(facts), _rounds(rounds, facts["now"])
        parts = [_charts(rounds), *listings]
    body = "".join((_head(facts), _tiles(facts, rounds), *parts, _foot(facts)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}"><title>Fleet {escape(facts["fleet"][:6])}, round '
        f"{facts['open_round']}</title><style>{CSS}</style></head><body>{body}</body></html>"
    )


def _head(facts: Facts) -> str:
    base, generalist = facts["base"], facts["generalist"]
    about = "No base yet: the first device brings it."
    if base is not None:
        about = (
            f'Base <strong>{escape(base["name"][:64])}</strong> <code title="{escape(base["sha256"])}">'
            f"{escape(base['sha256'][:12])}</code>, {generalist['tensors']} {escape(generalist['form'][:20])} tensors averaged"
        )
    if facts["private"] is not None:
        about += "; a private fleet: updates are opened in sums only"
    notes = "".join(f"<p><strong>{escape(sentence)}</strong></p>" for sentence in facts["notes"])
    return f"<header><h1>Fleet <code>{escape(facts['fleet'])}</code></h1><p>{about}</p>{notes}</header><main>"


# Figures ------------------------------------------------------------------------------------------------------------


def _tiles(facts: Facts, rounds: list[Facts]) -> str:
    turned = [row["number"] for row in rounds if row["rolled_back_to"] is not None]
    seen = f"round {turned[-1]} was the last" if turned else "none of the rounds shown"
    free, newest = facts["disk_free"], facts["newest_round"]
    published = [row["published"] for row in rounds if row["published"] is not None]
    age = f"published {ago(published[-1], facts['now'])}" if published else "the first device brings it"
    first = _open_round(facts) if facts["private"] is None else private_windows.tile_of(facts)
    return "".join((
        '<section class="tiles" aria-label="Health">', first,
        tile("Devices", f"{facts['active']}", f"active, of {count(facts['devices'], 'device')}{_unlisted(facts)}"),
        tile("Generalist", "none" if newest < 0 else str(newest), age),
        tile("Received", size(facts["bytes_in"]), f"{size(facts['bytes_out'])} sent"),
        tile("Turned back", str(len(turned)), seen),
        tile("Disk free", size(free), "little is left: make room" if free < LOW_DISK else "enough", free < LOW_DISK),
        "</section>",
    ))  # fmt: skip


def _unlisted(facts: Facts) -> str:
    return f"; {facts['unlisted']} not in the owner's roster" if facts["unlisted"] else ""


def _open_round(facts: Facts) -> str:
    updates, goal = facts["updates"], facts["goal"]
    if facts["deadline"] is None:
        note = "waits for its first update"
    else:
        left = facts["deadline"] - facts["now"]
        due = f"in {span(left)}" if left > 0 else f"since {span(-left)}"
        note = f"deadline {due}, then {count(facts['quorum'], 'update')} will do"
    share = min(100.0, 100.0 * updates / goal)
    bar = f'<span class="bar-of"><span style="width:{share:.0f}%"></span></span>'
    figure = f"{updates}<small> of {count(goal, 'update')}</small>"
    return tile(f"Round {facts['open_round']}, open", figure, f"{bar}{note}")


# Charts -------------------------------------------------------------------------------------------------------------


def _charts(rounds: list[Facts]) -> str:
    closed = [row for row in rounds if row["closed"] is not None]
    losses = [Point(row["number"], row["validation_loss"], row["rolled_back_to"] is not None) for row in closed]
    devices = [Point(row["number"], row["devices"], row["closed"] is None, row["refusals"]) for row in rounds]
    moved = [Point(row["number"], row["bytes_in"], row["closed"] is None) for row in rounds]
    line = charts.line("loss", "Validation loss by round", losses, lambda value: f"{value:.4g}")
    if all(point.value is None for point in losses):
        line = '<p class="empty">No device reports its validation loss. Each decides that for itself.</p>'
    refused = "; narrow: devices that refused its generalist" if any(point.refused for point in devices) else ""
    turned = "; dashed: an older generalist again" if any(point.is_marked for point in losses) else ""
    return "".join((
        '<section class="charts" aria-label="Rounds over time">',
        _figure("Validation loss", f"nats a token, mean of the devices that report it{turned}", line),
        _figure("Devices", f"updates in each round{refused}",
                charts.bars("devices", "Devices by round", devices, lambda value: f"{value:.0f}", is_count=True)),
        _figure("Received", "bytes of each round's updates", charts.bars("moved", "Bytes received by round", moved, size)),
        "</section>",
    ))  # fmt: skip


def _figure(name: str, note: str, drawing: str) -> str:
    return f"<figure><figcaption><h2>{name}</h2><p>{note}</p></figcaption>{drawing}</figure>"


# Tables -------------------------------------------------------------------------------------------------------------


def _devices(rows: list[Facts], now: float, silent_since: float) -> str:
    heads = (
        "Device", "State", "Last contact", "#Updates", "#Last round", "#Refused", "#Validation loss", "#Received", "#Sent",
        "Version",
    )  # fmt: skip
    return listed("Devices", heads, (
        (
            escape(row["name"]), _state(row, silent_since), moment(row["last_contact"], now), str(row["updates"]),
            or_dash(row["last_round"]), or_dash(row["refusals"] or None), loss(row["validation_loss"]),
            size(row["bytes_in"]), size(row["bytes_out"]),
            escape(row["version"]),
        ) for row in rows
    ))  # fmt: skip


def _state(row: Facts, silent_since: float) -> str:
    if row["revoked"] is not None:
        return '<span class="state gone">revoked</span>'
    if row["last_contact"] < silent_since:
        return '<span class="state silent">silent</span>'
    if row["alarm"] is not None:
        return f'<span class="state silent">{escape(row["alarm"])}</span>'
    return '<span class="state">active</span>'


def _rounds(rows: list[Facts], now: float) -> str:
    heads = ("#Round", "Closed", "Took", "#Devices", "#Received", "#Tokens", "#Validation loss", "#Refused by", "Generalist")
    return listed("Latest rounds", heads, (
        (
            str(row["number"]), "open" if row["closed"] is None else moment(row["closed"], now),
            span((row["closed"] or now) - row["opened"]), str(row["devices"]), size(row["bytes_in"]),
            f"{row['tokens'] or 0:,}", loss(row["validation_loss"]), or_dash(row["refusals"] or None), _generalist(row),
        ) for row in reversed(rows[-LISTED:])
    ))  # fmt: skip


def _generalist(row: Facts) -> str:
    if row["rolled_back_to"] is not None:
        return f'<span class="state silent">{row["rolled_back_to"]} again</span>'
    if row["sha256"] is None:
        return "–"
    return f'<code title="{escape(row["sha256"])}">{escape(row["sha256"][:12])}</code>'


def _first_steps() -> str:
    return (
        '<section class="steps"><h2>No device yet</h2><ol><li>On this machine, for a link that is good for one device and one '
        "day: <pre>comigs-coordinator invite</pre></li><li>On the device, with that link: <pre>comigs-edge join LINK</pre></li>"
        "<li>Then, on the device: <pre>comigs-edge train</pre></li></ol></section>"
    )


def _foot(facts: Facts) -> str:
    settings = ", ".join(f"{name.replace('_', ' ')} {escape(str(value))}" for name, value in facts["settings"].items())
    return (
        f"</main><footer><p>{settings}</p><p>comigs-coordinator {escape(facts['version'])}, running for "
        f"{span(facts['now'] - facts['started'])}, ledger in {escape(facts['sqlite_journal'])} mode. "
        f"Made {utc(facts['now'])}, anew every {REFRESH_SECONDS} seconds. "
        '<a href="/metrics">Metrics</a> <a href="/openapi.json">API</a></p></footer>'
    )
