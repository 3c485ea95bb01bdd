"""From a run folder to where its run stood."""

from __future__ import annotations

from typing import Any

from mtloop.batching import PLAN_VERSION
from mtloop.checkpoint.listing import HUB, choose_checkpoint
from mtloop.errors import UserError
from mtloop.trainer.report import epoch_of
from mtloop.trainer.run import Run


def restore(run: Run) -> None:
    """Go on from the checkpoint that is asked for, else from the newest sound one, else from nothing. Collective."""
    asked = run.config.output.resume_from_checkpoint
    path = run.runtime.on_main(lambda: choose_checkpoint(run.folder, asked, run.runtime.say))
    if path is not None:
        check_origin(run, run.checkpointer.restore(path))
        run.runtime.say(f"resumed from {path}: step {run.state.step:,} of {run.total_steps:,}, epoch {epoch_of(run)}")

    def settle_folder() -> None:
        run.checkpointer.drop_later()
        run.folder.drop_after(run.state.step if path is not None else -1)
        if run.different:
            run.folder.record_changes(run.different, step=run.state.step)
            run.folder.write_data(run.data_report)
            run.folder.write_config(run.config)

    run.runtime.on_main(settle_folder)
    if run.different:
        run.runtime.say(f"goes on changed from step {run.state.step:,}: {'; '.join(run.different)}")


def check_origin(run: Run, record: dict[str, Any]) -> None:
    """Compare a checkpoint that was just read with the run that takes it over: its data and its plan.

    Raises:
        UserError: for one of another run on other data, without --allow_changed.
    """
    mine, theirs = run.checkpointer.identity, record.get("fingerprints", {})
    asked = run.config.output.resume_from_checkpoint or ""
    if record.get("plan_version") != PLAN_VERSION:
        raise UserError(
            f"--output_dir {run.folder.path}: the run was begun by an mtloop that drew other updates; give a new "
            "--output_dir, and the checkpoint as --model_name_or_path to start from its weights"
        )
    base, base_then = (prints.get("base_model") for prints in (mine["fingerprints"], theirs))
    if base is not None and base != base_then and run.config.output.allow_changed:
        run.different.append(
            f"the weights of --model_name_or_path (fingerprint {str(base_then)[:12]}, now {base[:12]})"
        )
    elif base is not None and base != base_then:
        raise UserError(
            f"--model_name_or_path {run.config.model.model_name_or_path}: these are not the weights that the adapter "
            f"was trained beside (fingerprint {str(base_then)[:12]}, now {base[:12]}); give those back (name@revision "
            "names them for good), or --allow_changed"
        )
    is_foreign = record.get("run_id", mine["run_id"]) != mine["run_id"]
    if is_foreign or asked.startswith(HUB):  # this machine's data may not be that of the one that pushed
        changed = [name for name in ("data", "tokenizer") if theirs[name] != mine["fingerprints"][name]]
        if changed and not run.config.output.allow_changed:
            raise UserError(
                f"--resume_from_checkpoint {asked}: it was trained on other {' and '.join(changed)}; give the same, or "
                "--allow_changed"
            )
    if is_foreign:
        run.runtime.say("the checkpoint is of another run")
    if theirs.get("plan", mine["fingerprints"]["plan"]) != mine["fingerprints"]["plan"] and run.state.cursor:
        run.runtime.say(f"the updates of an epoch have changed: epoch {run.state.epoch + 1} begins again")
        run.state.cursor = 0
