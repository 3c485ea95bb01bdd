"""Fetch a pushed checkpoint into a run folder, for `--resume_from_checkpoint hub:org/name[@revision]`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from huggingface_hub import HfApi, snapshot_download

from mtloop.atomic import partial_name, publish, sync_tree
from mtloop.checkpoint.listing import HUB, list_checkpoints
from mtloop.checkpoint.manifest import MANIFEST_NAME, CorruptCheckpoint, check_files
from mtloop.errors import UserError
from mtloop.hub.client import configure_client, reason_of
from mtloop.hub.parts import MAIN_BRANCH, Target
from mtloop.run_folder import RunFolder

FLAG = "--resume_from_checkpoint"


def fetch(folder: RunFolder, asked: str, say: Callable[[str], None]) -> None:
    """Download the checkpoint `hub:org/name[@revision]` into a run folder without checkpoints.

    The default revision is the branch main, or the newest tagged epoch if main holds a finished model. The folder takes
    over the run's id and metrics: it continues the same run. A folder that has checkpoints is left unchanged.

    Raises:
        UserError: for a missing repository or revision, or one pushed without the state of training.
    """
    if list_checkpoints(folder):
        say(f"{folder.path} already has checkpoints: {asked} is not fetched again")
        return
    name, _, revision = asked.removeprefix(HUB).partition("@")
    configure_client()
    say(f"looking for {asked} ...")
    partial = partial_name(folder.checkpoints_dir / "hub")  # after an error, the next start removes it
    try:
        revision = revision or _newest_resumable(name)
        if not _is_resumable(name, revision):
            raise UserError(
                f"{FLAG}: {name}@{revision} was pushed without the state of training, see --hub_strategy checkpoint "
                f"(got {asked}). Start a new run from its weights with --model_name_or_path {name}@{revision}."
            )
        say(f"fetching {name}@{revision} ...")
        snapshot_download(name, revision=revision, local_dir=partial, ignore_patterns=[".gitattributes", "README.md"])
        record = check_files(partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # metadata of the client
        sync_tree(partial)
    except UserError:
        raise
    except CorruptCheckpoint as error:
        raise UserError(f"{FLAG}: {name}@{revision} is corrupt, {error} (got {asked}). Give another tag.") from error
    except Exception as error:  # the HTTP library's classes differ between huggingface_hub 1 and 2
        raise UserError(
            f"{FLAG}: cannot fetch {asked} ({type(error).__name__}: {reason_of(error)}). Check the name and the "
            "network; a private repository requires HF_TOKEN."
        ) from error
    folder.update_record(run_id=record["run_id"])  # first: the id makes the folder this run's
    if (partial / "metrics.jsonl").exists():
        os.replace(partial / "metrics.jsonl", folder.metrics.path)
    publish(partial, folder.checkpoints_dir / f"step_{record['step']}")


def _newest_resumable(name: str) -> str:
    if _is_resumable(name, MAIN_BRANCH):
        return MAIN_BRANCH
    target = Target(repo_id=name)
    tags = [tag.name for tag in HfApi().list_repo_refs(name).tags if target.owns_tag(tag.name)]
    newest_first = sorted(tags, key=lambda tag: int(tag.removeprefix(target.tag_prefix)), reverse=True)
    return next((tag for tag in newest_first if _is_resumable(name, tag)), MAIN_BRANCH)


def _is_resumable(name: str, revision: str) -> bool:
    return MANIFEST_NAME in HfApi().list_repo_files(name, revision=revision)
