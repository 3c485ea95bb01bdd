"""Average checkpoints, or interpolate between a model and its base.

The average of the weights of several checkpoints often scores better than each of them. Interpolation scores models
between a fine-tuned model and its base.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from safetensors import SafetensorError

from mtloop.atomic import new_folder
from mtloop.checkpoint.listing import choose_best, choose_last, choose_named, open_folder
from mtloop.cli.flags import (
    add_metrics_flag,
    add_model_flags,
    add_test_set_flags,
    check_test_sets,
    chosen_metrics,
    fill_settings,
    load_own_rows,
    load_test_sets,
    number_type,
    open_model,
    start_runtime,
)
from mtloop.config.settings import Config, is_from_scratch
from mtloop.errors import UserError, check_folder, first_line, rename_flag
from mtloop.evaluation.metrics import LOSS, Score, metric_named, metrics_of, with_column
from mtloop.evaluation.selection import recorded_name
from mtloop.evaluation.significance import recorded_text
from mtloop.metrics_log import evaluations_of
from mtloop.run_folder import RunFolder, stored_config
from mtloop.tables import aligned

if TYPE_CHECKING:
    from mtloop.evaluation.test_sets import ScoredModel, TestSet
    from mtloop.runtime.ranks import Runtime

T = TypeVar("T")
WAYS = ("last", "best", "checkpoints", "interpolate")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("model", metavar="RUN", nargs="?", help="a run folder; for --interpolate any model that was fine-tuned")
    add(
        "--last",
        type=number_type("last"),
        metavar="N",
        help="average the checkpoints of the last N epochs (of any updates where fewer end an epoch)",
    )
    add(
        "--best",
        type=number_type("best"),
        metavar="N",
        help="average the N that scored best on the validation rows in training",
    )
    add("--metric", metavar="NAME", help="of --best: a score of the run, or eval_loss (none: the run's "
        "--metric_for_best_model)")  # fmt: skip
    add("--checkpoints", nargs="+", metavar="C", help="average these: step_N, epoch_N, best, or folders")
    add("--interpolate", metavar="W,W...", help="score (1 - W) x base + W x fine-tuned at each weight W, 0 to 1")
    add("--base", metavar="M", help="of --interpolate (none: the run's --model_name_or_path)")
    add(
        "--weight",
        type=number_type("weight"),
        metavar="W",
        help="with -o: write the model at this weight between base and RUN",
    )
    add("-o", "--output", metavar="OUT", help="the folder to write: a model that loads")
    add("--evaluate", action="store_true", help="score the average and each of its checkpoints (--test_set does, too)")
    add_metrics_flag(parser, "bleu", "chrf", "survival")
    add_test_set_flags(parser, without="the run's own validation rows, which are always scored")
    add_model_flags(parser)


def _check(given: argparse.Namespace) -> list[float]:
    """Check the flags; return the weights of --interpolate."""
    check_test_sets(given)
    given.is_line = given.interpolate is not None or given.weight is not None
    averages = [f"--{way}" for way in WAYS[:3] if getattr(given, way) is not None]
    ways = averages + (["--interpolate"] if given.is_line else [])
    if len(ways) != 1:
        raise UserError(
            f"--{', --'.join(WAYS)}: expected one of them (got {' and '.join(ways) or 'none'}). Give exactly one."
        )
    if given.metric is not None and given.best is None:
        raise UserError(f"--metric: needs --best N (got {given.metric!r}). Add --best, or leave it out.")
    if given.model is None and given.checkpoints is None:
        raise UserError(f"RUN: missing with {ways[0]}. Give the --output_dir of a run.")
    if given.base is not None and not given.is_line:
        raise UserError(
            f"--base: needs --interpolate or --weight (got {given.base!r}). Add one of them, or leave it out."
        )
    given.evaluate = given.evaluate or bool(given.test_set)
    if averages and given.output is None and not given.evaluate:
        raise UserError(
            f"{averages[0]}: no result was asked for. Give -o OUT for the model, --evaluate for its scores, or both."
        )
    if given.is_line and (given.weight is None) != (given.output is None):
        raise UserError("-o, --weight: one is missing. Give both: -o OUT is the model at --weight W.")
    out = Path(given.output) if given.output is not None else None
    if out is not None and (out.is_file() or (out.is_dir() and any(out.iterdir()))):
        raise UserError(f"-o: already exists (got {out}). Give another name, or remove it.")
    if out is not None:
        check_folder("-o", out)
    return [] if given.interpolate is None else [_weight(one) for one in given.interpolate.split(",")]


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1:
        raise UserError(
            f"--interpolate: invalid weight (got {text}). Give a number from 0 (the base) to 1 (the fine-tuned model)."
        )
    return weight


def run(given: argparse.Namespace) -> None:
    """Run the command. Collective: every process of a launch calls it."""
    weights = _check(given)
    chosen = [] if given.is_line else [_opened(path, given) for path in _choose(given)]
    trained = stored_config(str(given.model or chosen[-1]))
    fill_settings(given, trained)
    given.metrics = chosen_metrics(given, trained)
    runtime = start_runtime(given)
    try:
        if given.is_line:
            _interpolate(given, weights, trained, runtime)
        else:
            _average_checkpoints(given, chosen, trained, runtime)
    finally:
        runtime.close()


def _opened(checkpoint: Path, given: argparse.Namespace) -> Path:
    try:
        return Path(open_folder(str(checkpoint), no_verify=given.no_verify))
    except UserError as error:
        raise rename_flag(error, "--checkpoints") from error


def _choose(given: argparse.Namespace) -> list[Path]:
    """Find the checkpoints, the newest last."""
    folder = None if given.model is None else RunFolder(Path(given.model))
    if folder is not None and not folder.checkpoints_dir.is_dir():
        raise UserError(
            f"RUN: not a run folder, it has no checkpoints/ (got {given.model}). Give the --output_dir of a run."
        )
    if given.checkpoints is not None:
        return choose_named(folder, given.checkpoints)
    assert folder is not None
    if given.last is not None:
        return choose_last(folder, given.last)
    own = stored.evaluation.metric_for_best_model if (stored := folder.stored_config()) else "bleu"
    is_greater_better = {LOSS: False}
    for line in evaluations_of(folder.metrics.lines()):
        is_greater_better |= {metric.name: metric.greater_is_better for metric in metrics_of(line)}
    given.metric = recorded_name(given.metric or own, is_greater_better)
    if given.metric not in is_greater_better:
        raise UserError(
            f"--metric: the run was not scored with it (got {given.metric!r}). Give one of "
            f"{', '.join(is_greater_better)}."
        )
    return choose_best(folder, given.best, given.metric, is_greater_better=is_greater_better[given.metric])


def _average_checkpoints(
    given: argparse.Namespace, chosen: list[Path], trained: Config | None, runtime: Runtime
) -> None:
    from mtloop.checkpoint.averaging import average_into
    from mtloop.checkpoint.restore import load_weights

    test_sets = runtime.one_first(lambda: _load_rows(given, trained)) if given.evaluate else []

    def make(folder: Path) -> None:
        if given.checkpoints is not None:
            _check_tokenizers(given, chosen)
        average_into(folder, chosen)

    with ExitStack() as stack:
        if given.output is not None:
            out = Path(given.output)
            if any(path.resolve() in out.resolve().parents for path in chosen):
                raise UserError(f"-o: inside one of the checkpoints (got {out}). Give a folder outside.")
            runtime.on_main(lambda: _write(out, make))
        else:
            out = Path(runtime.on_main(lambda: stack.enter_context(tempfile.TemporaryDirectory())))
            runtime.on_main(lambda: make(out))
        names = [str(path) if given.model is None else path.name for path in chosen]  # of several runs the whole path
        known = {} if given.metric is None else RunFolder(Path(given.model)).metrics.scores(given.metric)
        scores = {f"step_{step}": f" ({given.metric} {score:.4g})" for step, score in known.items()}
        runtime.say(
            f"{given.output or 'average'}: the average of {', '.join(name + scores.get(name, '') for name in names)}"
        )
        if test_sets:
            way = next(f"--{way}" for way in WAYS if getattr(given, way) is not None)
            scored = open_model(way, str(out), given, runtime, trained=trained, engine="transformers")
            paths = dict(zip([*names, "average"], [*chosen, out], strict=True))
            print_scores("model", paths, load_weights, scored, test_sets, given)


def _check_tokenizers(given: argparse.Namespace, chosen: list[Path]) -> None:
    """Refuse checkpoints with different tokens: their embeddings may have the same shape all the same."""
    from mtloop.tokenization.encoding import have_same_tokens
    from mtloop.tokenization.loading import load_tokenizer

    options = {name: getattr(given, name) for name in ("source_lang", "target_lang", "trust_remote_code")}
    try:
        *others, newest = [load_tokenizer(str(path), **options) for path in chosen]
    except UserError as error:
        raise rename_flag(error, "--checkpoints") from error
    for path, tokenizer in zip(chosen, others, strict=False):
        if not have_same_tokens(tokenizer, newest):
            raise UserError(
                f"--checkpoints: the tokenizer differs from that of {chosen[-1]} (got {path}). Leave it out."
            )


def _interpolate(given: argparse.Namespace, weights: list[float], trained: Config | None, runtime: Runtime) -> None:
    from mtloop.generation.engine import load_pair
    from mtloop.translate.interpolation import Line

    base = _base_of(given, trained)
    test_sets = runtime.one_first(lambda: _load_rows(given, trained)) if weights else []

    def load(flag: str, name: str) -> tuple[Any, Any]:
        options = {name: getattr(given, name) for name in ("source_lang", "target_lang", "trust_remote_code")}
        try:
            return load_pair(open_folder(name, no_verify=given.no_verify), runtime, **options)
        except UserError as error:
            raise rename_flag(error, flag) from error

    line = Line(given.model, base, load)
    if weights:
        scored = open_model("RUN", given.model, given, runtime, trained=trained, engine="transformers")
        ends = {0.0: " (base)", 1.0: " (fine-tuned)"}
        points = {f"{weight:g}{ends.get(weight, '')}": weight for weight in weights}
        print_scores("weight", points, line.put, scored, test_sets, given)
    if given.output is not None:
        runtime.on_main(lambda: _write(Path(given.output), lambda folder: line.write(folder, given.weight)))
        runtime.say(f"{given.output}: {1 - given.weight:.4g} x {base} + {given.weight:.4g} x {given.model}")


def _base_of(given: argparse.Namespace, trained: Config | None) -> str:
    """Return the base: --base, else the model that the run was fine-tuned from.

    Raises:
        UserError: The run has none.
    """
    if given.base is not None:
        return str(given.base)
    if trained is None:
        raise UserError(
            f"--base: missing, and RUN is not a run folder (got {given.model}). Give the model it was fine-tuned from."
        )
    if is_from_scratch(trained):
        raise UserError(
            f"--base: missing, and RUN was trained from scratch (got {given.model}). Give a model to interpolate with."
        )
    return str(trained.model.model_name_or_path)


def _load_rows(given: argparse.Namespace, trained: Config | None) -> list[TestSet]:
    """Load the run's own validation rows and each --test_set."""
    if trained is None and not given.test_set:
        raise UserError(
            f"--test_set: missing, and the model is not in a run folder (got {given.model or '--checkpoints'}). "
            "Give rows to score on."
        )
    own = [] if trained is None else load_own_rows(given, trained, "valid")
    others = load_test_sets(given, trained)
    if own and any(test_set.name == own[0].name for test_set in others):
        raise UserError(f"--test_set: the run's own rows have this name (got {own[0].name!r}). Give another NAME=FILE.")
    return own + others


def _write(out: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder that appears only when it is complete. Main only.

    Raises:
        UserError: naming -o and the reason.
    """
    try:
        with new_folder(out) as folder:
            fill(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"-o {out}: cannot be written ({first_line(error)}). Give another folder.") from error


def print_scores(
    title: str,
    weights: Mapping[str, T],
    put: Callable[[Any, T], None],
    scored: ScoredModel,
    test_sets: list[TestSet],
    given: argparse.Namespace,
) -> None:
    """Put one set of weights after another into a model and print its scores on each test set. Collective.

    Args:
        title: Heads the column of names.
        weights: Sets of weights by name.
        put: Puts a set of weights into a network.
        scored: The model.
        test_sets: The rows.
        given: The flags; its `metrics` are applied.
    """
    from mtloop.evaluation.test_sets import try_metrics

    scored.runtime.on_main(lambda: try_metrics(given.metrics, test_sets, scored.runtime))
    network = cast(Any, scored.engine).network
    found: dict[str, list[dict[str, Score]]] = {}
    for name, one in weights.items():
        put(network, one)
        found[name] = []
        for test_set in test_sets:
            scored.runtime.say(f"{name}: translating {len(test_set.rows):,} rows of {test_set.name} ...")
            found[name].append(scored.evaluate(test_set, metrics=given.metrics).scores)
    scored.runtime.say(*scores_table(title, found, [one.name for one in test_sets]))


def scores_table(title: str, found: dict[str, list[dict[str, Score]]], names: list[str]) -> list[str]:
    """Format scores as a table: on each test set, the best of the first metric marked; and the signatures."""
    own = {name: score for scores in next(iter(found.values())) for name, score in scores.items()}
    metrics = with_column(metric_named(name, score.greater_is_better) for name, score in own.items())
    main = metrics[0]
    lines = [[title, *(f"{name} {metric.title}" for name in names for metric in metrics)]]
    choose = max if main.greater_is_better else min
    cells: dict[str, list[str]] = {name: [] for name in found}
    for of_set in zip(*found.values(), strict=True):  # the scores of each row on one test set
        values = [{name: score.value for name, score in scores.items()} for scores in of_set]
        best = choose((one[main.name] for one in values if main.name in one), default=None)
        for name, one in zip(found, values, strict=True):
            texts = [recorded_text(one, metric) for metric in metrics]
            texts[0] = f"*{texts[0]}" if best is not None and one[main.name] == best else texts[0]
            cells[name] += texts
    lines += [[name, *texts] for name, texts in cells.items()]
    signatures = [f"{metric.title}: {own[metric.name].signature}" for metric in metrics if own[metric.name].signature]
    return ["", *aligned(lines), "", f"* the best {main.title}", *signatures]
