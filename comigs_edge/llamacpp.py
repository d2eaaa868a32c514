"""llama.cpp through llama-cpp-python, with its log kept off the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

from comigs_edge.errors import ComigsError
from profiles.chat import GPU

try:
    import llama_cpp
except ImportError as error:
    raise ComigsError(f"llama-cpp-python cannot be used ({error}); install it with: pip install llama-cpp-python") from error


_ERROR = 4  # ggml_log_level
_GPU, _INTEGRATED_GPU = 1, 2  # ggml_backend_dev_type
_errors: list[str] = []  # of the load that goes on; the first says why, the others that it failed


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Takes llama.cpp's log lines; the object must live as long as the library may call it."""
    if level == _ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))


def keep_from_amx(library: Any) -> None:
    """Lets models be loaded without repacked weights where llama.cpp would multiply in AMX tiles.

    gcc leaves most of ggml's tile configuration out, and the first product ends the process with a segmentation fault
    (ggml-org/llama.cpp#20824, #26954). `library` is `llama_cpp.llama_cpp`, whose defaults `llama_cpp.Llama` asks for.
    """
    if b"AMX_INT8 = 1" not in library.llama_print_system_info():
        return
    defaults = library.llama_model_default_params

    def without_repacking() -> object:
        params = defaults()
        params.use_extra_bufts = False
        return params

    library.llama_model_default_params = without_repacking


keep_from_amx(llama_cpp.llama_cpp)


def load(path: Path, **options: Any) -> llama_cpp.Llama:
    """The model at `path` in llama.cpp; `options` are those of `llama_cpp.Llama`.

    Raises `ComigsError` with llama.cpp's own reason.
    """
    _errors.clear()
    try:
        return llama_cpp.Llama(str(path), verbose=False, **options)
    except (ValueError, RuntimeError, jinja2.TemplateError) as error:
        reason = re.sub(r"^\w+: (error loading model: )*", "", _errors[0]) if _errors else str(error)
        raise ComigsError(f"llama.cpp cannot load {path}: {reason}") from error


# How a context keeps keys and values, as options of `load`; llama.cpp wants flash attention for values in blocks.
CACHES: dict[str, dict[str, Any]] = {
    "F16": {},
    "F16 flash": {"flash_attn": True},
    "Q8_0": {"flash_attn": True, "type_k": llama_cpp.GGML_TYPE_Q8_0, "type_v": llama_cpp.GGML_TYPE_Q8_0},
}


def context_options(*, context: int, threads: int, batch: int, cache: str, mmap: bool, gpu_layers: int = 0) -> dict[str, Any]:
    """A chat's plan as options of `load`."""
    return {
        "n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "n_batch": batch, "n_ubatch": batch,
        "use_mmap": mmap, **CACHES[cache], **gpu_options(gpu_layers),
    }  # fmt: skip


def gpu_options(layers: int) -> dict[str, Any]:
    """Options of `load` for so many layers on a GPU; for none llama.cpp would still multiply long prompts there."""
    return {"n_gpu_layers": layers, "offload_kqv": layers > 0, "op_offload": layers > 0}


def has_cuda() -> bool:
    """Whether llama.cpp was built with CUDA."""
    return b"CUDA : " in llama_cpp.llama_print_system_info()


def find_gpu(library: Any = llama_cpp.llama_cpp._lib) -> GPU | None:
    """What llama.cpp would compute on beside the processor, of several the sum; None without one, and in a build for none.

    As llama.cpp does, it leaves an integrated GPU alone where there is another.
    """
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_description.restype = ctypes.c_char_p
    found: dict[int, list[tuple[str, int]]] = {_GPU: [], _INTEGRATED_GPU: []}
    for number in range(library.ggml_backend_dev_count()):
        device = ctypes.c_void_p(library.ggml_backend_dev_get(ctypes.c_size_t(number)))
        kind = library.ggml_backend_dev_type(device)
        if kind in found:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            library.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found[kind].append((library.ggml_backend_dev_description(device).decode("utf-8", "replace"), free.value))
    for kind, devices in found.items():
        if devices:
            name = " and ".join(name for name, _ in devices)
            return GPU(name=name, free=sum(free for _, free in devices), is_shared=kind == _INTEGRATED_GPU)
    return None


@contextlib.contextmanager
def abortable(llama: llama_cpp.Llama, is_wanted: Callable[[], bool]) -> Iterator[None]:
    """Within the block `RuntimeError` ends a computation on the processor once `is_wanted` says no.

    It is asked for every operation of the graph: little beside a prompt's products, much beside a single token's.
    """
    asked = llama_cpp.ggml_abort_callback(lambda _: not is_wanted())
    llama_cpp.llama_set_abort_callback(llama.ctx, asked, ctypes.c_void_p(0))
    try:
        yield
    finally:
        llama_cpp.llama_set_abort_callback(llama.ctx, llama_cpp.ggml_abort_callback(0), ctypes.c_void_p(0))


def use_threads(llama: llama_cpp.Llama, count: int) -> None:
    """Computes with `count` threads from now on, prompts and answers."""
    llama_cpp.llama_set_n_threads(llama.ctx, count, count)


def wait(llama: llama_cpp.Llama) -> None:
    """Returns when everything that was asked for is computed."""
    llama_cpp.llama_synchronize(llama.ctx)


def reset_counts(llama: llama_cpp.Llama) -> None:
    """Sets the counts of `counts` to zero."""
    llama_cpp.llama_perf_context_reset(llama.ctx)


def counts(llama: llama_cpp.Llama) -> tuple[int, int]:
    """Tokens that llama.cpp has computed: together, as in a prompt, and one by one, as in an answer."""
    perf = llama_cpp.llama_perf_context(llama.ctx)
    return perf.n_p_eval, perf.n_eval


class LoadedAdapters:
    """LoRA files that llama.cpp adds to a loaded model; another set takes their place while it runs."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._llama = llama
        self._handles: list[Any] = []

    def use(self, paths: tuple[Path, ...]) -> None:
        """Adds these files and takes away those before; what the model has read so far is forgotten."""
        model, context = self._llama.model, self._llama.ctx
        handles = []
        for path in paths:
            handle = llama_cpp.llama_adapter_lora_init(model, str(path).encode())
            if not handle:
                raise ComigsError(f"llama.cpp cannot load the adapter {path}; write it anew with: comigs-edge export")
            handles.append(handle)
        kind = llama_cpp.llama_adapter_lora_p_ctypes * len(handles)
        scales = (ctypes.c_float * len(handles))(*[1.0] * len(handles))
        if llama_cpp.llama_set_adapters_lora(context, kind(*handles), len(handles), scales):
            raise ComigsError(f"llama.cpp cannot use the adapters {', '.join(map(str, paths))} with this model")
        self._llama.reset()  # keys and values so far are those of the adapters before
        for handle in self._handles:
            llama_cpp.llama_adapter_lora_free(handle)
        self._handles = handles


def special_tokens(llama: llama_cpp.Llama) -> dict[str, int]:
    """Text -> id of the tokens that llama.cpp finds in text before it tokenises the rest."""
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    wanted = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED
    return {
        llama_cpp.llama_vocab_get_text(vocabulary, token).decode("utf-8", "replace"): token
        for token in range(llama.n_vocab())
        if llama_cpp.llama_vocab_get_attr(vocabulary, token) & wanted
    }


def named_tokens(llama: llama_cpp.Llama) -> dict[str, int]:
    """The tokens that a chat template may name, as far as the vocabulary has them."""
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    getters = {
        "bos_token": llama_cpp.llama_vocab_bos,
        "eos_token": llama_cpp.llama_vocab_eos,
        "pad_token": llama_cpp.llama_vocab_pad,
    }
    return {name: token for name, get in getters.items() if (token := get(vocabulary)) >= 0}


def is_end(llama: llama_cpp.Llama, token: int) -> bool:
    """Whether a model ends its answer with this token."""
    return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(llama.model), token))
