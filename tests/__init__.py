"""Tests: quick ones on a two-layer random llama model, one end-to-end test on the real SmolLM2."""
