"""The commands as a person meets them: the whole way on a tiny base, and every kind of bad input."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from comigs_edge import llamacpp
from comigs_edge.commands import train
from comigs_edge.home.folder import Home
from comigs_edge.training import checkpoint
from quantize.gguf_file import GGUFFile
from tests.tiny import TEMPLATE, some_text, write_llama


def error(result):
    """The one line that the user sees."""
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), result.output
    assert "Traceback" not in result.output
    return lines[-1]


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


lora = pytest.mark.parametrize("ready", ["lora"], indirect=True)  # the form that is not the default


def chat_during(run, monkeypatch, event):
    """What a chat prints in which something happens between two messages."""
    lines = iter(["hello", None, "hello", "/exit"])

    def answer(prompt):
        line = next(lines)
        if line is None:
            event()
            return "/clear"
        return line

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("comigs_edge.commands.message.is_typed", lambda: True)
    return run("chat", "--temperature", "0").stdout


# The whole way ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ready", "architecture"), [("lora", "llama"), (None, "granitemoe")], indirect=["ready"])
def test_from_text_to_chat(ready, run, architecture):
    trained = json.loads(run("train", "--steps", "12", "--json").stdout)
    assert trained["finished"]
    assert trained["expert_steps"] == 12
    assert trained["router_steps"] == 6
    assert trained["validation_loss"] < trained["validation_loss_before"]

    scores = json.loads(run("evaluate", "--json").stdout)
    bits = scores["bits_per_byte"]
    assert scores["test_bytes"] > 1000
    assert set(bits) == set(scores["perplexity"]) == {"base", "generalist", "specialists", "mixture"}
    assert bits["mixture"] < bits["base"]
    torch_bits = json.loads(run("evaluate", "--engine", "torch", "--json").stdout)["bits_per_byte"]
    assert torch_bits["base"] == pytest.approx(bits["base"], rel=1e-3)
    assert torch_bits["mixture"] == pytest.approx(bits["mixture"], rel=1e-2)  # the file holds Q8_0

    exported = json.loads(run("export", "--format", "f16", "--json").stdout)
    assert exported["bytes"] > 10_000
    choices = 3 if architecture == "granitemoe" else 2  # small experts have a zero expert beside them
    assert GGUFFile(Home(ready).models / "personal-0001-F16.gguf").metadata[f"{architecture}.expert_count"] == choices
    first = run("chat", "--prompt", "the hen", "--temperature", "0").stdout
    assert first == run("chat", "--prompt", "the hen", "--temperature", "0").stdout
    assert first.strip()

    found = json.loads(run("status", "--json").stdout)
    assert found["training"] == {"state": "finished", "expert_steps": 12, "steps": 12}
    assert found["adapters"]["version"] == 1
    assert found["next"] == "comigs-edge chat"


@lora
def test_chat_exports_when_the_adapters_are_newer(ready, run):
    run("train", "--steps", "4")
    run("chat", "--prompt", "a stone")
    run("train", "--steps", "4")
    run("chat", "--prompt", "a stone")
    assert sorted(path.name for path in (ready / "models").iterdir()) == ["personal-0001-Q8_0.gguf", "personal-0002-Q8_0.gguf"]


def test_the_generalist_alone_is_a_dense_model(run, home, tiny_path, tmp_path):
    run("init", "--base", tiny_path, "--specialists", "0")
    (tmp_path / "a.txt").write_text(some_text())
    run("data", "add", tmp_path / "a.txt")
    assert json.loads(run("train", "--steps", "3", "--plan", "zero_expert=false", "--json").stdout)["router_steps"] == 0
    scores = json.loads(run("evaluate", "--json").stdout)["bits_per_byte"]
    assert scores["specialists"] is None
    assert scores["generalist"] == pytest.approx(scores["mixture"], rel=1e-2)
    metadata = GGUFFile(home / "models" / "personal-0001-Q8_0.gguf").metadata
    assert "llama.expert_count" not in metadata


def test_a_conversation_has_its_commands(ready, run, monkeypatch):
    monkeypatch.setattr("comigs_edge.commands.message.is_typed", lambda: True)
    result = run("chat", "--base", input="/help\n/system Be kind.\nthe hen\n/clear\n/nonsense\n/exit\nnever read\n")
    assert result.output.count("/clear ") == 2  # for /help, and for what is no command
    assert "there is no /nonsense, and nothing was asked" in result.output
    assert "there is no /help" not in result.output
    assert "never read" not in result.output


def test_a_file_is_not_written_into_a_folder_that_is_not_there(run, ready, tmp_path):
    wanted = tmp_path / "no such" / "page"
    for words in (
        ("export", "--output"),
        ("report", "--html"),
        ("explain", "hen", "--html"),
        ("bench", "--output"),
        ("home", "export"),
    ):
        said = error(run(*words, wanted, code=1))
        assert f"there is no folder {wanted.parent}; make it with: mkdir -p '{wanted.parent}'" in said
    assert not wanted.parent.exists()


def test_every_command_has_help_and_says_what_comes_next(run, ready):
    for command in ("init", "data", "train", "evaluate", "export", "chat", "status"):
        assert "Usage" in run(command, "--help").stdout
    assert run("status").stdout.splitlines()[-1] == "next: comigs-edge train"
    assert run("train", "--steps", "2").stdout.splitlines()[-1] == "next: comigs-edge chat"


def loaded(*commands):
    """Exit codes of commands in one new process, and what heavy it has loaded then."""
    code = (
        "import sys; from typer.testing import CliRunner; from comigs_edge.cli import app;"
        f"r = [CliRunner().invoke(app, a).exit_code for a in {list(commands)}];"
        "print(r, *sorted({'torch', 'llama_cpp', 'scipy'} & set(sys.modules)))"
    )
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_help_does_not_load_torch_or_llama_cpp():
    assert loaded(["--help"], ["train", "--help"], ["status"]) == "[0, 0, 0]"


def test_a_chat_with_a_model_that_is_exported_does_not_load_torch(run, ready):
    run("train", "--steps", "2")
    run("export")
    assert loaded(["chat", "--prompt", "the hen", "--max-tokens", "2"]) == "[0] llama_cpp"


# Init ---------------------------------------------------------------------------------------------------------------


def test_init_makes_a_home_for_the_owner_alone(run, home, tiny_path):
    result = run("init", "--base", tiny_path, "--specialists", "2")
    assert "1 generalist + 2" in result.stdout
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "config.toml").stat().st_mode) == 0o600
    assert json.loads(run("status", "--json").stdout)["base"]["size"] == tiny_path.stat().st_size


def test_a_second_init_changes_nothing_without_force(run, ready, tmp_path):
    other = write_llama(tmp_path / "other.gguf", seed=1)
    before = snapshot(ready)
    assert "nothing was changed" in run("init", "--base", other).stdout
    assert snapshot(ready) == before
    run("init", "--base", other, "--force")
    assert (ready / "base.gguf").resolve() == other
    assert (ready / "data" / "documents.db").read_bytes() == before[ready / "data" / "documents.db"]


def test_a_bad_base_makes_no_home(run, home, tmp_path, tiny_path):
    (tmp_path / "cut.gguf").write_bytes(tiny_path.read_bytes()[:50_000])
    (tmp_path / "text.gguf").write_text("not a model")
    write_llama(tmp_path / "phi.gguf", architecture="phi2")
    for name, message in (
        ("missing.gguf", "does not exist"),
        ("cut.gguf", "cut short or damaged"),
        ("text.gguf", "not a GGUF file"),
        ("phi.gguf", "'phi2', of which llama.cpp runs no exact mixture"),
    ):
        assert message in error(run("init", "--base", tmp_path / name, code=1))
        assert not home.exists()


def test_the_form_is_parallel_where_the_base_allows_it(run, home, tmp_path):
    for architecture, form in (("qwen2", "parallel"), ("qwen3", "lora")):
        options = {"bias": True} if architecture == "qwen2" else {"head_norms": True}
        base = write_llama(tmp_path / f"{architecture}.gguf", architecture=architecture, **options)
        run("init", "--force", "--base", base)
        assert f'expert_form = "{form}"' in (home / "config.toml").read_text()
    assert "use LoRA experts" in error(run("init", "--force", "--base", base, "--expert-form", "parallel", code=1))


def test_commands_before_init_say_so(run):
    for command in (["train"], ["evaluate"], ["export"], ["chat"], ["data", "list"], ["data", "add", "/"]):
        assert "comigs-edge init" in error(run(*command, code=1))


# Bad input ----------------------------------------------------------------------------------------------------------


def test_a_home_of_a_newer_version_is_left_alone(run, ready):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("format = 1", "format = 2"))
    before = snapshot(ready)
    assert "made by a newer comigs-edge (home format 2" in error(run("train", code=1))
    assert snapshot(ready) == before


def test_an_empty_folder_and_bad_lines_alone_change_nothing(run, ready, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"body": "what is it?"}\n{oops\n')
    before = snapshot(ready)
    assert "no .txt, .md, .markdown" in error(run("data", "add", tmp_path / "empty", code=1))
    assert "keys body (bad.jsonl, line 1); no JSON" in error(run("data", "add", tmp_path / "bad.jsonl", code=1))
    assert snapshot(ready) == before


def test_binary_files_among_the_text_are_skipped_and_counted(run, ready, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_text(some_text(3, seed=5))
    (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
    result = run("data", "add", folder)
    assert "b.txt was skipped: binary data" in result.stderr
    assert "1 unreadable files" in result.stdout.replace("\n", " ")


def test_too_little_text_is_said_before_anything_is_loaded(run, home, tiny_path, tmp_path):
    run("init", "--base", tiny_path)
    (tmp_path / "a.txt").write_text("only this")
    run("data", "add", tmp_path / "a.txt")
    assert "at least 3 documents and 4,000 bytes" in error(run("train", code=1))


def test_a_second_training_says_who_holds_the_home(run, ready):
    with Home(ready).lock("train"):
        message = error(run("train", code=1))
    assert "`comigs-edge train` already runs in this home (process " in message
    run("train", "--steps", "1")


def test_a_corrupt_checkpoint_falls_back_with_a_warning(run, ready):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[train]\n", "[train]\ncheckpoint_minutes = 0.0\n"))
    run("train", "--steps", "5")
    # As after a kill at the fourth step, with the newest file damaged.
    newest, older = sorted((ready / "state").glob("checkpoint-*"), reverse=True)
    newest.write_bytes(b"damaged" + newest.read_bytes()[7:])
    result = run("train", "--resume", "--json")
    assert "is damaged and was passed over" in result.stderr.replace("\n", " ")
    assert "the last router steps" in result.stderr
    assert "resuming after the last of 5 expert steps" in result.stderr  # only router steps were still to be done
    assert json.loads(result.stdout)["expert_steps"] == 5
    assert older.exists() or checkpoint.load(ready / "state")[1]["finished"]


def test_no_sound_checkpoint_left_is_a_sentence(run, ready):
    run("train", "--steps", "2")
    for path in (ready / "state").glob("checkpoint-*"):
        path.write_bytes(b"damaged")
    assert "no sound checkpoint is left" in error(run("train", code=1))
    run("train", "--fresh", "--steps", "2")


def test_resume_without_an_interrupted_training_is_a_sentence(run, ready):
    assert "no interrupted training" in error(run("train", "--resume", code=1))


def test_other_settings_do_not_resume(run, ready):
    run("train", "--steps", "4")
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("# rank = 8 ", "rank = 4 "))
    assert "rank = 4 where it is 8" in error(run("train", code=1))


@pytest.mark.parametrize(("form", "changes"), [("lora", {"ff_width": 80}), ("parallel", {"width": 72})])
def test_a_format_that_does_not_fit_is_refused_before_anything_is_trained(run, home, tmp_path, form, changes):
    output = run("init", "--base", write_llama(tmp_path / "odd.gguf", **changes), "--expert-form", form).output
    assert 'format = "F16" in [quantize]' in output
    (tmp_path / "a.txt").write_text(some_text())
    run("data", "add", tmp_path / "a.txt")
    run("train", "--steps", "1")
    assert "--format F16" in error(run("export", "--format", "Q8_0", code=1))
    assert not list((home / "models").glob("*.gguf"))
    run("export")
    settings = (home / "config.toml").read_text()
    (home / "config.toml").write_text(settings.replace('format = "F16"', 'format = "Q8_0"'))
    for command in ("plan", "train"):
        assert "format in [quantize] of config.toml" in error(run(command, code=1))


def test_a_base_that_changed_is_refused(run, ready, tmp_path):
    (ready / "base.gguf").unlink()
    assert "is gone" in error(run("train", code=1))
    (ready / "base.gguf").symlink_to(write_llama(tmp_path / "wide.gguf", width=128))
    assert "not the" in error(run("train", code=1))


def test_wrong_usage_is_exit_code_2(run, ready):
    run("train", "--steps", "0", code=2)
    run("train", "--steps", "1", "--minutes", "1", code=2)
    run("export", "--format", "Q3_0", code=2)
    run("export", "--layout", "folded", code=2)
    run("init", "--force", "--expert-form", "dora", code=2)
    run("nonsense", code=2)
    assert "profile 'pi9' does not exist" in error(run("train", "--profile", "pi9", code=1))


@lora
def test_a_four_bit_export_warns_with_the_figure(run, ready):
    run("train", "--steps", "1")
    assert "6 to 14 %" in run("export", "--format", "Q4_0").stderr.replace("\n", " ")


@pytest.mark.parametrize("ready", ["lora", "parallel"], indirect=True)
def test_a_home_trains_for_four_bits_and_exports_without_a_warning(run, ready):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[quantize]\n", '[quantize]\nformat = "Q4_0"\nstart = 0.5\n'))
    trained = json.loads(run("train", "--steps", "6", "--json").stdout)
    assert trained["validation_loss"] < trained["validation_loss_before"]
    result = run("export", "--json")
    exported = json.loads(result.stdout)
    assert (exported["format"], exported["formats"], result.stderr.strip()) == ("Q4_0", {"Q4_0": 6}, "")
    torch_score, llama_score = (
        json.loads(run("evaluate", "--engine", engine, "--json").stdout)["bits_per_byte"]["mixture"]
        for engine in ("torch", "llama.cpp")
    )
    assert torch_score == pytest.approx(llama_score, rel=0.005)


def test_a_second_training_of_parallel_experts_goes_into_the_file_that_is_there(run, ready):
    run("train", "--steps", "2")
    first = json.loads(run("export", "--json").stdout)
    run("train", "--steps", "2")
    second = json.loads(run("export", "--json").stdout)
    assert sorted(path.name for path in (ready / "models").iterdir()) == ["personal-0002-Q8_0.gguf"]
    fresh = json.loads(run("export", "--output", ready / "fresh.gguf", "--json").stdout)
    assert second["sha256"] == fresh["sha256"] != first["sha256"]
    assert run("chat", "--prompt", "Hello", "--temperature", "0").stdout.strip()


@lora
def test_the_layout_hot_is_exported_evaluated_and_chatted_with(run, ready):
    settings = ready / "config.toml"
    settings.write_text(settings.read_text().replace("[export]\n", '[export]\nlayout = "hot"\n'))
    run("train", "--steps", "3")
    exported = json.loads(run("export", "--json").stdout)
    assert [Path(path).name for path in exported["adapters"]] == [
        "personal-0001-hot-F16-generalist.gguf",
        "personal-0001-hot-F16-specialists.gguf",
    ]
    scores = [
        json.loads(run("evaluate", "--engine", engine, "--json").stdout)["bits_per_byte"]["mixture"]
        for engine in ("torch", "llama.cpp")
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    assert run("chat", "--prompt", "Hello", "--temperature", "0").stdout.strip()
    assert "stores its adapters as F16 or F32, not Q4_0" in error(run("export", "--format", "Q4_0", code=1))


def test_a_chat_goes_on_with_what_was_trained_meanwhile(run, ready, monkeypatch):
    run("train", "--steps", "2")
    shown = chat_during(run, monkeypatch, lambda: run("train", "--steps", "2"))
    assert "your model has changed: continuing with version 2" in shown


def test_a_line_of_the_plan_sets_what_the_settings_leave_open(ready, run):
    assert json.loads(run("train", "--plan", "specialists=2", "--steps", "1", "--json").stdout)["finished"]
    manifest = json.loads((ready / "adapters" / "0001" / "manifest.json").read_text())
    assert manifest["layout"]["num_specialists"] == 2


def test_a_chat_that_the_template_refuses_is_left_out_and_counted(run, home, tmp_path):
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + TEMPLATE
    run("init", "--base", write_llama(tmp_path / "strict.gguf", template=strict))
    lines = [json.dumps({"text": text}) for text in some_text(60).split("\n\n")]
    chats = [json.dumps({"messages": [{"role": "assistant", "content": f"alone number {n}"}]}) for n in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines + chats))
    run("data", "add", tmp_path / "a.jsonl")
    assert "chats were left out" in run("train", "--steps", "1").stderr


def test_where_the_template_refuses_every_chat_its_reason_is_given(run, home, tmp_path):
    strict = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + TEMPLATE
    run("init", "--base", write_llama(tmp_path / "strict.gguf", template=strict))
    said = some_text(60).split("\n\n")
    chats = [json.dumps({"messages": [{"role": "assistant", "content": text}]}) for text in said]
    (tmp_path / "a.jsonl").write_text("\n".join(chats))
    run("data", "add", tmp_path / "a.jsonl")
    message = error(run("train", "--steps", "1", code=1))
    assert "all chats were left out (the base's chat template refuses this chat: the user begins)" in message


def test_minutes_become_steps(ready):
    result = train.perform(None, 0.05, None, pause=False, sync=False, profile=None, lines=None, json=True)
    assert result["finished"]
    assert result["expert_steps"] > 1  # of a few milliseconds each


def test_minutes_that_hold_no_step_are_said_and_one_step_is_trained(ready, capsys):
    found = train.perform(None, 1e-6, None, pause=False, sync=False, profile=None, lines=None, json=True)
    assert "not even one step with the router's after it fits into 1e-06 minutes" in capsys.readouterr().err
    assert found["expert_steps"] == 1


def test_llama_cpp_stays_quiet(capfd, tiny_path):
    llamacpp.load(tiny_path, n_ctx=64).eval([3, 4])
    assert capfd.readouterr() == ("", "")


def test_an_export_of_another_base_is_never_used(run, ready, tmp_path):
    run("train", "--steps", "2")
    run("export")
    run("init", "--force", "--base", write_llama(tmp_path / "other.gguf", seed=5))
    assert "were trained on another base" in error(run("chat", "--prompt", "hi", code=1))
    run("train", "--steps", "2", "--fresh")
    inside = GGUFFile(Path(json.loads(run("export", "--json").stdout)["path"]))
    assert (inside.raw("blk.0.attn_q.weight") == GGUFFile(ready / "base.gguf").raw("blk.0.attn_q.weight")).all()


def test_files_of_the_users_own_in_the_folder_of_models_are_left_alone(run, ready):
    (ready / "models").mkdir()
    for name in ("personal-mine-Q8_0.gguf", "personal-0001-mine-Q8_0.gguf"):
        (ready / "models" / name).write_text("mine")
    for _ in range(2):
        run("train", "--steps", "1")
        run("export")
    assert [path.read_text() for path in (ready / "models").glob("*mine*")] == ["mine", "mine"]


def test_a_chat_goes_on_when_the_newer_model_cannot_be_used(run, ready, monkeypatch):
    run("train", "--steps", "2")

    def damaged():
        run("train", "--steps", "2")
        (ready / "adapters" / "0002" / "router.safetensors").unlink()

    shown = chat_during(run, monkeypatch, damaged)
    assert "version 2 cannot be used, continuing with the one before" in shown
