"""What a FLARE project of this fleet needs: who takes part (project.yml), and the job, which names classes and ships none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coordinator.protocol.errors import CoordinatorError

PROJECT, JOB = "comigs", "comigs"  # names of both
ADMIN = "admin@comigs.fleet"
CONTROLLER, CARRIER = "coordinator.flare.controller.Rounds", "coordinator.flare.carrier.Carrier"
TASK = "exchange"


def export(
    folder: Path, data: Path, sites: Sequence[str], *, host: str, port: int, rounds: int, minutes: float, valid_days: int
) -> None:
    """Writes project.yml and the job; raises `CoordinatorError`."""
    if not sites:
        raise CoordinatorError("the project has no sites: name them with --site NAME, or let devices join the fleet first")
    files = {"project.yml": _project(folder, sites, host, port, valid_days)} | _job(data, rounds, minutes)
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n")  # JSON is YAML
    except OSError as error:
        raise CoordinatorError(f"{folder} cannot be written ({error.strerror}); name another folder") from error


def _project(folder: Path, sites: Sequence[str], host: str, port: int, valid_days: int) -> dict[str, Any]:
    """FLARE's server listens on loopback where its own name is localhost."""
    impl = "nvflare.lighter.impl"
    return {
        "api_version": 3, "name": PROJECT, "description": "a comigs-edge fleet",
        "participants": [
            {"name": host, "type": "server", "org": PROJECT, "fed_learn_port": port},
            {"name": ADMIN, "type": "admin", "org": PROJECT, "role": "project_admin"},
            *({"name": site, "type": "client", "org": PROJECT} for site in sites),
        ],
        "builders": [
            {"path": f"{impl}.workspace.WorkspaceBuilder"},
            {"path": f"{impl}.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
            {"path": f"{impl}.cert.CertBuilder", "args": {"root_valid_days": valid_days}},
            {"path": "coordinator.flare.provision.Kits", "args": {"state": str(folder.absolute() / "state")}},
            {"path": f"{impl}.signature.SignatureBuilder"},
        ],
    }  # fmt: skip


def _job(data: Path, rounds: int, minutes: float) -> dict[str, Any]:
    workflow = {"id": "rounds", "path": CONTROLLER, "args": {"data": str(data.absolute()), "rounds": rounds, "minutes": minutes}}
    server = {"format_version": 2, "workflows": [workflow], "components": [], "task_data_filters": [], "task_result_filters": []}
    executor = {"tasks": [TASK], "executor": {"path": CARRIER, "args": {}}}
    client = {"format_version": 2, "executors": [executor], "components": [], "task_data_filters": [], "task_result_filters": []}
    meta = {"name": JOB, "resource_spec": {}, "min_clients": 1, "deploy_map": {"app": ["@ALL"]}}
    return {
        f"{JOB}/meta.json": meta, f"{JOB}/app/config/config_fed_server.json": server,
        f"{JOB}/app/config/config_fed_client.json": client,
    }  # fmt: skip


def kits(folder: Path) -> tuple[Path, Path]:
    """The server's and the owner's kit, of the last `nvflare provision` in the project's folder; raises `CoordinatorError`."""
    made = sorted((folder / "kits" / PROJECT).glob("prod_*"))
    if not made:
        raise CoordinatorError(f"{folder} has no kits yet; type: nvflare provision -p {folder}/project.yml -w {folder}/kits")
    project = json.loads((folder / "project.yml").read_text())
    server = next(each["name"] for each in project["participants"] if each["type"] == "server")
    return made[-1] / server, made[-1] / ADMIN
