"""The files of a run folder: what each holds, and the shape of the JSON that is read back from it."""

from __future__ import annotations

from mtloop.atomic import Shape

# Every path that a run may leave in its folder, with its meaning: the reference page is generated from this table.
RUN_FILES: dict[str, str] = {
    "config.yaml": "Resolved settings. `train.py RUN/config.yaml --output_dir NEW` starts the same run again.",
    "metrics.jsonl": "One line per logged update, and one line per evaluation.",
    "status.json": "`status` (running, stopped, finished or failed; running after a kill too), `exit_status`, "
    "`message`, `step` at the end, `pid`, `host`, `process_start`, and the `command` that started the run.",
    "data.json": "Data sources, row counts, dropped rows by reason, the shares of validation and test rows that are in "
    "the training rows too, and fingerprints of data and tokenizer.",
    "run.json": "Id of the run, measured precision, changes of `--allow_changed`, Hub target.",
    "push.jsonl": "One line per push to the Hub: `part`, `step`, `manifest`, `repo_id`, `revision`, `commit`.",
    "hypotheses/step_N.jsonl": "Translations of an evaluation: `index`, `source`, `reference`, `hypothesis` "
    "(and `pair`, with `--pairs`; `lost`, if a placeholder did not survive) of every validation sentence.",
    "hypotheses/test.jsonl": "Translations of the test rows at the end of the run, with `--test_file`.",
    "hypotheses/average.jsonl": "Translations of the validation rows by the averaged model, with `--average_last`.",
    "checkpoints/step_N/": "Checkpoint after update N. `from_pretrained` loads it.",
    "checkpoints/step_N/training/": "State that a resume needs in addition to the weights: optimizer, fp16 scaler.",
    "checkpoints/step_N/training/manifest.json": "Step, epoch, position in the epoch, number of processes, budgets, "
    "fingerprints, versions, and size and sha256 of every file of the checkpoint.",
    "checkpoints/step_N/adapter/": "LoRA adapter in the format of peft, with `--lora_rank` (also in `final/`).",
    "checkpoints/damaged_step_N/": "Corrupt checkpoint that a resume renamed.",
    "checkpoints/latest": "Link to the newest checkpoint.",
    "checkpoints/best": "Link to the checkpoint with the best score.",
    "final/": "Model at the end of the run: the last one, the best one (`--load_best_model_at_end`), or the average of "
    "the last epochs (`--average_last N`).",
    "final/mtloop_manifest.json": "Step of the model, hash of the manifest of its checkpoint, and size and sha256 of "
    "every file of `final/`.",
    "final/averaged.json": "Checkpoints that were averaged, with `--average_last`.",
    "tokenizer/": "Trained tokenizer, with `--train_tokenizer`; the one with masks, with `--protect`.",
    "curves.png": "Loss and metrics over updates and time, if matplotlib is installed.",
    "mtloop/": "TensorBoard events, with `--report_to tensorboard`.",
    ".lock": "Process that is training in the folder.",
}


# The shapes of the files, which are read as any input is.
RUN_RECORD: Shape = {
    "run_id?": str,
    "changes?": [{"step": int, "changed": [str]}],
    "precision?": {"name": str, "bf16_gain": (float, None)},
    "micro_batch?": {"max_tokens": int, "is_limit": bool},
    "hub?": {"repo_id": str, "revision": str, "license": (str, None)},
    "final?": {"step": int, "manifest": str, "average_of?": [int]},
}
_SOURCES: Shape = {str: [{}]}
_COUNTS: Shape = {str: {"loaded": int, "dropped": {str: int}, "kept": int}}
_SHARED: Shape = {str: {str: float}}
_DATA_OF_PAIR: Shape = {"sources?": _SOURCES, "counts?": _COUNTS, "shared_with_train?": _SHARED}
DATA_REPORT: Shape = {**_DATA_OF_PAIR, "fingerprint?": str, "fingerprints?": {str: str}, "pairs?": {str: _DATA_OF_PAIR}}
JOURNAL_LINE: Shape = dict.fromkeys(("part", "run_id", "manifest", "repo_id", "revision", "commit"), str) | {
    "step": int
}
HYPOTHESIS: Shape = {"index": int, "source": str, "reference": str, "hypothesis": str, "pair?": str, "lost?": [str]}
STATUS: Shape = {
    "status": str, "exit_status": (int, None), "message": str, "step": int, "pid": int, "host?": str,
    "process_start?": float, "command?": str,
}  # fmt: skip
