"""The coordinator's room: averages the generalists of a fleet's devices over HTTP. It never loads torch.

protocol/    what devices and coordinator share
             messages as JSON (messages), arrays as bytes (wire, compress), who says it (signatures, keys), rounds and what
             counts in them (rounds, counting, aggregate), how a request is refused (errors)
ledger/      what is known of a fleet
             database, payloads and their folder (database, payloads, folder), devices (members), updates (fleet), published
             generalists (chain), settings (config), all there is to see (overview)
web/         the HTTP server (server, answers, rates), its description (openapi), metrics, the status page (page, charts)
flare/       how NVIDIA FLARE carries a fleet in place of the server: desk, controller, carrier, export, supervisor

`serve.py` is the running process, `admin.py` its owner's operations, `__main__.py` the command line, `service.py` the unit for
systemd, `systemd.py` how units are installed, `flare_command.py` the command `flare`.
"""
