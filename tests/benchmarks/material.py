"""What the benchmarks compare on: a slice of a corpus, a model of random weights, counts of what each side computes.

A contestant runs in a process of its own, so that none has the other's allocator, threads or caches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtloop.atomic import read_json_lines

ROOT = Path(__file__).parents[2]
MAX_LENGTH = 128
# Of the standard model's vocabulary: 10,504 pieces for d = 256 and 3 + 3 layers are 9.2 M parameters.
VOCAB_SIZE = 10_504
DEMO_VOCAB_SIZE = 800
VALID_PAIRS = 16
# 75 M is the shape of opus-mt-en-fr.
SHAPES = {
    "10 M": {"d_model": 256, "layers": 3, "ffn": 1_024, "vocab_size": 12_000},
    "75 M": {"d_model": 512, "layers": 6, "ffn": 2_048, "vocab_size": 59_514},
}


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The arguments that the benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a corpus in any format that train.py reads, or demo")
    parser.add_argument("--source_lang", default="en")
    parser.add_argument("--target_lang", default="fr")
    parser.add_argument("--model", help="a model folder (none: a Marian of random weights, of --size)")
    parser.add_argument("--size", choices=["standard", "opus"], default="standard", help="standard: d = 256, 3 + 3 "
        "layers, 9 M parameters; opus: the shape of opus-mt-en-fr, 75 M parameters")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs; medians are compared")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each")
    return parser


def load_pairs(given: argparse.Namespace) -> list[tuple[str, str]]:
    """Read all pairs of the corpus, those that train.py would drop left out; "demo" is the embedded one."""
    if given.corpus == "demo":
        from mtloop.data.demo.grammar import demo_pairs

        return demo_pairs("train")
    from mtloop.config.inputs import DataConfig
    from mtloop.data.load import load_corpus

    data = DataConfig(
        train_file=(str(Path(given.corpus).resolve()),),
        source_lang=given.source_lang,
        target_lang=given.target_lang,
        validation_split=0.01,
    )
    corpus = load_corpus(data)
    return [(row["source"], row["target"]) for split in (corpus.train, corpus.valid) for row in split]


def choose(pairs: Sequence[tuple[str, str]], number: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Choose pairs at random, in random order."""
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:number]
    return [pairs[i] for i in chosen]


def write_pairs(path: Path, pairs: Iterable[tuple[str, str]], given: argparse.Namespace) -> Path:
    """Write pairs as JSON lines in the schema of the Hub's translation data sets."""
    with path.open("w", encoding="utf-8") as file:
        for source, target in pairs:
            pair = {given.source_lang: source, given.target_lang: target}
            file.write(json.dumps({"translation": pair}, ensure_ascii=False) + "\n")
    return path


def write_splits(
    folder: Path, pairs: Sequence[tuple[str, str]], num_valid: int, given: argparse.Namespace
) -> dict[str, Path]:
    """Write the first pairs as validation rows and the others as training rows; return both files by split."""
    return {
        "train": write_pairs(folder / "train.jsonl", pairs[num_valid:], given),
        "valid": write_pairs(folder / "valid.jsonl", pairs[:num_valid], given),
    }


def model_folder(given: argparse.Namespace, pairs: Sequence[tuple[str, str]], folder: Path) -> Path:
    """Return --model, or make the one of --size of random weights with a tokenizer trained on the pairs."""
    if given.model:
        return Path(given.model).resolve()
    path = folder / "model"
    if given.size == "opus":
        make_model(path, choose(pairs, 20_000), SHAPES["75 M"], vocab_size=10_000)
        return path
    make_standard_model(path, pairs, given, vocab_size=DEMO_VOCAB_SIZE if given.corpus == "demo" else VOCAB_SIZE)
    return path


def make_standard_model(
    path: Path, pairs: Sequence[tuple[str, str]], given: argparse.Namespace, *, vocab_size: int
) -> None:
    """Save a Marian of random weights, d = 256 and 3 + 3 layers, with a tokenizer trained on the pairs."""
    import torch

    from mtloop.config.model import ModelConfig
    from mtloop.model.loading import build_model
    from mtloop.tokenization.training import train_tokenizer

    tokenizer = train_tokenizer(
        (text for pair in pairs for text in pair),
        vocab_size=vocab_size,
        output_dir=path,
        source_lang=given.source_lang,
        target_lang=given.target_lang,
    )
    torch.manual_seed(0)
    build_model(ModelConfig(model_size="small"), tokenizer, max_length=512).save_pretrained(path)


def make_model(path: Path, pairs: list[tuple[str, str]], shape: dict[str, int], *, vocab_size: int = 800) -> int:
    """Save a Marian of random weights, its vocabulary filled up with unused tokens; return its parameters."""
    import torch
    from transformers import MarianConfig, MarianMTModel

    from mtloop.tokenization.training import train_tokenizer

    texts = (text for pair in pairs for text in pair)
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, output_dir=path, source_lang="en", target_lang="fr")
    vocabulary = json.loads((path / "vocab.json").read_text("utf-8"))
    vocabulary |= {f"<unused_{number}>": number for number in range(len(vocabulary), shape["vocab_size"])}
    (path / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", shape["layers"]), ("attention_heads", 8), ("ffn_dim", shape["ffn"]))
    }
    pad = tokenizer.pad_token_id
    config = MarianConfig(
        vocab_size=shape["vocab_size"],
        d_model=shape["d_model"],
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        decoder_start_token_id=pad,
        forced_eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=512,
        **sides,
    )
    torch.manual_seed(0)
    model = MarianMTModel(config)
    model.generation_config.max_length = 64
    model.save_pretrained(path)
    return model.num_parameters()


def lengths_of(model_path: Path, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each source and target as both sides cut them, int32 [N] each."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    options = {"truncation": True, "max_length": MAX_LENGTH}
    sources = [len(tokenizer(source, **options)["input_ids"]) for source, _ in pairs]
    targets = [len(tokenizer(text_target=target, **options)["input_ids"]) for _, target in pairs]
    return np.array(sources, dtype=np.int32), np.array(targets, dtype=np.int32)


def run_apart(script: str, options: dict[str, Any], *, threads: int) -> dict[str, Any]:
    """Run a contestant of the benchmarks in a process of its own; it prints its result as the last line."""
    command = [sys.executable, str(Path(__file__).with_name(script)), json.dumps(options)]
    done = run_quietly(command, threads=threads)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_quietly(command: Sequence[str], *, threads: int) -> subprocess.CompletedProcess[str]:
    """Run a command from the project's folder, offline; show what it said if it fails."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def train_command(
    given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path, *flags: object
) -> list[str]:
    """Return the command of train.py, searching with one beam, for a run in this folder."""
    words = [
        sys.executable, "train.py", "--model_name_or_path", model, "--train_file", files["train"], "--validation_file",
        files["valid"], "--source_lang", given.source_lang, "--target_lang", given.target_lang, "--output_dir", folder,
        "--max_source_length", MAX_LENGTH, "--max_target_length", MAX_LENGTH, "--eval_on_start", "false", "--num_beams",
        1, "--cpu_threads", given.threads, "--mixed_precision", given.precision, *flags,
    ]  # fmt: skip
    return [str(word) for word in words]


def train_with_mtloop(
    given: argparse.Namespace, model: Path, files: dict[str, Path], folder: Path, *flags: object
) -> list[dict[str, Any]]:
    """Train with train.py; return the lines of metrics.jsonl."""
    run_quietly(train_command(given, model, files, folder, *flags), threads=given.threads)
    return read_json_lines(folder / "metrics.jsonl")


def flops_of(model_path: Path, *, source_tokens: int, target_tokens: int) -> float:
    """Count the operations of a forward and backward over real tokens.

    6 for each weight of a matrix product and token (2 forward, 4 backward); the products of attention, which short rows
    make small, are left out. Source: Kaplan et al. 2020, section 2.1.
    """
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(model_path)
    sides = {"encoder": 0, "decoder": model.get_output_embeddings().weight.numel()}
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and "embed" not in name and "shared" not in name and "lm_head" not in name:
            sides["encoder" if "encoder." in name else "decoder"] += weight.numel()
    # Of the decoder's own, the keys and values of its attention to the source are computed at source tokens.
    crossing = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim == 2 and "encoder_attn" in name and ("k_proj" in name or "v_proj" in name)
    )
    return 6.0 * (source_tokens * (sides["encoder"] + crossing) + target_tokens * (sides["decoder"] - crossing))


def matmul_rate(dtype_name: str, *, size: int = 2_048, seconds: float = 2.0) -> float:
    """Measure the operations a second of a square matrix product on this machine."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left = torch.randn(size, size, device=device).to(getattr(torch, dtype_name))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        result = left @ left
        result[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
