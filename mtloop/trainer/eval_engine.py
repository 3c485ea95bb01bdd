"""The engine that the evaluations of a run translate with: the live model, or a copy converted to CTranslate2."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mtloop.config.settings import Config
from mtloop.errors import RunFailed, UserError, renamed
from mtloop.evaluation.evaluate import EvaluationSet, evaluate
from mtloop.generation.engine import CTRANSLATE2, Engine, EngineOptions
from mtloop.generation.engines import TransformersEngine
from mtloop.model import load_model
from mtloop.model.adapters import merged_weights
from mtloop.runtime import gathered
from mtloop.trainer.run import Run

NUM_COMPARED = 200
FLAG = "--eval_engine ctranslate2"


def check_eval_engine(config: Config, model_config: Any) -> None:
    """Refuse an engine that is not installed or does not take the model, before anything is trained.

    Raises:
        UserError: naming --eval_engine and the remedy.
    """
    if config.evaluation.eval_engine != CTRANSLATE2:
        return
    try:
        from mtloop.generation.conversion import refusal
    except ImportError as error:
        raise UserError(f"{FLAG}: not installed here ({error}); pip install ctranslate2") from error
    if reason := refusal(model_config):
        raise UserError(f"{FLAG}: {reason}; leave the flag out")


def live_engine(run: Run) -> TransformersEngine:
    """Return generate() on the model in training."""
    data = run.config.data
    return TransformersEngine(
        run.model,
        run.tokenizer,
        asked=EngineOptions(source_lang=data.source_lang, target_lang=data.target_lang),
        max_source_length=data.max_source_length,
        source_prefix=data.source_prefix,
    )


@contextmanager
def eval_engine(run: Run) -> Iterator[Engine]:
    """Provide the engine of --eval_engine for one evaluation, with the weights as they are now. Collective."""
    if run.config.evaluation.eval_engine != CTRANSLATE2:
        yield live_engine(run)
        return
    from mtloop.generation.ctranslate2 import CTranslate2Engine

    folder = run.folder.path / ".tmp-eval-engine"  # swept at the next start if this process dies
    data = run.config.data
    # The rows are encoded already, behind the prefix of their pair.
    asked = EngineOptions(source_prefix=data.source_prefix or "", max_source_length=data.max_source_length)
    weights = gathered(run.model.state_dict(keep_vars=True), is_kept=run.runtime.is_main)
    try:
        try:
            run.runtime.on_main(partial(_convert, run, weights, folder))
            engine = CTranslate2Engine(str(folder / "converted"), asked, run.runtime)
        except UserError as error:
            raise renamed(error, FLAG) from error
        yield engine
    finally:  # not collective: one rank alone may have failed
        if run.runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _convert(run: Run, weights: dict[str, Tensor], folder: Path) -> None:
    """Convert a copy of the weights, made on the host from what a checkpoint would hold; the model is not touched."""
    from mtloop.generation.conversion import convert

    shutil.rmtree(folder, ignore_errors=True)
    trust = run.config.model.trust_remote_code
    try:
        run.model.save_pretrained(folder / "copy", state_dict=merged_weights(run.model, weights))
        copy = load_model(str(folder / "copy"), run.tokenizer, dropout=None, attention="eager", trust_remote_code=trust)
        convert(copy, run.tokenizer, str(run.folder.path), folder / "converted", quantization=None).save(
            folder / "converted"
        )
        shutil.rmtree(folder / "copy")
    except OSError as error:
        raise RunFailed(f"{folder}: cannot be written ({error.strerror or error})") from error


def compare_engines(run: Run, engine: Engine, data: EvaluationSet) -> None:
    """Print how many of a few rows another engine translates as generate() does, once a run. Collective."""
    if run.has_compared_engines or run.config.evaluation.eval_engine != CTRANSLATE2:
        return
    run.has_compared_engines = True
    few = data.first(NUM_COMPARED)
    max_tokens, target_lang = run.config.evaluation.eval_max_tokens, run.config.data.target_lang
    found, expected = (
        evaluate(one, few, run.runtime, max_tokens=max_tokens, target_lang=target_lang).hypotheses
        for one in (engine, live_engine(run))
    )
    num_same = sum(one == other for one, other in zip(found, expected, strict=True))
    run.runtime.say(
        f"{FLAG}: {num_same:,} of {len(few.rows):,} hypotheses are those of generate() "
        f"({100 * num_same / len(few.rows):.1f} %)"
    )
