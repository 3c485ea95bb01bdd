"""Write small run folders as a training leaves them, for tests of pushes and cards."""

import hashlib
import json
from pathlib import Path

from mtloop.checkpoint.manifest import hash_file, write_manifest
from mtloop.config.parse import parse_config
from mtloop.config.settings import resolve
from mtloop.run_folder import RunFolder

RUN_ID = "0123456789abcdef0123456789abcdef"
UPDATES_PER_EPOCH = 10
# A client that reads no certificates and sends no telemetry starts in a third of the time; the tests' Hub speaks http.
QUICK_CLIENT = {"SSL_CERT_DIR": "/nonexistent", "HF_HUB_DISABLE_TELEMETRY": "1"}
SIGNATURES = {"bleu_signature": "nrefs:1|tok:13a|version:2.6.0", "chrf_signature": "nrefs:1|nc:6|version:2.6.0"}


def write_checkpoint(folder: RunFolder, epoch: int, *, text: str = "", cursor: int = 0) -> Path:
    """Write checkpoints/step_N with weights made of the step and `text`."""
    step = epoch * UPDATES_PER_EPOCH + cursor
    path = folder.checkpoints_dir / f"step_{step}"
    (path / "training").mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(f"weights {step} {text}".encode() * 5_000)
    (path / "source.spm").write_bytes(b"pieces")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (path / name).write_text(json.dumps({"architectures": ["MarianMTModel"], "name": name}))
    (path / "config.yaml").write_text(folder.config_path.read_text())
    (path / "training" / "optimizer.pt").write_bytes(b"moments" * 100)
    names = [file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"]
    write_manifest(
        path,
        {
            "run_id": folder.run_record["run_id"],
            "hardware": "device cpu · 2 processes",
            "versions": {"python": "3.11.7", "torch": "2.13.0"},
            "fingerprints": {},
            "step": step,
            "epoch": epoch,
            "cursor": cursor,
            "state": {"train_time_s": 3700.0},
            "files": {file.relative_to(path).as_posix(): hash_file(file) for file in names},
        },
    )
    return path


def make_run(path: Path, *words: str, epochs: int = 3, is_finished: bool = False, run_id: str = RUN_ID) -> RunFolder:
    """Write a run folder with a checkpoint for each epoch; `words` are its flags (default: the demo, 3 epochs)."""
    folder = RunFolder(path)
    folder.create()
    config = resolve(parse_config([*(words or ("demo", "--num_train_epochs", "3")), "--output_dir", str(path)]))
    folder.update_record(run_id=run_id)
    counts = {"loaded": 20, "dropped": {"empty": 2}, "kept": 18, "long_sources": 0, "long_targets": 0}
    folder.write_data({"counts": {"train": counts}, "fingerprint": "f" * 64})
    folder.write_config(config)
    lines = [evaluation(0, bleu=1.0)]
    for epoch in range(1, epochs + 1):
        write_checkpoint(folder, epoch)
        step = epoch * UPDATES_PER_EPOCH
        lines.append({"step": step - 5, "epoch": epoch - 0.5, "loss": 4.0 / epoch, "target_tokens": 100})
        lines.append({"step": step, "epoch": float(epoch), "loss": 2.0 / epoch, "target_tokens": 300})
        lines.append(evaluation(epoch, bleu=20.0 * epoch))
        write_hypotheses(folder, step)
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if is_finished:
        finish(folder, step=epochs * UPDATES_PER_EPOCH)
    return folder


def evaluation(epoch: int, *, bleu: float) -> dict:
    """Return a line of metrics.jsonl."""
    scores = {"bleu": bleu, "chrf": bleu + 10.0, "eval_loss": 5.0 - epoch, "perplexity": 9.0, "num_sentences": 30}
    line = {"step": epoch * UPDATES_PER_EPOCH, "epoch": float(epoch), **scores, **SIGNATURES}
    return {**line, "eval_time_s": 30.0, "sentences_per_s": 1.0}


def write_hypotheses(folder: RunFolder, step: int) -> None:
    """Write 30 hypotheses, which name the step."""
    folder.hypotheses_dir.mkdir(exist_ok=True)
    rows = [
        {"index": i, "source": f"source {i}", "reference": f"reference {i}", "hypothesis": f"hypothesis {i} of {step}"}
        for i in range(30)
    ]
    path = folder.hypotheses_dir / f"step_{step}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(folder: RunFolder, *, step: int) -> None:
    """Copy a checkpoint to final/, and set the status to finished."""
    source = folder.checkpoints_dir / f"step_{step}"
    folder.final_dir.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.is_file():
            (folder.final_dir / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((source / "training" / "manifest.json").read_text())["sha256"]
    files = {file.name: hash_file(file) for file in sorted(folder.final_dir.iterdir())}
    write_manifest(folder.final_dir, {"step": step, "manifest": manifest, "average_of": [], "files": files})
    folder.write_status("finished", exit_status=0, step=step)


def hashes(path: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder, by relative path."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
