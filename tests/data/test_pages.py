"""Pages, books and mails, made by libraries that write them, come back as their words; bombs cost themselves alone."""

import io
import mailbox
import os
import sys
import time
import zipfile
import zlib
from email.message import EmailMessage

import docx
import psutil
import pytest
from matplotlib.figure import Figure

from comigs_edge.data import documents, importing
from comigs_edge.errors import ComigsError

WORDS = "The shed got two coats of green paint."


def texts(path):
    return [document.text for document in documents.read([path]).files[path]]


def why(path):
    """Why a file is left out, beside one that is read."""
    (path.parent / "good.txt").write_text("good")
    reading = documents.read([path, path.parent / "good.txt"])
    assert list(reading.files) == [path.parent / "good.txt"]
    return dict(reading.skipped)[path]


def test_a_web_page_is_its_words_in_blocks(tmp_path):
    (tmp_path / "a.html").write_text(
        f"""<!DOCTYPE html><html><head><title>T</title><style>p {{}}</style><script>let x</script></head><body>
        <nav><a href=x>Home</a></nav><h1>Shed</h1><p>{WORDS[:20]}<b>{WORDS[20:]}</b></p>
        <ul><li>one<li>two &amp; 3</ul><pre>a  b\n  c</pre><p>last<br>line<!-- no --></p><form>Name</form>tail</body></html>"""
    )
    assert texts(tmp_path / "a.html") == [f"Shed\n\n{WORDS}\n\none\n\ntwo & 3\n\na  b\n  c\n\nlast\nline\n\ntail"]


def test_telegrams_pages_are_refused_with_what_to_export_instead(tmp_path):
    (tmp_path / "messages.html").write_text("<!DOCTYPE html><html><head><title>Exported Data</title></head><body>Ada 10:15 hi")
    assert why(tmp_path / "messages.html") == "a page of Telegram's export; export the chat as JSON (machine-readable) instead"


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("", "utf-8"),
        ('<meta charset="windows-1252">', "cp1252"),
        ("", "cp1252"),
        ('<?xml version="1.0" encoding="utf-8"?>', "utf-8"),
    ],
)
def test_a_web_page_is_read_in_its_encoding(tmp_path, head, encoding):
    page = f"{head}<html><body><p>Schöne Grüße aus Köln, ich fahre morgen früh über München</p></body></html>"
    (tmp_path / "a.htm").write_bytes(page.encode(encoding))
    assert texts(tmp_path / "a.htm") == ["Schöne Grüße aus Köln, ich fahre morgen früh über München"]


def test_a_pdf_is_the_text_of_its_pages(tmp_path):
    figure = Figure()
    figure.text(0.1, 0.5, WORDS)
    figure.savefig(tmp_path / "a.pdf")
    assert " ".join(texts(tmp_path / "a.pdf")[0].split()) == WORDS


def test_a_pdf_of_pictures_and_a_locked_one_are_told(tmp_path):
    import pypdf

    for name, password in (("scan", ""), ("locked", "secret")):
        writer = pypdf.PdfWriter()
        writer.add_blank_page(100, 100)
        if password:
            writer.encrypt(password)
        writer.write(tmp_path / f"{name}.pdf")
    assert why(tmp_path / "scan.pdf") == "pictures of pages, without text"
    assert why(tmp_path / "locked.pdf") == "locked with a password"


def test_a_word_file_is_its_paragraphs_and_tables(tmp_path):
    file = docx.Document()
    file.add_heading("Shed")
    file.add_paragraph(WORDS)
    table = file.add_table(2, 2)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"cell {number}"
    file.save(tmp_path / "a.docx")
    assert texts(tmp_path / "a.docx") == [f"Shed\n\n{WORDS}\n\ncell 0 | cell 1\ncell 2 | cell 3"]


CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
PACKAGE = (
    '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="b" href="text/two.xhtml"/>'
    '<item id="a" href="text/one%201.xhtml"/></manifest>'
    '<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="gone"/></spine></package>'
)


def book(path, **members):
    chapter = '<html xmlns="http://www.w3.org/1999/xhtml"><body><p>{}</p></body></html>'
    files = {
        "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": PACKAGE, "OEBPS/text/one 1.xhtml": chapter.format(WORDS),
        "OEBPS/text/two.xhtml": chapter.format("The end"), **members,
    }  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_an_e_book_is_its_chapters_in_the_order_of_reading(tmp_path):
    assert texts(book(tmp_path / "a.epub")) == [f"{WORDS}\n\nThe end"]


def test_a_mailbox_is_its_mails_without_what_they_quote(tmp_path):
    box = mailbox.mbox(tmp_path / "a.mbox")
    for subject, body, kind in (
        ("Shed", f"{WORDS}\n\nOn Monday Bo wrote:\n> Is it\n> painted?\n\nYours\n-- \nAda\nStreet 1", "plain"),
        ("Grüße", "<p>Bis <b>bald</b></p><script>x</script>", "html"),
    ):
        message = EmailMessage()
        message["Subject"], message["From"] = subject, "ada@example.org"
        message.set_content(body, subtype=kind)
        message.add_attachment(b"\x89PNG", maintype="image", subtype="png")
        box.add(message)
    box.close()
    assert texts(tmp_path / "a.mbox") == [f"Shed\n\n{WORDS}\n\nYours", "Grüße\n\nBis bald"]


def test_a_mail_in_an_encoding_that_nobody_knows_costs_no_other_mail(tmp_path):
    head = b"From ada@example.org Mon Jan  1 00:00:00 2024\nSubject: %b\nContent-Type: %b\n\n%b\n\n"
    (tmp_path / "a.mbox").write_bytes(
        head % (b"One", b"text/plain; charset=x-unknown", "Grüße, ".encode() + WORDS.encode())
        + head % (b"Two", b"text/plain; charset=x-unknown", b"Sch\xf6ne Gr\xfc\xdfe aus K\xf6ln, ich fahre \xfcber M\xfcnchen")
        + head % (b"Three", b"text/plain; charset=x-unknown", bytes(range(256)))
        + head % (b"=?x-unknown?q?Four?=", b"text/html; charset=x-unknown", b"<p>Bye</p>")
    )  # fmt: skip
    reading = documents.read([tmp_path / "a.mbox"])
    assert [document.text for document in reading.files[tmp_path / "a.mbox"]] == [
        f"One\n\nGrüße, {WORDS}", "Two\n\nSchöne Grüße aus Köln, ich fahre über München", "Four\n\nBye",
    ]  # fmt: skip
    assert {reason: str(left) for reason, left in reading.left.items()} == {"a damaged mail": "a.mbox"}


def test_without_the_extra_the_files_are_counted_and_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "find_spec", lambda name: None)
    for name in ("a.pdf", "b.pdf", "c.html", "d.txt"):
        (tmp_path / name).write_text(WORDS)
    assert documents.read([tmp_path]).missing == {".pdf": 2, ".html": 1}
    with pytest.raises(ComigsError, match=r"a\.pdf: to read it: pip install 'comigs-edge\[import\]'"):
        documents.read([tmp_path / "a.pdf"])


# Bombs and damage -----------------------------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
LAUGHS = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>'


def test_a_book_or_word_file_of_zeros_is_refused_by_its_size(tmp_path):
    book(tmp_path / "a.epub", **{"OEBPS/text/two.xhtml": bytes(250_000_000)})
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(250_000_000))
    assert why(tmp_path / "a.epub") == why(tmp_path / "a.docx") == "unpacks to more than 200 MB"


def test_a_pdf_whose_page_unpacks_to_hundreds_of_megabytes_costs_itself_alone(tmp_path):
    stream = zlib.compress(zlib.compress(bytes(400_000_000), 1), 9)
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", b"<</Type/Page/Parent 2 0 R/Contents 4 0 R>>",
        b"<</Filter[/FlateDecode/FlateDecode]/Length %d>>stream\n%b\nendstream" % (len(stream), stream),
    )  # fmt: skip
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj%b endobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(body)
    body += b"xref\n0 5\n0000000000 65535 f \n%btrailer<</Root 1 0 R/Size 5>>\nstartxref\n%d\n%%%%EOF" % (table, start)
    (tmp_path / "a.pdf").write_bytes(body)
    assert why(tmp_path / "a.pdf")


def test_entities_that_grow_and_files_outside_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret words")
    outside = f'<!DOCTYPE x [<!ENTITY l9 SYSTEM "{secret.as_uri()}">]>'
    start = time.monotonic()
    for number, head in enumerate((LAUGHS, outside)):
        for place in ("OEBPS/book.opf", "META-INF/container.xml", "OEBPS/text/two.xhtml"):
            content = {"OEBPS/book.opf": PACKAGE, "META-INF/container.xml": CONTAINER}.get(place, "<p>&l9;</p>")
            path = book(tmp_path / f"{number}.epub", **{place: head + content.replace("<p>", "<p>&l9;")})
            (tmp_path / "good.txt").write_text("good")
            reading = documents.read([path, tmp_path / "good.txt"])
            found = "".join(document.text for each in reading.files.values() for document in each)
            assert "secret words" not in found
            assert len(found) < 1000
    assert time.monotonic() - start < 60


def test_deep_and_damaged_files_cost_themselves_alone(tmp_path):
    (tmp_path / "deep.html").write_text("<div>" * 200_000 + "x")
    (tmp_path / "empty.html").write_bytes(b"")
    (tmp_path / "empty.pdf").write_bytes(b"")
    (tmp_path / "cut.docx").write_bytes(io.BytesIO(b"PK\3\4").read())
    book(tmp_path / "lacks.epub", **{"META-INF/container.xml": "<x/>"})
    (tmp_path / "good.html").write_text(f"<p>{WORDS}")
    reading = documents.read([tmp_path])
    assert [document.text for document in reading.files[tmp_path / "good.html"]] == [WORDS]
    assert {path.name for path, _ in reading.skipped} >= {"empty.pdf", "cut.docx", "lacks.epub"}
    assert all(reason == f"damaged, or no {path.suffix} file" for path, reason in reading.skipped)


def test_a_reader_that_never_ends_or_dies_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "SECONDS", 1)
    (tmp_path / "a.html").write_text(WORDS)
    (tmp_path / "good.txt").write_text("good")
    for program in ("import time; time.sleep(60)", "import sys; sys.exit(3)", "print('[')"):
        monkeypatch.setattr(importing, "_COMMAND", [sys.executable, "-c", program])
        assert why(tmp_path / "a.html") == "its reader broke down over it, or took longer than 1 seconds"


def test_no_process_and_no_file_is_left_open(tmp_path):
    (tmp_path / "a.html").write_text(WORDS)
    before, children = set(os.listdir("/proc/self/fd")), {each.pid for each in psutil.Process().children()}
    documents.read([tmp_path])
    assert set(os.listdir("/proc/self/fd")) == before
    assert {each.pid for each in psutil.Process().children()} <= children
