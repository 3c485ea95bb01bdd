"""Settings of evaluation."""

from dataclasses import dataclass

from mtloop.config.fields import LEAVE_ONE_OUT, MAX_BATCH_TOKENS, MAX_COUNT, Group, setting
from mtloop.errors import FieldError

# sacreBLEU's; the ones with mecab need a package, spm and flores a download.
BLEU_TOKENIZERS = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "spm", "flores101", "flores200")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Group):
    """Evaluations during training, and the choice of the best and the final model."""

    title = "evaluation"

    eval_steps: int | None = setting(
        None,
        "updates between evaluations",
        unset="one evaluation per epoch",
        unit="steps",
        minimum=1,
        maximum=MAX_COUNT,
    )
    eval_on_start: bool | None = setting(
        None, "evaluate before the first update", unset="true when fine-tuning, false from scratch"
    )
    num_beams: int | None = setting(
        None,
        "beams of beam search; 1 is greedy search",
        unset="the one of the model, or 4",
        unit="beams",
        same_run=True,
        minimum=1,
        maximum=1_000,
    )
    val_max_target_length: int | None = setting(
        None,
        "maximum length of a translation in tokens",
        unset="--max_target_length",
        unit="tokens",
        same_run=True,
        minimum=2,
        maximum=65_536,
    )
    max_length_ratio: float | None = setting(
        None,
        "end a translation at this number of tokens per source token, plus 10",
        unset="no such limit",
        unit="ratio",
        same_run=True,
        above=0,
        maximum=1_000,
    )
    eval_max_tokens: int | None = setting(
        None,
        "maximum padded source tokens of an evaluation batch; changes memory, not the result",
        unset="1000 on a CPU, 2000 on XLA, otherwise 2000 to 16000 depending on free memory",
        unit="tokens",
        minimum=1,
        maximum=MAX_BATCH_TOKENS,
    )
    eval_engine: str = setting(
        "generate",
        "engine that translates in evaluations: generate of transformers, or ctranslate2, which is faster and needs "
        "the package of that name",
        choices=("generate", "ctranslate2"),
    )
    metrics: list[str] | None = setting(
        None,
        "scores of the translations, separated by commas or spaces; `mtloop evaluate --help` lists them",
        unset="bleu chrf, and survival where a source has placeholders",
        is_split=True,
    )
    bleu_tokenizer: str | None = setting(
        None,
        "tokenizer of BLEU, one of sacreBLEU's; those with mecab need a package, spm and flores a download",
        unset="by the script of the target language: zh for Chinese, ja-mecab and ko-mecab where installed, char for "
        "other scripts without spaces, otherwise 13a",
        same_run=True,
        choices=BLEU_TOKENIZERS,
    )
    metric_for_best_model: str = setting(
        "bleu",
        "score that decides the best checkpoint: one of --metrics, a kind of survival, bleu_unseen (docs/data.md), "
        "or eval_loss",
        same_run=True,
    )
    min_survival: float | None = setting(
        None,
        "share of rows whose placeholders survive, the score survival, below which a checkpoint is not the best; "
        "until one reaches it, evaluations do not count for --early_stopping_patience",
        unset="no such limit",
        unit="percent",
        same_run=True,
        minimum=0,
        maximum=100,
    )
    early_stopping_patience: int | None = setting(
        None,
        "stop after this number of evaluations without a better score",
        unset="no early stopping",
        unit="evaluations",
        minimum=1,
        maximum=MAX_COUNT,
    )
    load_best_model_at_end: bool = setting(False, "end with the weights of the best checkpoint instead of the last")
    average_last: int | None = setting(
        None,
        "end with the average of the weights of this number of last epochs",
        unset="the last weights",
        unit="epochs",
        minimum=2,
        maximum=1_000,
    )

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        super().__post_init__()
        if self.eval_engine == "ctranslate2" and self.max_length_ratio is not None:
            raise FieldError(
                "eval_engine",
                "--max_length_ratio is only valid with generate",
                got=self.eval_engine,
                remedy=LEAVE_ONE_OUT,
            )
        if self.min_survival is not None and self.metrics is not None and "survival" not in self.metrics:
            raise FieldError(
                "min_survival",
                "--metrics has no survival",
                got=f"{self.min_survival:g}",
                remedy="Add survival to --metrics, or leave it out.",
            )
        if self.average_last is not None and self.load_best_model_at_end:
            raise FieldError(
                "average_last",
                "--load_best_model_at_end chooses another final model",
                got=self.average_last,
                remedy=LEAVE_ONE_OUT,
            )
