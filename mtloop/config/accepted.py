"""Flags of run_translation_no_trainer.py, run_translation.py and (Seq2Seq)TrainingArguments that have no meaning here.

They are accepted, with their values, so that a known command line still runs; each answers with one line on what to use
instead. Owns the tables; must not know this program's own flags.
"""

from mtloop.errors import UserError

_ALWAYS_TRAINS = "training and evaluation always run"
_METRICS = "validation data is always translated and scored"
_PRECISION = "use --mixed_precision {0}"
_LAUNCH = "pick a file in accelerate_configs/ and start with `accelerate launch --config_file FILE`"
_ADAMW = "the optimizer is AdamW, set with --learning_rate, --weight_decay and --adam_*"
_MEMORY = "memory is bounded by --max_tokens_per_micro_batch, without a change of the result"
_EVAL_MEMORY = "evaluation memory is bounded by --eval_max_tokens"
_GROUPED = "batches are always grouped by length"
_COUNTED = "every training sentence is used once in an epoch, none is dropped"
_LOADER = "the loader is set with --dataloader_num_workers"
_LOG = "the log is set with --logging_steps"
_TRACKER = "trackers are set with --with_tracking and --report_to"
_SAVE = "use --save_steps N, or leave it out to save at the end of every epoch"
_EVAL = "use --eval_steps N, or leave it out to evaluate after every epoch"
_WHOLE = "a checkpoint always holds the model, the optimizer and the position in the data"
_RESUME = "a resumed run goes on at its position in the data; use --resume_from_checkpoint latest"
_OVERWRITE = "a run folder is never overwritten: give another --output_dir or --resume_from_checkpoint latest"
_HUB = "an epoch is pushed as soon as it is saved, in order, and none is left out"
_WARMUP = "use --num_warmup_steps"
_TOKENIZER = "the tokenizer is the one that the model's folder names"
_COLUMNS = "columns are named with --source_column and --target_column"
_HF_HOME = "set the environment variable HF_HOME"
_DEBUG = "losses and gradient norms are logged every --logging_steps, and a non-finite gradient ends the run"
_NOT_HERE = "there is no such thing here"

# Flags with an optional true or false.
SWITCHES = {
    "activation_checkpointing": _MEMORY,
    "adafactor": _ADAMW,
    "auto_find_batch_size": _MEMORY,
    "average_tokens_across_devices": "the loss is always averaged over all target tokens of an update",
    "batch_eval_metrics": _EVAL_MEMORY,
    "bf16": _PRECISION.format("bf16"),
    "bf16_full_eval": _PRECISION.format("bf16"),
    "dataloader_drop_last": _COUNTED,
    "dataloader_in_order": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "ddp_broadcast_buffers": _LAUNCH,
    "ddp_find_unused_parameters": _LAUNCH,
    "ddp_static_graph": _LAUNCH,
    "disable_tqdm": _LOG,
    "dispatch_batches": _LOADER,
    "do_eval": _ALWAYS_TRAINS,
    "do_predict": "give --test_file",
    "do_train": _ALWAYS_TRAINS,
    "enable_jit_checkpoint": "USR1 saves and ends the run",
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "evaluate_during_training": _ALWAYS_TRAINS,
    "fp16": _PRECISION.format("fp16"),
    "fp16_full_eval": _PRECISION.format("fp16"),
    "full_determinism": "runs are repeatable as they are: see --seed",
    "gradient_checkpointing": _MEMORY,
    "greater_is_better": "it follows from --metric_for_best_model",
    "group_by_length": _GROUPED,
    "hub_always_push": _HUB,
    "ignore_data_skip": _RESUME,
    "ignore_pad_token_for_loss": "padding never counts in the loss",
    "include_inputs_for_metrics": _METRICS,
    "include_num_input_tokens_seen": "tokens seen are always counted",
    "include_tokens_per_second": "tokens per second are always logged",
    "jit_mode_eval": _NOT_HERE,
    "log_on_each_node": _LOG,
    "logging_first_step": _LOG,
    "logging_nan_inf_filter": "a non-finite gradient ends the run: see --skip_nonfinite",
    "low_cpu_mem_usage": "models are loaded by transformers' own default",
    "no_cuda": "use --use_cpu",
    "overwrite_output_dir": _OVERWRITE,
    "pad_to_max_length": "use --pad_to fixed",
    "predict_with_generate": _METRICS,
    "prediction_loss_only": _METRICS,
    "remove_unused_columns": _COLUMNS,
    "restore_callback_states_from_checkpoint": _WHOLE,
    "save_on_each_node": "checkpoints are written by the main process",
    "save_only_model": _WHOLE,
    "save_safetensors": "weights are always saved as safetensors",
    "skip_memory_metrics": _LOG,
    "sortish_sampler": _GROUPED,
    "split_batches": _LOADER,
    "tf32": "use --mixed_precision",
    "torch_compile": _NOT_HERE,
    "use_cache": "it follows from the model",
    "use_fast_tokenizer": _TOKENIZER,
    "use_ipex": _NOT_HERE,
    "use_legacy_prediction_loop": _METRICS,
    "use_liger_kernel": _NOT_HERE,
    "use_mps_device": "an accelerator that is present is used; --use_cpu turns it off",
    "use_slow_tokenizer": _TOKENIZER,
}

# Flags with one value.
VALUES = {
    "accelerator_config": _LAUNCH,
    "activation_checkpointing_kwargs": _MEMORY,
    "cache_dir": _HF_HOME,
    "checkpointing_steps": _SAVE,
    "data_seed": "use --seed",
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "ddp_backend": _LAUNCH,
    "ddp_bucket_cap_mb": _LAUNCH,
    "ddp_timeout": "use --process_timeout",
    "deepspeed": _LAUNCH,
    "eval_accumulation_steps": _EVAL_MEMORY,
    "eval_delay": _EVAL,
    "eval_strategy": _EVAL,
    "evaluation_strategy": _EVAL,
    "forced_bos_token": "it follows from --target_lang",
    "fp16_backend": "use --mixed_precision fp16",
    "fp16_opt_level": "use --mixed_precision fp16",
    "fsdp": _LAUNCH,
    "fsdp_config": _LAUNCH,
    "fsdp_min_num_params": _LAUNCH,
    "fsdp_transformer_layer_cls_to_wrap": _LAUNCH,
    "generation_config": "use --num_beams and --val_max_target_length",
    "generation_max_length": "use --val_max_target_length",
    "generation_num_beams": "use --num_beams",
    "gradient_checkpointing_kwargs": _MEMORY,
    "half_precision_backend": "use --mixed_precision fp16",
    "lang": "use --source_lang and --target_lang",
    "length_column_name": _GROUPED,
    "liger_kernel_config": _NOT_HERE,
    "local_rank": "ranks come from `accelerate launch`",
    "log_level": _LOG,
    "log_level_replica": _LOG,
    "logging_dir": "logs stand in --output_dir",
    "logging_strategy": _LOG,
    "max_length": "use --max_source_length and --max_target_length",
    "max_predict_samples": "use --max_eval_samples",
    "max_steps": "use --max_train_steps",
    "model_revision": "use --model_name_or_path NAME@REVISION",
    "model_type": "use --model_size, or --config_name NAME",
    "mp_parameters": _LAUNCH,
    "neftune_noise_alpha": _NOT_HERE,
    "num_workers": "use --dataloader_num_workers",
    "optim": _ADAMW,
    "optim_args": _ADAMW,
    "optim_target_modules": _ADAMW,
    "parallelism_config": _LAUNCH,
    "past_index": _NOT_HERE,
    "per_device_eval_batch_size": "use --eval_max_tokens",
    "per_gpu_eval_batch_size": "use --eval_max_tokens",
    "per_gpu_train_batch_size": "use --per_device_train_batch_size",
    "project": _TRACKER,
    "push_to_hub_model_id": "use --hub_model_id",
    "push_to_hub_organization": "use --hub_model_id OWNER/NAME",
    "ray_scope": _NOT_HERE,
    "run_name": _TRACKER,
    "save_strategy": _SAVE,
    "sharded_ddp": _LAUNCH,
    "torch_compile_backend": _NOT_HERE,
    "torch_compile_mode": _NOT_HERE,
    "torch_empty_cache_steps": _MEMORY,
    "torchdynamo": _NOT_HERE,
    "tpu_num_cores": _LAUNCH,
    "trackio_bucket_id": _TRACKER,
    "trackio_space_id": _TRACKER,
    "trackio_static_space_id": _TRACKER,
    "train_sampling_strategy": _GROUPED,
    "use_auth_token": "a token comes from HF_TOKEN or `hf auth login`",
    "warmup_ratio": _WARMUP,
    "warmup_steps": _WARMUP,
    "xpu_backend": _LAUNCH,
}

# Flags with any number of values.
LISTS = {
    "debug": _DEBUG,
    "include_for_metrics": _METRICS,
    "label_names": _COLUMNS,
}

# Without these the weights, the scores or the place of publication are not what the command line asked for.
CHANGES_RESULT = frozenset(
    {
        "adafactor",
        "bf16",
        "bf16_full_eval",
        "data_seed",
        "forced_bos_token",
        "fp16",
        "fp16_full_eval",
        "generation_config",
        "generation_max_length",
        "generation_num_beams",
        "max_length",
        "max_predict_samples",
        "max_steps",
        "model_revision",
        "model_type",
        "neftune_noise_alpha",
        "optim",
        "optim_args",
        "optim_target_modules",
        "per_gpu_train_batch_size",
        "push_to_hub_model_id",
        "push_to_hub_organization",
        "use_slow_tokenizer",
        "warmup_ratio",
        "warmup_steps",
    }
)

_TOKEN = "refused, because the launcher prints the command line when a run fails: use HF_TOKEN or `hf auth login`"
REFUSED = {
    "hub_token": _TOKEN,
    "push_to_hub_token": _TOKEN,
    "token": _TOKEN,
}


def advice(name: str) -> str | None:
    """Return the warning that a flag without a meaning here deserves, None when the flag is not one of them.

    Its value is never repeated: it may be a secret.

    Args:
        name: The flag without dashes in front and with underscores; a switch's `no_` form counts as the switch.

    Raises:
        UserError: The flag is refused.
    """
    if name in REFUSED:
        raise UserError(f"--{name}: {REFUSED[name]}")
    known = _positive(name)
    instead = SWITCHES.get(known) or VALUES.get(known) or LISTS.get(known)
    if not instead:
        return None
    effect = "is IGNORED AND THE RESULT CHANGES" if known in CHANGES_RESULT else "is ignored"
    return f"--{name} {effect}: {instead}"


def num_values(name: str, following: list[str]) -> int:
    """Count how many of the tokens after an accepted flag belong to it.

    Args:
        name: The flag, as for `advice`.
        following: The tokens after it, up to the next flag.
    """
    if name in LISTS:
        return len(following)
    if name in VALUES:
        return min(1, len(following))
    is_bool = bool(following) and following[0].lower() in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")
    return int(name in SWITCHES and is_bool)


def _positive(name: str) -> str:
    return name[3:] if name.startswith("no_") and name[3:] in SWITCHES else name
