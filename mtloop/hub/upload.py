"""Push one part of a run in a child process: `python -m mtloop.hub.upload` reads a job and writes the answer.

The job is a line of JSON on standard input, the answer one on standard output; the token comes from HF_TOKEN. The
process can be killed at any instant. It exits when the process that started it is gone, so that a killed run leaves no
push behind that its successor makes again.

No part is committed twice: it is first looked up in the history, whose newest commit becomes the parent of the new
one, so that the Hub rejects it (412) if the branch has changed since.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
import signal
import sys
import threading
import time
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, GitCommitInfo, HfApi

from mtloop.hub.client import DOUBTFUL, STOP, answer, configure_client, reason_of, verdict_of

DONE, LOST = "done", "lost"
FINAL = "final"  # the part that completes a run; the others are "epoch N"
# Files of an earlier model that from_pretrained would read in addition to, or instead of, those of the push.
REPLACED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "averaged.json",
    "curves.png",
    "pytorch_model*",
    "training/*",
    "adapter/*",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.spm",
    "*.model",
    "config.yaml",
)
KEY_LINES = ("Mtloop-Run: ", "Mtloop-Part: ", "Mtloop-Manifest: ")

Commits = dict[str, tuple[str, ...]]  # of a branch, newest first: id -> key of the part, () for others


class Refused(Exception):
    """Raised if the repository holds a tag of another run."""


class Lost(Exception):
    """Raised for a file that is missing or has changed since it was saved: no later attempt can succeed."""


def read_key(description: str) -> tuple[str, ...]:
    """Read the run's id, the part and the manifest's hash from a commit's description; () from another's."""
    lines = description.splitlines()
    found = [next((line[len(start) :] for line in lines if line.startswith(start)), "") for start in KEY_LINES]
    return tuple(found) if all(found) else ()


def keys_of(commits: list[GitCommitInfo]) -> Commits:
    """Return the key of the part that each commit pushed, () for other commits, by the commit's id."""
    return {commit.commit_id: read_key(f"{commit.title}\n{commit.message}") for commit in commits}


def order_of(part: str) -> float:
    """Return the number of an epoch, infinity for the end of a run, -1 for any other name."""
    number = part.removeprefix("epoch ")
    return math.inf if part == FINAL else int(number) if number.isdecimal() and len(number) < 16 else -1


def is_overtaken(key: tuple[str, ...], commits: Commits) -> bool:
    """Return True if the run's newest commit is of an earlier part than `key`: the branch does not end with it."""
    newest = next((own[1] for own in commits.values() if own[:1] == key[:1]), FINAL)
    return order_of(newest) < order_of(key[1])


def push(job: dict[str, Any]) -> dict[str, Any]:
    """Commit a part unless it is already committed, and tag it.

    A part that an earlier one has followed since, which the branch had lost, is committed again: its files are there.

    Args:
        job: repo_id, revision; key (run id, part, manifest); message, description; files: path in the repository ->
            {"path": local file, "sha256": as it was saved or None} or {"text": content}; tag (None for none);
            tag_prefix of the branch's epochs; known: ids of the run's commits, on the branch or not; overwrite: whether
            to replace tags of other runs.

    Returns:
        commit.

    Raises:
        Refused, Lost, and whatever the client raises.
    """
    api = HfApi()
    repo_id, revision = job["repo_id"], job["revision"]
    commits = api.list_repo_commits(repo_id, revision=revision)
    keys = keys_of(commits)
    wanted = tuple(job["key"])
    commit = next((commit_id for commit_id, key in keys.items() if key == wanted), None)
    if is_overtaken(wanted, keys):
        commit = None
    own = {commit_id for commit_id, key in keys.items() if key[:1] == wanted[:1]} | set(job["known"])
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id).tags}
    if job["tag"] in tags and tags[job["tag"]] not in own and not job["overwrite"]:
        raise Refused(f"the tag {job['tag']} belongs to another run. Give --hub_revision BRANCH, or --hub_overwrite")
    if commit is None:
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *additions(job["files"]),
            *deletions(api.list_repo_files(repo_id, revision=revision), job),
        ]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=job["message"],
            commit_description=job["description"],
            revision=revision,
            parent_commit=commits[0].commit_id,
        ).oid
    for tag, target in tags.items():
        if job["overwrite"] and is_epoch_tag(tag, job["tag_prefix"]) and target not in own:
            api.delete_tag(repo_id, tag=tag)
    if job["tag"] is not None and tags.get(job["tag"]) != commit:
        if tags.get(job["tag"]) in own:  # the epoch was trained again; create_tag does not move a tag
            api.delete_tag(repo_id, tag=job["tag"])
        api.create_tag(repo_id, tag=job["tag"], revision=commit)
    return {"commit": commit}


def is_epoch_tag(tag: str, prefix: str) -> bool:
    return tag.startswith(prefix) and tag[len(prefix) :].isdigit()


def additions(files: dict[str, dict[str, Any]]) -> list[CommitOperationAdd]:
    """List the files of a commit; the client reads and hashes each.

    Raises:
        Lost: for a file that is missing or has changed since it was saved.
    """
    operations = []
    for name, file in files.items():
        try:
            operation = CommitOperationAdd(name, file["text"].encode() if "text" in file else file["path"])
        except (OSError, ValueError) as error:
            raise Lost(f"cannot read {file.get('path', name)} ({error})") from error
        if file.get("sha256") not in (None, operation.upload_info.sha256.hex()):
            raise Lost(f"{file['path']} has changed since it was saved (sha256)")
        operations.append(operation)
    return operations


def deletions(there: list[str], job: dict[str, Any]) -> list[CommitOperationDelete]:
    """List the files of an earlier model in the repository that this part does not replace."""
    return [
        CommitOperationDelete(name, is_folder=False)
        for name in there
        if name not in job["files"] and any(fnmatch.fnmatchcase(name, pattern) for pattern in REPLACED)
    ]


def push_and_report(job: dict[str, Any]) -> dict[str, Any]:
    """Push, and return the answer, with what `push` returns."""
    try:
        return {**answer(DONE, ""), **push(job)}
    except Lost as error:
        return answer(LOST, reason_of(error))
    except Refused as error:
        return answer(STOP, reason_of(error))
    except Exception as error:  # of the HTTP client, OSError, ValueError, RuntimeError
        verdict, wait_s = verdict_of(error)
        kind = f"{type(error).__name__}: " if verdict == DOUBTFUL else ""
        return answer(verdict, kind + reason_of(error), wait_s)


def follow_parent(parent: int) -> None:
    """Exit at once when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def main() -> None:
    """Read the job, push, print the answer, and exit without waiting for threads of the client."""
    # Signals to the run may reach its children too; this one ends with its parent.
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # training has priority
    job = json.loads(sys.stdin.readline())
    if os.name == "posix":
        threading.Thread(target=follow_parent, args=(job["parent"],), daemon=True).start()
    configure_client(job["request_timeout_s"])
    sys.stdout.write(json.dumps(push_and_report(job)) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
