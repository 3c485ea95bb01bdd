"""The tokenizer of a run, its encoded splits, and what was cut or left out for its length."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mtloop.config import Config, UserError
from mtloop.corpus import Corpus
from mtloop.evaluate import EvaluationSet
from mtloop.run_folder import RunFolder
from mtloop.runtime import Runtime
from mtloop.tokenization import Encoded, encode_rows, load_tokenizer, tokenizer_fingerprint, train_tokenizer


def build_tokenizer(
    config: Config, corpus: Corpus, folder: RunFolder, runtime: Runtime, *, is_new: bool
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is named, or train one on the training split. Collective."""
    model, data = config.model, config.data
    if model.train_tokenizer:
        if is_new or not folder.tokenizer_dir.is_dir():
            runtime.say(f"training a tokenizer of {model.vocab_size:,} pieces ...")

            def train() -> None:
                texts = (text for row in corpus.train for text in (row["source"], row["target"]))
                assert model.vocab_size is not None
                train_tokenizer(
                    texts,
                    vocab_size=model.vocab_size,
                    output_dir=folder.tokenizer_dir,
                    source_lang=data.source_lang,
                    target_lang=data.target_lang,
                )

            runtime.on_main(train)
        name = str(folder.tokenizer_dir)
    else:
        named = model.tokenizer_name or model.model_name_or_path
        assert named is not None  # config checks it
        if (Path(named) / "final" / "config.json").is_file() and not (Path(named) / "config.json").exists():
            raise UserError(f"--model_name_or_path {named}: a run folder; its model is {Path(named) / 'final'}")
        name = named
    return runtime.one_first(
        lambda: load_tokenizer(
            name,
            source_lang=data.source_lang,
            target_lang=data.target_lang,
            trust_remote_code=model.trust_remote_code,
        )
    )


def encode_corpus(
    config: Config, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> tuple[Dataset, Encoded, EvaluationSet, EvaluationSet | None, dict[str, Any]]:
    """Tokenise every split, once a machine, and count what was cut or left out for its length.

    Collective.

    Returns:
        Training rows, the same encoded, validation set, test set, and the report for data.json.
    """
    data = config.data
    report = dict(corpus.report)
    report["fingerprints"] = {"data": corpus.report["fingerprint"], "tokenizer": tokenizer_fingerprint(tokenizer)}
    report["fingerprint"] = hashlib.sha256(
        f"{report['fingerprints']['data']} {report['fingerprints']['tokenizer']} {data.max_source_length} "
        f"{data.max_target_length} {data.drop_long} {data.source_prefix}".encode()
    ).hexdigest()

    def encode(name: str, rows: Dataset) -> Encoded:
        encoded = runtime.one_first(
            lambda: encode_rows(
                rows,
                tokenizer,
                max_source_length=data.max_source_length,
                max_target_length=data.max_target_length,
                source_prefix=data.source_prefix,
                num_workers=data.preprocessing_num_workers,
                overwrite_cache=data.overwrite_cache and runtime.accelerator.is_local_main_process,
            )
        )
        counts = report["counts"][name]
        counts["long_sources"], counts["long_targets"] = encoded.num_long_sources, encoded.num_long_targets
        return encoded

    train_rows, train = drop_long(corpus.train, encode("train", corpus.train), report, is_wanted=data.drop_long)

    def evaluation_set(name: str, rows: Dataset) -> EvaluationSet:
        encoded = encode(name, rows)
        return EvaluationSet(
            name=name,
            rows=rows,
            encoded=encoded.rows,
            source_lengths=encoded.source_lengths,
            target_lengths=encoded.target_lengths,
        )

    valid = evaluation_set("valid", corpus.valid)
    test = evaluation_set("test", corpus.test) if corpus.test is not None else None
    for name, counts in report["counts"].items():
        if num_long := counts["long_sources"] + counts["long_targets"]:
            fate = "dropped" if data.drop_long and name == "train" else "truncated"
            runtime.say(
                f"{name}: {num_long:,} texts over {data.max_source_length} source or {data.max_target_length} target "
                f"tokens, {fate}"
            )
    return train_rows, train, valid, test, report


def drop_long(rows: Dataset, encoded: Encoded, report: dict[str, Any], *, is_wanted: bool) -> tuple[Dataset, Encoded]:
    """Leave over-long training rows out where --drop_long is given, and count them."""
    if not is_wanted or not encoded.is_long.any():
        return rows, encoded
    kept = np.flatnonzero(~encoded.is_long)
    if len(kept) == 0:
        raise UserError("--drop_long: every row is over --max_source_length or --max_target_length; raise them")
    counts = report["counts"]["train"]
    counts["dropped"]["too_long"] = int(encoded.is_long.sum())
    counts["kept"] = len(kept)
    shorter = Encoded(
        rows=encoded.rows.select(kept),
        source_lengths=encoded.source_lengths[kept],
        target_lengths=encoded.target_lengths[kept],
        is_long=encoded.is_long[kept],
        num_long_sources=encoded.num_long_sources,
        num_long_targets=encoded.num_long_targets,
    )
    return rows.select(kept), shorter
