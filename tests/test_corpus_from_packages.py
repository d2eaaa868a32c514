"""The script that makes text for `simulate` from public packages, on made-up pages of the same kinds."""

import json

import pytest

from benchmarks.text import corpus_from_packages as script

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


def test_files_are_cut_at_the_limit_and_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "LIMIT", 1000)
    path = tmp_path / "texts" / "x.jsonl"
    script.write(path, ({"id": str(n), "text": "a" * 300} for n in range(9)), "")
    assert [len(json.loads(line)["text"]) for line in path.read_text().splitlines()] == [300] * 3
    script.write(tmp_path / "y.jsonl", [{"id": "short", "text": "a"}], "apt-get install y")
    assert not (tmp_path / "y.jsonl").exists()
    assert "y.jsonl was left out: apt-get install y" in capsys.readouterr().out
