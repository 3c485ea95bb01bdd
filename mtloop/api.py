"""Train from Python and in a notebook: settings in, a Result out, and an exception for a run that ended early."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.cli.commands.train import start
from mtloop.cli.status import Show, print_line, report
from mtloop.config.parse import config_from
from mtloop.config.settings import DATA_FIELDS, Config, changed, resolve
from mtloop.errors import RunFailed, UserError, first_line, missing_package
from mtloop.metrics_log import evaluations_of
from mtloop.run_folder import RunFolder

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from matplotlib.figure import Figure

    from mtloop.translate.translator import Translator


@dataclass(frozen=True)
class Result:
    """A run, as its folder describes it at the moment.

    Attributes:
        path: The run folder.
    """

    path: Path

    def __post_init__(self) -> None:
        """Check the folder.

        Raises:
            UserError: if it holds no run.
        """
        object.__setattr__(self, "path", Path(self.path))
        if not self._folder.status:
            raise UserError(f"{self.path}: holds no run. Give the --output_dir of one.")

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def status(self) -> str:
        """Return running, finished, stopped or failed."""
        return str(self._folder.status["status"])

    @property
    def exit_status(self) -> int | None:
        """Return the exit status of train.py; None while the run is going on."""
        return self._folder.status["exit_status"]

    @property
    def message(self) -> str:
        """Return how the run ended, in one line."""
        return str(self._folder.status["message"])

    @property
    def model(self) -> Path:
        """Return the folder of the trained model."""
        return self._folder.final_dir

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Return the evaluations on the validation rows: step, epoch, eval_loss, bleu, bleu_ci, chrf, ..."""
        return evaluations_of(self._folder.metrics.lines())

    @property
    def metrics(self) -> dict[str, Any]:
        """Return the newest evaluation on the validation rows; {} before the first."""
        return (self.evaluations or [{}])[-1]

    def curves(self) -> Figure:
        """Draw the losses and scores as a figure, which a notebook shows.

        Raises:
            UserError: without matplotlib.
        """
        from mtloop.trainer.curves import figure_of
        from mtloop.trainer.notebook import show_figures

        try:
            figure = figure_of(self._folder.metrics.lines())
        except ImportError as error:
            raise missing_package("curves", "matplotlib", "plots", error=error) from error
        show_figures()
        return figure

    def translator(self, **options: Any) -> Translator:
        """Load the trained model; the options are those of Translator."""
        from mtloop.translate.translator import Translator

        return Translator(str(self.path), **options)

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}): {self.status}; {self.message}"


def train(
    config: Config | Mapping[str, Any] | Sequence[str] | str | None = None,
    /,
    *,
    dataset: Dataset | DatasetDict | None = None,
    metrics: Any = (),
    num_processes: int = 1,
    **settings: Any,
) -> Result:
    """Train, or continue a run, with settings of the names that train.py has as flags.

    Collective: in a notebook_launcher of the user's every process calls it.

    Args:
        config: A recipe or a YAML file by name, a mapping of settings, a Config, or a list of flags. Without it and
            without settings it is the demo. The arguments of the program or notebook are never read.
        dataset: Rows of the shapes that files may have, in place of --train_file; a DatasetDict also holds those of
            validation and test. They are stored in the cache of the datasets library, and config.yaml names the files.
        metrics: Names of scores, as --metrics takes them, and functions of the user's, as in mtloop.main.
        num_processes: Processes to fork for the run; 1 for this one.
        settings: Take precedence over those of config.

    Returns:
        The run that is done, also if not all could be pushed, or if it was saved on USR1.

    Raises:
        UserError: for a mistake in what was given, in one line.
        RunFailed: if the run failed, in one line.
        KeyboardInterrupt: if it was interrupted; it is saved, and the same call continues it.
    """
    # Of tqdm when it is imported without ipywidgets, which are not needed here.
    warnings.filterwarnings("ignore", message="IProgress not found")
    given = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    functions = [one for one in given if callable(one)]
    if names := [one for one in given if not callable(one)]:
        settings["metrics"] = names
    from mtloop.runtime.forks import is_launched_fork, set_aside

    try:
        asked = _config(config, settings, dataset)
        if asked.scored:
            raise UserError(
                '--do_train: mtloop.train only trains (got false). Score with mtloop.main(["evaluate", ...]).'
            )
    except UserError as error:
        if is_launched_fork():
            raise SystemExit(report(str(error), 2)) from None
        raise
    if num_processes > 1:
        status = _on_processes(asked, functions, num_processes)
    else:
        with set_aside():
            status = raised(partial(start, asked, functions))
    from mtloop.hub.parts import STATUS_NOT_PUSHED

    result = Result(Path(str(resolve(asked).output.output_dir)))
    if status > STATUS_NOT_PUSHED:
        raise _error(result.message, status)
    return result


def raised(work: Callable[[Show], int]) -> int:
    """Do work and return its status; raise what ends it early, with its line.

    In a process that a launcher has forked the line is printed: the launcher drops what such a process raises or
    returns, and looks at its exit status.

    Args:
        work: Is given what to call with the line and the status, and returns the status.
    """
    from mtloop.runtime.forks import is_launched_fork

    if is_launched_fork():
        status = work(print_line)
        if status:
            raise SystemExit(status)
        return status
    endings: list[tuple[str, int]] = []
    status = work(lambda line, status: endings.append((line, status)))
    if endings:
        raise _error(*endings[0])
    return status


def _config(config: Any, settings: dict[str, Any], dataset: Any) -> Config:
    if isinstance(config, str):
        config = {"config": config}
    if config is None or isinstance(config, Mapping):
        settings = {**(config or {}), **settings}
        dataset = settings.pop("dataset", dataset)
        return config_from({**settings, **_files_of(dataset, settings)})
    settings = {**settings, **_files_of(dataset, settings)}
    if isinstance(config, Config):
        return changed(config_from(config), **settings)
    if settings:
        raise UserError(f"--{next(iter(settings))}: given besides a list of flags. Add it to the list.")
    return config_from(config)


def _files_of(dataset: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that name the rows of a dataset; a file that is given for validation or test stays."""
    if dataset is None:
        return {}
    from mtloop.data.objects import store_dataset

    for name in DATA_FIELDS:
        if settings.get(name) is not None:
            raise UserError(f"--{name}: dataset is given as well (got {settings[name]}). Leave one out.")
    # A recipe may name another data set.
    files = {"dataset_name": None, "dataset_config_name": None, **store_dataset(dataset)}
    return {name: value for name, value in files.items() if settings.get(name) is None}


def _on_processes(asked: Config, functions: list[Any], num_processes: int) -> int:
    """Train on forked processes; return the status, or raise what ended the run early."""
    from mtloop.runtime.forks import fork_ranks

    endings = multiprocessing.get_context("fork").SimpleQueue()

    def work() -> None:
        lines: list[tuple[str, int]] = []
        status = start(asked, functions, lambda line, status: lines.append((line, status)))
        endings.put((status, lines[:1]))
        if lines:
            raise SystemExit(status)  # ends the other processes, which may wait for this one

    error = fork_ranks(work, num_processes)
    found = []
    while not endings.empty():
        found.append(endings.get())
    endings.close()
    for _, lines in found:
        if lines:
            raise _error(*lines[0])
    if error is not None or not found:
        raise RunFailed(
            f"num_processes: a process of the run could not be started, or was killed ({_reason(error)}). "
            "Restart the kernel, or give num_processes=1."
        ) from error
    return max(status for status, _ in found)


def _reason(error: BaseException | None) -> str:
    failures = getattr(error, "failures", {})  # of torch's ChildFailedError
    codes = ", ".join(f"process {rank}: exit status {one.exitcode}" for rank, one in failures.items())
    return codes or (f"{type(error).__name__}: {first_line(error)}" if error is not None else "no status")


def _error(line: str, status: int) -> BaseException:
    if status > 128:
        from mtloop.runtime.signals import Interrupted

        return Interrupted(signal.Signals(status - 128), line)
    return UserError(line) if status == 2 else RunFailed(line)
