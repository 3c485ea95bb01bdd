"""Settings of the data. No loading."""

import dataclasses
from dataclasses import dataclass

from mtloop.config.fields import LEAVE_ONE_OUT, MAX_COUNT, MAX_SEED, Group, setting
from mtloop.errors import FieldError

QUOTING = ("csv", "none")
SPLIT_BY_SOURCE, SPLIT_BY_FILE, SPLIT_BY_COLUMN = "source", "file", "column"


@dataclass(frozen=True)
class Dialect:
    """The form of .csv and .tsv files, and the entries of catalogues that are used.

    Attributes:
        quoting: csv for fields in double quotes, none for fields as they are; None for csv in .csv and none in .tsv.
        delimiter: The character between two fields; None for a comma in .csv and a tab in .tsv.
        no_header: Whether the first line is a row; the columns are then named by their numbers, from 1.
        keep_fuzzy: Whether entries of a catalogue that need a review are used.
    """

    quoting: str | None = None
    delimiter: str | None = None
    no_header: bool = False
    keep_fuzzy: bool = False

    def __post_init__(self) -> None:
        if self.delimiter in ("\\t", "tab"):  # as it can be typed in a shell
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise FieldError(
                "delimiter", "expected one character, or tab", got=repr(self.delimiter), remedy="Give one, such as ';'."
            )

    def is_quoted(self, kind: str) -> bool:
        """Return True if fields of a csv or tsv file may be in quotes."""
        return (self.quoting or ("csv" if kind == "csv" else "none")) == "csv"

    def separator(self, kind: str) -> str:
        """Return the character between two fields of a csv or tsv file."""
        return self.delimiter or ("," if kind == "csv" else "\t")

    def changes(self, kind: str) -> dict[str, str | bool]:
        """Return what changes the rows of a file of this kind: no quoted fields, another delimiter, no header, ..."""
        if kind == "catalogue":
            return {"keep_fuzzy": True} if self.keep_fuzzy else {}
        if kind not in ("csv", "tsv"):
            return {}
        separator = self.separator(kind)
        return {
            **({} if self.is_quoted(kind) else {"quoting": "none"}),
            **({} if separator == Dialect().separator(kind) else {"delimiter": separator}),
            **({"no_header": True} if self.no_header else {}),
        }


@dataclass(frozen=True, kw_only=True)
class DataConfig(Group):
    """The sentence pairs: their source, filters and splits."""

    title = "data"

    dataset_name: str | None = setting(
        None,
        "data set: demo, kde4, opus:<Corpus>/<version>, a Hub name or name@revision",
        unset="files, with --train_file",
        same_run=True,
    )
    dataset_config_name: str | None = setting(
        None, "configuration of the data set, for example en-fr", unset="found from the languages", same_run=True
    )
    train_file: list[str] | None = setting(
        None, "training file or files", unset="a data set, with --dataset_name", same_run=True
    )
    validation_file: list[str] | None = setting(
        None, "validation file or files", unset="split off the training data", same_run=True
    )
    test_file: list[str] | None = setting(
        None, "test file or files, translated and scored at the end", unset="no test", same_run=True
    )
    source_lang: str | None = setting(
        None,
        "source language, for example en, de_DE or German",
        unset="required without --source_column or --pairs",
        same_run=True,
    )
    target_lang: str | None = setting(
        None,
        "target language, for example fr, pt_BR or French",
        unset="required without --target_column or --pairs",
        same_run=True,
    )
    source_key: str | None = setting(
        None,
        "language of the source in the rows, where the model has another code",
        unset="--source_lang",
        same_run=True,
    )
    target_key: str | None = setting(
        None,
        "language of the target in the rows, where the model has another code",
        unset="--target_lang",
        same_run=True,
    )
    source_column: str | None = setting(
        None, "column of the source text; a number with --no_header", unset="found from --source_lang", same_run=True
    )
    target_column: str | None = setting(
        None, "column of the target text; a number with --no_header", unset="found from --target_lang", same_run=True
    )
    quoting: str | None = setting(
        None,
        "fields of .csv and .tsv files: csv reads double quotes as CSV does, none reads them as text",
        unset="csv for .csv, none for .tsv",
        same_run=True,
        choices=QUOTING,
    )
    delimiter: str | None = setting(
        None,
        "character between the fields of .csv and .tsv files, or tab",
        unset="a comma for .csv, a tab for .tsv",
        same_run=True,
        may_be_blank=True,
    )
    no_header: bool = setting(
        False, "the first line of .csv and .tsv files is a row; columns are numbered from 1", same_run=True
    )
    keep_fuzzy: bool = setting(
        False, "use the entries of .po and .xliff files that are marked fuzzy or as needing a review", same_run=True
    )
    pairs: str | None = setting(
        None,
        "several language pairs in one run, for example en-fr,en-de,fr-en, for multilingual models",
        unset="the pair of --source_lang and --target_lang",
        same_run=True,
    )
    source_prefix: str | None = setting(
        None,
        "text before every source",
        unset="chosen by the model, for example for T5 and multilingual Marian models",
        same_run=True,
        may_be_blank=True,
    )
    protect: str | None = setting(
        None,
        "what is masked before tokenizing and restored in translations: placeholders, such as variables, tags and URLs;"
        " recorded in the model",
        unset="nothing, unless the model was trained so",
        same_run=True,
        choices=("placeholders",),
    )
    max_source_length: int = setting(
        128, "maximum length of a source in tokens", unit="tokens", same_run=True, minimum=1, maximum=65_536
    )
    max_target_length: int = setting(
        128, "maximum length of a target in tokens", unit="tokens", same_run=True, minimum=2, maximum=65_536
    )
    drop_long: bool = setting(False, "drop pairs over the maximum lengths instead of truncating them", same_run=True)
    validation_split: float = setting(
        0.1,
        "fraction of the training pairs used for validation, if no validation data is given",
        unit="fraction",
        same_run=True,
        above=0,
        below=1,
    )
    split_by: list[str] | None = setting(
        None,
        "rows to keep on one side of the validation split: source (those with the same one but for case, accelerators, "
        "white space and final punctuation), file, or column NAME (those with the same value)",
        unset="each row by itself, as in the Hugging Face course",
        same_run=True,
    )
    split_seed: int = setting(
        20, "random seed of the validation split", unit="seed", same_run=True, minimum=0, maximum=MAX_SEED
    )
    max_train_samples: int | None = setting(
        None,
        "maximum number of training pairs",
        unset="all pairs",
        unit="pairs",
        same_run=True,
        minimum=1,
        maximum=MAX_COUNT,
    )
    max_eval_samples: int | None = setting(
        None,
        "maximum number of validation pairs, and of test pairs without --max_predict_samples",
        unset="all pairs",
        unit="pairs",
        same_run=True,
        minimum=1,
        maximum=MAX_COUNT,
    )
    max_predict_samples: int | None = setting(
        None,
        "maximum number of test pairs",
        unset="--max_eval_samples",
        unit="pairs",
        same_run=True,
        minimum=1,
        maximum=MAX_COUNT,
    )
    preprocessing_num_workers: int | None = setting(
        None,
        "number of processes for tokenization",
        unset="chosen from the number of cores",
        unit="processes",
        minimum=1,
        maximum=256,
    )
    overwrite_cache: bool = setting(False, "tokenize again instead of using cached results")

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        super().__post_init__()
        if self.dataset_name and self.train_file:
            raise FieldError(
                "train_file",
                f"--dataset_name {self.dataset_name} is given as well",
                got=" ".join(self.train_file),
                remedy=LEAVE_ONE_OUT,
            )
        for side in ("source", "target"):
            if not (key := getattr(self, f"{side}_key")):
                continue
            if self.source_column:
                raise FieldError(f"{side}_key", "--source_column is given as well", got=key, remedy=LEAVE_ONE_OUT)
            if not self.pairs and not getattr(self, f"{side}_lang"):
                object.__setattr__(self, f"{side}_lang", key)
        for given, missing in (("source_column", "target_column"), ("target_column", "source_column")):
            if getattr(self, given) and not getattr(self, missing):
                raise FieldError(
                    given, "only valid with the other column", got=getattr(self, given), remedy=f"Add --{missing}."
                )
        _ = self.dialect  # checks its values
        if self.no_header and not self.source_column:
            raise FieldError(
                "no_header",
                "columns have numbers instead of names",
                got="no column",
                remedy="Add --source_column and --target_column, for example 1 and 2.",
            )
        if (
            self.source_lang
            and self.source_lang == self.target_lang
            and not self.source_column
            and len(set(self.row_languages)) < 2
        ):
            raise FieldError(
                "target_lang",
                "the same as --source_lang",
                got=self.target_lang,
                remedy="Give another language, or the columns or keys of the rows.",
            )
        if self.pairs:
            self._check_pairs(self.pairs)
        if self.split_by is not None:
            self._check_split_by(self.split_by)

    def _check_split_by(self, words: list[str]) -> None:
        if len(words) == 1 and words[0].startswith(f"{SPLIT_BY_COLUMN} "):  # in YAML and Python, "column id"
            words = words[0].split(" ", 1)
            object.__setattr__(self, "split_by", words)
        kind, *names = words
        if kind not in (SPLIT_BY_SOURCE, SPLIT_BY_FILE, SPLIT_BY_COLUMN) or len(names) != (kind == SPLIT_BY_COLUMN):
            raise FieldError("split_by", "expected source, file, or column NAME", got=" ".join(words))
        if self.validation_file:
            problem = "--validation_file is given as well, and nothing is split off"
            raise FieldError("split_by", problem, got=" ".join(words), remedy=LEAVE_ONE_OUT)

    def _check_pairs(self, pairs: str) -> None:
        for other in ("source_lang", "target_lang", "source_key", "target_key", "source_column", "source_prefix",
                      "dataset_config_name"):  # fmt: skip
            if value := getattr(self, other):
                raise FieldError("pairs", f"--{other} {value} is given as well", got=pairs, remedy=LEAVE_ONE_OUT)
        for name in self.pair_names:
            source, _, target = name.partition("-")
            if not source or not target or "-" in target or source == target:
                raise FieldError("pairs", "expected SOURCE-TARGET,..., for example en-fr,en-pt_BR", got=repr(name))
        if len(set(self.pair_names)) < len(self.pair_names):
            raise FieldError("pairs", "a pair is repeated", got=pairs, remedy="Name each pair once.")

    @property
    def dialect(self) -> Dialect:
        """The form of the files."""
        return Dialect(self.quoting, self.delimiter, self.no_header, self.keep_fuzzy)

    @property
    def pair_names(self) -> tuple[str, ...]:
        """The names of --pairs, for example en-fr; () without it."""
        return tuple(name.strip() for name in self.pairs.split(",")) if self.pairs else ()

    @property
    def languages(self) -> tuple[tuple[str | None, str | None], ...]:
        """Source and target language of each pair, of at least one; (None, None) if columns are given instead."""
        if not self.pairs:
            return ((self.source_lang, self.target_lang),)
        return tuple((name.partition("-")[0], name.partition("-")[2]) for name in self.pair_names)

    @property
    def row_languages(self) -> tuple[str | None, str | None]:
        """Source and target language as the rows have them."""
        return self.source_key or self.source_lang, self.target_key or self.target_lang

    def of_pairs(self) -> tuple["DataConfig", ...]:
        """Return one configuration per pair."""
        if not self.pairs:
            return (self,)
        return tuple(
            dataclasses.replace(self, pairs=None, source_lang=source, target_lang=target)
            for source, target in self.languages
        )
