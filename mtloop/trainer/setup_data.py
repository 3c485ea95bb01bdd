"""Encode the splits of a run; count truncated and dropped rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from mtloop.config.settings import Config
from mtloop.data.load import Corpus
from mtloop.data.rows import digest
from mtloop.errors import UserError
from mtloop.evaluation.evaluate import EvaluationSet, PairRows
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import Encoded, encode_rows, tokenizer_fingerprint
from mtloop.trainer.setup_inputs import Inputs, Pair


def encode_corpus(
    config: Config, inputs: Inputs, runtime: Runtime
) -> tuple[Dataset, Encoded, EvaluationSet, EvaluationSet | None, dict[str, Any]]:
    """Tokenize every split, once a machine; count truncated and dropped rows.

    Collective.

    Returns:
        Training rows, the same encoded, validation set, test set, and the report for data.json.
    """
    pairs = inputs.pairs
    encoded = [_encode_pair(config, pair, corpus, runtime) for pair, corpus in zip(pairs, inputs.corpora, strict=True)]
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
        _evaluation_set("valid", inputs, list(valids)),
        _evaluation_set("test", inputs, [test for test in tests if test is not None]) if has_test else None,
        reports[0] if len(pairs) == 1 else _merged(pairs, list(reports)),
    )


Split = tuple[Dataset, Encoded]


def _encode_pair(
    config: Config, pair: Pair, corpus: Corpus, runtime: Runtime
) -> tuple[Split, Split, Split | None, dict[str, Any]]:
    data = config.data
    report = dict(corpus.report)
    report["shared_with_train"] = {split: overlap.shares for split, overlap in corpus.overlaps.items()}
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


def _evaluation_set(name: str, inputs: Inputs, splits: list[Split]) -> EvaluationSet:
    rows, encoded = _join(splits)
    pairs = inputs.pairs
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
        is_unseen=np.concatenate([corpus.overlaps[name].is_unseen for corpus in inputs.corpora]),
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
