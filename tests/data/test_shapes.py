"""The shapes in which people have questions and answers, each against the chat that it means."""

import csv
import json

import pytest

from comigs_edge.data import documents
from comigs_edge.data.document import Document
from comigs_edge.errors import ComigsError

QUESTION, ANSWER = "Is the shed painted?", "Two coats."
CHAT = [("user", QUESTION), ("assistant", ANSWER)]
ROLES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SHAPES = {
    "openai": {"messages": ROLES},
    "role and content in conversations": {"conversations": ROLES, "id": "x"},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "sharegpt of lists": {"conversations": [[{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]]},
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "prompt and response": {"prompt": QUESTION, "response": ANSWER},
    "prompt and completion": {"prompt": QUESTION, "completion": ANSWER},
    "question and answer": {"Question": QUESTION, "Answer": ANSWER},
    "input and output": {"input": QUESTION, "output": ANSWER},
    "query and response": {"query": QUESTION, "response": ANSWER},
    "trl": {"prompt": ROLES[:1], "completion": ROLES[1:]},
    "trl's preferences": {"prompt": ROLES[:1], "chosen": ROLES[1:], "rejected": [{"role": "assistant", "content": "No."}]},
    "preferences with the prompt inside": {"chosen": ROLES, "rejected": []},
    "bare list": ROLES,
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": "x"}}]},
            {"role": "assistant", "content": [ANSWER]},
        ]
    },
    "null and a tool": {
        "messages": [
            ROLES[0],
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "done"},
            ROLES[1],
        ]
    },
    "wrapped": {"data": [{"prompt": QUESTION, "completion": ANSWER}]},
}  # fmt: skip


def content(document):
    """A text, or who said what."""
    return tuple((message.role, message.content) for message in document.messages) or document.text


def read(tmp_path, text, name="a.jsonl"):
    path = tmp_path / name
    path.write_text(text)
    return [content(document) for document in documents.read([path]).files[path]]


@pytest.mark.parametrize("value", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_known_shape_is_the_chat_that_it_means(tmp_path, value, name):
    assert read(tmp_path, json.dumps(value), name) == [tuple(CHAT)]


def test_alpacas_input_and_history_and_system_go_with_the_question(tmp_path):
    line = {
        "instruction": "Shorten.", "input": "A long one.", "output": "One.", "system": "Be brief.", "history": [["Hi", "Yo"]],
    }  # fmt: skip
    assert read(tmp_path, json.dumps(line)) == [
        (
            ("system", "Be brief."), ("user", "Hi"), ("assistant", "Yo"), ("user", "Shorten.\n\nA long one."),
            ("assistant", "One."),
        )
    ]  # fmt: skip


def test_a_developer_is_the_system_and_names_are_told_in_any_case(tmp_path):
    line = {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "User", "content": "a"}, ROLES[1]]}
    assert read(tmp_path, json.dumps(line)) == [(("system", "Be brief."), ("user", "a"), ("assistant", ANSWER))]


@pytest.mark.parametrize(
    "text",
    [
        '"first"\n"second"\n',
        '{"text": "first"}\r\n{"text": "second"}\r\n',
        '[{"text": "first"}, {"text": "second"}]',
        '[\n  {\n    "text": "first"\n  },\n  {"text": "second"}\n]\n',
        '{\n  "text": "first"\n}\n{\n  "text": "second"\n}\n',
        '["first", "second"]',
        '\ufeff[\n{"text": "first"},\n{"text": "second"},\n{"text": "cu',
        '{"data": [{"text": "first"}, {"text": "second"}]}',
        '{"text": "first", "score": NaN}\n\n\n{"text": "second"}',
        '{"text": "first"}{"text": "second"}',
    ],
)
def test_arrays_lines_and_values_over_many_lines_are_the_same(tmp_path, text):
    assert read(tmp_path, text) == ["first", "second"]


def test_a_number_of_thousands_of_digits_costs_its_line_and_is_said_in_plain_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n{"text": "x", "id": ' + "9" * 5000 + "}\n")
    left = documents.read([tmp_path]).left
    assert {reason: each.first for reason, each in left.items()} == {"a number with more digits than are read": "a.jsonl, line 2"}


def test_a_damaged_value_over_many_lines_gives_none_of_its_parts(tmp_path):
    text = json.dumps([{"messages": ROLES, "tags": ["a", "b"]}], indent=1)[:-4] + "\n"
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.json").write_text(text)
    assert [path.name for path in documents.read([tmp_path]).files] == ["good.txt"]


def test_tables_are_read_by_their_columns(tmp_path):
    assert read(tmp_path, f'question;answer\n"{QUESTION}";"{ANSWER}"\n', "a.csv") == [tuple(CHAT)]
    assert read(tmp_path, f"prompt\tcompletion\n{QUESTION}\t{ANSWER}\n", "a.tsv") == [tuple(CHAT)]
    assert read(tmp_path, 'id,text\n1,"one, two\nthree"\n2,four\n', "b.csv") == ["one, two\nthree", "four"]
    assert read(tmp_path, "words\nfirst\nsecond\n", "c.csv") == ["first", "second"]
    assert read(tmp_path, "author,date,text\nBo,2024-01-01,first\nCy,2024-01-02,second\n", "e.csv") == ["first", "second"]
    (tmp_path / "e.csv").unlink()
    (tmp_path / "d.csv").write_text("price;size\n1;2\n3;4\n")
    left = documents.read([tmp_path]).left
    assert {reason: str(each) for reason, each in left.items()} == {
        "a table whose columns are unknown (price, size); wanted are text, or two such as prompt and completion, question and "
        "answer": "d.csv, line 1"
    }


TABLE = [("Datum", "Titel, kurz", "Inhalt"), ("2024-01-01", "Zaun", "Der Zaun ist gestrichen; zweimal, mit guter Farbe.")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("first", ["", "sep={}\n"])
def test_the_only_text_of_a_table_is_read_whatever_separates_it_and_is_called(tmp_path, separator, first):
    with (path := tmp_path / "a.csv").open("w", newline="") as file:
        file.write(first.format(separator))
        csv.writer(file, delimiter=separator).writerows(TABLE)
    assert [content(document) for document in documents.read([path]).files[path]] == [TABLE[1][2]]


def test_of_two_texts_in_a_table_with_unknown_columns_none_is_guessed(tmp_path):
    words = "these are more than six words here"
    (tmp_path / "a.csv").write_text(f"Frage;Antwort\n{words};{words} too\n{words};{words}\n")
    with pytest.raises(ComigsError, match=r"columns are unknown \(Frage, Antwort\); wanted are text, or two such as") as error:
        documents.read([tmp_path / "a.csv"])
    assert "messages" not in str(error.value)  # which no table has


def test_a_row_with_more_cells_than_columns_is_left_out_and_a_lonely_column_keeps_its_commas(tmp_path):
    assert read(tmp_path, "words\nfirst, and more\nsecond\n", "c.csv") == ["first, and more", "second"]
    (tmp_path / "d.csv").write_text(f"question,answer\n{QUESTION},{ANSWER}\nWhy?,Rain, and wind.\nWhen?,Now,,\n")
    reading = documents.read([tmp_path / "d.csv"])
    (found,) = reading.files.values()
    assert [content(document)[1][1] for document in found] == [ANSWER, "Now"]
    assert {reason: str(each) for reason, each in reading.left.items()} == {
        "a row with more cells than the table has columns": "d.csv, line 3"
    }


def test_a_notebook_is_its_words_and_code_without_output(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# Shed\n", "Paint."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": ["SECRET"]}]},
        {"cell_type": "raw", "source": "raw"},
    ]
    assert read(tmp_path, json.dumps({"cells": cells, "nbformat": 4}, indent=1), "a.ipynb") == ["# Shed\nPaint.\n\nprint(1)"]


def test_what_is_nobodys_words_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(SHAPES[name]) for name in ("openai", "null and a tool", "parts")))
    left = documents.read([path]).left
    assert {reason: str(each) for reason, each in left.items()} == {
        "a message of a tool, or a call of one": "2 times, first in a.jsonl, line 2",
        "a part of a message that is no text": "a.jsonl, line 3",
    }


def test_an_answer_of_no_weight_is_kept_and_not_learned(tmp_path):
    line = {"messages": [ROLES[0], {**ROLES[1], "weight": 0}, ROLES[0], {**ROLES[1], "weight": 1}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    [chat] = documents.read([tmp_path / "a.jsonl"]).files[tmp_path / "a.jsonl"]
    assert [message.scored for message in chat.messages] == [True, False, True, True]
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"messages": [ROLES[0], {**ROLES[1], "weight": 0}]}))
    [document] = documents.read([path]).files[path]
    assert not document.teaches
    assert Document.from_json(document.to_json()) == document


@pytest.mark.parametrize("bad", [False, "false", "False"])
def test_an_answer_marked_as_bad_is_left_out_and_counted(tmp_path, bad):
    good, worse = {"prompt": QUESTION, "completion": ANSWER}, {"prompt": QUESTION, "completion": "Rubbish"}
    rows = [good | {"label": True}, worse | {"label": bad}, {"messages": ROLES, "label": bad}, {"text": "x", "label": bad}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    reading = documents.read([path])
    assert [content(document) for document in reading.files[path]] == [tuple(CHAT), "x"]  # of a text it is what it is about
    assert {reason: each.count for reason, each in reading.left.items()} == {"an answer marked as bad": 2}
    (table := tmp_path / "a.csv").write_text(f"prompt,completion,label\n{QUESTION},{ANSWER},True\n{QUESTION},Rubbish,{bad}\n")
    assert [content(document) for document in documents.read([table]).files[table]] == [tuple(CHAT)]


ABOVE = {
    "one cell": "Account\nIBAN;DE00\n\n", "padded": "Account;;\nIBAN;DE00;\n;;\n", "two cells": "IBAN;DE00\n\n",
    "a sentence": "All of it until today\nfor Ada\n",
}  # fmt: skip
SPENT = "1.1.24;Paint for the shed and two brushes, green;3,50\n2.1.24;Bread and butter from the shop;4,20\n3.1.24;x;1,00\n"


@pytest.mark.parametrize("above", ABOVE.values(), ids=ABOVE)
def test_lines_above_a_table_are_not_learned_and_its_names_are_found(tmp_path, above):
    words = [row.split(";")[1] for row in SPENT.split("\n")[:2]]
    long = SPENT.replace("x;", "and nothing else on this day;")
    assert read(tmp_path, f"{above}Day;What;How much\n{long}", "a.csv")[:2] == words
    assert (
        read(tmp_path, f"{above}Name;question;answer\nBo;{QUESTION};{ANSWER}\nCy;{QUESTION};{ANSWER}\n", "b.csv")
        == [tuple(CHAT)] * 2
    )


@pytest.mark.parametrize("above", ["one cell", "padded", "two cells"])
def test_a_table_without_names_below_other_lines_is_left_out_with_one_sentence(tmp_path, above):
    (tmp_path / "a.csv").write_text(ABOVE[above] + SPENT)
    (tmp_path / "b.txt").write_text("good")
    reading = documents.read([tmp_path])
    assert [path.name for path in reading.files] == ["b.txt"]
    assert {reason: str(each) for reason, each in reading.left.items()} == {
        "a table without names above its columns": "a.csv, line 1"
    }


def test_rows_of_prose_below_one_name_are_no_table(tmp_path):
    rows = ["Apples, pears, plums", "Green, dry, and good", "Bread"]
    assert read(tmp_path, "\n".join(["words", *rows]), "a.csv") == rows
