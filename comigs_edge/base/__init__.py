"""Bases: their hyper-parameters, where they come from, and how a Hugging Face folder becomes a GGUF file."""
