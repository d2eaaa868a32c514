"""What `nvflare provision` does for a fleet beyond its own: a kit allows one class of ours by name, and sends no logs."""

from __future__ import annotations

import json
from pathlib import Path

from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder

from coordinator.flare.export import CARRIER, CONTROLLER

LOGS = "site_log_streamer"  # brings a site's logs to the server; here nothing leaves but answers
MOST_SITES = 100_000  # that FLARE's server lets in; its own default is 100


class Kits(Builder):
    """Writes `local/resources.json` of the server's and of each site's kit; `state` is where the server keeps its jobs."""

    def __init__(self, state: str) -> None:
        super().__init__()
        self._state = state

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Of all kits, before they are signed."""
        self._write(ctx, project.get_server(), CONTROLLER)
        for site in project.get_clients():
            self._write(ctx, site, CARRIER)

    def _write(self, ctx: ProvisionContext, participant: Participant, allowed: str) -> None:
        folder = Path(ctx.get_local_dir(participant))
        resources = json.loads((folder / "resources.json.default").read_text())
        resources["class_allow_list"] = [allowed]
        for server in resources.get("servers", []):
            server["max_num_clients"] = MOST_SITES
        resources["components"] = [each for each in resources["components"] if each["id"] != LOGS]
        resources["allow_log_streaming"] = False
        for component in resources["components"]:
            if component["id"] == "job_manager":
                component["args"]["uri_root"] = f"{self._state}/jobs"
        if "snapshot_persistor" in resources:
            resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{self._state}/snapshots"
        (folder / "resources.json").write_text(json.dumps(resources, indent=2))
