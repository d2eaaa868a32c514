"""`comigs-edge explain` as a person meets it: colours, letters, a page, JSON, and every kind of bad input."""

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from rich.console import Console

from comigs_edge.commands import explain
from comigs_edge.commands.page import colour
from comigs_edge.home import versions
from comigs_edge.home.folder import Home
from tests.test_cli import error

TEXT = "the hen <b>rests</b> on\x1b[2J a größe & the inn"
FOREIGN = ("script", "link", "img", "iframe", "object", "embed", "base", "form")


@pytest.fixture
def trained(ready, make_adapters):
    """A home with random adapters of the tiny base, of three experts."""

    def make(**options):
        adapters = make_adapters(**{"specialists": 2, "k": 2, "form": "parallel"} | options)
        sha256 = Home(ready).settings().base.sha256
        versions.save(Home(ready).adapters, adapters.arrays(), adapters.layout, sha256, {"validation_loss": 1.0})
        return ready

    return make


class Page(HTMLParser):
    """The spans of a page's texts, as (class, text), and every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.spans, self.tags, self._kind = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "span":
            self._kind = dict(attrs).get("class")
            self.spans.append((self._kind, ""))

    def handle_data(self, data):
        if self._kind:
            self.spans[-1] = self._kind, self.spans[-1][1] + data

    def handle_endtag(self, tag):
        self._kind = None if tag == "span" else self._kind


def test_json_has_the_weights_of_every_expert_for_each_token_and_block(run, trained):
    trained()
    found = json.loads(run("explain", "the hen rests on a stone", "--json").stdout)
    assert found["experts"] == ["generalist", "specialist 1", "specialist 2"]
    assert (found["blocks"], found["is_cut"]) == ([0, 1], False)
    assert "".join(token["text"] for token in found["tokens"]) == "the hen rests on a stone"
    for token in found["tokens"]:
        assert [len(row) for row in token["weights"]] == [3, 3]
        assert all(sum(row) == pytest.approx(1, abs=2e-4) for row in token["weights"])
    for block, shares in enumerate(found["mean_shares"]):
        for expert, share in enumerate(shares):
            mean = sum(token["weights"][block][expert] for token in found["tokens"]) / len(found["tokens"])
            assert share == pytest.approx(mean, abs=2e-4)


def speakers(found, block):
    return [max(range(3), key=token["weights"][block].__getitem__) for token in found["tokens"]]


def test_without_colours_the_letters_of_the_speakers_stand_below_the_text(run, trained):
    trained()
    found = json.loads(run("explain", "the hen rests on a stone", "--json").stdout)
    shown = run("explain", "the hen rests on a stone").stdout
    wanted = "".join(
        "G12"[speaker] * len(token["text"]) for token, speaker in zip(found["tokens"], speakers(found, 0), strict=True)
    )
    assert f"block 0\nthe hen rests on a stone\n{wanted}\n" in shown
    assert "who speaks: G generalist  1 specialist 1  2 specialist 2" in shown
    assert "mean shares of" in shown
    assert shown.rstrip().endswith("next: comigs-edge report")


@pytest.mark.parametrize("width", [20, 7])
def test_in_a_narrow_terminal_text_and_letters_stay_below_each_other(run, trained, monkeypatch, width):
    trained()
    file = io.StringIO()
    monkeypatch.setattr(explain, "out", Console(file=file, width=width, highlight=False, markup=False))
    run("explain", "a漢字漢字漢字 the inn\n\nthen\tthe hen")
    lines = file.getvalue().split("block 1")[0].splitlines()[1:]
    assert "".join(lines).count("漢") == 3
    for above, below in pairwise(lines):
        if re.fullmatch("[G12]+", below):
            columns = sum(2 if each in "漢字" else 1 for each in above)
            assert columns == len(below) <= width


def test_in_a_terminal_a_token_has_the_colour_of_its_speaker(run, trained, monkeypatch):
    trained()
    found = json.loads(run("explain", "the inn", "--json").stdout)
    file = io.StringIO()
    monkeypatch.setattr(explain, "out", Console(file=file, width=80, force_terminal=True, color_system="standard"))
    run("explain", "the inn")
    first = file.getvalue().splitlines()[1]
    background = {0: "42", 1: "43", 2: "46"}
    wanted = [(background[speaker], token["text"]) for token, speaker in zip(found["tokens"], speakers(found, 0), strict=True)]
    assert re.findall(r"\x1b\[30;(\d+)m([^\x1b]*)\x1b\[0m", first) == wanted


def test_no_color_gets_letters_in_a_terminal_too(run, trained, monkeypatch):
    trained()
    file = io.StringIO()
    monkeypatch.setattr(explain, "out", Console(file=file, width=80, force_terminal=True, no_color=True))
    run("explain", "the inn")
    assert re.search(r"\nthe inn\n[G12]{7}\n", file.getvalue())


def test_the_page_is_one_file_that_asks_for_nothing_and_escapes_everything(run, trained, tmp_path):
    trained()
    found = json.loads(run("explain", TEXT, "--json", "--html", tmp_path / "out.html").stdout)
    html = (tmp_path / "out.html").read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & set(FOREIGN)
    assert not [attrs for _, attrs in page.tags if attrs.keys() & {"src", "href", "style"}]
    assert "url(" not in html
    assert "<b>" not in html
    assert "\x1b" not in html
    texts = [(kind, text) for kind, text in page.spans if kind in ("e0", "e1", "e2")][3:]  # behind the legend
    wanted = [
        (f"e{speaker}", token["text"].replace("\x1b", r"\x1b"))
        for block in (0, 1)
        for token, speaker in zip(found["tokens"], speakers(found, block), strict=True)
        if token["text"]
    ]
    assert texts == wanted
    assert "".join(text for _, text in texts[: len(texts) // 2]) == TEXT.replace("\x1b", r"\x1b")
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_a_zero_expert_leaves_the_word_to_the_base(run, trained):
    trained(specialists=1, zero=True)
    shown = run("explain", "the hen rests").stdout
    assert ". base alone" in shown
    assert json.loads(run("explain", "the hen rests", "--json").stdout)["experts"][-1] == "base alone"


def test_files_and_standard_input_are_read_and_long_text_is_cut_and_said_so(run, trained, tmp_path):
    trained()
    (tmp_path / "notes.md").write_text("the hen rests on a stone and then enters the inn " * 20)
    result = run("explain", tmp_path / "notes.md", "--tokens", "30")
    assert "the first 30 tokens of a longer text; --tokens shows more" in result.stdout
    piped = json.loads(run("explain", "-", "--json", input="then an ant").stdout)
    assert "".join(token["text"] for token in piped["tokens"]) == "then an ant"
    (tmp_path / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "the inn?"}, {"role": "assistant", "content": "an ant on a stone"}]})
    )
    chat = json.loads(run("explain", tmp_path / "chat.jsonl", "--json").stdout)
    assert "<|im_start|>assistant\nan ant on a stone<|im_end|>" in "".join(token["text"] for token in chat["tokens"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", ""], "there is no text to explain"),
        (["explain", "nowhere.txt"], "nowhere.txt does not exist"),
        (["explain", "the inn", "--html", "/dev/null/out.html"], "/dev/null"),
    ],
)
def test_bad_input_is_one_sentence(run, trained, arguments, said):
    trained()
    assert said in error(run(*arguments, code=1))


def test_without_a_model_or_without_a_choice_it_says_so_in_one_sentence(run, ready, trained):
    assert "there is no personal model yet; make one with: comigs-edge train" in error(run("explain", "the inn", code=1))
    trained(specialists=0, k=1)
    assert "there is nothing to explain" in error(run("explain", "the inn", code=1))


def test_the_generalist_shares_its_colour_and_letter_with_no_specialist():
    experts = ("generalist", *(f"specialist {number}" for number in range(1, 12)), "base alone")
    kinds = [colour(number, experts, "base alone") for number in range(len(experts))]
    assert kinds == ["e0", *(f"e{1 + number % 5}" for number in range(11)), "zero"]
    assert set(kinds) == set(explain.STYLES)
