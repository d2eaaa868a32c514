"""A person's text: documents, the corpus with its splits, the tokenizer."""
