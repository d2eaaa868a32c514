"""The script that makes text for `simulate` from public packages, on made-up pages of the same kinds."""

import gzip
import json

import pytest

from benchmarks.text import chitchat, judging
from benchmarks.text import corpus_from_packages as script
from comigs_edge.simulate.recipe import find, read, shipped_names

HANDBOOK = """<html><body><div class="section"><h2>Titel</h2><div class="para">Erster <em>Absatz</em>,
 zwei Zeilen.</div><div class="para">Not translated.</div><p>Zweiter.</p></div></body></html>"""
HELP = """<page xmlns="http://projectmallard.org/1.0/"><info><desc>weg</desc><p>auch weg</p></info>
<title>Titel</title><p>Dritter <em>Absatz</em>.</p><section><p>Same.</p></section></page>"""


@pytest.fixture
def root(tmp_path):
    """Debian's files in two languages."""
    pages = {
        "usr/share/doc/debian-handbook/html/de-DE/a.html": HANDBOOK,
        "usr/share/doc/debian-handbook/html/en-US/a.html": '<div class="para">Not translated.</div>',
        "usr/share/help/de/gnome-help/b.page": HELP,
        "usr/share/help/C/gnome-help/b.page": HELP.replace("Dritter", "Third"),
        "usr/share/perl/5.36.0/pod/perlfaq1.pod": "=head1 X\n\n=head2 What is I<this>?\n\nSee C<that>.\n\n=over\n",
    }
    for name, text in pages.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_pages_become_their_translated_paragraphs(root):
    assert list(script.translations(root, "de")) == [
        {"id": "handbook/a.html", "text": "Erster Absatz, zwei Zeilen.\n\nZweiter."},
        {"id": "gnome/b.page", "text": "Dritter Absatz."},
    ]


def test_questions_have_no_markup(root):
    assert [each["text"] for each in script.questions(root)] == ["What is this?\n\nSee that."]


def test_a_manual_page_is_its_words_alone(tmp_path):
    page = '.\\" A comment\n.TH X 2\n.SH "NAME"\nopen \\- open a \\*(Aqfile\\(aq\n.PP\nCall\n'
    page += '.BR "open" (2)\nwith \\fIpath\\fP.\n.nf\n'
    (tmp_path / "usr/share/man/man2").mkdir(parents=True)
    (tmp_path / "usr/share/man/man2/open.2.gz").write_bytes(gzip.compress(page.encode()))
    text = "NAME\nopen - open a 'file'\n\nCall\nopen (2)\nwith path."
    assert list(judging.manuals(tmp_path)) == [{"id": "man/open.2", "text": text}]


def test_quotations_come_some_to_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "QUOTATIONS", 2)
    (tmp_path / "usr/share/games/fortunes").mkdir(parents=True)
    (tmp_path / "usr/share/games/fortunes/wisdom").write_text("One.\n%\nTwo.\n%\nThree.\n")
    (tmp_path / "usr/share/games/fortunes/wisdom.dat").write_bytes(b"\0")
    assert [each["text"] for each in judging.quotations(tmp_path)] == ["One.\n\nTwo.", "Three."]


def test_text_for_judging_is_what_the_recipes_for_judging_read_and_lies_apart():
    texts = [device.text for name in shipped_names() if (found := read(find(name))).judging for device in found.devices.values()]
    made = [*judging.LANGUAGES, *judging.TOPICS, *(f"user{rank:02}" for rank in judging.PEOPLE)]
    assert sorted(texts) == sorted([*made, "code_perl", "guides", "manuals", "quotations"])
    assert not judging.LANGUAGES.keys() & script.LANGUAGES.keys()
    assert not set(judging.PEOPLE) & set(script.PEOPLE)


def test_a_chat_of_two_of_many_people_is_given_to_one_of_them(monkeypatch):
    def said(sender, text):
        return [{"sender": sender, "text": text}]

    talks = [("anna", "bert"), ("bert", "carl"), ("anna", "dora")]
    found = [{"messages": [said(one, "x" * ord(one[0])), said(other, "y")]} for one, other in talks]
    monkeypatch.setattr(chitchat, "conversations", lambda: found)
    ranks = [0, 1]  # anna has written 2 x 97 letters, bert 98 and 1
    assert [len(chats) for chats in chitchat.chats_apart(ranks)] == [1, 2]
    assert chitchat.chats_apart(ranks)[0][0][1] == {"role": "user", "content": "y"}


def test_chats_with_some_people_can_be_left_out(monkeypatch):
    found = [{"messages": [[{"sender": each, "text": "x" * size}] for each, size in (("anna", 3), (other, 1))]} for other in "bc"]
    monkeypatch.setattr(chitchat, "conversations", lambda: found)
    assert [len(chitchat.chats_of(0, without)) for without in ([], [1], [1, 2])] == [2, 1, 0]


def test_dialogues_of_tuning_text_are_of_nobody_who_judges(monkeypatch):
    monkeypatch.setattr(judging, "PEOPLE", (1,))
    talks = [("anna", 9, "bert", 8), ("bert", 8, "carl", 1), ("carl", 1, "anna", 9)]  # bert has written the second most
    found = [{"messages": [[{"sender": who, "text": who * size}] for who, size in (talk[:2], talk[2:])]} for talk in talks]
    monkeypatch.setattr(chitchat, "conversations", lambda: found)
    assert [each["text"] for each in script.dialogues()] == ["A: carl\nB: " + "anna" * 9]


def test_files_are_cut_at_the_limit_and_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "LIMIT", 1000)
    path = tmp_path / "texts" / "x.jsonl"
    script.write(path, ({"id": str(n), "text": "a" * 300} for n in range(9)), "")
    assert [len(json.loads(line)["text"]) for line in path.read_text().splitlines()] == [300] * 3
    script.write(tmp_path / "y.jsonl", [{"id": "short", "text": "a"}], "apt-get install y")
    assert not (tmp_path / "y.jsonl").exists()
    assert "y.jsonl was left out: apt-get install y" in capsys.readouterr().out
