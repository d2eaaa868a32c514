from comigs_edge.data.document import Document
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.inference.pieces import decode


def test_an_answer_that_is_cut_at_any_token_is_the_beginning_of_the_whole_text(tiny_path):
    tokenizer = Tokenizer(tiny_path)
    text = "Grüße 👩‍👩‍👧 an 日本 und 🇳🇱!"
    tokens = tokenizer.encode(Document(text=text)).ids
    cut = ["".join(decode(tokenizer, tokens[:length])) for length in range(len(tokens) + 1)]
    whole = "".join(decode(tokenizer, tokens))
    assert text in whole
    assert len(set(cut)) > 3
    assert all(whole.startswith(each) for each in cut)
