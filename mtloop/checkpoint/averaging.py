"""Average checkpoints, interpolate between models, and publish final/."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mtloop.atomic import new_folder, write_json
from mtloop.checkpoint.listing import epoch_ends, find_corruption
from mtloop.checkpoint.manifest import (
    FINAL_MANIFEST_NAME,
    CorruptCheckpoint,
    check_files,
    find_manifest,
    hash_files,
    listed_files,
    read_manifest,
    write_manifest,
)
from mtloop.checkpoint.restore import AVERAGED_NAME
from mtloop.checkpoint.save import Checkpointer
from mtloop.errors import RunFailed, UserError, unwritable
from mtloop.model.adapters import ADAPTER_NAME
from mtloop.model.loading import nonfinite
from mtloop.run_folder import RunFolder

WEIGHTS = "*.safetensors"


def average_into(target: Path, checkpoints: Sequence[Path]) -> None:
    """Write a model folder with the files of the last checkpoint and the mean of the weights of all.

    Sums in float64; memory holds one tensor and one file of the result. Dtypes are kept. Weights that are not floating
    point are those of the last checkpoint.

    Args:
        target: A missing or empty folder; publish() it afterwards.
        checkpoints: Folders, by step.

    Raises:
        UserError: naming a checkpoint and the weight that differs from the last one by name or shape, or is not finite.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 6.1 (the last 5 or 20 checkpoints);
        Junczys-Dowmunt et al. 2016, "The AMU-UEDIN Submission to the WMT16 News Translation Task", section 2.2.
    """
    newest = checkpoints[-1]
    with ExitStack() as stack:
        weights = [_open(path, stack) for path in checkpoints]
        for path, found in zip(checkpoints, weights, strict=True):
            _check_same(path, found, newest, weights[-1])
        copy_listed(newest, target, left_out=("training", ADAPTER_NAME, WEIGHTS))
        for file in set(weights[-1].values()):
            means = {name: _mean(name, weights) for name in file.names}
            for name in nonfinite(means):
                bad = next(path for path, found in zip(checkpoints, weights, strict=True) if found[name].has_bad(name))
                raise UserError(f"{bad}: {name} is not finite. Leave this checkpoint out.")
            save_file(means, target / file.path.name, metadata=file.metadata)
    record = [
        {"name": path.name, **{name: manifest[name] for name in ("step", "sha256") if name in manifest}}
        for path, manifest in ((path, find_manifest(path)) for path in checkpoints)
    ]
    write_json(target / AVERAGED_NAME, {"average_of": record})


class _File:
    """An open safetensors file."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._open: Any = stack.enter_context(safe_open(path, framework="pt"))
        self.metadata: dict[str, str] = self._open.metadata() or {}
        self.names: list[str] = list(self._open.keys())

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._open.get_tensor(name)
        return tensor

    def shape(self, name: str) -> list[int]:
        return list(self._open.get_slice(name).get_shape())

    def has_bad(self, name: str) -> bool:
        return bool(nonfinite({name: self.read(name)}))


def _open(path: Path, stack: ExitStack) -> dict[str, _File]:
    """Map each weight of a folder to its open file.

    Raises:
        UserError: if the folder has no weights, or they cannot be read.
    """
    try:
        files = [_File(file, stack) for file in listed_files(path, WEIGHTS)]
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: the weights cannot be read ({error}). Give a checkpoint or another model folder."
        ) from error
    if not files:
        raise UserError(f"{path}: no weights found ({WEIGHTS}). Give a checkpoint or another model folder.")
    return {name: file for file in files for name in file.names}


def _check_same(path: Path, found: dict[str, _File], newest: Path, expected: dict[str, _File]) -> None:
    for name in sorted(found.keys() ^ expected.keys()):
        has, lacks = (path, newest) if name in found else (newest, path)
        raise UserError(
            f"{path}: another model than {newest.name} ({name} is in {has} and not in {lacks}). Leave it out."
        )
    for name, file in found.items():
        here, there = file.shape(name), expected[name].shape(name)
        if here != there:
            raise UserError(
                f"{path}: another model than {newest.name} ({name} is {here}, expected {there}). Leave it out."
            )


def _mean(name: str, weights: Sequence[dict[str, _File]]) -> torch.Tensor:
    last = weights[-1][name].read(name)
    if not last.is_floating_point():
        return last
    total = last.double()
    for found in weights[:-1]:
        total += found[name].read(name)
    return (total / len(weights)).to(last.dtype)


def publish_average(folder: RunFolder, *, num_epochs: int, end_step: int, say: Callable[[str], None]) -> None:
    """Publish the average of the last epochs of a run as final/, of as many valid checkpoints as exist. Main only.

    Repeated, for example after a kill, it gives the same bytes.

    Args:
        folder: The run folder.
        num_epochs: Maximum number of checkpoints.
        end_step: The last step; its checkpoint counts as an epoch end.
        say: Called with the averaged and the skipped checkpoints.

    Raises:
        RunFailed: if no checkpoint is valid, or final/ cannot be written.
    """
    chosen: list[Path] = []
    for path in reversed(epoch_ends(folder, end_step=end_step)):
        if len(chosen) == num_epochs:
            break
        if reason := find_corruption(path):
            say(f"checkpoint {path} is corrupt ({reason}); it is left out of the average")
        else:
            chosen.insert(0, path)
    if not chosen:
        raise RunFailed(f"--average_last: no valid checkpoint in {folder.path} (got {num_epochs}). Train again.")
    what = f"{folder.final_dir} is the average of {', '.join(path.name for path in chosen)}"
    say(what + (f": the run has fewer than {num_epochs} epochs" if len(chosen) < num_epochs else ""))
    try:
        with new_folder(folder.final_dir) as partial:
            average_into(partial, chosen)
            manifests = [read_manifest(path) for path in chosen]
            identity = "\n".join(manifest["sha256"] for manifest in manifests)
            record = {
                "step": end_step,
                # Identifies the average on the Hub.
                "manifest": hashlib.sha256(identity.encode()).hexdigest(),
                "average_of": [manifest["step"] for manifest in manifests],
            }
            write_manifest(partial, {**record, "files": hash_files(partial)})
    except (OSError, SafetensorError) as error:
        raise unwritable(folder.final_dir, error) from error


@torch.no_grad()
def interpolate_into(
    target: torch.nn.Module, base: torch.nn.Module, fine_tuned: torch.nn.Module, weight: float
) -> None:
    """Set a model's weights to (1 - weight) * base + weight * fine_tuned, one tensor at a time.

    At 0 and 1 the result is bitwise one of the models; weights that are not floating point are those of the fine-tuned
    one, except at 0.

    Args:
        target: Changed in place; may be one of the two.
        base: The model before fine-tuning.
        fine_tuned: The same names and shapes (check_alike).
        weight: 0 to 1.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), equation 1.
    """
    ends = base.state_dict(), fine_tuned.state_dict()
    done: set[int] = set()  # tied weights have two names
    for name, tensor in target.state_dict().items():
        if tensor.data_ptr() not in done:
            tensor.copy_(_between(ends[0][name], ends[1][name], weight))
        done.add(tensor.data_ptr())


def _between(base: torch.Tensor, fine_tuned: torch.Tensor, weight: float) -> torch.Tensor:
    if weight == 0:
        return base
    if weight == 1 or not base.is_floating_point():
        return fine_tuned
    return ((1 - weight) * base.double() + weight * fine_tuned.double()).to(base.dtype)


def check_alike(base: torch.nn.Module, fine_tuned: torch.nn.Module) -> str:
    """Return the weight in which two models differ by name or shape, "" if they can be interpolated."""
    ends = base.state_dict(), fine_tuned.state_dict()
    if different := sorted(ends[0].keys() ^ ends[1].keys()):
        return f"only one of them has {different[0]}"
    unequal = [name for name, tensor in ends[0].items() if tensor.shape != ends[1][name].shape]
    if not unequal:
        return ""
    name = max(unequal, key=lambda name: ends[0][name].numel())  # of embeddings rather than their bias
    return f"{name} is {list(ends[0][name].shape)} in it and {list(ends[1][name].shape)} in the fine-tuned model"


def publish_final(checkpointer: Checkpointer, *, is_best: bool) -> Path:
    """Copy the best or the latest checkpoint to final/, and return its path.

    Collective. No save may be in progress.

    Raises:
        RunFailed: on every rank, if main could not write.
    """
    runtime = checkpointer.runtime
    source = runtime.on_main(lambda: _best_or_latest(checkpointer) if is_best else checkpointer.path)
    runtime.on_main(lambda: _copy(source, checkpointer.folder))
    return source


def _best_or_latest(checkpointer: Checkpointer) -> Path:
    folder = checkpointer.folder
    best = folder.checkpoints_dir / f"step_{checkpointer.state.best_step}"
    if not best.is_dir():
        return checkpointer.path
    if reason := find_corruption(best):
        checkpointer.runtime.say(
            f"the best checkpoint {best} is corrupt ({reason}); {folder.final_dir} holds the last one"
        )
        return checkpointer.path
    return best


def _copy(source: Path, folder: RunFolder) -> None:
    final = folder.final_dir
    try:
        with new_folder(final) as partial:
            manifest = read_manifest(source)
            copy_listed(source, partial, left_out=("training",))
            record = {"step": manifest["step"], "manifest": manifest["sha256"], "average_of": []}
            kept = {name: entry for name, entry in manifest["files"].items() if (partial / name).is_file()}
            write_manifest(partial, {**record, "files": kept})
            check_files(partial)
    except CorruptCheckpoint as error:
        raise RunFailed(f"{source}: corrupt ({error}). Restore it, and start the same command again.") from error
    except OSError as error:
        raise unwritable(final, error) from error


def copy_listed(source: Path, target: Path, *, left_out: tuple[str, ...]) -> None:
    """Copy a model folder: of a checkpoint or final/ what its manifest lists, of any other folder all.

    Args:
        source: The folder.
        target: May exist.
        left_out: Patterns of the names of files and folders, as of shutil.ignore_patterns.
    """
    listed = find_manifest(source).get("files")
    ignored = shutil.ignore_patterns(FINAL_MANIFEST_NAME, *left_out)

    def is_left_out(folder: str, names: list[str]) -> set[str]:
        below = Path(folder).relative_to(source)
        foreign = {
            name
            for name in names
            if listed is not None and not any(Path(path).is_relative_to(below / name) for path in listed)
        }
        return ignored(folder, names) | foreign

    shutil.copytree(source, target, ignore=is_left_out, dirs_exist_ok=True)
