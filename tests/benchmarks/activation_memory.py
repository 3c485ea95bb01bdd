"""Memory and time of a forward and backward that keeps its activations, and of one that computes them again.

    python tests/benchmarks/activation_memory.py [--size "75 M"] [--rows 16] [--tokens 256] [--rounds 3]

A Marian of random weights and one batch of rows of --tokens tokens on both sides, with dropout. Each side runs in a
process of its own; memory is the peak beyond what the process has after a backward of one short row: on a CPU of the
process (its resident set), on a GPU of the tensors. Seconds are the median of --rounds; on a CPU those of its threads,
which do not depend on other programs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.material import SHAPES, run_quietly

SIDES = {"kept": False, "computed again": True}


def measure(given: dict[str, Any]) -> dict[str, float]:
    """Run the forwards and backwards of one side; return their loss, peak in bytes, and seconds."""
    import psutil
    import torch
    from transformers import MarianConfig, MarianMTModel

    from mtloop.model.activations import recompute_activations
    from mtloop.model.loss import batch_loss_sum
    from mtloop.runtime.launch import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(given["threads"])
    shape = SHAPES[given["size"]]
    layers = {f"{side}_layers": shape["layers"] for side in ("encoder", "decoder")}
    layers |= {f"{side}_ffn_dim": shape["ffn"] for side in ("encoder", "decoder")}
    heads = {f"{side}_attention_heads": 8 for side in ("encoder", "decoder")}
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=shape["vocab_size"], d_model=shape["d_model"], pad_token_id=0, eos_token_id=1, dropout=0.1,
        decoder_start_token_id=0, max_position_embeddings=max(512, given["tokens"]), **layers, **heads,
        attn_implementation="eager",
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = MarianMTModel(config).to(device).train()
    if given["again"]:
        recompute_activations(model, flag="--gradient_checkpointing")

    def run(rows: int, tokens: int) -> float:
        torch.manual_seed(1)
        ids = torch.randint(2, shape["vocab_size"], (rows, tokens), device=device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.flip(1)}
        batch["target_positions"] = torch.arange(ids.numel(), device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=given["precision"] == "bf16"):
            loss = batch_loss_sum(model, batch)
            (loss / ids.numel()).backward()
        return loss.item() / ids.numel()

    run(1, 8)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = psutil.Process().memory_info().rss
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds, loss = [], 0.0
    for _ in range(given["rounds"]):
        start = clock()
        loss = run(given["rows"], given["tokens"])
        seconds.append(clock() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"loss": loss, "peak": float(peak - before), "seconds": statistics.median(seconds)}


def main() -> None:
    """Print the table; with an argument in JSON be the side that it describes."""
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        print("\n" + json.dumps(measure(json.loads(sys.argv[1]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SHAPES), default="75 M")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="of each row, on both sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["no", "bf16"], default="no")
    given = parser.parse_args()
    found = {}
    print(f"{given.size} parameters, {given.rows} rows of {given.tokens} + {given.tokens} tokens, {given.precision}")
    print(f"{'activations':16}{'memory':>12}{'seconds':>10}{'loss':>12}")
    for name, again in SIDES.items():
        command = [sys.executable, __file__, json.dumps({**vars(given), "again": again})]
        output = run_quietly(command, threads=given.threads).stdout
        found[name] = json.loads(output.strip().splitlines()[-1])
        peak, seconds, loss = (found[name][key] for key in ("peak", "seconds", "loss"))
        print(f"{name:16}{peak / 2**20:>8,.0f} MiB{seconds:>10.2f}{loss:>12.6f}")
    kept, again = found.values()
    memory, time_s = (again[key] / kept[key] for key in ("peak", "seconds"))
    print(f"computed again / kept: memory {memory:.2f}, time {time_s:.2f}")


if __name__ == "__main__":
    main()
