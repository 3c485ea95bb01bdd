"""Select the metrics of a run: built-in ones by name, and functions of the user's.

Must not know models, files or ranks.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mtloop.errors import UserError
from mtloop.evaluation.metrics import BLEU_UNSEEN, DEFAULT_METRICS, LOSS, METRICS, RESERVED, Metric, bleu_with, tally
from mtloop.evaluation.statistics import Texts
from mtloop.evaluation.survival import NAMES, SURVIVAL
from mtloop.placeholders import KINDS

if TYPE_CHECKING:
    from datasets import Dataset

Function = Callable[..., Any]
Functions = Sequence[Function]
NUM_TRIED = 8
# BLEU counts n-grams of up to four tokens: below this mean nearly no reference has any.
FEW_TOKENS, NUM_MEASURED = 2.0, 1000
# Endings of the keys that a metric adds to a line of metrics.jsonl.
RESERVED_ENDINGS = ("_ci", "_gain", "_p_value", "_signature")


def choose_metrics(
    names: Sequence[str] | None, functions: Functions = (), *, bleu_tokenizer: str | None = None
) -> tuple[Metric, ...]:
    """Return the metrics of these names, and the user's functions as metrics.

    Args:
        names: Values of --metrics; None for the default ones.
        functions: Called with sources, hypotheses and references; return a number or a dict of numbers.
        bleu_tokenizer: One of sacreBLEU's; None for the one that the script of the target language needs.

    Raises:
        UserError: for an unknown name, and for what is not a function with a usable name.
    """
    chosen = {one.name: one for one in DEFAULT_METRICS} if names is None else {}
    for name in names or ():
        name = "bleu" if name == BLEU_UNSEEN else name  # counted with it
        if name not in METRICS:
            raise UserError(
                f"--metrics: unknown metric (got {name!r}). Give one or more of {', '.join(METRICS)}; pass a function "
                "of your own from Python, mtloop.main([...], metrics=[function])."
            )
        chosen[name] = METRICS[name]
    if bleu_tokenizer is not None and "bleu" in chosen:
        chosen["bleu"] = bleu_with(bleu_tokenizer)
    if isinstance(functions, str) or not isinstance(functions, Sequence):
        raise UserError(f"metrics: expected a list of functions (got {functions!r}). Write metrics=[my_metric].")
    for function in functions:
        if not callable(function):
            raise UserError(
                f"metrics: expected functions (got {function!r}). Give built-in metrics with --metrics, "
                f"for example --metrics {','.join(METRICS)}."
            )
        described = function
        while isinstance(described, partial):
            described = described.func
        name = getattr(described, "__name__", type(described).__name__)
        _check_name(name, "Rename the function, or define it with def.")
        if name in chosen:
            raise UserError(f"metrics: two metrics have one name (got {name!r}). Rename one of the functions.")
        chosen[name] = Metric(
            name=name,
            title=name,
            compute=_UserFunction(function, name),
            greater_is_better=bool(getattr(described, "greater_is_better", True)),
        )
    return tuple(chosen.values())


def recorded_name(name: str, recorded: Collection[str]) -> str:
    """Return the name of a score among those recorded: where every source is unseen, bleu_unseen is bleu."""
    return "bleu" if name == BLEU_UNSEEN and name not in recorded else name


def check_best_metric(metric: str, names: Sequence[str]) -> None:
    """Refuse a --metric_for_best_model that is not computed.

    Raises:
        UserError: naming what is computed.
    """
    if metric != LOSS and metric not in names and (metric not in METRICS or METRICS[metric].part_of not in names):
        remedy = "Add it to --metrics" if metric in METRICS else "Pass its function to mtloop.main"
        raise UserError(
            f"--metric_for_best_model: this run does not compute it (got {metric!r}). {remedy}, or give one of "
            f"{', '.join([*names, LOSS])}."
        )


def check_selection(best: str, names: Sequence[str] | None, functions: Functions) -> None:
    """Check --metrics, --metric_for_best_model and the user's functions, as far as no function needs to be called.

    Raises:
        UserError: naming the flag.
    """
    metrics = choose_metrics(names, functions)
    if not functions:  # a function may return several scores, which have their own names
        check_best_metric(best, [one.name for one in metrics])


def check_survival(
    metrics: Sequence[Metric],
    sources: Sequence[str],
    references: Sequence[str],
    *,
    best: str = LOSS,
    min_survival: float | None = None,
) -> None:
    """Refuse a metric of survival that is needed, but that no row counts for.

    Raises:
        UserError: naming --metric_for_best_model, --min_survival or --metrics.
    """
    of_survival = [one for one in metrics if SURVIVAL in (one.name, one.part_of)]
    counted = tally(Texts(sources=sources, hypotheses=references, references=references), of_survival)
    remedy = f"Give another one, as {', '.join(counted)}" if counted else "Leave it out"
    minimum = None if min_survival is None else f"{min_survival:g}"
    needed = [("--metric_for_best_model", best, best), ("--min_survival", SURVIVAL, minimum)]
    needed += [("--metrics", one.name, one.name) for one in metrics[:1] if len(of_survival) == len(metrics)]
    for flag, name, got in needed:
        if got is not None and name in (SURVIVAL, *NAMES) and name not in counted:
            what = f"{KINDS[NAMES[name]].title} of" if name in NAMES else "placeholder of"
            raise UserError(
                f"{flag}: no {what} a source is in its reference too: there is nothing to count (got {got}). {remedy}."
            )


def try_functions(metrics: Sequence[Metric], rows: Dataset, best: str = LOSS) -> dict[str, bool]:
    """Call the user's functions on a few rows with the references as translations, before anything is computed.

    The first translation is empty, as those of an untrained model may be.

    Returns:
        For each score of the user's functions whether a greater one is better.

    Raises:
        UserError: A function failed, or none of the scores is called `best`.
    """
    few = rows[:NUM_TRIED]
    texts = Texts(sources=few["source"], hypotheses=["", *few["target"][1:]], references=few["target"])
    own = tally(texts, [one for one in metrics if one.name not in METRICS])
    check_best_metric(best, [*(one.name for one in metrics if one.name in METRICS), *own])
    return {name: one.metric.greater_is_better for name, one in own.items()}


def measure_references(
    metrics: Sequence[Metric], references: Sequence[str], target_lang: str | None, name: str
) -> list[str]:
    """Return a warning if BLEU finds about one token in a reference, as in a script without spaces; else [].

    Args:
        metrics: Those of the run.
        references: N texts; the first ones are counted.
        target_lang: As in Texts.
        name: Of the rows, for the message.

    Raises:
        UserError: BLEU's tokenizer cannot be loaded.
    """
    few = references[:NUM_MEASURED]
    texts = Texts(sources=few, hypotheses=few, references=few, target_lang=target_lang)
    counted = tally(texts, [one for one in metrics if one.name == "bleu"])
    if not counted or counted["bleu"].statistics is None:
        return []
    mean = float(counted["bleu"].statistics.rows[:, 1].mean())  # sacreBLEU's reference length
    if mean >= FEW_TOKENS:
        return []
    return [
        f"warning: {name}: BLEU will be about 0: its tokenizer finds {mean:.1f} tokens in a reference, and BLEU needs "
        "4. Give --bleu_tokenizer char for a script without spaces, or --metric_for_best_model chrf."
    ]


def _check_name(name: Any, remedy: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][\w.+-]*", name):
        raise UserError(f"metrics: a metric needs a name of letters and digits (got {name!r}). {remedy}")
    if name in METRICS or name in RESERVED or name.endswith(RESERVED_ENDINGS):
        raise UserError(f"metrics: the name is in use by mtloop (got {name!r}). {remedy}")


@dataclass
class _UserFunction:
    """Call a user's function. A dict that it returns must have the same keys at every call."""

    function: Function
    name: str
    keys: frozenset[str] | None = None

    def __call__(self, texts: Texts) -> float | dict[str, float]:
        """Return its number or its numbers.

        Raises:
            UserError: It raised, or returned something else than a number or a dict of numbers.
        """
        try:
            result = self.function(list(texts.sources), list(texts.hypotheses), list(texts.references))
        except (Exception, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            place = "" if frame.filename == __file__ else f" ({os.path.basename(frame.filename)}:{frame.lineno})"
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"metrics: {self.name} raised {reason}{place}. Correct the function; it was called with three lists of "
                f"{len(texts.hypotheses)} texts: sources, hypotheses, references."
            ) from error
        if not isinstance(result, Mapping):
            return _number(result, self.name)
        for key in result:
            _check_name(key, f"Rename this key of the dict that {self.name} returns.")
        self.keys = self.keys or frozenset(result)
        if self.keys != set(result):
            raise UserError(
                f"metrics: {self.name} returned the keys {', '.join(sorted(result))} (before: "
                f"{', '.join(sorted(self.keys))}). Return the same keys at every call."
            )
        return {key: _number(value, f"{self.name}[{key!r}]") for key, value in result.items()}


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor of several elements raises RuntimeError
        kind = " ".join(repr(value).split())[:60]
        raise UserError(
            f"metrics: {name} returned no number (got {kind}). Return a number, or a dict of numbers."
        ) from None
