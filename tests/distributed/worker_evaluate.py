"""Worker: evaluate a model on rows and write the report.

worker_evaluate.py NUM_RANKS MODEL_DIR ROWS.jsonl OUT.json [sharded]
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset

from mtloop.batching.division import plan_evaluation
from mtloop.config.environment import HardwareConfig
from mtloop.evaluation.evaluate import EvaluationSet, evaluate
from mtloop.generation.engine import EngineOptions, TransformersEngine
from mtloop.model.loading import layers_of, load_model
from mtloop.runtime.quiet import silence_libraries
from mtloop.runtime.ranks import Runtime
from mtloop.runtime.sharding import is_sharded
from mtloop.tokenization.encoding import encode_rows
from mtloop.tokenization.loading import load_tokenizer

MAX_TOKENS = 300


def main() -> None:
    num_ranks, model_dir, rows_path, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    silence_libraries()
    # One thread on any number of ranks: sums over threads are not bitwise those of one.
    shard_model = "sharded" in sys.argv[5:]
    runtime = Runtime(HardwareConfig(use_cpu=True, cpu_threads=1, mixed_precision="no", shard_model=shard_model))
    assert runtime.accelerator.num_processes == num_ranks, runtime.accelerator.num_processes
    tokenizer = load_tokenizer(model_dir, source_lang="en", target_lang="fr")
    pairs = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
    rows = Dataset.from_dict(
        {"index": list(range(len(pairs))), "source": [p[0] for p in pairs], "target": [p[1] for p in pairs]}
    )
    encoded = runtime.one_first(
        lambda: encode_rows(
            rows, tokenizer, max_source_length=64, max_target_length=64, source_prefix=None, num_workers=1
        )
    )
    data = EvaluationSet(
        name="valid",
        rows=rows,
        encoded=encoded.rows,
        source_lengths=encoded.source_lengths,
        target_lengths=encoded.target_lengths,
    )
    model = load_model(model_dir, tokenizer, dropout=None, attention="eager")
    runtime.place_model(model, layers_of)
    assert is_sharded(model) == shard_model
    engine = TransformersEngine(model, tokenizer, asked=EngineOptions(), max_source_length=64)
    report = evaluate(engine, data, runtime, model=model, max_tokens=MAX_TOKENS, target_lang="fr")
    numbers = (report.loss_per_token, report.scores["bleu"].value, report.time_s)
    # The same numbers on every rank, the clock's included: what is decided from them must be the same.
    assert len(set(runtime.gather_objects([numbers]))) == 1
    if runtime.is_main:
        scores = {name: asdict(score) for name, score in report.scores.items()}
        bleu_sums = report.counted[""]["bleu"].statistics.rows.sum(axis=0).tolist()
        record = {"loss": report.loss_per_token, "scores": scores, "bleu_sums": bleu_sums, "hyps": report.hypotheses}
        num_batches = len(plan_evaluation(data.source_lengths, max_tokens=MAX_TOKENS))
        out.write_text(json.dumps({**record, "num_batches": num_batches}))
    runtime.close()


if __name__ == "__main__":
    main()
