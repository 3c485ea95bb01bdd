"""Settings of the model and of the trained part of it. No loading."""

from dataclasses import dataclass
from pathlib import Path

from mtloop.config.fields import LEAVE_ONE_OUT, Group, setting
from mtloop.errors import FieldError

PARTS = ("encoder", "decoder", "embeddings")
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Group):
    """The model and its tokenizer, loaded or built from scratch."""

    title = "model"

    model_name_or_path: str | None = setting(
        None,
        "pretrained model to fine-tune: a Hub name, name@revision, a run folder, or any folder of a model",
        unset="a model from scratch",
        same_run=True,
    )
    config_name: str | None = setting(
        None,
        "model whose configuration a model from scratch gets: a Hub name, name@revision or a folder",
        unset="the one of --model_size",
        same_run=True,
    )
    tokenizer_name: str | None = setting(
        None,
        "tokenizer: a Hub name, name@revision or a folder",
        unset="the tokenizer of the model, or a trained one with --train_tokenizer",
        same_run=True,
    )
    train_tokenizer: bool = setting(False, "train a tokenizer on the training text", same_run=True)
    vocab_size: int | None = setting(
        None,
        "vocabulary size of the trained tokenizer, a multiple of 8",
        unset="8000",
        unit="tokens",
        same_run=True,
        minimum=8,
        maximum=1_000_000,
        multiple_of=8,
    )
    model_size: str | None = setting(
        None,
        "size of a model from scratch",
        unset="the one of --config_name or --model_name_or_path",
        same_run=True,
        choices=("tiny", "small", "base"),
    )
    dropout: float | None = setting(
        None,
        "dropout probability of the layers; 0 turns off all dropout",
        unset="the one of the model",
        unit="probability",
        same_run=True,
        minimum=0,
        below=1,
    )
    trust_remote_code: bool = setting(False, "run Python code from the repository of the model")
    no_verify: bool = setting(False, "do not compare a model that is a checkpoint or final/ with its manifest")

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        super().__post_init__()
        if self.model_name_or_path and self.model_size:
            raise FieldError(
                "model_size",
                "builds a model, and --model_name_or_path loads one",
                got=self.model_size,
                remedy=LEAVE_ONE_OUT,
            )
        if self.model_name_or_path and self.train_tokenizer:
            raise FieldError(
                "train_tokenizer",
                "a pretrained model keeps its tokenizer",
                got=f"--model_name_or_path {self.model_name_or_path}",
                remedy=LEAVE_ONE_OUT,
            )
        if self.config_name and self.model_size:
            raise FieldError(
                "model_size", "--config_name gives the size as well", got=self.model_size, remedy=LEAVE_ONE_OUT
            )
        if self.tokenizer_name and self.train_tokenizer:
            raise FieldError(
                "train_tokenizer",
                "--tokenizer_name loads a tokenizer",
                got=f"--tokenizer_name {self.tokenizer_name}",
                remedy=LEAVE_ONE_OUT,
            )


@dataclass(frozen=True, kw_only=True)
class TuningConfig(Group):
    """The trained part of the model: all weights, all except frozen parts, or a LoRA adapter."""

    title = "what is trained"

    freeze: list[str] | None = setting(
        None,
        f"parts that are not trained, of {', '.join(PARTS)}, separated by commas or spaces; encoder and decoder do not "
        "include the token embeddings, which they may share; embeddings includes positions and a tied output layer",
        unset="no part",
        same_run=True,
        is_split=True,
    )
    lora_rank: int | None = setting(
        None,
        "rank of a LoRA adapter that is trained instead of the model",
        unset="no adapter",
        unit="rank",
        same_run=True,
        minimum=1,
        maximum=4_096,
    )
    lora_alpha: int | None = setting(
        None,
        "scale of the adapter: its output is multiplied by alpha / rank",
        unset="twice the rank",
        same_run=True,
        minimum=1,
        maximum=65_536,
    )
    lora_dropout: float = setting(
        0.0, "dropout probability of the adapter input", unit="probability", same_run=True, minimum=0, below=1
    )
    lora_target_modules: list[str] | None = setting(
        None,
        f"linear layers that get an adapter, separated by commas or spaces, or {ALL_LINEAR}",
        unset="query and value projections of the attentions",
        same_run=True,
        is_split=True,
    )

    def __post_init__(self) -> None:
        """Refuse contradictions, and sort the frozen parts."""
        super().__post_init__()
        for name in ("lora_alpha", "lora_dropout", "lora_target_modules"):
            value = getattr(self, name)
            if value and not self.lora_rank:
                shown = ",".join(value) if isinstance(value, list) else value
                raise FieldError(name, "only valid with --lora_rank", got=shown, remedy="Add --lora_rank N.")
        if not self.freeze:
            return
        if unknown := [part for part in self.freeze if part not in PARTS]:
            raise FieldError("freeze", f"expected one or more of {', '.join(PARTS)}", got=unknown[0])
        if self.lora_rank:
            raise FieldError(
                "freeze",
                "with --lora_rank the whole model is frozen and only the adapter is trained",
                got=",".join(self.freeze),
                remedy=LEAVE_ONE_OUT,
            )
        object.__setattr__(self, "freeze", [part for part in PARTS if part in self.freeze])


def split_revision(name: str) -> tuple[str, str | None]:
    """Split `name@revision`; revision is None for a name without one, and for an existing path."""
    if Path(name).exists():
        return name, None
    base, _, revision = name.partition("@")
    return base, revision or None
