"""New experts written into an existing export: only what training changes is rewritten."""

from __future__ import annotations

from pathlib import Path

from comigs_edge import files
from comigs_edge.base.hparams import read_hparams
from comigs_edge.errors import ComigsError
from comigs_edge.export.current import BASE_KEY, SOURCE_KEY, Exported
from comigs_edge.export.merged import Origin, entries, summarise, tensor_plans
from comigs_edge.nn.adapters import Adapters
from quantize.gguf_file import GGUFFile
from quantize.gguf_writer import TensorPlan


def replace_experts(
    path: Path, base: GGUFFile, adapters: Adapters, format_name: str, output: Path, origin: Origin
) -> Exported | None:
    """Makes the exported file at `path` hold these adapters by rewriting only what training changes; moves it to `output`.

    None, with the file unchanged, if it is of another base, or if its metadata or its tensors' names, shapes or formats are not
    those of a new export. While it is written the file names no adapters, so an interrupted one is never used. A program that
    has the file open sees the new experts as they are written.
    """
    hparams = read_hparams(base)
    plans, changes = tensor_plans(base, hparams, adapters, format_name, origin)
    there = GGUFFile(path)
    if there.metadata.get(BASE_KEY) != origin.base or not _is_alike(there, plans, entries(base, hparams, changes)):
        return None
    changed = [plan for plan in plans if not plan.is_fixed]
    position = there.metadata_bytes[SOURCE_KEY][1] - len(origin.adapters)
    try:
        with path.open("r+b") as file:
            files.write_at(file, [(position, b"-" * len(origin.adapters))])
            files.write_at(file, [(there.tensors[plan.name].offset, plan.make().data) for plan in changed])
            files.write_at(file, [(position, origin.adapters.encode())])
        path.replace(output)
        files.sync_folder(output.parent)
    except OSError as error:
        raise ComigsError(
            f"{path} could not be rewritten ({error.strerror}); it is exported anew once its disk can be written"
        ) from error
    return summarise(output, plans)


def _is_alike(there: GGUFFile, plans: list[TensorPlan], wanted: list[bytes]) -> bool:
    """Whether a file with this metadata and these tensors differs only in their bytes and in the adapters that it names."""
    metadata = [there.data[start:end] for key, (start, end) in there.metadata_bytes.items() if key != SOURCE_KEY]
    source = [each for each in wanted if SOURCE_KEY.encode() in each]
    start, end = there.metadata_bytes.get(SOURCE_KEY, (0, 0))
    return (
        sorted(metadata) == sorted(each for each in wanted if each not in source)
        and [end - start] == [len(each) for each in source]
        and {name: (info.shape, info.format) for name, info in there.tensors.items()}
        == {plan.name: (plan.shape, plan.format) for plan in plans}
    )
