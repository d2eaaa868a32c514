"""The coordinator's room: averages the generalists of a fleet's devices over HTTP. It never loads torch.

wire.py        arrays <-> bytes, checked before they are parsed   compress.py   float16 and int8 updates
messages.py    what is said, as JSON                              signatures.py who says it (RFC 9421)
keys.py        keys, the pinned certificate, invitations, chain   rates.py      how often somebody may ask
rounds.py      when a round closes, how much an update counts     aggregate.py  the mean, in integers
members.py     who belongs to the fleet                           chain.py      its published generalists
fleet.py       what counts in which round                         errors.py     how it says no
database.py    the ledger (SQLite)                                payloads.py   files by their hash
folder.py      the folder of all this, and its lock               config.py     its settings
server.py      HTTP for devices                                   answers.py    bytes <-> messages
admin.py       operations for the owner                           overview.py   what there is to see
serve.py       the running process                                __main__.py   the command line
page.py        the status page; charts.py, looks.py                metrics.py    for Prometheus
service.py     its unit for systemd                               systemd.py    units, installed
openapi.py     the description of the API
"""

VERSION = "0.1.0"
