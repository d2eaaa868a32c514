"""Nothing that is chosen or tested on was learned: chats that grow, mails that quote, questions with several answers."""

import json
import random
import sqlite3
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comigs_edge.data import documents
from comigs_edge.data.corpus import SPLITS, Corpus
from comigs_edge.data.runs import words

random_words = random.Random(5)
VOCABULARY = ["".join(random_words.choices("abcdefghijklmnopqrstuvwxyz", k=random_words.randint(2, 8))) for _ in range(2000)]


def say(rng, count):
    return " ".join(rng.choices(VOCABULARY, k=count))


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def words_of(document):
    return " ".join(message.content for message in document.messages) if document.messages else document.text


def runs(text):
    tokens = text.casefold().split()
    return {tuple(tokens[place : place + 3]) for place in range(len(tokens) - 2)}


def leaks(corpus):
    """Documents of later splits of whose runs of three words nine tenths stand in one document of an earlier one."""
    splits = [[runs(words_of(document)) for document in corpus.documents(split)] for split in SPLITS]
    return sum(
        any(found and len(found & other) >= 0.9 * len(found) for earlier in splits[:number] for other in earlier)
        for number in (1, 2)
        for found in splits[number]
    )


def chat(*contents):
    return {"messages": [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]}


def growing_chats(rng, count=30):
    for _ in range(count):
        contents = [say(rng, rng.randint(4, 40)) for _ in range(8)]
        yield from (chat(*contents[:length]) for length in (2, 4, 6, 8))


def mails(rng, count=60):
    for _ in range(count):
        body = ""
        for _ in range(5):
            quoted = "\n".join(f"> {line}" for line in body.split("\n"))
            body = say(rng, rng.randint(15, 60)) + (f"\n\nOn Monday you wrote:\n{quoted}" if body else "")
            yield {"text": body}


def answers(rng, count=60):
    for _ in range(count):
        question = say(rng, rng.randint(3, 12))
        yield from ({"prompt": question, "completion": say(rng, 20)} for _ in range(3))


def test_of_chats_that_grow_only_the_longest_is_used(tmp_path):
    records = list(growing_chats(random.Random(1)))
    random.Random(2).shuffle(records)
    corpus = Corpus(tmp_path / "documents.db")
    report = corpus.add(documents.read([write(tmp_path / "chats.jsonl", records)]))
    assert (report.added, report.beginnings) == (30, 90)
    assert {len(document.messages) for split in SPLITS for document in corpus.documents(split)} == {8}
    assert leaks(corpus) == 0


def test_a_chat_that_ends_with_an_answer_which_stands_in_another_is_not_its_beginning(tmp_path):
    rng = random.Random(17)
    answer = say(rng, 4)
    records = [chat(say(rng, 20), answer), chat(say(rng, 20), answer, say(rng, 20), say(rng, 20))]
    corpus = Corpus(tmp_path / "documents.db")
    report = corpus.add(documents.read([write(tmp_path / "chats.jsonl", records)]))
    assert (report.added, report.beginnings) == (2, 0)


def test_mails_that_quote_each_other_are_in_one_split(tmp_path):
    rng = random.Random(3)
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "mails.jsonl", mails(rng))]))
    assert leaks(corpus) == 0
    places = {}
    for split in SPLITS:
        for document in corpus.documents(split):
            places.setdefault(document.text.split("\n")[-1].strip("> "), set()).add(split)  # the first mail, quoted last
    assert len(places) == 60
    assert all(len(each) == 1 for each in places.values())


def test_answers_to_one_question_are_in_one_split(tmp_path):
    corpus = Corpus(tmp_path / "documents.db")
    report = corpus.add(documents.read([write(tmp_path / "answers.jsonl", answers(random.Random(4)))]))
    assert report.added == 180
    training, validation, test = ({document.messages[0].content for document in corpus.documents(split)} for split in SPLITS)
    assert not training & validation
    assert not training & test
    assert not validation & test
    assert len(training | validation | test) == 60


def test_two_answers_to_one_long_question_are_not_one_text(tmp_path):
    rng = random.Random(14)
    question = say(rng, 60)
    records = [{"prompt": question, "completion": say(rng, 5)} for _ in range(2)]  # nine tenths of the runs: the question's
    corpus = Corpus(tmp_path / "documents.db")
    report = corpus.add(documents.read([write(tmp_path / "answers.jsonl", records)]))
    assert (report.added, report.near_duplicates) == (2, 0)


def test_a_script_without_spaces_is_compared_by_its_characters(tmp_path):
    rng = random.Random(6)
    text = "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(600))
    copies = [{"text": text}, {"text": text[:300] + "\u4e00" + text[301:]}, {"text": text[100:400]}]
    others = [{"text": "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(600))} for _ in range(30)]
    corpus = Corpus(tmp_path / "documents.db")
    report = corpus.add(documents.read([write(tmp_path / "chinese.jsonl", copies + others)]))
    assert (report.added, report.near_duplicates) == (32, 1)
    (part,) = [s for s in SPLITS for document in corpus.documents(s) if document.text == text[100:400]]
    (whole,) = [
        s for s in SPLITS for document in corpus.documents(s) if text[100:250] in document.text and len(document.text) == 600
    ]
    assert part == whole


@pytest.mark.parametrize("count", [10, 40])
def test_chats_with_one_system_message_are_compared_without_it(tmp_path, count):
    rng = random.Random(7)
    system = {"role": "system", "content": say(rng, 300)}
    records = [{"messages": [system, *chat(say(rng, 12), say(rng, 12))["messages"]]} for _ in range(count)]
    corpus = Corpus(tmp_path / "documents.db")
    assert corpus.add(documents.read([write(tmp_path / "chats.jsonl", records)])).added == count
    assert all(size["documents"] for size in corpus.sizes().values())


def test_texts_of_one_form_still_fill_all_splits(tmp_path):
    rng = random.Random(8)
    form = say(rng, 80)
    records = [{"text": f"{form} {say(rng, 8)}"} for _ in range(80)] + [{"text": f"{say(rng, 30)} {form}"} for _ in range(40)]
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "forms.jsonl", records)]))
    assert all(size["documents"] for size in corpus.sizes().values())


@pytest.mark.parametrize("training", [0.8, 0.1])
def test_a_phrase_that_many_have_is_training_text_and_joins_nobody(tmp_path, training):
    rng = random.Random(9)
    phrase = say(rng, 9)
    records = [{"text": f"{say(rng, 20)} {phrase} {say(rng, 20)}"} for _ in range(200)] + [{"text": phrase}]
    corpus = Corpus(tmp_path / "documents.db", training, 0.1)
    corpus.add(documents.read([write(tmp_path / "notes.jsonl", records)]))
    assert phrase in [document.text for document in corpus.documents("training")]
    assert sum(corpus.sizes()[split]["documents"] for split in SPLITS[1:]) > 20
    assert leaks(corpus) == 0


def test_test_text_that_a_later_text_holds_is_tested_no_longer(tmp_path):
    rng = random.Random(10)
    first = [say(rng, 30) for _ in range(60)]
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "first.jsonl", [{"text": text} for text in first])]))
    before = {split: {document.text for document in corpus.documents(split)} for split in SPLITS}
    book = " ".join(first) + " " + say(rng, 4000)
    reading = documents.read([write(tmp_path / "book.jsonl", [{"text": book}])])
    pieces = {document.text for found in reading.files.values() for document in found}
    report = corpus.add(reading)
    after = {split: {document.text for document in corpus.documents(split)} for split in SPLITS}
    assert leaks(corpus) == 0
    assert after["training"] - pieces <= before["training"]
    assert report.learned == sum(len(before[split] - after[split]) for split in SPLITS[1:])


@st.composite
def related(draw):
    """Documents of which some hold, quote, continue or repeat others."""
    rng = random.Random(draw(st.integers(0, 10**6)))
    made = [say(rng, rng.randint(3, 60)) for _ in range(6)]
    for kind in draw(st.lists(st.sampled_from(["quote", "part", "edit", "new", "join"]), min_size=10, max_size=40)):
        one, other = rng.choice(made), rng.choice(made)
        tokens = one.split()
        start = rng.randrange(len(tokens))
        tokens[start] = "edited"
        made.append({
            "quote": f"{say(rng, rng.randint(3, 40))} {one}",
            "part": " ".join(one.split()[start:]) or one,
            "edit": " ".join(tokens),
            "new": say(rng, rng.randint(3, 60)),
            "join": f"{one} {other}",
        }[kind])  # fmt: skip
    return [{"text": text} if rng.random() < 0.7 else chat(text, say(rng, 5), *text.split()[:2]) for text in made]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), records=related())
def test_any_order_of_adding_gives_splits_without_a_leak(tmp_path_factory, data, records):
    folder = tmp_path_factory.mktemp("order")
    records = data.draw(st.permutations(records))
    bounds = sorted(data.draw(st.lists(st.integers(0, len(records)), max_size=3)))
    corpus = Corpus(folder / "documents.db", 0.5, 0.25)  # later splits as large as they can be
    learned = set()
    for number, (start, end) in enumerate(zip([0, *bounds], [*bounds, len(records)], strict=True)):
        if start < end:
            corpus.add(documents.read([write(folder / f"{number}.jsonl", records[start:end])]))
            now = {words_of(document) for document in corpus.documents("training")}
            later = {words_of(document) for split in SPLITS[1:] for document in corpus.documents(split)}
            assert leaks(corpus) == 0
            if corpus.sizes()["test"]["documents"] and corpus.sizes()["validation"]["documents"]:
                assert not learned & later  # what was learned is never tested on
                learned |= now


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_learned_does_not_fill_an_empty_split(tmp_path, count):
    rng = random.Random(11)
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "a.jsonl", [{"text": say(rng, 20)} for _ in range(3)])]))
    learned = {document.text for document in corpus.documents("training")}
    corpus.add(documents.read([write(tmp_path / "b.jsonl", [{"text": say(rng, 20)} for _ in range(count)])]))
    assert learned <= {document.text for document in corpus.documents("training")}


def test_learned_text_that_comes_back_does_not_fill_a_split_that_has_become_empty(tmp_path):
    rng, corpus = random.Random(15), Corpus(tmp_path / "documents.db")
    for number in range(12):
        corpus.add(documents.read([write(tmp_path / f"{number}.jsonl", [{"text": say(rng, 20)}])]))
    learned = {document.text for document in corpus.documents("training")}
    sources = corpus.sources()
    back = next(source for source in sources if source["training"])
    for source in sources:
        if source["test"] or source is back:
            corpus.remove(source["id"])
    corpus.add(documents.read([tmp_path / back["path"]]))
    assert {document.text for document in corpus.documents("training")} == learned
    assert corpus.sizes()["test"]["documents"] == 0


def test_two_texts_that_share_two_fifths_are_in_one_split(tmp_path):
    rng, corpus = random.Random(16), Corpus(tmp_path / "documents.db", 0.5, 0.25)
    shared = [say(rng, 24) for _ in range(40)]
    records = [{"text": text} for part in shared for text in (f"{say(rng, 36)} {part}", f"{part} {say(rng, 36)}")]
    corpus.add(documents.read([write(tmp_path / "pairs.jsonl", records)]))
    texts = {split: " ".join(document.text for document in corpus.documents(split)) for split in SPLITS}
    assert [sum(text.count(part) for text in texts.values()) for part in shared] == [2] * 40
    assert all(2 in [text.count(part) for text in texts.values()] for part in shared)


def covered(corpus):
    """Documents of later splits of whose runs at least half stand in the training text as a whole."""
    training = set().union(*(runs(words_of(document)) for document in corpus.documents("training")))
    later = [runs(words_of(document)) for split in SPLITS[1:] for document in corpus.documents(split)]
    return sum(2 * len(found & training) >= len(found) for found in later if found)


def windows(rng, length, size, step):
    tokens = say(rng, length).split()
    return [" ".join(tokens[start : start + size]) for start in range(0, length - size + 1, step)]


@pytest.mark.parametrize(("texts", "length", "size", "step"), [(40, 120, 60, 30), (1, 6000, 300, 150), (4, 1500, 300, 100)])
def test_windows_over_one_text_are_not_tested_on_what_they_share(tmp_path, texts, length, size, step):
    rng = random.Random(12)
    records = [{"text": each} for _ in range(texts) for each in windows(rng, length, size, step)]
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "windows.jsonl", records)]))
    assert covered(corpus) == 0
    assert all(size["documents"] for size in corpus.sizes().values())


def test_tested_text_that_two_later_texts_cover_between_them_is_left_out(tmp_path):
    rng = random.Random(13)
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "a.jsonl", [{"text": say(rng, 60)} for _ in range(60)])]))
    tested = [document.text.split() for split in SPLITS[1:] for document in corpus.documents(split)]
    parts = [part for tokens in tested[1:] for part in (tokens[:35], tokens[25:])]
    corpus.training, corpus.validation = 1.0, 0.0
    later = [{"text": f"{say(rng, 80)} {' '.join(part)} {say(rng, 80)}"} for part in parts]
    report = corpus.add(documents.read([write(tmp_path / "b.jsonl", later)]))
    assert covered(corpus) == 0
    assert report.learned == len(tested) - 1


def write_glued(rng, first, last, count=3000):
    """Words as often as Zipf's law has them, of two to six of these characters and with no space between them."""
    letters = [chr(code) for code in range(first, last + 1) if chr(code).isalpha()]
    sounds = rng.choices(letters, [1 / (place + 1) for place in range(len(letters))], k=8000)
    starts = rng.choices(range(7990), k=1500)
    vocabulary = ["".join(sounds[start : start + rng.randint(2, 6)]) for start in starts]
    return "".join(rng.choices(vocabulary, [1 / (place + 1) for place in range(1500)], k=count))


SCRIPTS = {"Thai": (0xE01, 0xE2E), "Lao": (0xE81, 0xEB0), "Burmese": (0x1000, 0x102A), "Khmer": (0x1780, 0x17B3)}
SCRIPTS |= {"Hiragana": (0x3041, 0x3093), "Katakana": (0x30A1, 0x30F3)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_unrelated_texts_in_a_script_without_spaces_fill_all_splits(tmp_path, script):
    rng = random.Random(14)
    text = write_glued(rng, *SCRIPTS[script], 60 * 110)
    records = [{"text": text[start : start + 300]} for start in range(0, 60 * 300, 300)]
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "a.jsonl", records)]))
    assert "learned" not in corpus.left_out()
    assert all(corpus.sizes()[split]["documents"] > 1 for split in SPLITS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_edited_copies_in_a_script_without_spaces_are_not_tested_on(tmp_path, script):
    rng = random.Random(15)
    text = write_glued(rng, *SCRIPTS[script], 60 * 110)
    originals = [text[start : start + 300] for start in range(0, 60 * 300, 300)]
    edits = [each[:90] + "x" + each[100:200] + " " + each[205:] + each[:20] for each in originals]
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "a.jsonl", [{"text": each} for each in originals + edits])]))
    learned = {document.text[:60] for document in corpus.documents("training")}
    later = [document.text[:60] for split in SPLITS[1:] for document in corpus.documents(split)]
    assert later
    assert not learned & set(later)


def soften(text):
    return " ".join(word[:2] + "\u00ad" + word[2:] for word in text.split())


def emphasise(text):
    return " ".join(f"_{word}_" if place % 3 == 0 else word for place, word in enumerate(text.split()))


FORMS = {
    "decomposed": lambda text: unicodedata.normalize("NFD", text), "soft hyphens": soften, "emphasis": emphasise,
    "zero width": lambda text: text.replace(" ", " \u200b").replace("a", "a\u200d"), "capitals": str.upper,
    "full width": lambda text: "".join(chr(ord(each) + 0xFEE0) if "!" <= each <= "~" else each for each in text),
    "ligatures": lambda text: text.replace("fi", "\ufb01").replace("fl", "\ufb02"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_in_another_form_of_unicode_is_not_tested_on(tmp_path, form):
    rng = random.Random(16)
    accents = str.maketrans("aou", "äöü")
    texts = [say(rng, 60).translate(accents).replace("b", "fi") for _ in range(60)]
    records = [{"text": text} for text in texts] + [{"text": FORMS[form](text)} for text in texts]
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "a.jsonl", records)]))
    where = {text: set() for text in texts}
    known = {each["text"]: texts[number % 60] for number, each in enumerate(records)}
    for split in SPLITS:
        for document in corpus.documents(split):
            where[known[document.text]].add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert set.union(*where.values()) == set(SPLITS)


def test_words_of_an_indian_script_are_whole():
    assert list(words("हिन्दी में लिखा गया")) == [["हिन्दी", "में", "लिखा", "गया"]]


def test_text_of_which_all_was_learned_is_said_to_be_that_and_not_too_little(tmp_path):
    rng = random.Random(17)
    corpus = Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([write(tmp_path / "a.jsonl", [{"text": say(rng, 40)} for _ in range(60)])]))
    with sqlite3.connect(corpus.path) as db:
        left = db.execute("update document set left_out = 'learned' where split != 'training'").rowcount
    db.close()
    said = f"validation and test would be empty: {left} documents for choosing or testing stand in training text"
    assert said in corpus.missing()
