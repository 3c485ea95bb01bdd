"""Average checkpoints, interpolate between models, and publish final/."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mtloop.atomic import for_each_file, new_folder, write_json
from mtloop.checkpoint.listing import epoch_ends, find_corruption
from mtloop.checkpoint.manifest import MANIFEST_NAME, CorruptCheckpoint, hash_file, read_manifest
from mtloop.checkpoint.restore import AVERAGED_NAME, reason_in_line
from mtloop.checkpoint.save import Checkpointer
from mtloop.errors import RunFailed, UserError
from mtloop.model.adapters import ADAPTER_NAME
from mtloop.run_folder import RunFolder

WEIGHTS = "*.safetensors"


def average_into(target: Path, checkpoints: Sequence[Path]) -> None:
    """Write a folder that loads as the checkpoints do: the files of the last one, its weights the mean of all.

    Sums in float64, one tensor in memory at a time beside one file of the result; dtypes stay, and what is not
    floating point is taken from the last one.

    Args:
        target: Does not exist yet, or holds nothing; publish() it afterwards.
        checkpoints: Folders, by step.

    Raises:
        UserError: naming the checkpoint and the weight that is not as in the last one.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 6.1 (the last 5 or 20 checkpoints);
        Junczys-Dowmunt et al. 2016, "The AMU-UEDIN Submission to the WMT16 News Translation Task", section 2.2.
    """
    newest = checkpoints[-1]
    with ExitStack() as stack:
        weights = [_open(path, stack) for path in checkpoints]
        for path, found in zip(checkpoints, weights, strict=True):
            _check_same(path, found, newest, weights[-1])
        left_out = shutil.ignore_patterns("training", ADAPTER_NAME, WEIGHTS)
        shutil.copytree(newest, target, ignore=left_out, dirs_exist_ok=True)
        for file in set(weights[-1].values()):
            means = {name: _mean(name, weights) for name in file.names}
            save_file(means, target / file.path.name, metadata=file.metadata)
    record = [
        {"name": path.name, **{name: manifest[name] for name in ("step", "sha256") if name in manifest}}
        for path, manifest in ((path, manifest_of(path)) for path in checkpoints)
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


def _open(path: Path, stack: ExitStack) -> dict[str, _File]:
    """Map each weight of a folder to the open file that holds it.

    Raises:
        UserError: when there is none, or one cannot be read.
    """
    try:
        files = [_File(file, stack) for file in sorted(path.glob(WEIGHTS))]
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: its weights cannot be read ({error})") from error
    if not files:
        raise UserError(f"{path}: holds no weights ({WEIGHTS}); give a checkpoint or another folder that loads")
    return {name: file for file in files for name in file.names}


def _check_same(path: Path, found: dict[str, _File], newest: Path, expected: dict[str, _File]) -> None:
    for name in sorted(found.keys() ^ expected.keys()):
        has, lacks = (path, newest) if name in found else (newest, path)
        raise UserError(f"{path}: is of another model than {newest.name}: {name} is in {has} and not in {lacks}")
    for name, file in found.items():
        here, there = file.shape(name), expected[name].shape(name)
        if here != there:
            raise UserError(f"{path}: is of another model than {newest.name}: {name} is {here} and {there} there")


def _mean(name: str, weights: Sequence[dict[str, _File]]) -> torch.Tensor:
    last = weights[-1][name].read(name)
    if not last.is_floating_point():
        return last
    total = last.double()
    for found in weights[:-1]:
        total += found[name].read(name)
    return (total / len(weights)).to(last.dtype)


def check_valid(path: Path) -> None:
    """Read a checkpoint through, where it has a manifest to compare with.

    Raises:
        UserError: for a damaged one, with the reason.
    """
    is_checkpoint = (path / MANIFEST_NAME).parent.is_dir()  # other folders that load have no training/
    if is_checkpoint and (reason := find_corruption(path)):
        raise UserError(f"{path} is damaged: {reason}; leave it out with --checkpoints, naming the sound ones")


def manifest_of(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest; {} of a folder that has none that can be read."""
    try:
        return read_manifest(path)
    except CorruptCheckpoint:
        return {}


def publish_average(folder: RunFolder, *, num_epochs: int, end_step: int, say: Callable[[str], None]) -> None:
    """Make final/ the average of a run's last epochs: of as many sound ones as there are. Main only.

    Made again it is the same to the byte: a run that was killed here starts over.

    Args:
        folder: The run's.
        num_epochs: Checkpoints to average, at most.
        end_step: The last one; its checkpoint counts as an epoch's although it may end within one.
        say: Told which are taken, and which are passed over.

    Raises:
        RunFailed: when no checkpoint is sound, or final/ cannot be written.
    """
    chosen: list[Path] = []
    for path in reversed(epoch_ends(folder, end_step=end_step)):
        if len(chosen) == num_epochs:
            break
        if reason := find_corruption(path):
            say(f"{path} is damaged: {reason}; it is left out of the average")
        else:
            chosen.insert(0, path)
    if not chosen:
        raise RunFailed(f"--average_last {num_epochs}: no checkpoint of {folder.path} is sound")
    what = f"{folder.final_dir} is the average of {', '.join(path.name for path in chosen)}"
    say(what + (f": there are no {num_epochs} epochs" if len(chosen) < num_epochs else ""))
    files: dict[str, dict[str, Any]] = {}
    try:
        with new_folder(folder.final_dir) as partial:
            average_into(partial, chosen)
            for_each_file(partial, lambda name, file: files.update({name: hash_file(file)}))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunFailed(f"{folder.final_dir}: cannot be written ({why})") from error
    manifests = [manifest_of(path) for path in chosen]
    identity = "\n".join(manifest.get("sha256", path.name) for manifest, path in zip(manifests, chosen, strict=True))
    folder.update_record(
        final={
            "step": end_step,
            # Another than each of theirs: the Hub knows parts by it.
            "manifest": hashlib.sha256(identity.encode()).hexdigest(),
            "average_of": [manifest["step"] for manifest in manifests],
            "files": files,
        }
    )


@torch.no_grad()
def interpolate_into(
    target: torch.nn.Module, base: torch.nn.Module, fine_tuned: torch.nn.Module, weight: float
) -> None:
    """Set a model's weights to (1 - weight) * base + weight * fine_tuned, one tensor at a time.

    At 0 and 1 they are bitwise those of the one or the other; what is not floating point is the fine-tuned one's at
    every other weight.

    Args:
        target: Changed in place; may be one of the two.
        base: What the fine-tuned model began as.
        fine_tuned: The same names and shapes (check_alike).
        weight: 0 to 1.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT), equation 1.
    """
    ends = base.state_dict(), fine_tuned.state_dict()
    done: set[int] = set()  # tied weights stand there under two names
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
    """Say in which weight two models differ by name or shape; "" where there is a line between them."""
    ends = base.state_dict(), fine_tuned.state_dict()
    if different := sorted(ends[0].keys() ^ ends[1].keys()):
        return f"only one of them has {different[0]}"
    unequal = [name for name, tensor in ends[0].items() if tensor.shape != ends[1][name].shape]
    if not unequal:
        return ""
    name = max(unequal, key=lambda name: ends[0][name].numel())  # of embeddings rather than their bias
    return f"{name} is {list(ends[0][name].shape)} in it and {list(ends[1][name].shape)} in the fine-tuned model"


def publish_final(checkpointer: Checkpointer, *, is_best: bool) -> Path:
    """Make final/ from the best or the latest checkpoint, and return the checkpoint it came from.

    Collective. All that was begun must be finished.

    Raises:
        RunFailed: on every rank, when main could not write.
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
        checkpointer.runtime.say(f"{best}, the best model, is damaged: {reason}; {folder.final_dir} holds the last one")
        return checkpointer.path
    return best


def _copy(source: Path, folder: RunFolder) -> None:
    final = folder.final_dir
    try:
        with new_folder(final) as partial:
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns("training"), dirs_exist_ok=True)
        with contextlib.suppress(CorruptCheckpoint):
            manifest = read_manifest(source)
            folder.update_record(final={"step": manifest["step"], "manifest": manifest.get("sha256", "")})
    except OSError as error:
        raise RunFailed(f"{final}: cannot be written ({reason_in_line(error)})") from error
