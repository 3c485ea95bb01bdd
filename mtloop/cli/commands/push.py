"""Push to the Hub what of a run is not there yet.

The Hub is asked what the branch holds: what it has lost since it was pushed is pushed again.
The flags are those of train.py; left out, they are as the run was started with.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mtloop.cli.flags import number_type
from mtloop.config.environment import HubConfig
from mtloop.config.settings import FIELDS, Config
from mtloop.errors import UserError
from mtloop.hub.card import write_card
from mtloop.hub.parts import STATUS_NOT_PUSHED, Part, Target, epoch_parts, final_part, note_pushed
from mtloop.hub.preflight import ask_hub
from mtloop.hub.publisher import Drain, Publisher
from mtloop.run_folder import RunFolder


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command: those of train.py, which default to what the run was started with."""
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument(
        "--epoch", type=number_type("epoch"), metavar="N", help="push this epoch alone; the branch then ends with it"
    )
    parser.add_argument("--show_card", action="store_true", help="print the model card and push nothing")
    parser.add_argument("--hub_model_id", metavar="NAME")
    parser.add_argument("--hub_revision", metavar="BRANCH")
    parser.add_argument("--hub_license", metavar="LICENSE")
    parser.add_argument("--hub_strategy", choices=FIELDS["hub_strategy"].metadata["choices"])
    parser.add_argument("--hub_private_repo", action="store_true", default=None)
    parser.add_argument("--hub_overwrite", action="store_true", default=None)
    parser.add_argument(
        "--push_timeout", type=number_type("push_timeout"), metavar="SECONDS", help="that one push may take"
    )


def run(given: argparse.Namespace) -> int:
    """Run the command; return 3 if something did not reach the Hub, 130 for Ctrl-C."""
    names = {field.name for field in fields(HubConfig)}
    flags = {name: value for name, value in vars(given).items() if name in names}
    return _push(RunFolder(given.run), epoch=given.epoch, shows_card=given.show_card, given=flags)


def _push(folder: RunFolder, *, epoch: int | None, shows_card: bool, given: dict[str, Any]) -> int:
    stored = folder.stored_config()
    if stored is None:
        raise UserError(
            f"RUN: not a run folder, it has no config.yaml (got {folder.path}). Give the --output_dir of a run."
        )
    record = folder.run_record.get("hub", {})
    known = {"hub_model_id": record["repo_id"], "hub_revision": record["revision"]} if record else {}
    known |= {name: value for name, value in given.items() if value is not None}
    hub: HubConfig = replace(stored.hub, push_to_hub=True, **known)
    asked = _epoch_asked(folder, epoch)
    if shows_card:
        name = hub.hub_model_id or folder.path.resolve().name
        target = Target(repo_id=name, revision=hub.hub_revision, license=hub.hub_license or record.get("license"))
        part = asked or final_part(folder) or _newest_epoch(folder)
        print(write_card(folder, part, target), end="")
        return 0
    folder.lock(print, wait_s=0)
    try:
        return _push_parts(folder, replace(stored, hub=hub), asked)
    finally:
        folder.unlock()


def _push_parts(folder: RunFolder, config: Config, asked: Part | None) -> int:
    hub, run_id = config.hub, folder.run_record["run_id"]
    target, commits = ask_hub(config, output_dir=str(folder.path), run_id=run_id, place="push")
    folder.update_record(hub=asdict(target))
    with_epochs = hub.hub_strategy != "end"
    publisher = Publisher(
        folder=folder,
        target=target,
        say=print,
        push_timeout_s=hub.push_timeout,
        with_training=hub.hub_strategy == "checkpoint",
        overwrite=hub.hub_overwrite,
        commits=commits,
    )
    if asked is not None:
        publisher.push(asked)
    else:
        publisher.push_missing(with_epochs=with_epochs)
    if not publisher.outcomes:
        print(f"nothing to push: {target.repo_id} has all that is here")
    waiting = Drain(publisher, hub.push_timeout * max(1, len(publisher.outcomes)), print)
    try:
        while waiting.wait():
            pass
    except KeyboardInterrupt:
        waiting.finish()
        return 130
    unpushed = waiting.finish()
    note_pushed(folder, target, with_epochs=with_epochs, gone=publisher.gone)
    return STATUS_NOT_PUSHED if unpushed else 0


def _epoch_asked(folder: RunFolder, epoch: int | None) -> Part | None:
    if epoch is None:
        return None
    parts = {part.epoch: part for part in epoch_parts(folder)}
    if epoch not in parts:
        there = ", ".join(str(number) for number in parts) or "none"
        raise UserError(f"--epoch: no checkpoint of {folder.path} ends it (got {epoch}). Give one of: {there}.")
    return parts[epoch]


def _newest_epoch(folder: RunFolder) -> Part:
    parts = epoch_parts(folder)
    if not parts:
        raise UserError(f"RUN: no epoch is complete yet (got {folder.path}). Train at least one epoch.")
    return parts[-1]
