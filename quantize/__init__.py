"""GGUF block formats: reading, dequantising, quantising and writing them.

formats.py      the block formats that we name, their sizes, and `QuantizeError`
ggml.py         ggml's own quantisers and dequantisers, called in the llama.cpp library that is installed
gguf_file.py    reads a GGUF file through a memory map
gguf_writer.py  writes a GGUF file, one tensor at a time
"""
