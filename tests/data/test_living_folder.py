"""A folder that is added again is read as what it is: moved, edited, deleted and new files are told apart."""

import gzip
import json
import random
import shutil
import sqlite3

import pytest

from comigs_edge.data import documents
from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.data.document import Document, Message
from tests.data.older import VERSION_2, VERSION_3, VERSION_4
from tests.data.test_leaks import SCRIPTS, leaks, say, write_glued


@pytest.fixture
def vault(tmp_path):
    """200 notes in a folder."""
    rng = random.Random(1)
    folder = tmp_path / "vault"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.md").write_text(f"{say(rng, 30)}\n\n{say(rng, 30)}\n")
    return folder


@pytest.fixture
def corpus(tmp_path, vault):
    made = Corpus(tmp_path / "documents.db")
    add(made, vault)
    return made


def add(corpus, folder):
    return corpus.add(documents.read([folder]), [folder] if folder.is_dir() else [])


def splits_of(corpus):
    """Text -> split."""
    return {document.text: split for split in SPLITS for document in corpus.documents(split)}


def test_the_same_folder_again_changes_nothing(corpus, vault):
    before = corpus.path.read_bytes()
    report = add(corpus, vault)
    assert (report.added, report.duplicates, report.moved, report.changed, report.gone) == (0, 200, 0, 0, 0)
    assert corpus.path.read_bytes() == before


def test_moved_edited_deleted_and_new_notes_are_told_apart(corpus, vault):
    rng = random.Random(2)
    (vault / "done").mkdir()
    for number in range(20):
        (vault / f"{number}.md").rename(vault / "done" / f"note {number}.md")
    for number in range(20, 50):
        (vault / f"{number}.md").write_text((vault / f"{number}.md").read_text() + "One more sentence of today.\n")
    for number in range(50, 60):
        (vault / f"{number}.md").unlink()
    for number in range(5):
        (vault / f"new {number}.md").write_text(say(rng, 60))
    report = add(corpus, vault)
    assert (report.moved, report.changed, report.gone, report.added) == (20, 30, 10, 35)
    paths = {source["path"] for source in corpus.sources()}
    assert paths == {str(path) for path in vault.rglob("*.md")}
    assert {text.strip() for text in splits_of(corpus)} == {path.read_text().strip() for path in vault.rglob("*.md")}


def test_an_edit_keeps_the_split_of_its_place(corpus, vault):
    before = splits_of(corpus)
    edited = {}
    for path in sorted(vault.iterdir()):
        text = path.read_text()
        path.write_text(text.replace(text.split()[7], "changed"))
        edited[path.read_text().strip()] = before[text.strip()]
    report = add(corpus, vault)
    assert (report.added, report.near_duplicates, report.changed) == (200, 0, 200)
    assert splits_of(corpus) == edited


def test_a_note_that_was_moved_and_edited_takes_its_own_place(tmp_path):
    rng = random.Random(3)
    inbox, done = tmp_path / "inbox", tmp_path / "done"
    inbox.mkdir()
    text = say(rng, 200)
    (inbox / "shed.md").write_text(text)
    corpus = Corpus(tmp_path / "documents.db")
    add(corpus, inbox)
    shutil.rmtree(inbox)
    done.mkdir()
    (done / "shed.md").write_text(text + "\n\nA correction that matters: the shed is blue now.")
    report = add(corpus, done)
    assert (report.added, report.moved, report.near_duplicates) == (1, 1, 0)
    assert [source["path"] for source in corpus.sources()] == [str(done / "shed.md")]
    assert "the shed is blue now" in next(iter(splits_of(corpus)))


@pytest.mark.parametrize("name", ["journal.md", "journal.md.gz"])
def test_the_newest_entry_at_the_top_of_a_journal_shifts_no_text_to_another_split(tmp_path, name):
    rng = random.Random(4)
    entries = [f"## Day {day}\n\n" + "\n\n".join(say(rng, 60) for _ in range(3)) for day in range(60)]
    journal = tmp_path / name
    corpus = Corpus(tmp_path / "documents.db")

    def paragraphs():
        return {part: split for text, split in splits_of(corpus).items() for part in text.split("\n\n") if len(part) > 40}

    def write():
        text = "\n\n".join(entries).encode()
        journal.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)

    write()
    add(corpus, journal)
    before = paragraphs()
    for day in range(60, 65):
        entries.insert(0, f"## Day {day}\n\n{say(rng, 60)}")
        entries[20] = entries[20].replace(entries[20].split()[9], "better")
        write()
        add(corpus, journal)
    after = paragraphs()
    assert len(before.keys() & after.keys()) > 150
    assert all(after[part] == split for part, split in before.items() if part in after)
    assert set(after) == {part for entry in entries for part in entry.split("\n\n") if len(part) > 40}


def test_a_copy_in_another_file_stays_when_the_first_is_removed(tmp_path):
    rng = random.Random(5)
    text = say(rng, 40)
    corpus = Corpus(tmp_path / "documents.db")
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text(text)
        add(corpus, tmp_path / name)
    first, second = corpus.sources()
    assert (first["documents"], second["documents"]) == (1, 0)
    split = splits_of(corpus)[text]
    corpus.remove(first["id"])
    assert splits_of(corpus) == {text: split}


def test_files_that_are_gone_outside_the_added_folder_stay(corpus, vault, tmp_path):
    shutil.move(vault, tmp_path / "unplugged")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.md").write_text(say(random.Random(6), 40))
    assert add(corpus, other).gone == 0
    assert len(corpus.sources()) == 201


def test_an_edited_line_of_jsonl_keeps_its_split_whatever_is_added_before_it(tmp_path):
    rng = random.Random(7)
    path = tmp_path / "chats.jsonl"
    texts = [say(rng, 30) for _ in range(100)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    corpus = Corpus(tmp_path / "documents.db")
    add(corpus, path)
    before = splits_of(corpus)
    edited = {text: text.replace(text.split()[10], "other") for text in texts[::3]}
    new = [say(rng, 30) for _ in range(20)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in new + [edited.get(text, text) for text in texts]))
    add(corpus, path)
    after = splits_of(corpus)
    assert all(after[edited.get(text, text)] == split for text, split in before.items())
    assert set(new) <= set(after)


def test_a_database_of_version_4_is_taken_over_with_all_of_its_text_shared(tmp_path):
    corpus, rng = Corpus(tmp_path / "documents.db"), random.Random(9)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": say(rng, 40)}) for _ in range(30)))
        add(corpus, tmp_path / f"{name}.jsonl")
    corpus.remove(1)
    before, used = gone_of(corpus), splits_of(corpus)
    assert before
    with sqlite3.connect(corpus.path) as db:
        db.executescript(VERSION_4)
    db.close()
    assert (splits_of(corpus), gone_of(corpus)) == (used, before)
    assert [each["local"] for each in corpus.sources()] == [0]
    assert corpus.removed() == {1}


def gone_of(corpus):
    with sqlite3.connect(corpus.path) as db:
        return db.execute("select split, runs from gone order by split").fetchall()


OLD_SCHEMA = """
create table source (id integer primary key, path text unique not null, added text not null default current_timestamp);
create table document (
    sha256 text primary key, source integer not null references source (id), kind text not null, split text not null,
    bytes integer not null, content text not null, signature blob
);
pragma user_version = 1;
"""


def old_database(path, texts):
    """One of version 1: text -> split."""
    db = sqlite3.connect(path)
    db.executescript(OLD_SCHEMA)
    db.execute("insert into source (id, path) values (7, '/notes/a.jsonl')")
    for text, split in texts.items():
        document = Document(text=text)
        row = (document.sha256, 7, "text", split, len(text), document.to_json(), b"")
        db.execute("insert into document values (?, ?, ?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()


def test_a_database_of_version_1_is_taken_over_with_its_splits(tmp_path):
    rng = random.Random(8)
    old = {say(rng, 40): rng.choice(SPLITS) for _ in range(60)}
    old_database(tmp_path / "documents.db", old)
    corpus = Corpus(tmp_path / "documents.db")
    assert splits_of(corpus) == old
    assert [(each["id"], each["path"], each["documents"]) for each in corpus.sources()] == [(7, "/notes/a.jsonl", 60)]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": say(rng, 40)}) for _ in range(30)))
    add(corpus, tmp_path / "b.jsonl")
    assert old.items() <= splits_of(corpus).items()


def test_files_that_nobody_touched_and_that_are_read_otherwise_now_are_no_changed_ones(tmp_path):
    rng = random.Random(13)
    folder, path = tmp_path / "notes", tmp_path / "documents.db"
    folder.mkdir()
    old_database(path, {say(rng, 40): split for split in SPLITS})
    with sqlite3.connect(path) as db:
        for number, when in (("1", "+1 hour"), ("2", "+1 hour"), ("3", "-1 hour")):  # the third was written after it was read
            words = f"---\ndate: 2020-01-0{number}\n---\n{say(rng, 40)}"
            (folder / f"{number}.md").write_text(words)
            document = Document(text=words)
            db.execute("insert into source values (?, ?, datetime('now', ?))", (number, str(folder / f"{number}.md"), when))
            row = (document.sha256, number, "text", "training", len(words), document.to_json(), b"")
            db.execute("insert into document values (?, ?, ?, ?, ?, ?, ?)", row)
    db.close()
    report = add(Corpus(path), folder)
    assert (report.read_anew, report.changed) == (2, 1)
    report = add(Corpus(path), folder)
    assert (report.read_anew, report.changed) == (0, 0)
    (folder / "1.md").write_text(say(rng, 40))
    report = add(Corpus(path), folder)
    assert (report.read_anew, report.changed) == (0, 1)


def test_what_a_takeover_leaves_out_is_counted_by_its_reason(tmp_path):
    rng = random.Random(14)
    texts = {say(rng, 40): split for split in SPLITS}
    path = tmp_path / "documents.db"
    old_database(path, texts)
    begins = [("user", say(rng, 9)), ("assistant", say(rng, 9))]
    chats = [begins, [*begins, ("user", say(rng, 9)), ("assistant", say(rng, 9))], [("user", say(rng, 9))]]
    with sqlite3.connect(path) as db:
        for turns in chats:
            document = Document(messages=tuple(Message(*turn) for turn in turns))
            row = (document.sha256, 7, "chat", "training", 9, document.to_json(), b"")
            db.execute("insert into document values (?, ?, ?, ?, ?, ?, ?)", row)
    db.close()
    (tmp_path / "new.txt").write_text(say(rng, 40))
    corpus = Corpus(path)
    report = add(corpus, tmp_path / "new.txt")
    assert report.taken_over == {"beginning": 1, "unanswered": 1}
    assert corpus.left_out() == {"beginning": 1, "unanswered": 1}
    assert not add(Corpus(path), tmp_path / "new.txt").taken_over


def test_test_text_of_version_1_that_was_learned_is_tested_no_longer(tmp_path):
    rng = random.Random(9)
    first, reply, mail = say(rng, 40), say(rng, 30), say(rng, 30)
    old = {f"{reply} {first}": "training", first: "test", mail: "validation", say(rng, 40): "test", say(rng, 40): "validation"}
    old_database(tmp_path / "documents.db", old)
    corpus = Corpus(tmp_path / "documents.db")
    assert splits_of(corpus) == {text: split for text, split in old.items() if text != first}
    assert leaks(corpus) == 0
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": f"{say(rng, 5)} {mail}"}))
    add(corpus, tmp_path / "b.jsonl")
    assert {text for text, split in splits_of(corpus).items() if split == "training"} == {f"{reply} {first}"}


def test_learned_notes_that_were_away_and_come_back_edited_are_not_tested(corpus, vault, tmp_path):
    rng = random.Random(10)
    before = {text.strip(): split for text, split in splits_of(corpus).items()}
    shutil.move(vault, tmp_path / "aside")
    vault.mkdir()
    (vault / "other.md").write_text(say(rng, 60))
    assert add(corpus, vault).gone == 200
    was = {}
    for path in (tmp_path / "aside").iterdir():
        words = path.read_text().split()
        was[" ".join([*words[:10], "edited", *words[11:40], "too", *words[41:]])] = before[path.read_text().strip()]
    for number, text in enumerate(was):
        (vault / f"{number}.md").write_text(text)
    add(corpus, vault)
    assert was.items() <= splits_of(corpus).items()


def test_a_removed_file_that_is_added_again_has_the_splits_that_it_had(tmp_path):
    rng = random.Random(11)
    for name in "ab":
        records = [json.dumps({"text": say(rng, 30)}) for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(records))
    first = Corpus(tmp_path / "documents.db", 0.8, 0.1)
    add(first, tmp_path / "a.jsonl")
    before = splits_of(first)
    first.remove(1)
    other = Corpus(tmp_path / "documents.db", 0.1, 0.1)
    add(other, tmp_path / "b.jsonl")
    add(other, tmp_path / "a.jsonl")
    assert before.items() <= splits_of(other).items()


def test_what_an_edit_took_out_of_learned_text_is_not_tested_elsewhere(corpus, vault):
    rng = random.Random(12)
    learned = [path for path in sorted(vault.iterdir()) if splits_of(corpus)[path.read_text().strip()] == "training"]
    cut = [path.read_text().split("\n\n")[0] for path in learned]
    for path in learned:
        path.write_text(path.read_text().split("\n\n")[1])
    add(corpus, vault)
    for number, text in enumerate(cut):
        (vault / f"cut {number}.md").write_text(f"{text} {say(rng, 5)}")
    add(corpus, vault)
    assert {split for text, split in splits_of(corpus).items() if any(text.startswith(each) for each in cut)} == {"training"}


def test_a_database_of_version_2_is_taken_over_with_its_splits(corpus):
    before = splits_of(corpus)
    with sqlite3.connect(corpus.path) as db:
        db.executescript(VERSION_2)
    db.close()
    assert splits_of(corpus) == before
    corpus.remove(1)
    assert len(splits_of(corpus)) == 199


def test_a_database_of_version_3_is_compared_anew_once(tmp_path):
    rng = random.Random(18)
    text = write_glued(rng, *SCRIPTS["Thai"], 60 * 110)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text[n : n + 300]}) for n in range(0, 18000, 300)))
    corpus = Corpus(tmp_path / "documents.db")
    add(corpus, tmp_path / "a.jsonl")
    before = splits_of(corpus)
    with sqlite3.connect(corpus.path) as db:
        db.execute("update document set runs = x'01000000', left_out = case when split != 'training' then 'learned' end")
        db.execute("insert into gone values ('training', 0, x'01000000')")
        db.executescript(VERSION_3)
    db.close()
    assert splits_of(corpus) == before
    assert not corpus.left_out()
    written = corpus.path.read_bytes()
    assert splits_of(Corpus(corpus.path)) == before
    assert corpus.path.read_bytes() == written
