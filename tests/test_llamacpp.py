"""llama.cpp is loaded so that it runs on every processor."""

from types import SimpleNamespace

import llama_cpp
import pytest

from comigs_edge import llamacpp


@pytest.mark.parametrize(("info", "repacks"), [(b"AVX2 = 1 | AMX_INT8 = 1 | OPENMP = 1", False), (b"AVX2 = 1 | NEON = 1", True)])
def test_where_llama_cpp_has_amx_its_weights_are_not_repacked(info, repacks):
    library = SimpleNamespace(
        llama_print_system_info=lambda: info, llama_model_default_params=lambda: SimpleNamespace(use_extra_bufts=True)
    )
    llamacpp.keep_from_amx(library)
    assert library.llama_model_default_params().use_extra_bufts is repacks


def test_the_library_in_use_has_these_defaults():
    has_amx = b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()
    assert llama_cpp.llama_cpp.llama_model_default_params().use_extra_bufts is not has_amx
