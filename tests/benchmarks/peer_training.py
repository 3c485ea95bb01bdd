"""The peer's side of the training benchmarks: Seq2SeqTrainer as the Hugging Face course sets it up, in a process apart.

Takes one JSON object: model, train and valid files, languages, and what differs from the course's arguments.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

MAX_LENGTH = 128


def load(path: str, tokenizer: Any, source_lang: str, target_lang: str) -> Dataset:
    """Load and tokenize as the course does."""

    def preprocess(examples: dict[str, Any]) -> Any:
        inputs = [pair[source_lang] for pair in examples["translation"]]
        targets = [pair[target_lang] for pair in examples["translation"]]
        return tokenizer(inputs, text_target=targets, max_length=MAX_LENGTH, truncation=True)

    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=path, split="train", cache_dir=cache, keep_in_memory=True)
        return rows.map(preprocess, batched=True, remove_columns=rows.column_names, keep_in_memory=True)


class SaveClock(TrainerCallback):
    """The seconds between the end of an update and the end of the save that follows it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.start = time.perf_counter()

    def on_save(self, *arguments: Any, **options: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


class LossClock(TrainerCallback):
    """The validation loss per target token every few updates, against the seconds of training alone."""

    def __init__(self, every: int, goal: float, evaluate: Callable[[torch.nn.Module], float]) -> None:
        self.every, self.goal, self.evaluate = every, goal, evaluate
        self.points: list[tuple[float, float]] = []
        self.seconds = self.start = 0.0

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step % self.every:
            return
        self.seconds += time.perf_counter() - self.start
        self.points.append((self.seconds, self.evaluate(options["model"])))
        control.should_training_stop |= self.points[-1][1] <= self.goal
        self.start = time.perf_counter()


def loss_per_token(model: torch.nn.Module, rows: Dataset, collator: DataCollatorForSeq2Seq) -> float:
    """The cross-entropy per target token, in nats."""
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), 16):
            batch = collator([rows[i] for i in range(start, min(start + 16, len(rows)))])
            num_tokens = int((batch["labels"] != -100).sum())
            total += float(model(**batch).loss) * num_tokens  # the mean over the batch's tokens
            tokens += num_tokens
    model.train()
    return total / tokens


def build_trainer(given: dict[str, Any], output_dir: str) -> Seq2SeqTrainer:
    """Build what the course's section "Fine-tuning the model" builds; `arguments` differ from it by design."""
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    set_seed(42)
    model = AutoModelForSeq2SeqLM.from_pretrained(given["model"])
    train = load(given["train"], tokenizer, given["source_lang"], given["target_lang"])
    arguments = {
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 32,
        "weight_decay": 0.01,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **given.get("arguments", {}),
    }
    return Seq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(output_dir=output_dir, **arguments),
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )


def main() -> None:
    """Train and print the seconds of the loop, and how many of the tokens computed were real."""
    given = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(given, folder)
        points: list[tuple[float, float]] = []
        if "goal" in given:
            points = follow_loss(trainer, given)
        counts: list[tuple[int, ...]] = []
        trainer.data_collator = counting(trainer.data_collator, counts)
        clock = SaveClock()
        trainer.add_callback(clock)
        result = trainer.train()
    # One batch more is collated than is trained on: accelerate looks ahead.
    pairs, sources, targets, computed = (sum(column) for column in zip(*counts[: result.global_step], strict=True))
    found = {
        "seconds": result.metrics["train_runtime"], "pairs": pairs, "source_tokens": sources, "target_tokens": targets,
        "share_real": (sources + targets) / computed, "points": points, "still": clock.seconds,
    }  # fmt: skip
    print(json.dumps(found))


def counting(collate: Callable[[Any], Any], counts: list[tuple[int, ...]]) -> Callable[[Any], Any]:
    """Collate, and note of each batch its pairs, real source and target tokens, and all that will be computed."""

    def collated(rows: Any) -> Any:
        batch = collate(rows)
        real = int(batch["attention_mask"].sum()), int((batch["labels"] != -100).sum())
        counts.append((len(rows), *real, batch["input_ids"].numel() + batch["labels"].numel()))
        return batch

    return collated


def follow_loss(trainer: Seq2SeqTrainer, given: dict[str, Any]) -> list[tuple[float, float]]:
    """Have the trainer note (seconds, validation loss) every few updates; return the list that it fills."""
    valid = load(given["valid"], trainer.processing_class, given["source_lang"], given["target_lang"])
    collator = trainer.data_collator
    clock = LossClock(given["every"], given["goal"], lambda model: loss_per_token(model, valid, collator))  # type: ignore[arg-type]
    trainer.add_callback(clock)
    return clock.points


if __name__ == "__main__":
    main()
