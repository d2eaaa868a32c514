"""Adapters and base become one GGUF file that unmodified llama.cpp runs.

`planner.py` says which tensors it holds; `hot.py` has the layout that is never merged.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from comigs_edge import files
from comigs_edge.base.hparams import HParams, read_hparams
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.export.current import BASE_KEY, SOURCE_KEY, Exported
from comigs_edge.export.planner import PLANNERS, Metadata, copy_tensor
from comigs_edge.nn.adapters import Adapters
from comigs_edge.progress import SILENT, Progress, count_up
from quantize.formats import FILE_TYPES, block_format
from quantize.gguf_file import DEFAULT_ALIGNMENT, GGUFFile
from quantize.gguf_writer import TensorPlan, metadata_with, total_size, write


class Origin(NamedTuple):
    """What a file was made of, as SHA-256."""

    adapters: str = ""
    base: str = ""


def export(
    base: GGUFFile, adapters: Adapters | None, format_name: str, output: Path, origin: Origin = Origin(),
    progress: Progress = SILENT, threads: int = 1,
) -> Exported:  # fmt: skip
    """Writes the personal model to `output` (whole or not at all); `progress` gets bytes written and bytes in all.

    Without adapters the base itself is written, which is of use for comparisons in another format. Raises
    `QuantizeError` if a row is not a whole number of blocks and `ComigsError` if llama.cpp has no architecture for these
    experts beside this base, before anything is written.
    """
    hparams = read_hparams(base)
    plans, changes = tensor_plans(base, hparams, adapters, format_name, origin, threads)
    return write_model(base, hparams, plans, changes, output, progress)


def planned_size(base: GGUFFile, adapters: Adapters, format_name: str) -> int:
    """Bytes of the tensors that `export` would write; raises as it does."""
    return total_size(tensor_plans(base, read_hparams(base), adapters, format_name, Origin())[0])


def tensor_plans(
    base: GGUFFile, hparams: HParams, adapters: Adapters | None, format_name: str, origin: Origin, threads: int = 1
) -> tuple[list[TensorPlan], Metadata]:
    """The tensors of an exported file, and the metadata in which it differs from the base."""
    fmt = block_format(format_name)
    changes: Metadata = {"general.architecture": hparams.architecture}
    if adapters is None or adapters.form.is_low_rank or fmt.name == "F32":  # else most of the file is the base's bytes
        changes["general.file_type"] = FILE_TYPES[fmt.name]
    if adapters is None:
        return [copy_tensor(base, name, fmt) for name in base.tensors], changes
    architecture = adapters.form.architecture(hparams.architecture, adapters.layout.num_choices)
    planner = PLANNERS[adapters.form.planner](base, hparams, adapters, fmt, architecture, threads)
    changes |= {
        "general.architecture": architecture, "general.name": f"{base.metadata.get('general.name', 'model')}, personal",
        SOURCE_KEY: origin.adapters, BASE_KEY: origin.base,
    }  # fmt: skip
    return list(planner.plans()), changes | planner.metadata()


def write_model(
    base: GGUFFile, hparams: HParams, plans: list[TensorPlan], changes: Metadata, output: Path, progress: Progress = SILENT
) -> Exported:
    """Writes a file of the base's metadata with `changes` (the architecture among them) and these tensors."""
    metadata, size = entries(base, hparams, changes), total_size(plans)
    with files.atomic_writer(output, size + sum(map(len, metadata))) as file:
        write(file, metadata, plans, count_up(progress, size))
    return summarise(output, plans)


def entries(base: GGUFFile, hparams: HParams, changes: Metadata) -> list[bytes]:
    """The metadata of a file: the base's with `changes`, the alignment that ggml wants, and the template that is chatted in."""
    mended: Metadata = {}
    if base.alignment != DEFAULT_ALIGNMENT:
        mended["general.alignment"] = DEFAULT_ALIGNMENT
    template = Tokenizer(base.path).template.source
    if template != base.metadata.get("tokenizer.chat_template"):
        mended["tokenizer.chat_template"] = template
    return metadata_with(base, mended | changes, (f"{hparams.architecture}.", f"{changes['general.architecture']}."))


def summarise(path: Path, plans: list[TensorPlan]) -> Exported:
    """What `path` holds, written by these plans."""
    trained = (plan for plan in plans if not plan.is_fixed and not plan.name.endswith("ffn_gate_inp.weight"))
    formats = dict(Counter(plan.format.name for plan in trained))
    return Exported(path, path.stat().st_size, files.sha256_file(path), formats)
