"""The peer's side of the training benchmarks: Seq2SeqTrainer as the Hugging Face course sets it up, in a process apart.

Takes one JSON object: model, train and valid files, languages, and what differs from the course's arguments; also
`order` (the numbers of the rows, in the order to train on them), `dropout`, and `freeze_positions`: transformers 5.24
trains the sinusoidal positions of a Marian that it loads.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from sacrebleu.metrics import BLEU
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


class ValidationClock(TrainerCallback):
    """(updates, seconds of training alone, validation loss per target token, BLEU) every few updates."""

    def __init__(self, every: int, evaluate: Callable[[torch.nn.Module], tuple[float, float, float]]) -> None:
        self.every, self.evaluate = every, evaluate
        self.points: list[tuple[float, ...]] = []
        self.seconds = self.start = 0.0

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        self.seconds += time.perf_counter() - self.start
        self.points.append((state.global_step, self.seconds, *self.evaluate(options["model"])))
        self.start = time.perf_counter()


class OrderedTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer that takes the rows in a given order, and notes the loss and the seconds of each update."""

    order: list[int] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.losses: list[float] = []
        self.starts: list[float] = []

    def _get_train_sampler(self, *arguments: Any, **options: Any) -> Any:
        return self.order or super()._get_train_sampler(*arguments, **options)

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.starts.append(time.perf_counter())
        loss = super().training_step(*arguments, **options)
        self.losses.append(loss.item())
        return loss


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


def build_trainer(given: dict[str, Any], output_dir: str) -> OrderedTrainer:
    """Build what the course's section "Fine-tuning the model" builds; `arguments` differ from it by design."""
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    set_seed(42)
    rates = {"dropout": given["dropout"]} if "dropout" in given else {}
    model = AutoModelForSeq2SeqLM.from_pretrained(given["model"], **rates)
    if given.get("freeze_positions"):
        for side in (model.model.encoder, model.model.decoder):
            side.embed_positions.weight.requires_grad_(False)
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
    trainer = OrderedTrainer(
        model,
        Seq2SeqTrainingArguments(output_dir=output_dir, **arguments),
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
    trainer.order = given.get("order")
    return trainer


def main() -> None:
    """Train and print what was noted on the way."""
    given = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(given, folder)
        points: list[tuple[float, ...]] = []
        if "every" in given:
            points = follow(trainer, given)
        clock = SaveClock()
        trainer.add_callback(clock)
        trainer.train()
    print(json.dumps({"points": points, "still": clock.seconds, "losses": trainer.losses, "starts": trainer.starts}))


def follow(trainer: OrderedTrainer, given: dict[str, Any]) -> list[tuple[float, ...]]:
    """Have the trainer validate every few updates; return the list of points that it fills."""
    tokenizer, collator = trainer.processing_class, trainer.data_collator
    rows = load(given["valid"], tokenizer, given["source_lang"], given["target_lang"])
    lines = Path(given["valid"]).read_text(encoding="utf-8").splitlines()
    references = [json.loads(line)["translation"][given["target_lang"]] for line in lines]

    def evaluate(model: torch.nn.Module) -> tuple[float, float, float]:
        loss = loss_per_token(model, rows, collator)
        if not given["bleu"]:
            return loss, 0.0, 0.0
        score = BLEU().corpus_score(translate(model, rows, tokenizer), [references], n_bootstrap=1_000)
        return loss, score.score, score._ci

    clock = ValidationClock(given["every"], evaluate)
    trainer.add_callback(clock)
    return clock.points


def translate(model: Any, rows: Dataset, tokenizer: Any) -> list[str]:
    """Translate every row with one beam, in batches of similar length; in the order of the rows."""
    model.eval()
    by_length = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
    hypotheses = [""] * len(rows)
    for start in range(0, len(rows), 32):
        numbers = by_length[start : start + 32]
        batch = tokenizer.pad([{"input_ids": rows[number]["input_ids"]} for number in numbers], return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**batch, num_beams=1, max_length=MAX_LENGTH)
        for number, text in zip(numbers, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            hypotheses[number] = text
    model.train()
    return hypotheses


if __name__ == "__main__":
    main()
