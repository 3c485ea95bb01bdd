"""Push a run to the Hub: its epochs and its end. Only main has a publisher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from mtloop.config.settings import Config
from mtloop.hub.parts import Part, Target, epoch_part, final_part
from mtloop.hub.preflight import HubUnreachable, ask_hub
from mtloop.hub.publisher import Drain, Publisher
from mtloop.hub.upload import Commits
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.trainer.run import Run


def resolve_target(config: Config, folder: RunFolder, runtime: Runtime, *, is_resumed: bool) -> Target | None:
    """Return the repository of a run, None without --push_to_hub. Checks the Hub the first time. Collective.

    Raises:
        UserError: on every rank, as check_hub. A resumed run continues if the Hub is only unreachable.
    """
    if not config.hub.push_to_hub:
        return None

    def resolve() -> Target:
        if (stored := _stored_target(config, folder)) is not None:
            return stored
        try:
            return _ask(config, folder)[0]
        except HubUnreachable as error:
            named = _named_target(config)
            if not is_resumed or named is None:
                raise
            runtime.say(f"{error} Training continues; pushes are queued until the Hub can be reached.")
            return named

    target = runtime.on_main(resolve)
    what = "the end of the run" if config.hub.hub_strategy == "end" else "each epoch"
    runtime.say(f"pushing {what} to {target.repo_id}, branch {target.revision}")
    return target


def resolve_branch(
    config: Config, folder: RunFolder, runtime: Runtime
) -> tuple[Target, Commits | None] | tuple[None, None]:
    """Return the repository of a finished run and the commits of its branch. Asks the Hub. Collective.

    The commits are None if the Hub is unreachable, both without --push_to_hub.

    Raises:
        UserError: on every rank, as ask_hub.
    """
    if not config.hub.push_to_hub:
        return None, None

    def resolve() -> tuple[Target, Commits | None]:
        asked, stored = config, _stored_target(config, folder)
        if stored is not None:
            hub = replace(config.hub, hub_model_id=stored.repo_id, hub_license=stored.license)
            asked = replace(config, hub=hub)
        try:
            return _ask(asked, folder)
        except HubUnreachable as error:
            known = stored or _named_target(config)
            if known is None:
                raise
            runtime.say(f"{error} {folder.push_path} alone says what was pushed.")
            return known, None

    return runtime.on_main(resolve)


def _stored_target(config: Config, folder: RunFolder) -> Target | None:
    """Return the repository that the run has pushed to, with the license asked for; None if another is asked for."""
    hub, stored = config.hub, folder.run_record.get("hub")
    if stored is None:
        return None
    target = Target(**{**stored, "license": hub.hub_license or stored.get("license")})
    asked = hub.hub_model_id or target.repo_id
    is_same = hub.hub_revision == target.revision and asked in (target.repo_id, target.repo_id.split("/")[-1])
    return target if is_same else None


def _named_target(config: Config) -> Target | None:
    """Return the repository that the flags name; None if they leave its owner to the Hub."""
    hub = config.hub
    if hub.hub_model_id is None or "/" not in hub.hub_model_id:
        return None
    return Target(repo_id=hub.hub_model_id, revision=hub.hub_revision, license=hub.hub_license)


def _ask(config: Config, folder: RunFolder) -> tuple[Target, Commits]:
    return ask_hub(config, output_dir=str(folder.path), run_id=folder.run_record["run_id"])


def open_publisher(
    config: Config, folder: RunFolder, runtime: Runtime, target: Target | None, commits: Commits | None = None
) -> Publisher | None:
    """Create the publisher on main and store its target in run.json; None elsewhere and without a target."""
    if target is None or not runtime.is_main:
        return None
    if folder.run_record.get("hub") != asdict(target):
        folder.update_record(hub=asdict(target))
    return Publisher(
        folder=folder,
        target=target,
        say=runtime.say,
        push_timeout_s=config.hub.push_timeout,
        with_training=config.hub.hub_strategy == "checkpoint",
        overwrite=config.hub.hub_overwrite,
        commits=commits,
    )


def queue_earlier(run: Run) -> None:
    """Queue the epochs up to the resumed one that the journal lacks."""
    if run.publisher is not None:
        # One whose evaluation was cut short is saved again after it is made.
        before_step = run.state.step + (0 if run.is_evaluation_pending else 1)
        run.publisher.push_missing(with_epochs=_with_epochs(run), before_step=before_step)


def push_of_epoch(run: Run) -> Callable[[], None]:
    """Return a function that queues the checkpoint of this step if it ends an epoch and its evaluation is done.

    To be called once the checkpoint is written; the loop may be further on by then.
    """
    path = run.checkpointer.path
    is_due = run.state.is_epoch_end and _with_epochs(run) and not run.is_evaluation_pending

    def push() -> None:
        if run.publisher is not None and is_due:
            _push(run, epoch_part(run.folder, path))

    return push


def push_final(run: Run) -> None:
    """Queue the end of the run."""
    if run.publisher is not None:
        _push(run, final_part(run.folder))


def _with_epochs(run: Run) -> bool:
    return run.config.hub.hub_strategy != "end"


def _push(run: Run, part: Part | None) -> None:
    assert run.publisher is not None
    if part is None:
        run.runtime.say("the checkpoint just saved cannot be read back; it is not pushed")
        return
    run.publisher.push(part)


def drain(publisher: Publisher | None, runtime: Runtime, *, timeout_s: float, stop_signal: int | None) -> list[str]:
    """Wait for the pushes: at most `timeout_s` seconds, shorter after a signal. Collective.

    Returns:
        A line for each part that is not on the Hub, the same on every rank.
    """
    waiting = Drain(publisher, timeout_s, runtime.say) if publisher is not None else None
    is_told = False
    # In slices: a single collective could exceed --process_timeout.
    while runtime.on_main(lambda: waiting is not None and waiting.wait()):
        if not is_told and (stop_signal or runtime.agree_on_signal()):
            is_told = True
            if waiting is not None:
                waiting.shorten()
    return runtime.on_main(lambda: waiting.finish() if waiting is not None else [])


def drain_alone(run: Run, error: Exception) -> None:
    """Wait for the pushes of a run that failed; the other ranks may be gone. Not collective."""
    publisher, runtime = run.publisher, run.runtime
    if publisher is None:
        return
    waiting = Drain(publisher, run.config.hub.push_timeout, runtime.say)
    if publisher.wait(0.0):
        runtime.say(f"the run has failed ({type(error).__name__}: {error}); waiting for its pushes")
    while waiting.wait():
        if runtime.signals.check() is not None:
            waiting.shorten()
    waiting.finish()
