"""`comigs-edge models`: which versions there are, the way back to one, and what is deleted."""

import json
import re
import shutil

import pytest

from comigs_edge.home.folder import Home
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.training import checkpoint
from tests.tiny import write_llama


@pytest.fixture
def trained(ready, run):
    """A home with three versions, of which the last two were made from the one before."""
    for _ in range(3):
        run("train", "--steps", 6, "--plan", "zero_expert=false")  # a training further begins at the very loss of the one before
    assert versions(ready / "adapters") == [1, 2, 3]
    return ready


def tensors(home, version):
    """The files of a version, to the byte."""
    return {path.name: path.read_bytes() for path in (home / "adapters" / f"{version:04d}").glob("*.safetensors")}


def listed(run):
    return json.loads(run("models", "list", "--json").stdout)["versions"]


def interrupt(home):
    """What a training leaves that was interrupted after its steps."""
    state = checkpoint.load(home / "state")
    checkpoint.save(home / "state", state.arrays, state.progress | {"finished": False})


def test_the_list_tells_versions_apart(trained, run):
    run("export")
    found = listed(run)
    assert [each["version"] for each in found] == [1, 2, 3]
    assert [each["in_use"] for each in found] == [False, False, True]
    for each in found:
        assert each["validation_loss"] < each["validation_loss_before"]
        assert (each["expert_steps"], each["base"], each["files"]) == (6, "tiny", 1)
        assert each["bytes"] == sum(path.stat().st_size for path in (trained / "adapters" / f"{each['version']:04d}").iterdir())
    assert len({each["text"] for each in found}) == 1  # the same text
    export = trained / "models" / "personal-0003-Q8_0.gguf"
    assert [each["exports"] for each in found] == [[], [], [{"path": str(export), "bytes": export.stat().st_size}]]
    shown = run("models", "list").stdout
    assert "in use" in shown
    assert shown.splitlines()[-1] == "next: comigs-edge models use N"


def test_a_version_that_is_used_is_what_chat_says_and_training_goes_on_from(trained, run):
    answers = {}
    for version in (2, 3):
        run("models", "use", version)
        answers[version] = run("chat", "--prompt", "the hen", "--temperature", 0).stdout
    result = run("models", "use", 2)
    newest = versions(trained / "adapters")[-1]
    assert f"version 2 is in use, as version {newest}" in result.stdout
    assert result.stdout.splitlines()[-1] == "next: comigs-edge chat"
    assert tensors(trained, newest) == tensors(trained, 2)
    assert run("chat", "--prompt", "the hen", "--temperature", 0).stdout == answers[2]
    before = read_manifest(trained / "adapters", 2)["validation_loss"]
    further = json.loads(run("train", "--steps", 6, "--json").stdout)
    assert further["validation_loss_before"] == pytest.approx(before, rel=1e-4)


def test_status_says_that_the_version_in_use_is_not_the_exported_one(trained, run):
    run("export")
    assert "is not exported yet" not in run("status").stdout
    run("models", "use", 1)
    assert "version 4 is not exported yet" in run("status").stdout


def test_using_what_is_in_use_changes_nothing(trained, run):
    assert "version 3 is in use; the next training" in run("models", "use", 3).stdout
    assert versions(trained / "adapters") == [1, 2, 3]


def test_going_back_twice_is_two_versions_back_and_there_it_ends(trained, run):
    run("models", "rollback")
    assert listed(run)[-1]["copy_of"] == 2
    run("models", "rollback")
    assert tensors(trained, versions(trained / "adapters")[-1]) == tensors(trained, 1)
    assert "there is no version before the one in use" in run("models", "rollback", code=1).stderr
    run("models", "use", 3)
    assert tensors(trained, versions(trained / "adapters")[-1]) == tensors(trained, 3)


def test_an_interrupted_training_is_ended_or_given_up_before_another_version_is_used(trained, run):
    interrupt(trained)
    refused = run("models", "use", 1, code=1).stderr.replace("\n", " ")
    assert "a training was interrupted after the last of 6 expert steps" in refused
    assert "comigs-edge models use 1 --drop-training" in refused
    assert versions(trained / "adapters") == [1, 2, 3]
    run("models", "use", 1, "--drop-training")
    assert checkpoint.load(trained / "state") is None
    assert tensors(trained, 4) == tensors(trained, 1)
    before = read_manifest(trained / "adapters", 1)["validation_loss"]
    assert json.loads(run("train", "--steps", 6, "--json").stdout)["validation_loss_before"] == pytest.approx(before, rel=1e-4)


def test_a_version_is_deleted_with_its_exports_and_never_the_one_in_use(trained, run):
    old = trained / "models" / "personal-0001-Q4_0.gguf"
    old.parent.mkdir(exist_ok=True)
    old.write_bytes(b"exported")
    run("export")
    assert "version 3 is the one in use" in run("models", "rm", 1, 3, code=1).stderr
    assert versions(trained / "adapters") == [1, 2, 3]
    result = run("models", "rm", 1)
    assert "removed version 1 with 1 exported file" in result.stdout
    assert versions(trained / "adapters") == [2, 3]
    assert [path.name for path in (trained / "models").iterdir()] == ["personal-0003-Q8_0.gguf"]
    assert "there is no version 1 of your model, those that are kept are 2, 3" in run("models", "rm", 1, code=1).stderr


def test_a_damaged_version_is_named_and_can_be_left_and_deleted(trained, run):
    (trained / "adapters" / "0003" / "manifest.json").write_bytes(b"{")
    assert [each["damage"] is None for each in listed(run)] == [True, True, False]
    assert "damaged" in run("models", "show", 3).stdout
    run("models", "rollback")
    assert tensors(trained, 4) == tensors(trained, 2)
    run("models", "rm", 3)
    assert run("chat", "--prompt", "the hen").stdout


def test_a_version_of_another_base_is_shown_as_such_and_not_used(trained, run, tmp_path):
    run("init", "--force", "--base", write_llama(tmp_path / "other.gguf", seed=5))
    assert [each["is_of_base"] for each in listed(run)] == [False] * 3
    assert "of tiny" in run("models", "list").stdout
    assert "were trained on another base" in run("models", "use", 1, code=1).stderr


def test_what_was_measured_is_shown_with_the_version(trained, run):
    bits = json.loads(run("evaluate", "--json").stdout)["bits_per_byte"]
    assert listed(run)[-1]["measured"]["bits_per_byte"]["mixture"] == bits["mixture"]
    assert f"{bits['mixture']:.4f} with this version" in run("models", "show").stdout


def test_a_version_that_an_earlier_program_wrote_is_shown_and_used(trained, run):
    """Without what a manifest says since: when, of which base by name, of which text."""
    path = trained / "adapters" / "0001" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps({name: manifest[name] for name in ("version", "base_sha256", "layout", "sha256")}))
    assert listed(run)[0]["made"] > "2020"
    run("models", "show", 1)
    run("models", "use", 1)
    assert tensors(trained, 4) == tensors(trained, 1)


def test_the_old_spelling_of_getting_a_base_names_the_new_one(run, home):
    shown = run("models", "pull", "qwen3-0.6b", "--json", code=2).stderr
    assert "comigs-edge bases pull" in " ".join(shown.replace("│", " ").split())
    assert "comigs-edge bases list" in run("models", "list", code=1).stderr


def test_a_removed_texts_traces_are_found_in_a_copy_too(trained, run):
    shutil.rmtree(trained / "adapters" / "0003")
    run("models", "use", 1)
    run("data", "remove", 1)
    assert "0003" in run("status").stdout  # the copy: numbers go on from the last one that is there
    run("data", "remove", "--learned")
    assert versions(Home(trained).adapters) == []


def test_the_fleets_way_back_names_this_one_where_there_is_no_fleet(ready, run):
    assert "comigs-edge models rollback" in run("rollback", code=1).stderr.replace("\n", " ")


@pytest.mark.parametrize("command", [["models", "rm"], ["chats", "delete"], ["data", "remove"], ["forget", "--yes"]])
def test_a_range_is_refused_with_the_numbers_to_type(ready, run, command):
    assert "1-3 is no number, and ranges are not read; name each one: 1 2 3" in run(*command, "1-3", code=2).stderr
    assert "name each one: 2 3 4 5 6 7 8 9 10 ... 90" in run(*command, "2-90", code=2).stderr


def test_other_settings_for_an_interrupted_training_are_refused_with_every_way_out(trained, run):
    interrupt(trained)
    refused = " ".join(run("train", "--steps", 8, code=1).stderr.split())
    assert "ask for steps = 8 where it is 6 in the interrupted training" in refused
    assert "end it with its own settings: comigs-edge train --resume" in refused
    ways = re.findall(r"comigs-edge ([a-z]+ [^(]+) \(", refused.split("give it up:")[1])
    assert ways == ["models use 3 --drop-training", "train --fresh"]
    run(*ways[0].split())
    assert "plan: " in run("train", "--steps", 8).stderr


def test_with_other_experts_an_interrupted_training_can_only_be_ended_or_begun_anew(trained, run):
    interrupt(trained)
    config = trained / "config.toml"
    config.write_text(config.read_text().replace("# rank = 8", "rank = 4"))
    refused = " ".join(run("train", code=1).stderr.split())
    assert "in the interrupted training; end it with its own settings: comigs-edge train --resume" in refused
    assert "--drop-training" not in refused
    assert "or give it up: comigs-edge train --fresh (anew from the base)" in refused


def test_without_a_version_there_is_none_to_go_on_from(ready, run):
    run("train", "--steps", 2)
    interrupt(ready)
    shutil.rmtree(ready / "adapters" / "0001")
    refused = " ".join(run("train", "--steps", 8, code=1).stderr.split())
    assert "train --resume" in refused
    assert "--drop-training" not in refused
