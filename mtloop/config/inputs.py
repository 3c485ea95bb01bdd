"""Model, tuning and data settings. No loading."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtloop.config.fields import (
    Group,
    at_least,
    below_one,
    between,
    between_zero_and_one,
    files,
    multiple_of_eight,
    names,
    not_empty,
    separate,
    setting,
)
from mtloop.errors import FieldError


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The model and its tokenizer, loaded or built from scratch."""

    _argument_group_name = "model"

    model_name_or_path: str | None = setting(
        None,
        "pretrained model to fine-tune: a Hub name, name@revision or a folder (none: from scratch)",
        same_run=True,
        check=not_empty,
    )
    config_name: str | None = setting(
        None,
        "name, name@revision or folder whose configuration a model from scratch takes (none: --model_size)",
        same_run=True,
        check=not_empty,
    )
    tokenizer_name: str | None = setting(
        None,
        "name, name@revision or folder of the tokenizer (none: the model's own, or --train_tokenizer)",
        same_run=True,
        check=not_empty,
    )
    train_tokenizer: bool = setting(False, "train a tokenizer on the training text", same_run=True)
    vocab_size: int | None = setting(
        None,
        "pieces of the trained tokenizer, a multiple of 8 (none: 8000)",
        same_run=True,
        check=multiple_of_eight,
    )
    model_size: Literal["tiny", "small", "base"] | None = setting(
        None, "size of a model built from scratch (none: --config_name or --model_name_or_path)", same_run=True
    )
    dropout: float | None = setting(
        None,
        "dropout probability of the layers, 0 to below 1; 0 turns off all dropout (none: the model's own)",
        same_run=True,
        check=below_one,
    )
    trust_remote_code: bool = setting(False, "run code that comes with a model from the Hub")

    def __post_init__(self) -> None:
        """Refuse values and pairs of values that contradict each other."""
        super().__post_init__()
        if self.model_name_or_path and self.model_size:
            raise FieldError(
                "model_size", f"{self.model_size} builds a model, --model_name_or_path loads one: leave one out"
            )
        if self.model_name_or_path and self.train_tokenizer:
            raise FieldError(
                "train_tokenizer", "a pretrained model keeps its own tokenizer: leave it or --model_name_or_path out"
            )
        if self.config_name and self.model_size:
            raise FieldError("model_size", f"{self.model_size}: --config_name gives the size already: leave one out")
        if self.tokenizer_name and self.train_tokenizer:
            raise FieldError("train_tokenizer", f"--tokenizer_name {self.tokenizer_name} is given: leave one out")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The sentence pairs: where they come from, which are kept, how they are split."""

    _argument_group_name = "data"

    dataset_name: str | None = setting(
        None,
        "data set: demo, kde4, opus:<Corpus>/<version>, a Hub name or name@revision (none: --train_file)",
        same_run=True,
        check=not_empty,
    )
    dataset_config_name: str | None = setting(
        None, "configuration of the data set, as en-fr (none: found from the languages)", same_run=True, check=not_empty
    )
    train_file: list[str] | None = setting(
        None, "training file or files (none: --dataset_name)", same_run=True, check=files
    )
    validation_file: list[str] | None = setting(
        None, "validation file or files (none: split off the training data)", same_run=True, check=files
    )
    test_file: list[str] | None = setting(
        None, "test file or files, scored at the end (none: no test)", same_run=True, check=files
    )
    source_lang: str | None = setting(
        None, "language of the source, as en, de_DE or German (none: only with columns)", same_run=True, check=not_empty
    )
    target_lang: str | None = setting(
        None, "language of the target, as fr, pt_BR or French (none: only with columns)", same_run=True, check=not_empty
    )
    source_column: str | None = setting(
        None, "column of the source text (none: found from --source_lang)", same_run=True, check=not_empty
    )
    target_column: str | None = setting(
        None, "column of the target text (none: found from --target_lang)", same_run=True, check=not_empty
    )
    pairs: str | None = setting(
        None,
        "several pairs in one run, as en-fr,en-de,fr-en, for multilingual models (none: --source_lang, --target_lang)",
        same_run=True,
        check=not_empty,
    )
    source_prefix: str | None = setting(
        None, "text put before every source (none: what the model needs, as T5 and multilingual Marians)", same_run=True
    )
    max_source_length: int = setting(128, "longest source, in tokens", same_run=True, check=between(1, 65_536))
    max_target_length: int = setting(128, "longest target, in tokens", same_run=True, check=between(1, 65_536))
    drop_long: bool = setting(False, "leave pairs over the lengths out instead of cutting them", same_run=True)
    validation_split: float = setting(
        0.1,
        "share of the training pairs that validates when no validation data is given",
        same_run=True,
        check=between_zero_and_one,
    )
    split_seed: int = setting(20, "seed of that split", same_run=True, check=at_least(0))
    max_train_samples: int | None = setting(
        None, "training pairs used, at most (none: all)", same_run=True, check=at_least(1)
    )
    max_eval_samples: int | None = setting(
        None, "validation and test pairs used, at most each (none: all)", same_run=True, check=at_least(1)
    )
    preprocessing_num_workers: int | None = setting(
        None, "processes that tokenize (none: chosen from the cores)", check=at_least(1)
    )
    overwrite_cache: bool = setting(False, "tokenize again although a cached result exists")

    def __post_init__(self) -> None:
        """Refuse values and pairs of values that contradict each other."""
        super().__post_init__()
        if self.dataset_name and self.train_file:
            raise FieldError(
                "train_file", f"{' '.join(self.train_file)}: --dataset_name {self.dataset_name} is given: leave one out"
            )
        for given, missing in (("source_column", "target_column"), ("target_column", "source_column")):
            if getattr(self, given) and not getattr(self, missing):
                raise FieldError(given, f"{getattr(self, given)}: give --{missing} too")
        if self.source_lang and self.source_lang == self.target_lang and not self.source_column:
            raise FieldError(
                "target_lang",
                f"{self.target_lang} is the source language too: give another, or --source_column and --target_column",
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.pairs is None:
            return
        for other in ("source_lang", "target_lang", "source_column", "source_prefix", "dataset_config_name"):
            if getattr(self, other):
                raise FieldError("pairs", f"{self.pairs}: --{other} {getattr(self, other)} is given: leave one out")
        names = self.pair_names
        for name in names:
            source, _, target = name.partition("-")
            if not source or not target or "-" in target or source == target:
                raise FieldError(
                    "pairs", f"{self.pairs}: {name!r} is no pair: give SOURCE-TARGET,..., as en-fr,en-pt_BR"
                )
        if len(set(names)) < len(names):
            raise FieldError("pairs", f"{self.pairs}: a pair stands twice")

    @property
    def pair_names(self) -> tuple[str, ...]:
        """The pairs of --pairs by name, as en-fr; () without."""
        return tuple(name.strip() for name in self.pairs.split(",")) if self.pairs else ()

    @property
    def languages(self) -> tuple[tuple[str | None, str | None], ...]:
        """Source and target language of each pair, at least of one; (None, None) where columns are named instead."""
        if not self.pairs:
            return ((self.source_lang, self.target_lang),)
        return tuple((name.partition("-")[0], name.partition("-")[2]) for name in self.pair_names)

    def of_pairs(self) -> tuple["DataConfig", ...]:
        """Return a config for each pair alone."""
        if not self.pairs:
            return (self,)
        return tuple(
            dataclasses.replace(self, pairs=None, source_lang=source, target_lang=target)
            for source, target in self.languages
        )


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `name@revision`; revision is None where none is given, and for a path that exists."""
    if Path(name).exists():
        return name, None
    base, _, revision = name.partition("@")
    return base, revision or None


PARTS = ("encoder", "decoder", "embeddings")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Group):
    """What of the model is trained."""

    _argument_group_name = "what is trained"

    freeze: list[str] | None = setting(
        None,
        f"parts that stay as they are, of {', '.join(PARTS)}: an encoder or decoder without its table of pieces, which "
        "both may share; embeddings are the tables of pieces and positions, and an output layer tied to them (none: "
        "all is trained)",
        same_run=True,
        check=names,
    )
    lora_rank: int | None = setting(
        None,
        "train a LoRA adapter of this rank beside the frozen model (none: no adapter)",
        same_run=True,
        check=at_least(1),
    )
    lora_alpha: int | None = setting(
        None, "the adapter counts alpha / rank times (none: twice the rank)", same_run=True, check=at_least(1)
    )
    lora_dropout: float = setting(0.0, "dropout probability of the adapter's input", same_run=True, check=below_one)
    lora_target_modules: list[str] | None = setting(
        None,
        f"linear layers that get an adapter, or {ALL_LINEAR} (none: query and value projections of the attentions)",
        same_run=True,
        check=names,
    )

    def __post_init__(self) -> None:
        """Refuse values and pairs of values that contradict each other."""
        super().__post_init__()
        for name in ("freeze", "lora_target_modules"):
            if value := getattr(self, name):
                object.__setattr__(self, name, list(dict.fromkeys(separate(value))))
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            if getattr(self, name) and not self.lora_rank:
                raise FieldError(name, f"{_shown(getattr(self, name))}: only with --lora_rank N")
        if self.freeze:
            self._check_freeze(self.freeze)

    def _check_freeze(self, parts: list[str]) -> None:
        if unknown := [part for part in parts if part not in PARTS]:
            raise FieldError("freeze", f"{unknown[0]}: no such part; give one or more of {', '.join(PARTS)}")
        if self.lora_rank:
            raise FieldError(
                "freeze",
                f"{_shown(parts)}: with --lora_rank all of the model is frozen and the adapter alone is trained: leave "
                "one out",
            )
        object.__setattr__(self, "freeze", [part for part in PARTS if part in parts])


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)
