"""A fleet on NVIDIA FLARE, the extra `comigs-edge[flare]`: FLARE carries, this coordinator's own ledger counts.

desk.py        what sites are told and what becomes of their answers: no FLARE
controller.py  FLARE's workflow on the server, around a desk
carrier.py     FLARE's executor at a site: hands tasks to the home's training through two files, and its answers back
export.py      what a FLARE project needs; provision.py what is set in every startup kit
supervisor.py  submits the job again and again

Only here is nvflare imported, and only by modules that FLARE itself loads by their names, or inside the calls that need it.
"""
