"""Adapters and base become GGUF files that llama.cpp runs."""
