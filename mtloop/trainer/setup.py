"""Build a Run from a configuration: data, tokenizer, model, optimizer and the rest, in order of dependency.

Knows only the order. Resolved values (budgets, beams, warm-up) go into the stored configuration.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from mtloop.batching.loader import TrainLoader
from mtloop.batching.plan import PLAN_VERSION
from mtloop.checkpoint.save import Checkpointer
from mtloop.checkpoint.state import TrainState
from mtloop.config.settings import Config, as_spelled, changed, differences, flat
from mtloop.config.yaml_file import to_yaml
from mtloop.errors import UserError
from mtloop.evaluation.bleu import load_bleu
from mtloop.evaluation.evaluate import EvaluationSet
from mtloop.evaluation.metrics import BLEU_UNSEEN, Metric
from mtloop.evaluation.selection import Functions, check_survival, choose_metrics, measure_references, try_functions
from mtloop.generation.trial import try_model
from mtloop.metrics_log import evaluations_of
from mtloop.model.activations import is_recomputing, recompute_activations
from mtloop.model.adapters import base_fingerprint, choose_trained
from mtloop.model.generation_config import check_positions, configure_generation, position_limit
from mtloop.model.loading import build_model, layers_of, load_model
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.loading import remember_prefix, target_language_token
from mtloop.trainer.notebook import open_display
from mtloop.trainer.run import Run
from mtloop.trainer.schedule import build_loader, build_optimizer, build_scheduler, describe_plan, resolve_steps
from mtloop.trainer.setup_data import encode_corpus
from mtloop.trainer.setup_inputs import Inputs, read_inputs
from mtloop.trainer.tracking import Tracker

# Results may depend on these versions in the last digit.
LIBRARIES = ("torch", "transformers", "accelerate", "numpy")


def resolve_budget(config: Config, stored: Config | None, *, num_ranks: int) -> Config:
    """Convert per-device numbers to sentences per update; a resume keeps the values and languages of the start.

    With changed settings (--allow_changed) they are resolved again.
    """
    if stored is not None:
        config = as_spelled(stored, config)
    if stored is not None and not differences(stored, config):
        return changed(
            config,
            sentences_per_update=stored.batch.sentences_per_update,
            tokens_per_update=stored.batch.tokens_per_update,
            num_warmup_steps=stored.optimizer.num_warmup_steps,
            num_beams=stored.evaluation.num_beams,
        )
    batch = config.batch
    # A stored configuration that starts another run has both: sentences per update are resolved already.
    if batch.pairs_per_device is None or batch.sentences_per_update is not None:
        return config
    return changed(config, sentences_per_update=batch.pairs_per_device * num_ranks)


def build_run(config: Config, stored: Config | None, folder: RunFolder, runtime: Runtime, own: Functions = ()) -> Run:
    """Build all parts of a run and store its configuration and data report.

    Collective.

    Args:
        config: Resolved, after resolve_budget.
        stored: Configuration found in the folder, None for a new run.
        folder: Claimed.
        runtime: The ranks.
        own: Functions of the user's that score translations.

    Raises:
        UserError: for a mistake in data, tokenizer, model or flags; on every rank.
    """
    inputs, config = read_inputs(config, folder, runtime, is_new=stored is None)
    tokenizer = inputs.tokenizer
    model, config = prepare_model(config, inputs, runtime)  # before the data is tokenized: it may be refused
    train_rows, train_set, valid, test, report = encode_corpus(config, inputs, runtime)
    metrics = choose_run_metrics(config, own, valid, folder, runtime)
    different = [] if stored is None else runtime.on_main(lambda: find_changes(config, stored, folder, report))
    base = runtime.on_main(lambda: base_fingerprint(model))
    runtime.say(describe_model(model))
    config = changed(config, pad_to=config.batch.pad_to or ("buckets" if runtime.has_static_shapes else "longest"))
    loader = build_loader(config, train_set, tokenizer, runtime)
    config, total_steps, warmup = resolve_steps(config, loader)
    prepare_layers(config, model, runtime)
    runtime.place_model(model, layers_of)
    optimizer = build_optimizer(model, config.optimizer)
    scheduler = build_scheduler(optimizer, config.optimizer, num_warmup_steps=warmup, total_steps=total_steps)
    wrapped_model, prepared = runtime.prepare(model, optimizer)
    wrapped_model.train()
    runtime.say(*describe_plan(config, loader, total_steps, warmup))
    if stored is None:
        runtime.on_main(lambda: folder.start_run(config, report))
    record = runtime.on_main(lambda: folder.run_record)
    hardware = runtime.describe() + (" · activations computed again" if is_recomputing(model) else "")
    identity = identify(config, loader, report, record, base=base, hardware=hardware)
    state = TrainState()
    unwrapped = runtime.accelerator.unwrap_model(wrapped_model)
    return Run(
        config=config,
        runtime=runtime,
        folder=folder,
        model=unwrapped,
        wrapped_model=wrapped_model,
        tokenizer=tokenizer,
        optimizer=prepared,
        scheduler=scheduler,
        loader=loader,
        train_rows=train_rows,
        valid=valid,
        test=test,
        checkpointer=Checkpointer(
            folder=folder,
            runtime=runtime,
            model=unwrapped,
            optimizer=prepared,
            scheduler=scheduler,
            tokenizer=tokenizer,
            state=state,
            save_total_limit=config.output.save_total_limit,
            num_epochs_kept=config.evaluation.average_last or 0,
            identity=identity,
        ),
        tracker=Tracker(folder=folder, runtime=runtime, uses_trackers=start_trackers(config, runtime)),
        display=open_display(runtime, total_steps),
        total_steps=total_steps,
        metrics=metrics,
        state=state,
        data_report=report,
        different=different,
    )


def check_bleu_tokenizer(name: str, runtime: Runtime) -> None:
    """Load --bleu_tokenizer, which may be downloaded, before the data is read. Collective.

    Raises:
        UserError: It cannot be loaded.
    """

    def check() -> None:
        load_bleu(name)

    runtime.on_main(check)


def choose_run_metrics(
    config: Config, functions: Functions, valid: EvaluationSet, folder: RunFolder, runtime: Runtime
) -> tuple[Metric, ...]:
    """Return the metrics of a run; the user's functions are tried on a few rows. Collective.

    Raises:
        UserError: for a function that fails, or whose direction differs from that of the run that is resumed.
    """
    metrics = choose_metrics(config.evaluation.metrics, functions, bleu_tokenizer=config.evaluation.bleu_tokenizer)

    def check() -> None:
        references = valid.rows["target"][:]
        for part in valid.parts:
            runtime.say(*measure_references(metrics, references[part.rows], part.target_lang, part.name))
        if not valid.parts:
            runtime.say(*measure_references(metrics, references, config.data.target_lang, valid.name))
        best = config.evaluation.metric_for_best_model
        if best == BLEU_UNSEEN and valid.is_unseen is not None and not valid.is_unseen.any():
            raise UserError(
                f"--metric_for_best_model: every source of validation is in the training rows too (got {best}). Give "
                "bleu, or other validation rows."
            )
        sources, minimum = valid.rows["source"][:], config.evaluation.min_survival
        check_survival(metrics, sources, references, best=best, min_survival=minimum)
        own = try_functions(metrics, valid.rows, best) if functions else {}
        lines = evaluations_of(folder.metrics.lines())
        recorded = lines[-1].get("user_metrics", {}) if lines else {}
        if best in own and own[best] != recorded.get(best, own[best]):
            raise UserError(
                f"metrics: {best} now has another direction than in the run (greater_is_better is {own[best]}). Give "
                "the same, or another --output_dir."
            )
        if missing := sorted(recorded.keys() - own.keys()):
            runtime.say(f"metrics: {', '.join(missing)} of this run will not be computed; see mtloop.main(metrics=)")

    runtime.on_main(check)
    return metrics


def find_changes(config: Config, stored: Config, folder: RunFolder, report: dict[str, Any]) -> list[str]:
    """List settings and data that differ from those of the resumed run.

    Raises:
        UserError: for other data without --allow_changed; claim_folder has checked the settings.
    """
    return differences(stored, config) + folder.check_data(report, allow_changed=config.output.allow_changed)


def identify(
    config: Config,
    loader: TrainLoader,
    report: dict[str, Any],
    run_record: dict[str, Any],
    *,
    base: str | None,
    hardware: str,
) -> dict[str, Any]:
    """Return the entries of a checkpoint's manifest that describe the run: JSON values."""
    batch = config.batch
    plan = [report["fingerprint"], batch.tokens_per_update, batch.sentences_per_update, config.hardware.seed]
    return {
        "run_id": run_record["run_id"],
        "tokens_per_update": batch.tokens_per_update,
        "sentences_per_update": batch.sentences_per_update,
        "plan_version": PLAN_VERSION,
        "max_tokens_per_micro_batch": loader.max_tokens_per_micro_batch,
        "micro_batch_overhead": loader.micro_batch_overhead,
        "pad_to": batch.pad_to,
        "fingerprints": {
            **report["fingerprints"],
            "config": hashlib.sha256(to_yaml(config).encode()).hexdigest(),
            "plan": hashlib.sha256(repr(plan).encode()).hexdigest(),
            **({} if base is None else {"base_model": base}),
        },
        "hardware": hardware,
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    }


def prepare_model(config: Config, inputs: Inputs, runtime: Runtime) -> tuple[PreTrainedModel, Config]:
    """Load or build the model and configure its generation. Collective."""
    data, evaluation, tokenizer = config.data, config.evaluation, inputs.tokenizer
    max_generated = evaluation.val_max_target_length or data.max_target_length
    longest_target = max(data.max_target_length, max_generated)
    torch.manual_seed(config.hardware.seed)

    def build() -> PreTrainedModel:
        if inputs.model.model_name_or_path is not None:
            return load_model(
                inputs.model.model_name_or_path,
                tokenizer,
                dropout=config.model.dropout,
                attention=runtime.attention,
                trust_remote_code=config.model.trust_remote_code,
                say=runtime.say,
            )
        longest = max(data.max_source_length, longest_target)
        return build_model(inputs.model, tokenizer, max_length=longest, attention=runtime.attention)

    model = runtime.one_first(build)
    runtime.say(*choose_trained(model, config.tuning, name=config.model.model_name_or_path))
    check_positions(
        position_limit(model.config), max_source_length=data.max_source_length, max_target_length=longest_target
    )
    num_beams = configure_generation(
        model,
        tokenizer,
        num_beams=evaluation.num_beams or (1 if runtime.has_static_shapes else None),
        max_length=max_generated,
        forced_bos_token_id=target_language_token(tokenizer),
    )
    runtime.check_generation(
        num_beams=num_beams, max_length_ratio=evaluation.max_length_ratio, max_length=max_generated
    )
    for flag in ("model_name_or_path", "config_name"):
        if name := getattr(config.model, flag):
            runtime.on_main(partial(try_model, model, tokenizer, runtime, flag=f"--{flag} {name}"))
    for pair in inputs.pairs:
        remember_prefix(model.config, pair.source_lang, pair.target_lang, pair.prefix)
    return model, changed(config, num_beams=num_beams)


def prepare_layers(config: Config, model: PreTrainedModel, runtime: Runtime) -> None:
    """Let the backward compute activations again where --gradient_checkpointing or the launch file asks for it.

    Raises:
        UserError: The model or the device does not support it.
    """
    flag = "--gradient_checkpointing" if config.batch.gradient_checkpointing else ""
    if not flag and runtime.sharding is not None and runtime.sharding.activation_checkpointing:
        flag = "fsdp_activation_checkpointing of the launch file"
    if not flag:
        return
    if runtime.has_static_shapes:  # its compiler would merge the second forward with the first
        raise UserError(f"{flag}: not supported on XLA. Leave it out, and lower --max_tokens_per_micro_batch.")
    recompute_activations(model, flag=flag)


def start_trackers(config: Config, runtime: Runtime) -> bool:
    """Start accelerate's trackers where --report_to names one. Collective."""
    if config.output.tracker is None:
        return False
    settings = {name: value for name, value in flat(config).items() if isinstance(value, (int, float, str, bool))}
    try:
        runtime.accelerator.init_trackers("mtloop", config=settings)
    except Exception as error:  # its service may be unavailable: train without it
        runtime.say(f"tracking is off: {type(error).__name__}: {error}")
        return False
    if runtime.is_main and not runtime.accelerator.trackers:
        runtime.say(f"tracking is off: no tracker of --report_to {config.output.report_to} is installed")
        return False
    return True


def describe_model(model: PreTrainedModel) -> str:
    """Describe the model in one line."""
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    num_parameters = sum(p.numel() for p in model.parameters())
    return (
        f"model: {model.config.model_type}, {num_parameters:,} parameters, {num_trainable:,} of them trainable, "
        f"{len(cast(nn.Embedding, model.get_input_embeddings()).weight):,} tokens"
    )
