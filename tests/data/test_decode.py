"""Bytes become text in the encoding that they are in; which one is said."""

import pytest

from comigs_edge.data import decode as decoding
from comigs_edge.data import documents
from comigs_edge.data.decode import decode
from comigs_edge.data.document import Unreadable

GERMAN = "Schöne Grüße aus Köln – „morgen früh“ fahre ich über München, für 5 €."


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_german_text_is_read_in_every_encoding_of_an_editor(tmp_path, encoding):
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    (tmp_path / "a.txt").write_bytes((mark + GERMAN).encode(encoding))
    reading = documents.read([tmp_path])
    assert reading.files[tmp_path / "a.txt"][0].text == GERMAN
    said = {"utf-8": "", "utf-8-sig": "", "cp1252": "Windows-1252", "utf-32": "UTF-32"}.get(encoding, "UTF-16")
    assert reading.encodings.get(tmp_path / "a.txt", "") == said


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("El niño comió una manzana en el jardín", "cp1252"),
        ("L’été dernier, nous étions à la plage — c’était “bien”", "cp1252"),
        ("La réunion est à 10 h.", "cp1252"),
        ("Já está", "latin-1"),
        ("Müller kommt heute.", "latin-1"),
        ("El año pasado. Mi niño tiene un año.", "latin-1"),
        ("It costs 5 £, at 20 °C.", "latin-1"),
        ("schöner Tag", "cp850"),
        ("Dzień dobry, jak się masz?", "cp1250"),
        ("το αρχείο file.txt", "iso8859-7"),
        ("Привет, как дела? Завтра поедем на дачу.", "cp1251"),
        ("Привет, как дела? Завтра поедем на дачу.", "koi8-r"),
        ("今日は天気がいいですね。明日も晴れるといいな。", "shift_jis"),
        ("今天天气很好，我们明天去公园吧。", "gb18030"),
    ],
)
def test_other_encodings_are_told_by_what_is_written(text, encoding):
    assert decode(text.encode(encoding))[0] == text


def test_an_encoding_is_told_far_into_a_long_file():
    text = "The shed is green. " * 100_000 + GERMAN
    assert decode(text.encode("cp1252")) == (text, "Windows-1252")


def test_one_damaged_byte_costs_that_byte_only():
    data = (GERMAN * 20).encode()
    text, said = decode(data[:1000] + b"\xff" + data[1000:])
    assert text.replace("\ufffd", "") == GERMAN * 20
    assert said == "UTF-8 with damaged bytes"


def test_without_the_detector_the_command_is_named(monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    with pytest.raises(Unreadable, match=r"not UTF-8 text \(byte 2\).*pip install 'comigs-edge\[import\]'"):
        decode("Grüße".encode("cp1252")[:-1] + b"e")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0", bytes(range(256)), b"\x1b\x05\x06\x07" * 50, b"a\0b"])
def test_what_is_no_text_is_refused(data):
    with pytest.raises(Unreadable):
        decode(data)


def test_an_encoding_that_this_python_cannot_load_is_said(monkeypatch):
    monkeypatch.setattr("comigs_edge.data.decode._detect", lambda data, place: "no-such-encoding")
    with pytest.raises(Unreadable, match=r"byte 3\), and its encoding is not known here"):
        decode(b"caf\xe9 au lait")


OLD = {
    "German": "Die Maße der großen Tür wären übrigens größer. Für Müllers Söhne müßte man schöne Äpfel ernten, ohne Öl. Süß!",
    "French": "L'été dernier, où étaient les élèves préférés ? C'était très agréable, à côté de la forêt. Je déjeunais là-bas.",
}


@pytest.mark.parametrize("language", OLD)
@pytest.mark.parametrize("encoding", ["cp850", "mac_roman", "cp1252"])
def test_text_of_dos_and_of_the_old_mac_is_not_taken_for_windows(language, encoding):
    assert decode(OLD[language].encode(encoding))[0] == OLD[language]
