"""What a FLARE project gets, what a kit says of itself, and when a job is submitted: no FLARE is needed for any of it."""

import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.__main__ import main
from coordinator.flare import supervisor
from coordinator.flare.supervisor import Supervisor, is_counting
from coordinator.ledger import config
from coordinator.ledger.folder import Folder
from coordinator.protocol import kits
from coordinator.protocol.errors import CoordinatorError
from tests.coordinator.rig import Coordinator
from tests.flare.rig import Site, open_desk

NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc)


def certificate(path, name, days):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key()).serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=1)).not_valid_after(NOW + datetime.timedelta(days=days, seconds=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(made.public_bytes(Encoding.PEM))


def export(tmp_path, *words):
    main(["flare", "export", str(tmp_path / "project"), "--data", str(tmp_path / "data"), *words])
    return tmp_path / "project"


def test_a_project_has_the_fleets_devices_and_those_that_are_named(tmp_path):
    with open_desk(tmp_path / "data") as desk:
        Site(tmp_path / "kitchen-pi", "kitchen-pi").join(desk)
    project = json.loads((export(tmp_path, "--site", "shed", "--site", "kitchen-pi") / "project.yml").read_text())
    assert [each["name"] for each in project["participants"] if each["type"] == "client"] == ["kitchen-pi", "shed"]


def test_a_project_stays_on_this_machine_unless_a_host_is_named(tmp_path):
    for words, host in (((), "localhost"), (("--host", "fleet.example"), "fleet.example")):
        project = json.loads((export(tmp_path, "--site", "a", *words) / "project.yml").read_text())
        assert [each["name"] for each in project["participants"] if each["type"] == "server"] == [host]


def test_a_job_names_our_classes_and_ships_no_code(tmp_path):
    project = export(tmp_path, "--site", "a", "--rounds", "3")
    files = sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file())
    config = "comigs/app/config/config_fed_{}.json".format
    assert files == [config("client"), config("server"), "comigs/meta.json", "project.yml"]
    [workflow] = json.loads((project / config("server")).read_text())["workflows"]
    assert workflow["args"]["rounds"] == 3
    assert workflow["path"] == "coordinator.flare.controller.Rounds"
    assert "nvflare" not in (project / config("client")).read_text()


@pytest.mark.parametrize("is_flag", [False, True])
@pytest.mark.parametrize("words", [["export", "--site", "a"], ["run"]])
def test_a_private_fleet_is_not_carried(tmp_path, capsys, words, is_flag):
    if is_flag:
        Coordinator(tmp_path / "data", private=True).stop()
    else:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "config.toml").write_text("[rounds]\nprivate = true\n")
    with pytest.raises(SystemExit):
        main(["flare", words[0], str(tmp_path / "project"), "--data", str(tmp_path / "data"), *words[1:]])
    assert "private fleet, and FLARE carries no private rounds" in capsys.readouterr().err


def test_a_fleet_that_was_private_by_a_flag_of_serve_is_not_carried_either(tmp_path, capsys):
    with Folder.open(tmp_path / "data") as folder, folder.fleet(time.time, {"private": True}) as fleet:
        config.note(fleet.database, fleet.config, True)
    with pytest.raises(SystemExit):
        main(["flare", "export", str(tmp_path / "project"), "--data", str(tmp_path / "data"), "--site", "a"])
    assert "private fleet, and FLARE carries no private rounds" in capsys.readouterr().err
    assert not (tmp_path / "project").exists()


def test_a_project_without_sites_is_refused_with_what_to_type(tmp_path, capsys):
    with pytest.raises(SystemExit):
        export(tmp_path)
    assert "name them with --site NAME" in capsys.readouterr().err


def test_a_project_without_kits_says_how_to_make_them(tmp_path, capsys):
    project = export(tmp_path, "--site", "a")
    with pytest.raises(SystemExit):
        main(["flare", "run", str(project), "--data", str(tmp_path / "data")])
    assert f"type: nvflare provision -p {project}/project.yml" in capsys.readouterr().err


def test_the_end_of_the_first_certificate_is_said_before_it_comes(tmp_path):
    certificate(tmp_path / "startup" / "rootCA.pem", "project", 360)
    certificate(tmp_path / "startup" / "client.crt", "kitchen-pi", 40)
    assert kits.name(kits.find(tmp_path)) == "kitchen-pi"
    assert kits.say_end(tmp_path, NOW) == (f"the certificates of {tmp_path} end on 2027-02-10, in 40 days", False)
    said, is_soon = kits.say_end(tmp_path, NOW + datetime.timedelta(days=20))
    assert is_soon
    assert "in 20 days; ask for a new kit" in said
    assert "ended on 2027-02-10" in kits.say_end(tmp_path, NOW + datetime.timedelta(days=41))[0]


def test_a_folder_without_a_root_certificate_is_no_kit(tmp_path):
    with pytest.raises(CoordinatorError, match="is no startup kit"):
        kits.find(tmp_path)


def test_a_kits_process_is_started_again_and_ends_with_its_command(tmp_path, monkeypatch):
    kit, log = tmp_path / "a kit", tmp_path / "log"
    (kit / "startup").mkdir(parents=True)
    (kit / "startup" / "sub_start.sh").write_text('  exec python3 -u -m nvflare_stand_in -m "$WORKSPACE" -s fed_client.json\n')
    (tmp_path / "nvflare_stand_in.py").write_text("import sys, time; print(sys.argv[1:]); time.sleep(60)\n")
    monkeypatch.setattr(kits, "PAUSE", 0.0)
    process = kits.Process(kit, log, {"PYTHONPATH": str(tmp_path)})
    said = [str(["-m", str(kit), "-s", "fed_client.json"])]
    for count in (1, 2):
        end = time.monotonic() + 30
        while log.read_text().splitlines() != said * count and time.monotonic() < end:
            time.sleep(0.05)
        assert log.read_text().splitlines() == said * count
        before = process.pid
        if count == 1:
            os.kill(before, signal.SIGKILL)
        while count == 1 and process.pid == before and time.monotonic() < end:
            process.keep()
    process.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


class Engine:
    """FLARE's server as its administrator sees it."""

    def __init__(self):
        self.jobs, self.aborted = {}, []

    def list_jobs(self, name_prefix):
        return [{"job_id": name, "status": status} for name, status in self.jobs.items()]

    def submit_job(self, folder):
        name = f"job-{len(self.jobs)}"
        self.jobs[name] = "SUBMITTED"
        return name

    def abort_job(self, name):
        self.aborted.append(name)
        raise RuntimeError("INTERNAL_ERROR")  # what FLARE says of one whose process is gone


@pytest.fixture
def supervised(tmp_path, monkeypatch):
    engine, clock = Engine(), [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])
    return engine, clock, Supervisor(tmp_path, tmp_path, tmp_path / "data", lambda _: None, lambda _: engine)


def test_a_job_is_submitted_again_when_it_has_ended(supervised):
    engine, clock, supervisor = supervised
    for status in ("SUBMITTED", "RUNNING"):
        supervisor.look()
        engine.jobs["job-0"] = status
        supervisor.look()
        assert len(engine.jobs) == 1
    engine.jobs["job-0"] = "FINISHED:COMPLETED"
    clock[0] += 5
    supervisor.look()
    assert engine.jobs["job-1"] == "SUBMITTED"


def test_jobs_that_end_before_they_count_are_submitted_ever_more_seldom(supervised):
    engine, clock, supervisor = supervised
    when = []
    for second in range(3600):
        clock[0] = float(second)
        before = len(engine.jobs)
        supervisor.look()
        if len(engine.jobs) > before:
            when.append(second)
        engine.jobs[f"job-{len(engine.jobs) - 1}"] = "FINISHED:EXECUTION_EXCEPTION"
    gaps = [later - earlier for earlier, later in itertools.pairwise(when)]
    assert gaps[:4] == [5, 10, 20, 40]
    assert max(gaps) == 600


def test_a_job_that_waits_for_a_site_is_not_submitted_twice(supervised):
    engine, clock, supervisor = supervised
    for _ in range(5):
        supervisor.look()
        clock[0] += 100
    assert len(engine.jobs) == 1


def test_a_job_whose_server_was_killed_is_given_up_and_submitted_anew(supervised):
    engine, clock, supervisor = supervised
    supervisor.look()
    clock[0] += 10
    engine.jobs["job-0"] = "RUNNING"
    clock[0] += 19
    supervisor.look()
    assert len(engine.jobs) == 1
    clock[0] += 2
    supervisor.look()
    assert engine.aborted == ["job-0"]
    assert engine.jobs["job-1"] == "SUBMITTED"
    engine.jobs["job-1"] = "FINISHED:COMPLETED"
    clock[0] += 20
    supervisor.look()
    assert "job-2" in engine.jobs  # the zombie is still called running, and nobody waits for it


def test_whoever_counts_holds_the_folder(tmp_path):
    assert not is_counting(tmp_path)
    with Folder.open(tmp_path):
        assert is_counting(tmp_path)
    assert not is_counting(tmp_path)


def test_no_job_is_submitted_while_somebody_counts(tmp_path, supervised):
    engine, _, supervisor = supervised
    with Folder.open(tmp_path / "data"):
        supervisor.look()
    assert not engine.jobs
    supervisor.look()
    assert engine.jobs


def test_flare_is_loaded_only_by_what_flare_loads():
    rooms = (
        "coordinator.__main__, coordinator.flare.desk, coordinator.flare.export, coordinator.flare.supervisor, comigs_edge.cli"
    )
    code = f"import sys, {rooms}, comigs_edge.fleet.site; print('nvflare' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.skipif(find_spec("nvflare") is not None, reason="NVIDIA FLARE is installed here")
def test_a_home_without_flare_says_what_to_install(run, ready, tmp_path):
    certificate(tmp_path / "kit" / "startup" / "rootCA.pem", "project", 360)
    certificate(tmp_path / "kit" / "startup" / "client.crt", "a", 360)
    assert "pip install 'comigs-edge[flare]'" in run("flare", "run", tmp_path / "kit", code=1).output
