"""`--resume_from_checkpoint hub:org/name[@revision]`: a checkpoint that another machine pushed, put in a run folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from huggingface_hub import HfApi, snapshot_download

from mtloop.atomic import partial_name, publish, sync_tree
from mtloop.checkpoint.listing import HUB, list_checkpoints
from mtloop.checkpoint.manifest import MANIFEST_NAME, CorruptCheckpoint, check_files
from mtloop.errors import UserError
from mtloop.hub.client import reason_of, settle_client
from mtloop.hub.parts import MAIN_BRANCH, Target
from mtloop.run_folder import RunFolder

FLAG = "--resume_from_checkpoint"


def fetch(folder: RunFolder, asked: str, say: Callable[[str], None]) -> None:
    """Put the checkpoint that `hub:org/name[@revision]` names into a run folder that has none.

    Without a revision it is that of the branch main, or the newest tagged epoch where main holds a finished model. The
    run takes its id and its metrics over: it is the same run. A folder with checkpoints of its own goes on from those.

    Raises:
        UserError: for a repository or revision that is not there, or without what a resume needs.
    """
    if list_checkpoints(folder):
        say(f"{folder.path} has checkpoints of its own: {asked} is not fetched again")
        return
    name, _, revision = asked.removeprefix(HUB).partition("@")
    settle_client()
    say(f"looking for {asked} ...")
    partial = partial_name(folder.checkpoints_dir / "hub")  # swept by the next start when anything goes wrong
    try:
        revision = revision or _newest_resumable(name)
        if not _is_resumable(name, revision):
            raise UserError(
                f"{FLAG} {asked}: {name}@{revision} was pushed without what a resume needs (--hub_strategy "
                f"checkpoint); begin anew with its weights: --model_name_or_path {name}@{revision}"
            )
        say(f"fetching {name}@{revision} ...")
        snapshot_download(name, revision=revision, local_dir=partial, ignore_patterns=[".gitattributes", "README.md"])
        record = check_files(partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's own notes
        sync_tree(partial)
    except UserError:
        raise
    except CorruptCheckpoint as error:
        raise UserError(
            f"{FLAG} {asked}: {name}@{revision} is not as it was saved: {error}; name another tag"
        ) from error
    except Exception as error:  # those of the HTTP client have other classes in hub 1 than in hub 2
        raise UserError(
            f"{FLAG} {asked}: cannot be fetched ({type(error).__name__}: {reason_of(error)}); check the name, the "
            "network, and for a private one HF_TOKEN"
        ) from error
    folder.update_record(run_id=record["run_id"])  # first: it is what makes the folder this run's
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
