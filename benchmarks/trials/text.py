"""What the trials read, as token ids in one file: a machine without llama.cpp's tokenizer can run them.

Text is the tuning text of `comigs-edge simulate`: one JSONL file a person, language, kind or topic, split by content.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from comigs_edge.data import documents
from comigs_edge.data.corpus import Corpus
from comigs_edge.data.document import Document, Message
from comigs_edge.data.tokenizer import Encoded, Tokenizer, encode
from comigs_edge.simulate.texts import TRAINING, VALIDATION, find, limit

PERSONS = ("de", "legal", "user03")  # a language, a domain, a chat
OTHERS = ("encyclopedia", "speeches")  # ordinary text, where it is text of others
LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pl")
KINDS = ("code_python", "dialogue", "encyclopedia", "fiction", "legal", "perldoc_qa", "religion_web", "speeches", "history")
CHATS = ("user03", "user05")
MEASURED = (*LANGUAGES, *KINDS, *CHATS)
TOKENS = {"training": 110_000, "validation": 24_000, "test": 10_000}

# Asked of the base and of the personal model: what must not change.
INSTRUCTIONS = """What is the capital of France?|Name three primary colours.|What is 17 plus 25?|Who wrote Romeo and Juliet?
Translate "good morning" into Spanish.|Write a short poem about rain.|Explain photosynthesis in one sentence.
List five kinds of fruit.|What is the boiling point of water in Celsius?|Give me a synonym for happy.
Write a polite email asking for a day off.|Summarise the story of Cinderella in two sentences.
What is the largest planet?|Correct this sentence: "She go to school."|Name the seasons of the year.
How many days are in a leap year?|Write a haiku about the sea.|What does a compiler do?|Suggest a name for a cat.
Convert 10 kilometres to miles.|Is a tomato a fruit or a vegetable?|Describe the taste of a lemon.
Write a Python function that adds two numbers.|What is the opposite of cold?|Give a recipe for pancakes.
Who was the first person on the Moon?|What causes tides?|Write a slogan for a bakery.|Name a country in South America.
Turn this into the past tense: "I walk home."|What is the square root of 144?|Tell me a joke.
List three tips for sleeping well.|What language is spoken in Brazil?|Define the word "patience".
Write a one-sentence birthday wish.|What is the chemical symbol for gold?|How do I boil an egg?
Compare cats and dogs in one sentence.|What year did World War II end?|Name two renewable sources of energy.
Complete the proverb: "A stitch in time ..."|What is a haiku?|Write a headline about a football match.
Explain gravity to a child.|What is 9 times 8?|Give three adjectives that describe a forest.|Who painted the Mona Lisa?
What is the currency of Japan?|Rewrite more politely: "Give me the report."|What organs do we breathe with?
Classify as positive or negative: "I loved this film."|Name a famous river.|Why is the sky blue?
Write the first line of a ghost story.|What is the plural of "mouse"?|How many continents are there?
Suggest a healthy breakfast.|What does "HTML" stand for?|Extract the name: "My friend Anna lives in Oslo."
What is the freezing point of water in Fahrenheit?|Give an example of a mammal.|Write a thank-you note to a teacher.
What should I pack for a day at the beach?""".replace("\n", "|").split("|")
# Asked of the base alone, for its own answers as ordinary text: every form with every subject.
FORMS = (
    "Explain {} in two sentences.", "Write a short story about {}.", "List three facts about {}.", "Why do people like {}?",
    "What is the history of {}?", "Give me advice about {}.", "Write a dialogue about {}.", "Ask me a question about {}.",
    "Describe {} to a child.", "What are common mistakes with {}?", "Write a headline about {}.", "Answer briefly: what is {}?",
)  # fmt: skip
SUBJECTS = (
    "bread", "volcanoes", "chess", "the heart", "trains", "friendship", "taxes", "bees", "winter", "music", "databases",
    "swimming", "money", "the Roman Empire", "gardening", "sleep", "electricity", "painting", "football", "rivers", "rice",
    "the law", "bicycles", "dinosaurs", "job interviews", "cheese", "the internet", "mathematics", "birds", "travel", "medicine",
    "poetry", "robots", "school", "glass", "dreams", "the sun", "cars", "history books", "democracy",
)  # fmt: skip
# First words of texts in many languages, from which the base writes on.
FIRST_WORDS = (
    """The|A|In|It is|When|How to|We|I|There are|This|Der|Die|Das|Ein|Im Jahr|Wir|Es gibt|Wenn|Le|La|Les|Un|Dans|Il est
En|El|Los|Una|Cuando|Es|Il|Lo|Gli|Nel|Una volta|È|De|Het|Een|Wij|Er is|Als|O|Os|Uma|Quando|No ano|Det|Den|En gång|Vi|Och
Jeg|Og|W|Na|Jest|To|Nie|V|Je|Když|Az|Egy|A magyar|Bir|Bu|Ve|Se|On|Suomen|În|Este|În anul|В|На|Это|Он|Το|Η|Στην|这|在|我们|日本の
これは|한국|이|في|هذا|यह|Yang|Ini|Di|Ở|Một|Ang|Na|Katika|import|def|#include <|<html>|SELECT|1.|Q:|Dear|Chapter 1
""".strip()
    .replace("\n", "|")
    .split("|")
)


def prepare(folder: Path, base: Path, out: Path) -> None:
    """Writes the token ids of everything that the trials read to `out` (.json.gz)."""
    tokenizer = Tokenizer(base)
    ends = [token for token in range(64) if tokenizer.is_end(token)]

    def asked(text: str) -> list[int]:
        return tokenizer.chat((Message("user", text),), for_answer=True).ids

    table = {
        "texts": {name: splits(find(folder, name), wanted(name), tokenizer) for name in sorted({*MEASURED, *OTHERS})},
        "instructions": [asked(text) for text in INSTRUCTIONS],
        "rehearsed": [asked(form.format(subject)) for form in FORMS for subject in SUBJECTS],
        "first_words": [tokenizer.encode(Document(text=text)).ids for text in FIRST_WORDS],
        "starts": [[tokenizer.bos], ends[:1]],  # of a chat, and of a text behind another one's end
        "ends": ends,
    }
    with gzip.open(out, "wt") as file:
        json.dump(table, file)


def wanted(name: str) -> dict[str, int]:
    """Tokens of each split; of text that is only measured no more than the test split."""
    return TOKENS if name in PERSONS + OTHERS else {"test": TOKENS["test"]}


def splits(path: Path, tokens: dict[str, int], tokenizer: Tokenizer) -> dict[str, list[Encoded]]:
    """So many tokens of each of these splits of a text, as documents."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder) / "documents.db", TRAINING, VALIDATION)
        corpus.add(documents.read([path]))
        return {split: limit(encode(corpus, tokenizer, split, []), count) for split, count in tokens.items()}


class Inputs:
    """What `prepare` wrote."""

    def __init__(self, path: Path) -> None:
        with gzip.open(path, "rt") as file:
            self.table: dict[str, Any] = json.load(file)

    def documents(self, name: str, split: str) -> list[Encoded]:
        """The documents of a text."""
        return [Encoded(*each) for each in self.table["texts"][name][split]]
