"""Front matter, comments and drawers of notes stay out; what a reader sees stays in."""

import json
import time

import pytest

from comigs_edge.data import documents
from comigs_edge.data.notes import drop_pictures, markdown, org, restructured

CASES = [
    ("---\ntitle: Shed\ntags:\n  - paint\n  - wood\n# why\ndate: 2024-01-01\n---\nGreen.", "Green."),
    ("+++\ntitle = 'Shed'\n+++\nGreen.", "Green."),
    ("---\nToday I painted the shed.\n---\nGreen.", "---\nToday I painted the shed.\n---\nGreen."),
    ("---\ntitle: never ends\n\nGreen.", "---\ntitle: never ends\n\nGreen."),
    ("Green.\n\n---\nkey: value\n---\n", "Green.\n\n---\nkey: value\n---\n"),
    ("Green <!-- why\nnot --> and dry.", "Green  and dry."),
    ("Green %%why not%% and dry.\n%%\nblock\n\nof it\n%%\nEnd", "Green  and dry.\n\nEnd"),
    ("It is 100%% sure, and 50%% of it\nare 20 %%x\nor more %%y", "It is 100%% sure, and 50%% of it\nare 20 %%x\nor more %%y"),
    ("```html\n<!-- stays -->\n%% stays %%\n```\n<!-- goes -->x", "```html\n<!-- stays -->\n%% stays %%\n```\nx"),
    ("<!-- never closed\nGreen.", "<!-- never closed\nGreen."),
    ("```\nnever closed <!-- a --> b", "```\nnever closed  b"),
]


@pytest.mark.parametrize(("note", "seen"), CASES)
def test_front_matter_and_comments_of_markdown_stay_out(note, seen):
    assert markdown(note) == seen


def test_drawers_keywords_and_comments_of_org_stay_out():
    note = (
        "#+TITLE: Shed\n* TODO Paint\nSCHEDULED: <2024-01-01>\n:PROPERTIES:\n:ID: 3\n:END:\n# secret\nGreen #1.\n"
        "#+BEGIN_COMMENT\nno\n#+END_COMMENT\n| a | b |\n"
    )
    assert org(note) == "* TODO Paint\nGreen #1.\n| a | b |\n"


def test_comments_of_restructured_text_stay_out():
    note = (
        ":author: Ada\n:date: 2024\n\nShed\n====\n\n.. secret\n   more of it\n\nGreen.\n\n.. note:: stays\n\n.. _label:\n..\n"
        "   block\n\n... and so on\n"
    )
    assert restructured(note) == "\nShed\n====\n\n\nGreen.\n\n.. note:: stays\n\n.. _label:\n\n... and so on\n"


def test_notes_are_cleaned_by_their_ending(tmp_path):
    for name in ("a.md", "b.markdown", "c.org", "d.rst", "e.txt"):
        (tmp_path / name).write_text("---\nkey: value\n---\n<!-- x -->\n# words\n\n.. no\n")
    found = {path.name: each[0].text for path, each in documents.read([tmp_path]).files.items()}
    assert found == {
        "a.md": "# words\n\n.. no", "b.markdown": "# words\n\n.. no", "c.org": "---\nkey: value\n---\n<!-- x -->\n\n.. no",
        "d.rst": "---\nkey: value\n---\n<!-- x -->\n# words", "e.txt": "---\nkey: value\n---\n<!-- x -->\n# words\n\n.. no",
    }  # fmt: skip


def test_openers_without_an_end_take_no_time():
    for note in ("<!--" * 300_000, "\n%%x" * 300_000, " %%x" * 300_000, "\n```" * 300_001, "---\n" + "a: b\n" * 300_000):
        markdown(note)
    org("#+begin_comment\n" * 100_000)
    restructured(".. x\n" * 300_000 + ":a:" * 100_000)


URI = "data:image/png;base64,iVBORw0KGgo" + "AAAA/+b2" * 2000 + "=="
WITH_PICTURES = {
    f"Green ![the shed]({URI}) and dry.": "Green the shed and dry.",
    f'Green ![]({URI} "a title") and dry.': "Green  and dry.",
    f"Green ![][image1] and dry.\n\n[image1]: <{URI}>\n": "Green ![][image1] and dry.",
    f'Green <img alt="x" src="{URI}" width=3> and dry.': "Green  and dry.",
    f"Green [[{URI}]] and dry.": "Green [[]] and dry.",
    f"{URI}\nGreen and dry.": "Green and dry.",
    "Green data:image/svg+xml,%3Csvg%3E%3C/svg%3E and dry.": "Green  and dry.",
    "The data: 3/4, 5/6; metadata:a/b, [data](data.csv)": "The data: 3/4, 5/6; metadata:a/b, [data](data.csv)",
}


@pytest.mark.parametrize("note", WITH_PICTURES)
def test_pictures_that_are_written_out_stay_out(tmp_path, note):
    (tmp_path / "a.md").write_text(note)
    (tmp_path / "a.txt").write_text(note)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": note}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": note, "completion": "Good"}))
    found = {path.name: each[0] for path, each in documents.read([tmp_path]).files.items()}
    seen = [found[name].text for name in ("a.md", "a.txt", "a.jsonl")] + [found["b.jsonl"].messages[0].content.strip()]
    assert seen == [WITH_PICTURES[note]] * 4


def test_many_beginnings_of_pictures_take_no_time():
    started = time.process_time()
    for begin in ("![", "<img ", "data:a/b;", "![a](data:a/b,", "[a]: <data:"):
        drop_pictures(begin * 20_000 + " data:a/b,x")
    assert time.process_time() - started < 5
