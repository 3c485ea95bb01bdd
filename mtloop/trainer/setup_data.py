"""Build the tokenizer of a run and encode its splits; count truncated and dropped rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from mtloop.checkpoint.listing import open_folder
from mtloop.config.settings import Config, changed
from mtloop.data.load import Corpus
from mtloop.data.rows import digest
from mtloop.errors import UserError
from mtloop.evaluation.evaluate import EvaluationSet, PairRows
from mtloop.model.loading import load_config
from mtloop.run_folder import RunFolder
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import Encoded, encode_rows, tokenizer_fingerprint
from mtloop.tokenization.loading import (
    can_tell_pairs_apart,
    for_languages,
    language_token,
    load_tokenizer,
    source_prefix,
)
from mtloop.tokenization.training import train_tokenizer


def build_tokenizer(
    config: Config, corpora: list[Corpus], folder: RunFolder, runtime: Runtime, *, is_new: bool
) -> PreTrainedTokenizerBase:
    """Load the named tokenizer, or train one on the training split; it is set to the first pair. Collective."""
    model, data = config.model, config.data
    source_lang, target_lang = data.languages[0]
    if model.train_tokenizer:
        if is_new or not folder.tokenizer_dir.is_dir():
            runtime.say(f"training a tokenizer with {model.vocab_size:,} tokens ...")
            targets = list(dict.fromkeys(str(target) for _, target in data.languages))

            def train() -> None:
                assert model.vocab_size is not None
                train_tokenizer(
                    _texts(corpora),
                    vocab_size=model.vocab_size,
                    output_dir=folder.tokenizer_dir,
                    source_lang=source_lang,
                    target_lang=target_lang,
                    language_tokens=[language_token(target) for target in targets] if len(targets) > 1 else [],
                )

            runtime.on_main(train)
        name = str(folder.tokenizer_dir)
    else:
        named = model.tokenizer_name or model.model_name_or_path
        assert named is not None
        if (Path(named) / "final" / "config.json").is_file() and not (Path(named) / "config.json").exists():
            raise UserError(f"--model_name_or_path: {named} is a run folder. Give its model, {Path(named) / 'final'}.")
        name = named
    return runtime.one_first(
        lambda: load_tokenizer(
            open_folder(name, no_verify=model.no_verify),
            source_lang=source_lang,
            target_lang=target_lang,
            trust_remote_code=model.trust_remote_code,
        )
    )


def _texts(corpora: list[Corpus]) -> Iterator[str]:
    for corpus in corpora:
        for row in corpus.train:
            yield row["source"]
            yield row["target"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Language pair of a run and the encoding of its rows.

    Attributes:
        name: For example en-fr; "" if the run has a single pair.
        target_lang: As given; None where columns are named instead.
        corpus: Rows of the pair.
        tokenizer: Set to the languages of the pair.
        prefix: Prepended to every source; None for nothing.
    """

    name: str
    source_lang: str | None
    target_lang: str | None
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    prefix: str | None


def resolve_pairs(
    config: Config, corpora: list[Corpus], tokenizer: PreTrainedTokenizerBase, runtime: Runtime
) -> tuple[list[Pair], Config]:
    """Resolve the tokenizer and prefix of each pair; of a single one the prefix goes into the config. Collective.

    Raises:
        UserError: for a language unknown to the tokenizer, or several target languages for a model of one.
    """
    data = config.data
    model_config = runtime.one_first(lambda: load_config(config.model, tokenizer))
    if len({target for _, target in data.languages}) > 1 and not can_tell_pairs_apart(model_config, tokenizer):
        raise UserError(
            f"--pairs {data.pairs}: this {model_config.model_type} model has one target language. Give an mBART, "
            "M2M100, NLLB, mT5 or multilingual Marian model, or train from scratch with --train_tokenizer."
        )
    pairs = []
    for (source_lang, target_lang), corpus in zip(data.languages, corpora, strict=True):
        prefix = data.source_prefix
        if prefix is None:
            several = len(data.languages) > 1
            prefix = source_prefix(model_config, tokenizer, source_lang, target_lang, is_one_of_several=several)
        pairs.append(
            Pair(
                name=f"{source_lang}-{target_lang}" if data.pairs else "",
                source_lang=source_lang,
                target_lang=target_lang,
                corpus=corpus,
                tokenizer=for_languages(tokenizer, source_lang, target_lang) if data.pairs else tokenizer,
                prefix=prefix,
            )
        )
    runtime.say(*filter(None, (_described(pair, is_given=data.source_prefix is not None) for pair in pairs)))
    return pairs, config if data.pairs else changed(config, source_prefix=pairs[0].prefix)


def _described(pair: Pair, *, is_given: bool) -> str:
    """Describe the encoding of a pair: the tokenizer's language codes and the prefix."""
    parts = []
    if hasattr(pair.tokenizer, "src_lang") and hasattr(pair.tokenizer, "tgt_lang"):
        parts.append(f"languages {pair.tokenizer.src_lang} to {pair.tokenizer.tgt_lang}")
    if pair.prefix and not is_given:
        parts.append(f"every source begins with {pair.prefix!r}")
    return f"{pair.name}: {'; '.join(parts)}".removeprefix(": ") if parts else ""


def encode_corpus(
    config: Config, pairs: list[Pair], runtime: Runtime
) -> tuple[Dataset, Encoded, EvaluationSet, EvaluationSet | None, dict[str, Any]]:
    """Tokenize every split, once a machine; count truncated and dropped rows.

    Collective.

    Returns:
        Training rows, the same encoded, validation set, test set, and the report for data.json.
    """
    encoded = [_encode_pair(config, pair, runtime) for pair in pairs]
    trains, valids, tests, reports = zip(*encoded, strict=True)
    train_rows, train = _join(list(trains))
    if len(pairs) > 1:
        lacking = [pair.name for pair, test in zip(pairs, tests, strict=True) if test is None]
        if lacking and len(lacking) < len(pairs):
            runtime.say(f"no test rows for {', '.join(lacking)}: no pair is tested at the end")
    has_test = all(test is not None for test in tests)
    return (
        train_rows,
        train,
        _evaluation_set("valid", pairs, list(valids)),
        _evaluation_set("test", pairs, [test for test in tests if test is not None]) if has_test else None,
        reports[0] if len(pairs) == 1 else _merged(pairs, list(reports)),
    )


Split = tuple[Dataset, Encoded]


def _encode_pair(config: Config, pair: Pair, runtime: Runtime) -> tuple[Split, Split, Split | None, dict[str, Any]]:
    data, corpus = config.data, pair.corpus
    report = dict(corpus.report)
    report["fingerprints"] = {"data": corpus.report["fingerprint"], "tokenizer": tokenizer_fingerprint(pair.tokenizer)}
    report["fingerprint"] = hashlib.sha256(
        f"{report['fingerprints']['data']} {report['fingerprints']['tokenizer']} {data.max_source_length} "
        f"{data.max_target_length} {data.drop_long} {pair.prefix}".encode()
    ).hexdigest()

    def encode(name: str, rows: Dataset) -> Split:
        encoded = runtime.one_first(
            lambda: encode_rows(
                rows,
                pair.tokenizer,
                max_source_length=data.max_source_length,
                max_target_length=data.max_target_length,
                source_prefix=pair.prefix,
                num_workers=data.preprocessing_num_workers,
                overwrite_cache=data.overwrite_cache and runtime.accelerator.is_local_main_process,
                tokenizer_hash=report["fingerprints"]["tokenizer"],
                worker_timeout=config.hardware.process_timeout,
            )
        )
        counts = report["counts"][name]
        counts["long_sources"], counts["long_targets"] = encoded.num_long_sources, encoded.num_long_targets
        return rows, encoded

    train = drop_long(*encode("train", corpus.train), report, is_wanted=data.drop_long)
    valid = encode("valid", corpus.valid)
    test = encode("test", corpus.test) if corpus.test is not None else None
    for name, counts in report["counts"].items():
        if num_long := counts["long_sources"] + counts["long_targets"]:
            fate = "dropped" if data.drop_long and name == "train" else "truncated"
            runtime.say(
                f"{pair.name} {name}: {num_long:,} texts over {data.max_source_length} source or "
                f"{data.max_target_length} target tokens, {fate}".lstrip()
            )
    return train, valid, test, report


def _join(splits: list[Split]) -> Split:
    """Concatenate the rows of all pairs."""
    if len(splits) == 1:
        return splits[0]
    encoded = [one for _, one in splits]
    whole = Encoded(
        rows=concatenate_datasets([one.rows for one in encoded]),
        source_lengths=np.concatenate([one.source_lengths for one in encoded]),
        target_lengths=np.concatenate([one.target_lengths for one in encoded]),
        is_long=np.concatenate([one.is_long for one in encoded]),
        num_long_sources=sum(one.num_long_sources for one in encoded),
        num_long_targets=sum(one.num_long_targets for one in encoded),
    )
    return concatenate_datasets([rows for rows, _ in splits]), whole


def _evaluation_set(name: str, pairs: list[Pair], splits: list[Split]) -> EvaluationSet:
    rows, encoded = _join(splits)
    parts, start = [], 0
    for pair, (own_rows, _) in zip(pairs, splits, strict=True):
        rows_of_pair = slice(start, start + len(own_rows))
        parts.append(
            PairRows(name=pair.name, rows=rows_of_pair, target_lang=pair.target_lang, tokenizer=pair.tokenizer)
        )
        start += len(own_rows)
    return EvaluationSet(
        name=name,
        rows=rows,
        encoded=encoded.rows,
        source_lengths=encoded.source_lengths,
        target_lengths=encoded.target_lengths,
        parts=tuple(parts) if len(pairs) > 1 else (),
    )


def _merged(pairs: list[Pair], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the reports of all pairs; each pair's report is kept under "pairs"."""
    counts: dict[str, Any] = {}
    for report in reports:
        for split, of_pair in report["counts"].items():
            counts[split] = _sum(counts.get(split, {}), of_pair)
    fingerprints = {
        kind: digest([report["fingerprints"][kind] for report in reports]) for kind in reports[0]["fingerprints"]
    }
    return {
        "sources": reports[0]["sources"],
        "counts": counts,
        "fingerprints": fingerprints,
        "fingerprint": digest([report["fingerprint"] for report in reports]),
        "pairs": {pair.name: report for pair, report in zip(pairs, reports, strict=True)},
    }


def _sum(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Add up numbers of the same name, in dicts of any depth."""
    total = dict(first)
    for name, value in second.items():
        total[name] = _sum(first.get(name, {}), value) if isinstance(value, dict) else first.get(name, 0) + value
    return total


def drop_long(rows: Dataset, encoded: Encoded, report: dict[str, Any], *, is_wanted: bool) -> tuple[Dataset, Encoded]:
    """Drop and count training rows that are too long where --drop_long is given."""
    if not is_wanted or not encoded.is_long.any():
        return rows, encoded
    kept = np.flatnonzero(~encoded.is_long)
    if len(kept) == 0:
        raise UserError(
            "--drop_long: every row is longer than --max_source_length or --max_target_length. Raise these lengths."
        )
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
