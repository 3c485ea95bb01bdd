"""The engine that the evaluations of a run translate with: the live model, or a copy converted to CTranslate2."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from mtloop.config import Config
from mtloop.errors import RunFailed, UserError
from mtloop.evaluation.evaluate import EvaluationSet, evaluate
from mtloop.generation.engine import CTRANSLATE2, Engine, EngineOptions
from mtloop.generation.engines import TransformersEngine
from mtloop.model import load_model
from mtloop.model.adapters import merged_weights
from mtloop.runtime import gathered
from mtloop.trainer.run import Run

NUM_COMPARED = 200


def check_eval_engine(config: Config, model_type: str) -> None:
    """Refuse an engine that is not installed or does not take the model, before anything is trained.

    Raises:
        UserError: naming --eval_engine and the remedy.
    """
    if config.evaluation.eval_engine != CTRANSLATE2:
        return
    try:
        from mtloop.generation.conversion import LOADERS
    except ImportError as error:
        raise UserError(f"--eval_engine ctranslate2: not installed here ({error}); pip install ctranslate2") from error
    if model_type not in LOADERS:
        raise UserError(
            f"--eval_engine ctranslate2: it takes no {model_type}, only {', '.join(LOADERS)}; leave the flag out"
        )


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
    weights = gathered(run.model.state_dict(keep_vars=True), is_kept=run.runtime.is_main)
    run.runtime.on_main(partial(_convert, run, weights, folder))
    try:
        asked = EngineOptions(max_source_length=run.config.data.max_source_length)
        yield CTranslate2Engine(str(folder / "converted"), asked, run.runtime)
    finally:
        run.runtime.on_main(lambda: shutil.rmtree(folder, ignore_errors=True))


def _convert(run: Run, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Convert a copy of the weights, made on the host from what a checkpoint would hold; the model is not touched."""
    from mtloop.generation.conversion import convert

    shutil.rmtree(folder, ignore_errors=True)
    try:
        run.model.save_pretrained(folder / "copy", state_dict=merged_weights(run.model, weights))
        copy = load_model(
            str(folder / "copy"),
            run.tokenizer,
            dropout=None,
            attention="eager",
            trust_remote_code=run.config.model.trust_remote_code,
        )
        data = run.config.data
        engine = TransformersEngine(
            copy, run.tokenizer, asked=EngineOptions(), max_source_length=data.max_source_length,
            source_prefix=data.source_prefix,
        )  # fmt: skip
        convert(engine, str(run.folder.path), folder / "converted", quantization=None).save(folder / "converted")
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
        f"--eval_engine ctranslate2: {num_same:,} of {len(few.rows):,} hypotheses are those of generate() "
        f"({100 * num_same / len(few.rows):.1f} %)"
    )
