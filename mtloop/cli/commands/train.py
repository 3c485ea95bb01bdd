"""Train, as train.py does; `train --help` lists the flags.

From flags to an exit status. train.py, `mtloop train`, mtloop.train and the XLA launcher all come in here. The
configuration is read before anything heavy is imported, so that --help and mistakes answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtloop.atomic import write_json
from mtloop.cli.next_steps import next_steps, own_command
from mtloop.cli.status import Show, print_line, reported, status_of
from mtloop.config.parse import config_from
from mtloop.config.settings import Config, check_packages, differences, resolve, resolved_lines
from mtloop.errors import RunFailed, UserError, first_line

if TYPE_CHECKING:
    from mtloop.evaluation.selection import Functions
    from mtloop.run_folder import RunFolder
    from mtloop.runtime.ranks import Runtime
    from mtloop.trainer.run import Run

# An environment variable with the path of a link to the run folder, which the first process makes.
RUN_LINK = "MTLOOP_RUN_LINK"
BEFORE_TRAINING = " before the training began"
DEMO_LINE = (
    "This is the built-in demo. Your own: --train_file pairs.jsonl --source_lang en --target_lang fr "
    "--model_name_or_path Helsinki-NLP/opus-mt-en-fr"
)


def main(config: Config | Mapping[str, Any] | Sequence[str] | None = None, metrics: Functions = ()) -> int:
    """Train with this configuration.

    Collective: every process of a launch calls it.

    Args:
        config: A Config, a mapping of flag names to values, or a list of flags. None reads the command line when the
            program is train.py (the XLA launcher calls main() without arguments), and means the demo anywhere else.
        metrics: Functions that take the lists sources, hypotheses and references, and return a number or a dict of
            numbers. A function's name names its score; lower scores are better if its attribute greater_is_better is
            False.

    Returns:
        The exit status: 0 done, already finished, or saved on USR1; 1 the run failed; 2 the user's mistake; 3 trained,
        but not all pushed; 129, 130 or 143 saved on HUP, INT or TERM.

    Raises:
        SystemExit: with the status where it is not 0, under the XLA launcher.
    """
    status = reported(lambda: start(config_from(_own_arguments() if config is None else config), metrics))
    if status and config is None and is_train_py() and "FORK_LAUNCHED" in os.environ:
        raise SystemExit(status)  # the XLA launcher drops what it is given back: a failed run would end with 0
    return status


def start(asked: Config, functions: Functions, show: Show = print_line) -> int:
    """Train with a checked configuration; return the exit status, as main does.

    Collective: every process of a launch calls it.

    Args:
        asked: The configuration.
        functions: As main's metrics.
        show: Called with the line and the status of what ends the run early.
    """
    return reported(lambda: _train(asked, functions, show), interrupted=BEFORE_TRAINING, show=show)


def is_train_py() -> bool:
    """Return True in the program train.py, whose command line is the configuration."""
    return os.path.basename(sys.argv[0]) == "train.py"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the flags of train.py."""
    return argparse.Namespace(config=config_from(words))


def run(given: argparse.Namespace) -> int:
    """Run the command. Collective: every process of a launch calls it."""
    return main(given.config, given.functions)


def _own_arguments() -> list[str]:
    return sys.argv[1:] if is_train_py() else []


def _train(asked: Config, functions: Functions, show: Show) -> int:
    from mtloop.evaluation.selection import check_selection
    from mtloop.runtime.launch import asked_precision
    from mtloop.runtime.quiet import silence_libraries
    from mtloop.runtime.ranks import Runtime

    if asked.scored:
        from mtloop.cli.commands.evaluate import score_splits

        score_splits(asked, functions)
        return 0
    evaluation = asked.evaluation
    check_selection(evaluation.metric_for_best_model, evaluation.metrics, functions)
    check_packages(asked)
    silence_libraries()
    config = resolve(asked)
    output = config.output
    runtime = Runtime(
        replace(config.hardware, mixed_precision=asked_precision(config.hardware.mixed_precision)),
        project_dir=output.output_dir,
        report_to=output.tracker,
    )

    def train() -> int:
        runtime.say(runtime.describe())
        if config.data.dataset_name == "demo":
            runtime.say(DEMO_LINE)
        runtime.say(*resolved_lines(asked, config))
        return _train_in_folder(config, runtime, functions)

    try:
        # Reported before the process group ends: the launcher kills the other processes of a failed run.
        return reported(train, interrupted=BEFORE_TRAINING, show=show)
    finally:
        runtime.close()


def _train_in_folder(config: Config, runtime: Runtime, functions: Functions) -> int:
    from mtloop.checkpoint.listing import HUB
    from mtloop.trainer.resume import claim_folder
    from mtloop.trainer.setup import resolve_budget

    runtime.signals.listen(raises=True)
    folder, stored = claim_folder(config, runtime)
    try:
        asked = config.output.resume_from_checkpoint or ""
        if asked.startswith(HUB):
            from mtloop.hub.download import fetch

            runtime.on_main(lambda: fetch(folder, asked, runtime.say))
        is_same = stored is None or not differences(stored, config)
        # Before status.json is touched: a checkpoint that is not there must leave a finished run finished.
        goes_back = runtime.on_main(lambda: _goes_back(config, folder))
        if runtime.on_main(lambda: _has_final(folder, runtime)) and not goes_back and is_same:
            runtime.say(f"{folder.path}: this run is finished, the model is in {folder.final_dir}; nothing to do")
            runtime.say(*next_steps(folder))
            return _push_rest(config, folder, runtime)
        config = resolve_budget(config, stored, num_ranks=runtime.num_ranks)
        return _note_end(
            lambda runs: _build_and_train(config, stored, folder, runtime, functions, runs), folder, runtime
        )
    finally:
        folder.unlock()


def _has_final(folder: RunFolder, runtime: Runtime) -> bool:
    """Return True if the run is finished and final/ is as it was written."""
    from mtloop.checkpoint.listing import final_corruption

    if not folder.is_finished:
        return False
    if reason := final_corruption(folder):
        runtime.say(f"{folder.final_dir} is corrupt ({reason}); making it again from its checkpoint")
    return not reason


def _push_rest(config: Config, folder: RunFolder, runtime: Runtime) -> int:
    """Push what the Hub lacks of a finished run, where --push_to_hub is given, and return the exit status."""
    from mtloop.hub.parts import STATUS_NOT_PUSHED, note_pushed
    from mtloop.trainer.pushing import drain, open_publisher, resolve_branch

    with_epochs = config.hub.hub_strategy != "end"
    target, commits = resolve_branch(config, folder, runtime)
    publisher = open_publisher(config, folder, runtime, target, commits)
    if publisher is not None:
        publisher.push_missing(with_epochs=with_epochs)
    unpushed = drain(publisher, runtime, timeout_s=config.hub.push_timeout, stop_signal=None)
    if publisher is not None:
        note_pushed(folder, publisher.target, with_epochs=with_epochs, gone=publisher.gone)
    return STATUS_NOT_PUSHED if unpushed else 0


def _note_end(work: Callable[[list[Run]], int], folder: RunFolder, runtime: Runtime) -> int:
    """Do work; write whatever ends it early into status.json, with the step that was reached.

    A finished run stays finished until a checkpoint is restored.

    Args:
        work: Appends the run to the list when it is built.
        folder: The run folder.
        runtime: The ranks.

    Raises:
        ProcessFailed: for a failure of one process alone.
    """
    from mtloop.checkpoint.listing import list_checkpoints
    from mtloop.runtime.failures import explain

    runs: list[Run] = []
    before = folder.status
    if runtime.is_main and folder.is_dead:
        runtime.say(f"{folder.path}: {folder.status_text}")

    def note(status: str, exit_status: int, message: str, *, is_alone: bool = False) -> None:
        if before.get("status") == "finished" and not (runs and runs[0].is_restored):
            if runtime.is_main:
                with contextlib.suppress(RunFailed):
                    write_json(folder.status_path, before)
            return
        steps = [step for step, _ in list_checkpoints(folder)] or [0]
        step = runs[0].state.step if runs else steps[-1]
        _note(folder, runtime, status, exit_status=exit_status, message=message, step=step, is_alone=is_alone)

    _note(folder, runtime, "running")
    if runtime.is_main:
        _link_run(folder)
    try:
        return work(runs)
    except (UserError, RunFailed) as error:
        note("failed", 2 if isinstance(error, UserError) else 1, str(error))
        raise
    except KeyboardInterrupt as error:
        number = int(getattr(error, "number", signal.SIGINT))
        message = f"stopped by {signal.Signals(number).name} before the training began; the same command starts it"
        note("stopped", status_of(number), message)
        raise
    except Exception as error:
        failure = explain(error)
        if failure is None:
            note("failed", 1, f"{type(error).__name__}: {error}", is_alone=True)
            raise
        if not (failure.is_lost_peer and folder.is_failed):  # the lost process has written the reason
            note("failed", 1, str(failure), is_alone=True)
        raise failure from error


def _link_run(folder: RunFolder) -> None:
    """Link the run folder where a batch script looks for status.json: flags, recipes and defaults may name it."""
    place = os.environ.get(RUN_LINK, "")
    try:
        if place:
            os.symlink(folder.path.resolve(), place)
    except OSError as error:
        print(f"mtloop: warning: {RUN_LINK} {place}: cannot be written ({first_line(error)})", file=sys.stderr)


def _goes_back(config: Config, folder: RunFolder) -> bool:
    """Return True if --resume_from_checkpoint names another checkpoint than the newest. Raises UserError."""
    from mtloop.checkpoint.listing import find_checkpoint

    asked = find_checkpoint(folder, config.output.resume_from_checkpoint)
    newest = find_checkpoint(folder, None)
    return asked is not None and (newest is None or asked.resolve() != newest.resolve())


def _build_and_train(
    config: Config,
    stored: Config | None,
    folder: RunFolder,
    runtime: Runtime,
    functions: Functions,
    runs: list[Run],
) -> int:
    from mtloop.hub.parts import STATUS_NOT_PUSHED
    from mtloop.trainer.loop import train
    from mtloop.trainer.pushing import drain, drain_alone, open_publisher, resolve_target
    from mtloop.trainer.setup import build_run, check_bleu_tokenizer

    target = resolve_target(config, folder, runtime, is_resumed=stored is not None)
    if config.evaluation.bleu_tokenizer is not None:
        check_bleu_tokenizer(config.evaluation.bleu_tokenizer, runtime)
    run = build_run(config, stored, folder, runtime, functions)
    runs.append(run)
    run.publisher = open_publisher(config, folder, runtime, target)
    if run.publisher is not None:
        run.checkpointer.is_awaited = run.publisher.is_awaited
    runtime.signals.listen(raises=False)
    try:
        stop_signal = train(run)
    except Exception as error:
        drain_alone(run, error)
        raise
    unpushed = drain(run.publisher, runtime, timeout_s=config.hub.push_timeout, stop_signal=stop_signal)
    if target is not None:
        runtime.on_main(run.checkpointer.prune)  # what was kept for the Hub
    status = status_of(stop_signal)
    if stop_signal is None:
        status = STATUS_NOT_PUSHED if unpushed else 0
        message = f"trained {run.state.step:,} updates; the model is in {folder.final_dir}{run.ending}"
        message += f"; not all was pushed: {'; '.join(unpushed)}" if unpushed else ""
        _note(folder, runtime, "finished", exit_status=status, message=message, step=run.state.step)
    else:
        name = signal.Signals(stop_signal).name
        message = f"stopped by {name} and saved at step {run.state.step:,} in {folder.path}"
        _note(folder, runtime, "stopped", exit_status=status, message=message, step=run.state.step)
    runtime.say(message, *next_steps(folder))
    return status


def _note(folder: RunFolder, runtime: Runtime, status: str, *, is_alone: bool = False, **entries: Any) -> None:
    """Write status.json: from main, or from a process that failed alone.

    A folder that can no longer be written must not hide the error that is reported.
    """
    if not runtime.is_main and not is_alone:
        return
    try:
        if is_alone and runtime.num_ranks > 1:
            entries["message"] = f"process {runtime.rank}: {entries['message']}"
        folder.write_status(status, command=own_command(), **entries)
    except RunFailed as error:
        if status == "running":
            raise
        print(f"mtloop: {error}", file=sys.stderr, flush=True)
