"""Freed memory is kept for the next step, and given back when a pause begins."""

import platform

import psutil
import pytest

from comigs_edge.training.memory import give_back_memory, tune_allocator


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is tuned on glibc only")
def test_freed_memory_stays_with_the_process_until_it_is_given_back():
    tune_allocator()
    pieces = [bytearray(b"x" * 1_000_000) for _ in range(200)]
    full = psutil.Process().memory_info().rss
    del pieces
    assert full - psutil.Process().memory_info().rss < 50_000_000
    assert give_back_memory(lean=False) > 100_000_000
