"""Test the reading of flags, YAML files and recipes, and the errors, each one line with the remedy."""

import argparse
import dataclasses
import functools
import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from mtloop.cli.commands.train import main
from mtloop.cli.main import Parser, command_files
from mtloop.cli.main import main as run_command
from mtloop.config.environment import OutputConfig
from mtloop.config.fields import kind_of, valid_values
from mtloop.config.inputs import DataConfig
from mtloop.config.model import ModelConfig
from mtloop.config.parse import build_parser, config_from, parse_config
from mtloop.config.settings import (
    DEFAULTS,
    FIELDS,
    Config,
    changed,
    differences,
    flat,
    group_fields,
    is_from_scratch,
    resolve,
    resolved_lines,
)
from mtloop.config.training import METRIC_SCHEDULES, SCHEDULE_NEEDS, SCHEDULES, BatchConfig, OptimizerConfig
from mtloop.config.yaml_file import recipe_names, to_yaml
from mtloop.errors import FieldError, UserError

SCRATCH = ["--train_tokenizer", "--model_size", "small"]
FILES = ["--train_file", "a.tsv", "--source_lang", "en", "--target_lang", "fr"]
TUNE = ["--model_name_or_path", "some/model", *FILES]
PAIRS = ["--model_name_or_path", "some/model", "--train_file", "a.tsv", "--pairs"]


def silent(argv):
    """Parse, and fail on a warning."""
    return parse_config(argv, warn=pytest.fail)


def refusal(argv):
    """Return the one line with which a command line is refused."""
    with pytest.raises(UserError) as caught:
        silent(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def in_yaml(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# the command line


@pytest.mark.parametrize("argv", [None, [], ["demo"], ["--config", "demo"], ["--config=demo"]])
def test_parse_config_without_flags_is_the_demo(argv):
    config = silent(argv)
    assert config.recipe == "demo" and config.data.dataset_name == "demo"
    assert config.optimizer.learning_rate == 2e-3  # written 2e-3, which YAML 1.1 takes for a text


def test_parse_config_applies_flags_to_the_demo():
    config = silent(["--num_train_epochs", "2"])
    assert config == changed(silent([]), num_train_epochs=2)


def test_parse_config_ignores_sys_argv(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--num_train_epochs", "7"])
    assert silent(None).optimizer.num_train_epochs == silent([]).optimizer.num_train_epochs == 2


def test_parse_config_accepts_flag_spellings():
    forms = (["--num_beams", "3"], ["--num_beams=3"], ["--num-beams", "3"], ["--num-beams=3"])
    assert [silent(form).evaluation.num_beams for form in forms] == [3, 3, 3, 3]
    assert silent(["--max-tokens_per-micro_batch", "9"]).batch.max_tokens_per_micro_batch == 9
    assert silent(["--push_to_hub"]).hub.push_to_hub is True
    assert silent(["--push_to_hub", "false"]).hub.push_to_hub is False
    assert silent(["--eval_on_start"]).evaluation.eval_on_start is True
    assert silent(["--eval_on_start", "no"]).evaluation.eval_on_start is False


def test_parse_config_accepts_a_recipe_after_flags():
    config = silent(["--num_beams", "2", "kde4-en-fr"])
    assert (config.recipe, config.evaluation.num_beams) == ("kde4-en-fr", 2)
    assert silent([*SCRATCH, *FILES, "--validation_file", "b.tsv", "c.tsv"]).data.validation_file == ["b.tsv", "c.tsv"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--num_beams", "x"], "--num_beams: expected a whole number from 1 to 1000 (got 'x')."),
        (["--num_beam", "3"], "--num_beam: no such flag, did you mean --num_beams?"),
        (["--per_device_train_batchsize", "3"], "did you mean --per_device_train_batch_size?"),
        (["--num_beams"], "--num_beams: expected one argument"),
        (["--num_beams", "2", "5"], "5: neither a YAML file nor a recipe. The recipes are demo, kde4-en-fr"),
        (["absent.yaml"], "absent.yaml: no such file. The recipes are demo, kde4-en-fr"),
        (["demo", "kde4-en-fr"], "kde4-en-fr: only one recipe or file is possible, and demo is given. Leave one out."),
        (["demo", "--config", "demo"], "only one recipe or file"),
        (["-x"], "-x: no such flag"),
        (["--model_size", "huge"], "--model_size: expected one of tiny, small, base (got 'huge')."),
        (["--push_to_hub", "perhaps"], "--push_to_hub: expected true or false (got 'perhaps')."),
        (["--config", "nothing"], "nothing: neither a YAML file nor a recipe"),
    ],
)
def test_parse_config_refuses_command_line_mistakes(argv, line):
    assert line in refusal(argv)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--dataset_name", "d"], "no model is given. Add --model_name_or_path NAME, or train from scratch with"),
        (
            ["--model_size", "tiny", "--train_tokenizer"],
            "no training data is given. Add --train_file FILE or --dataset_name NAME",
        ),
        ([*TUNE, "--dataset_name", "d"], "--train_file: --dataset_name d is given as well (got a.tsv). Leave one out."),
        (
            [*TUNE, "--model_size", "tiny"],
            "--model_size: builds a model, and --model_name_or_path loads one (got tiny).",
        ),
        (
            [*TUNE, "--train_tokenizer"],
            "--train_tokenizer: a pretrained model keeps its tokenizer (got --model_name_or_path some/model).",
        ),
        (
            [*FILES, "--model_size", "tiny"],
            "needs a tokenizer (got tiny). Add --train_tokenizer or --tokenizer_name NAME.",
        ),
        ([*FILES, "--config_name", "x"], "--config_name: a model from scratch needs a tokenizer (got x)."),
        (
            [*SCRATCH, *FILES, "--tokenizer_name", "t"],
            "--train_tokenizer: --tokenizer_name loads a tokenizer (got --tokenizer_name t).",
        ),
        ([*SCRATCH, *FILES, "--config_name", "c"], "--model_size: --config_name gives the size as well (got small)."),
        (
            [*TUNE, "--tokens_per_update", "9", "--sentences_per_update", "9"],
            "--tokens_per_update: --sentences_per_update 9 is",
        ),
        (
            [*TUNE, "--tokens_per_update", "9", "--per_device_train_batch_size", "9"],
            "--tokens_per_update: --per_device",
        ),
        (
            ["demo", "--gradient_accumulation_steps", "2"],
            "only valid with --per_device_train_batch_size (got 2). Add that, or",
        ),
        (
            [*TUNE, "--source_column", "a"],
            "--source_column: only valid with the other column (got a). Add --target_column.",
        ),
        (
            [*TUNE, "--target_column", "a"],
            "--target_column: only valid with the other column (got a). Add --source_column.",
        ),
        ([*TUNE, "--no_header"], "--no_header: columns have numbers instead of names (got no column). Add --source_c"),
        ([*TUNE, "--no_header", "x"], "--no_header: expected true or false (got 'x')."),
        ([*TUNE, "--quoting", "all"], "--quoting: expected one of csv, none (got 'all')."),
        ([*TUNE, "--delimiter", "||"], "--delimiter: expected one character, or tab (got '||'). Give one, such as"),
        ([*TUNE, "--delimiter", '"'], "--delimiter: expected one character, or tab (got '\"'). Give one, such as"),
        (
            [*SCRATCH, "--train_file", "a.tsv", "--source_lang", "en"],
            "--target_lang: required (got no value). Give a language",
        ),
        ([*TUNE, "--target_lang", "en"], "--target_lang: the same as --source_lang (got en). Give another language"),
        (
            [*TUNE, "--source_key", "en", "--source_column", "a", "--target_column", "b"],
            "--source_key: --source_column is given as well (got en). ",
        ),
        ([*PAIRS, "en-fr", "--target_key", "ca"], "--pairs: --target_key ca is given as well (got en-fr). "),
        (
            [*TUNE, "--dataset_config_name", "en-fr"],
            "--dataset_config_name: only valid with --dataset_name (got en-fr).",
        ),
        ([*TUNE, "--pairs", "en-de"], "--pairs: --source_lang en is given as well (got en-de). Leave one out."),
        ([*PAIRS, "en-fr,en"], "--pairs: expected SOURCE-TARGET,..., for example en-fr,en-pt_BR (got 'en')."),
        ([*PAIRS, "en-en"], "--pairs: expected SOURCE-TARGET,..., for example en-fr,en-pt_BR (got 'en-en')."),
        ([*PAIRS, "en-fr,de-fr,en-fr"], "--pairs: a pair is repeated (got en-fr,de-fr,en-fr). Name each pair once."),
        (
            [*PAIRS, "en-fr", "--source_prefix", "x"],
            "--pairs: --source_prefix x is given as well (got en-fr). Leave one out.",
        ),
        (
            [*TUNE, "--average_last", "3", "--save_total_limit", "2"],
            "--save_total_limit: --average_last 3 needs as many checkpoints (got 2). Give at",
        ),
        ([*TUNE, "--average_last", "3", "--load_best_model_at_end"], "--average_last: --load_best_model_at_end"),
        ([*TUNE, "--average_last", "1"], "--average_last: expected a whole number from 2 to 1000 (got 1)."),
        ([*SCRATCH, *FILES, "--lora_rank", "8"], "--lora_rank: an adapter needs a pretrained model (got 8). Add"),
        ([*TUNE, "--lora_alpha", "8"], "--lora_alpha: only valid with --lora_rank (got 8). Add --lora_rank N."),
        ([*TUNE, "--lora_dropout", "0.1"], "--lora_dropout: only valid with --lora_rank (got 0.1). Add --lora_rank N."),
        (
            [*TUNE, "--lora_target_modules", "q", "v"],
            "--lora_target_modules: only valid with --lora_rank (got q,v). Add",
        ),
        (
            [*TUNE, "--freeze", "encoder,head"],
            "--freeze: expected one or more of encoder, decoder, embeddings (got head).",
        ),
        ([*TUNE, "--freeze", "encoder", "--lora_rank", "8"], "--freeze: with --lora_rank the whole model is frozen"),
        ([*TUNE, "--report_to", "paper"], "--report_to: expected one of all, aim"),
    ],
)
def test_parse_config_refuses_contradictions(argv, line):
    assert line in refusal(argv)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("dropout", "1"), ("dropout", "-0.1"), ("label_smoothing_factor", "1.0"), ("adam_beta1", "1"),
        ("adam_beta2", "2"), ("validation_split", "0"), ("validation_split", "1"), ("vocab_size", "801"),
        ("vocab_size", "0"), ("learning_rate", "0"), ("learning_rate", "nan"), ("learning_rate", "inf"),
        ("weight_decay", "-1"), ("max_grad_norm", "-1"), ("max_grad_norm", "nan"), ("num_train_epochs", "0"),
        ("max_train_steps", "0"), ("num_warmup_steps", "-1"), ("tokens_per_update", "0"), ("logging_steps", "0"),
        ("save_steps", "0"), ("eval_steps", "-5"), ("num_beams", "0"), ("seed", "-1"), ("process_timeout", "0"),
        ("cpu_threads", "0"), ("dataloader_num_workers", "-1"), ("max_source_length", "0"), ("output_dir", ""),
        ("resume_from_checkpoint", " "), ("early_stopping_patience", "0"), ("skip_nonfinite", "-1"),
        ("lora_rank", "0"), ("lora_alpha", "0"), ("lora_dropout", "1"), ("lora_target_modules", ","), ("freeze", ""),
        ("train_file", ""), ("adam_epsilon", "0"), ("expect_processes", "0"), ("eval_max_tokens", "0"),
    ],
)  # fmt: skip
def test_parse_config_refuses_values_out_of_bounds(flag, value):
    line = refusal([f"--{flag}={value}"])
    assert line.startswith(f"--{flag}: expected ") and line.endswith((").", "Leave it out for the default."))


NO_NUMBERS = ("nan", "inf", "-inf", "-1", "1e300", str(10**300), "text")
NUMBERS = [name for name, field in FIELDS.items() if kind_of(field) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_main_refuses_an_invalid_number_in_one_line_with_status_2(name, capsys):
    bounds = FIELDS[name].metadata
    assert bounds["maximum"] is not None or bounds["below"] is not None
    for value in NO_NUMBERS:
        assert main([f"--{name}={value}"]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert not out and line.startswith(f"mtloop: error: --{name}: expected ") and "(got " in line


@pytest.mark.slow
@pytest.mark.parametrize("value", [".nan", "-.inf", "-1", "1e300", "[1, 2]", "'1 2'"])
def test_a_recipe_names_the_line_of_an_invalid_number(tmp_path, value):
    for name in NUMBERS:
        path = in_yaml(
            tmp_path, f"save_steps: 1\n{name}: {value}\n" if name != "save_steps" else f"\n{name}: {value}\n"
        )
        assert refusal([path]).startswith(f"{path}:2: --{name}: expected ")


def command_numbers():
    """Yield (command, flag, type) of each number of the commands but train."""
    for name in command_files():
        module = importlib.import_module(f"mtloop.cli.commands.{name}")
        if hasattr(module, "add_flags"):
            parser = Parser(prog=name)
            module.add_flags(parser)
            for action in parser._actions:
                assert action.type not in (int, float), "a number without bounds"
                if isinstance(action.type, functools.partial):
                    yield name, action.dest, action.type


def test_commands_refuse_an_invalid_number_in_one_line_with_status_2(capsys):
    found = list(command_numbers())
    assert {command for command, _, _ in found} == {*command_files()} - {"train", "launch", "configs"}
    for (command, name, number_type), value in zip(found, itertools.cycle(NO_NUMBERS), strict=False):
        assert run_command([command, f"--{name}={value}"]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert not out and line.startswith(f"mtloop: error: --{name}: expected ") and "(got " in line
        for other in NO_NUMBERS:
            with pytest.raises(argparse.ArgumentTypeError, match=r"^expected .* \(got .*\)\.$"):
                number_type(other)


def test_max_grad_norm_of_infinity_names_the_remedy():
    line = "--max_grad_norm: expected a finite number (got inf). Give 0 to turn clipping off."
    assert refusal(["--max_grad_norm", "inf"]) == line


@pytest.mark.parametrize(("name", "value"), [
    ("num_beams", 999_999_999), ("dataloader_num_workers", 100_000), ("seed", 2**64), ("max_target_length", 1),
    ("val_max_target_length", 1), ("preprocessing_num_workers", 100_000), ("max_tokens_per_micro_batch", 10**8),
    ("lora_rank", 10**6), ("process_timeout", 10**7),
])  # fmt: skip
def test_parse_config_refuses_numbers_that_would_take_the_machine(name, value):
    assert f"(got {value})" in refusal([f"--{name}={value}"]).replace(".0)", ")")


@pytest.mark.parametrize(("text", "value"), [("2", 2), ("2.0", 2), ("0.5", 0.5), ("1e-3", 0.001)])
def test_num_train_epochs_takes_fractions(tmp_path, text, value):
    config = silent(["--num_train_epochs", text])
    found = config.optimizer.num_train_epochs
    assert (found, type(found)) == (value, type(value))
    assert silent([in_yaml(tmp_path, to_yaml(config))]) == config


def test_parse_config_accepts_inclusive_bounds():
    edge = [
        "--dropout",
        "0",
        "--adam_beta1",
        "0",
        "--seed",
        "0",
        "--max_grad_norm",
        "0",
        "--vocab_size",
        "8",
        "--num_warmup_steps",
        "0",
    ]
    config = silent(edge)
    assert (config.model.dropout, config.model.vocab_size) == (0.0, 8)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("num_beams", "a whole number from 1 to 1000"),
        ("max_source_length", "a whole number from 1 to 65536"),
        ("learning_rate", "a number above 0 and at most 10"),
        ("validation_split", "a number above 0 and below 1"),
        ("dropout", "a number of at least 0 and below 1"),
        ("vocab_size", "a multiple of 8 from 8 to 1000000"),
        ("max_tokens_per_micro_batch", "a whole number from 1 to 10000000, or auto"),
        ("push_to_hub", "true or false"),
        ("pad_to", "one of fixed, buckets, longest"),
        ("train_file", "one or more values"),
    ],
)
def test_valid_values_describes_the_bounds(name, text):
    assert valid_values(FIELDS[name]) == text


def test_group_checks_its_values():
    with pytest.raises(ValueError, match=r"--model_size: expected one of tiny, small, base \(got 'huge'\)\."):
        ModelConfig(model_size="huge")
    with pytest.raises(ValueError, match=r"--max_source_length: expected .*\(got '9'\)"):
        DataConfig(max_source_length="9")
    with pytest.raises(FieldError, match="--logging_steps: expected .* Leave it out for the default, 10"):
        OutputConfig(logging_steps=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        BatchConfig().tokens_per_update = 3


def test_languages_are_optional_with_columns():
    columns = ["--source_column", "src", "--target_column", "tgt"]
    assert silent([*SCRATCH, "--train_file", "a.csv", *columns]).data.source_lang is None
    assert silent([*TUNE, "--target_lang", "en", *columns]).data.target_lang == "en"


def test_languages_and_keys_are_taken_from_each_other():
    rows = [*SCRATCH, "--train_file", "a.jsonl"]
    data = silent([*rows, "--source_lang", "eng_Latn", "--target_key", "ca@valencia"]).data
    assert (data.source_lang, data.target_lang) == ("eng_Latn", "ca@valencia")
    assert data.row_languages == ("eng_Latn", "ca@valencia")
    data = silent([*rows, "--source_lang", "en", "--target_lang", "cat_Latn", "--target_key", "ca@valencia"]).data
    assert data.languages == (("en", "cat_Latn"),) and data.row_languages == ("en", "ca@valencia")
    # Two varieties of a language that the model does not distinguish.
    same = [*rows, "--source_lang", "ca", "--target_lang", "ca", "--target_key", "ca@valencia"]
    assert silent(same).data.row_languages == ("ca", "ca@valencia")


def test_of_pairs_returns_one_config_per_pair():
    data = silent([*PAIRS, "en-fr, pt_BR-en", "--max_source_length", "9"]).data
    assert data.pair_names == ("en-fr", "pt_BR-en")
    assert data.languages == (("en", "fr"), ("pt_BR", "en"))
    assert [(one.pairs, one.source_lang, one.target_lang, one.max_source_length) for one in data.of_pairs()] == [
        (None, "en", "fr", 9),
        (None, "pt_BR", "en", 9),
    ]
    single = silent([*TUNE]).data
    assert single.of_pairs() == (single,) and single.languages == (("en", "fr"),)


def test_pairs_replace_the_languages_of_a_recipe_and_vice_versa(tmp_path):
    data = silent(["demo", "--pairs", "en-fr,fr-en"]).data
    assert (data.pairs, data.source_lang, data.target_lang) == ("en-fr,fr-en", None, None)
    path = in_yaml(tmp_path, "train_file: [a.tsv]\nmodel_name_or_path: some/model\npairs: en-fr,fr-en\n")
    data = silent([str(path), "--source_lang", "en", "--target_lang", "fr"]).data
    assert (data.pairs, data.source_lang, data.target_lang) == (None, "en", "fr")


def test_update_size_flag_replaces_the_one_of_the_recipe():
    # demo gives tokens_per_update 450
    batch = silent(["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]).batch
    assert (batch.tokens_per_update, batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == (
        None,
        8,
        2,
    )
    batch = silent(["kde4-en-fr", "--tokens_per_update", "700"]).batch
    assert (batch.tokens_per_update, batch.sentences_per_update) == (700, None)


# schedules


def test_schedules_match_transformers():
    from transformers import SchedulerType

    assert {*SCHEDULES, *METRIC_SCHEDULES} == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_needs_match_transformers(name):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=10)
        is_complete = True
    except (TypeError, ValueError):
        is_complete = False
    assert is_complete == (name not in SCHEDULE_NEEDS)
    if is_complete:
        OptimizerConfig(lr_scheduler_type=name)
        return
    needed, example = SCHEDULE_NEEDS[name]
    with pytest.raises(
        ValueError, match=rf"needs the argument {' or '.join(needed)} \(got {name}\)\. Add --lr_scheduler_kwargs"
    ):
        OptimizerConfig(lr_scheduler_type=name)
    arguments = OptimizerConfig(lr_scheduler_type=name, lr_scheduler_kwargs=example).schedule_arguments()
    get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=2000, scheduler_specific_kwargs=arguments)


def test_optimizer_config_refuses_metric_schedules_and_bad_arguments():
    assert "follows a metric (got greedy). Give one of linear" in refusal(["--lr_scheduler_type", "greedy"])
    assert "expected one of linear" in refusal(["--lr_scheduler_type", "slow"])
    for text in ("[1]", "num_cycles=2", "", "[" * 100_000):
        assert "expected a JSON object" in refusal([f"--lr_scheduler_kwargs={text}"])
    for value in ("NaN", "Infinity", "-Infinity", "1e999", "1e300", str(10**300), "[2]", '{"a": 1}'):
        line = refusal([f'--lr_scheduler_kwargs={{"power": {value}}}'])
        assert line.startswith("--lr_scheduler_kwargs: power: expected text or a number from -1000000000 to 1000000000")


def test_trackers_match_accelerate():
    from accelerate.utils import LoggerType

    from mtloop.config.environment import TRACKERS

    assert set(TRACKERS) == {kind.value for kind in LoggerType}


# YAML


def test_yaml_values_are_read_as_flags_and_flags_win(tmp_path):
    text = """
    model_name_or_path: some/model
    train_file: one.tsv
    test_file: [a.tsv, b.tsv]
    source-lang: no
    target_lang: "de"
    learning_rate: 2e-5
    source_prefix: "-> de: "
    push_to_hub: yes
    num_beams: ~
    max_train_steps:
    mixed_precision: no
    lr_scheduler_type: cosine_with_min_lr
    lr_scheduler_kwargs:
      min_lr: 1e-6
      num_cycles: 0.5
      kind: "1"
      is_on: true
      nothing: null
    """
    config = silent([in_yaml(tmp_path, text), "--target_lang", "sv"])
    assert config.recipe == "mine"
    assert (config.data.train_file, config.data.test_file) == (["one.tsv"], ["a.tsv", "b.tsv"])
    assert (config.data.source_lang, config.data.target_lang, config.data.source_prefix) == ("no", "sv", "-> de: ")
    assert (config.optimizer.learning_rate, config.hub.push_to_hub) == (2e-5, True)
    assert (config.evaluation.num_beams, config.optimizer.max_train_steps) == (None, None)
    assert config.hardware.mixed_precision == "no"
    assert config.optimizer.schedule_arguments() == {
        "min_lr": 1e-6,
        "num_cycles": 0.5,
        "kind": "1",
        "is_on": True,
        "nothing": None,
    }


def test_list_flag_replaces_a_yaml_list(tmp_path):
    path = in_yaml(tmp_path, "train_file: [a.tsv, b.tsv]\nsource_lang: en\ntarget_lang: fr\n")
    assert silent([path, *SCRATCH]).data.train_file == ["a.tsv", "b.tsv"]
    assert silent([*SCRATCH, path, "--train_file", "c.tsv"]).data.train_file == ["c.tsv"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 1\nnum_beam: 4\n", "mine.yaml:2: --num_beam: no such flag, did you mean --num_beams?"),
        ("\nnum_beams: four\n", "mine.yaml:2: --num_beams: expected a whole number from 1 to 1000 (got 'four')."),
        ("seed: 1\n\nnum_beams: 0\n", "mine.yaml:3: --num_beams: expected a whole number from 1 to 1000 (got 0)."),
        ("seed: 1\nnum_beams: 2\nseed: 3\n", "mine.yaml:3: seed is repeated (first in line 1)."),
        ("num_beams: 2\nnum-beams: 3\n", "mine.yaml:2: num_beams is repeated (first in line 1)."),
        ("num_beams: [2, 3]\n", "mine.yaml:1: --num_beams: expected a whole number from 1 to 1000 (got ['2', '3'])."),
        ("data:\n  seed: 3\n", "mine.yaml:1: data: expected a value (got a mapping)."),
        ("train_file: [[a]]\n", "mine.yaml:1: train_file: expected a list of plain values (got a nested one)."),
        ("logging_steps:\n", "(got no value). Leave it out for the default, 10."),
        ("config: demo\n", "mine.yaml:1: --config: a file cannot load another one"),
        ("- demo\n", "mine.yaml:1: expected a mapping."),
        ("", "mine.yaml: expected a mapping."),
        ("seed: 1\nnum_beams: [2\n", "mine.yaml:3: invalid YAML"),
        ("seed: 1\n--- \nseed: 2\n", "mine.yaml:2: invalid YAML"),
        ("recipe: [a]\n", "mine.yaml:1: recipe: expected one name"),
        ("train_file: []\n", "mine.yaml:1: --train_file: expected one or more values (got [])."),
        ("num_train_epochs: 2\n", "no training data is given"),
        ("&a {seed: *a}\n", "mine.yaml:1: seed: expected a value (got a mapping)."),
        ("train_file: &a [b, *a]\n", "mine.yaml:1: train_file: expected a list of plain values (got a nested one)."),
        ("lr_scheduler_kwargs: &a {power: *a}\n", "mine.yaml:1: lr_scheduler_kwargs: expected a flat mapping (got a"),
        ("lr_scheduler_kwargs: {power: .nan}\n", "mine.yaml:1: --lr_scheduler_kwargs: power: expected text or a"),
        ("lr_scheduler_kwargs: {power: !!int x}\n", "mine.yaml:1: lr_scheduler_kwargs: invalid YAML"),
        ("lr_scheduler_kwargs: {power: !x 1}\n", "mine.yaml:1: lr_scheduler_kwargs: invalid YAML"),
        ("lr_scheduler_kwargs: {2020-02-02: 1}\n", "mine.yaml:1: lr_scheduler_kwargs: invalid YAML"),
        pytest.param(
            "seed: " + "[" * 1_000 + "]" * 1_000,
            "mine.yaml:1: nested too deeply. Write one `name: value` per line.",
            marks=pytest.mark.slow,
        ),
        ("seed:\n" + "\n".join(" " * n + "a:" for n in range(1, 1_000)), ": nested too deeply."),
    ],
)
def test_yaml_errors_name_the_line(tmp_path, text, line):
    assert line in refusal([in_yaml(tmp_path, text)])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"seed: \xff\xfe", "mine.yaml:1: not UTF-8 text (got byte 0xff). Save the file as text in UTF-8."),
        ("seed: 1\n".encode("utf-16"), "mine.yaml:1: not UTF-8 text (got byte 0xff)."),
        ("seed: 1\n# é\n".encode("latin-1"), "mine.yaml:2: not UTF-8 text (got byte 0xe9)."),
        ("seed: 1\n".encode("utf-16-le"), "mine.yaml:1: not YAML text (got character '\\x00')."),
        (b"seed: 1\nnum_beams: \x00\n", "mine.yaml:2: not YAML text (got character '\\x00')."),
        (b"seed: 1\n\x1b[2J: 1\n", "mine.yaml:2: not YAML text (got character '\\x1b')."),
        (b'seed: 1\noutput_dir: "a\\0b"\n', "mine.yaml:2: --output_dir: expected text without a NUL character (got 'a"),
        (
            b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
            "mine.yaml:2: b: expected a list of plain values (got a nested",
        ),
        (b"train_file: !!python/object/apply:os.system [x]\nseed: y\n", "mine.yaml:2: --seed: expected a whole number"),
    ],
)
def test_read_source_refuses_what_yaml_or_a_flag_cannot_hold(tmp_path, content, line):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert line in refusal([str(path)])


def test_read_source_skips_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: x\n")
    assert "mine.yaml:1: --seed: expected a whole number" in refusal([str(path)])


def test_invalid_flag_over_a_file_does_not_name_the_file(tmp_path):
    path = in_yaml(tmp_path, "num_beams: 2\n")
    assert refusal([path, "--num_beams", "0"]).startswith("--num_beams: expected")


# recipes


def test_recipes_load_by_name():
    assert recipe_names() == ["demo", "kde4-en-fr", "kde4-en-fr-accelerate"]
    for name in recipe_names():
        assert silent([name]).recipe == name
        text = (Path(sys.modules["mtloop"].__file__).parent / "config" / "recipes" / f"{name}.yaml").read_text("utf-8")
        assert text.startswith("# ") and f"accelerate launch train.py {name}\n" in text.replace("  ", "\n")


def test_course_recipes_have_the_numbers_of_the_course():
    trainer, loop = resolve(silent(["kde4-en-fr"])), resolve(silent(["kde4-en-fr-accelerate"]))
    assert (trainer.batch.sentences_per_update, loop.batch.sentences_per_update) == (32, 8)
    assert (trainer.optimizer.weight_decay, loop.optimizer.weight_decay) == (0.01, 0.0)
    for config in (trainer, loop):
        assert (config.optimizer.learning_rate, config.optimizer.num_train_epochs) == (2e-5, 3)
        assert (config.data.validation_split, config.data.split_seed, config.data.max_target_length) == (0.1, 20, 128)
    assert (trainer.hub.push_to_hub, loop.hub.push_to_hub) == (False, True)


# notebooks


def test_config_from_accepts_notebook_values():
    demo = silent([])
    assert config_from(None) == config_from([]) == config_from("demo") == config_from(demo) == demo
    assert config_from(["--num_beams", "2"]) == config_from({"num_beams": 2}) == changed(demo, num_beams=2)
    given = {"config": "kde4-en-fr", "learning_rate": 3e-5, "push_to_hub": True, "test_file": ["a", Path("b")]}
    config = config_from({**given, "num_beams": None, "lr_scheduler_kwargs": {}})
    assert config == changed(
        silent(["kde4-en-fr"]), learning_rate=3e-5, push_to_hub=True, test_file=["a", "b"], lr_scheduler_kwargs="{}"
    )


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"num_beam": 2}, "--num_beam: no such flag, did you mean --num_beams?"),
        ({"num_beams": 2.5}, "--num_beams: expected a whole number from 1 to 1000 (got '2.5')."),
        ({"num_beams": [2]}, "--num_beams: expected a whole number from 1 to 1000 (got ['2'])."),
        ({"num_beams": {}}, "--num_beams: expected text, a number, a bool or a list (got dict)."),
        ({"num_beams": object()}, "(got object)."),
        ({"seed": None}, "--seed: expected a whole number from 0 to 18446744073709551615 (got no value)."),
        ({"hub_token": "hf_SECRET"}, "--hub_token: refused"),
        (Config(), "no training data is given"),
    ],
)
def test_config_from_refuses_with_one_line(value, line):
    with pytest.raises(UserError) as caught:
        config_from(value)
    assert line in str(caught.value) and "SECRET" not in str(caught.value)


# defaults that follow from other fields


def test_resolve_fills_fine_tuning_defaults():
    asked = silent(TUNE)
    config = resolve(asked)
    assert not is_from_scratch(config)
    filled = {name: value for name, value in flat(config).items() if flat(asked)[name] != value}
    assert filled == {
        "sentences_per_update": 32,
        "learning_rate": 2e-5,
        "adam_beta2": 0.999,
        "eval_on_start": True,
        "val_max_target_length": 128,
        "output_dir": "runs/a",
    }
    assert resolved_lines(asked, config) == [
        "sentences_per_update 32 (fine-tuning default)",
        "learning_rate 2e-05 (fine-tuning default)",
        "adam_beta2 0.999 (fine-tuning default)",
        "eval_on_start true (fine-tuning default)",
        "val_max_target_length 128 (as max_target_length)",
        "output_dir runs/a (after the data)",
    ]


def test_resolve_fills_the_defaults_of_an_adapter():
    asked = silent([*TUNE, "--lora_rank", "8"])
    config = resolve(asked)
    assert (config.optimizer.learning_rate, config.tuning.lora_alpha) == (2e-4, 16)
    lines = resolved_lines(asked, config)
    assert "learning_rate 0.0002 (LoRA default)" in lines and "lora_alpha 16 (twice the rank)" in lines
    given = resolve(silent([*TUNE, "--lora_rank", "8", "--lora_alpha", "8", "--learning_rate", "0.001"]))
    assert (given.optimizer.learning_rate, given.tuning.lora_alpha) == (1e-3, 8)


def test_list_settings_split_at_commas_and_freeze_is_sorted():
    for words in (["embeddings,encoder"], ["embeddings", "encoder"], ["encoder", "embeddings,encoder"]):
        assert silent([*TUNE, "--freeze", *words]).tuning.freeze == ["encoder", "embeddings"]
    config = silent([*TUNE, "--lora_rank", "8", "--lora_target_modules", "q_proj, v_proj", "fc1"])
    assert config.tuning.lora_target_modules == ["q_proj", "v_proj", "fc1"]


def test_resolve_fills_from_scratch_defaults():
    config = resolve(silent([*SCRATCH, *FILES, "--max_target_length", "50"]))
    assert is_from_scratch(config)
    assert (config.batch.tokens_per_update, config.batch.sentences_per_update) == (500, None)
    assert (config.model.vocab_size, config.optimizer.learning_rate, config.optimizer.adam_beta2) == (8000, 1e-3, 0.98)
    assert (config.evaluation.eval_on_start, config.evaluation.val_max_target_length) == (False, 50)
    assert config.optimizer.num_warmup_steps is None


def test_resolve_keeps_given_values_and_is_idempotent():
    asked = silent([*TUNE, "--per_device_train_batch_size", "4", "--eval_on_start", "false", "--output_dir", "here"])
    config = resolve(asked)
    assert (config.batch.sentences_per_update, config.batch.tokens_per_update) == (None, None)
    assert (config.evaluation.eval_on_start, config.output.output_dir) == (False, "here")
    assert resolve(config) == config
    assert resolved_lines(config, resolve(config)) == []


@pytest.mark.parametrize(
    ("data", "folder"),
    [
        ({"dataset_name": "Helsinki-NLP/kde4@refs/convert/parquet"}, "runs/kde4"),
        ({"dataset_name": "opus:KDE4"}, "runs/opus-KDE4"),
        ({"train_file": ["some/where/corpus.en-fr.tsv.gz", "other.tsv"]}, "runs/corpus"),
    ],
)
def test_run_name_from_data(data, folder):
    assert resolve(Config(data=DataConfig(**data))).output.output_dir == folder


def test_run_name_from_recipe():
    assert resolve(silent(["kde4-en-fr"])).output.output_dir == "runs/kde4-en-fr"


# round trip and resume

NASTY = [
    "null",
    "no",
    "~",
    "1e-5",
    "a: b # c",
    "translate: ",
    " x",
    "a\n\nb\n",
    "\t",
    "\x85",
    "é “q” 日本 😀",
    "- x",
    "[a, b]",
    "'",
    '"\\',
]


@pytest.mark.parametrize("is_resolved", [False, True])
@pytest.mark.parametrize(
    "argv",
    [
        ["demo"],
        ["kde4-en-fr-accelerate", "--save_steps", "7"],
        [
            *TUNE,
            "--train_file",
            "a b.tsv",
            "c,d.tsv",
            "[e].tsv",
            "--num_warmup_steps",
            "0",
            "--num_train_epochs",
            "1.5",
        ],
        [*TUNE, "--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-7}'],
        [*TUNE, "--lora_rank", "8", "--lora_target_modules", "q_proj,v_proj"],
        [*TUNE, "--freeze", "encoder,embeddings"],
        [*TUNE, "--learning_rate", "0.1234567890123456", "--mixed_precision", "no", "--source_lang", "no"],
        *([*TUNE, f"--source_prefix={text}"] for text in NASTY),
    ],
)
def test_to_yaml_round_trip(tmp_path, argv, is_resolved):
    config = silent(argv)
    config = resolve(config) if is_resolved else config
    text = to_yaml(config)
    assert silent([in_yaml(tmp_path, text, "that.yaml")]) == config
    assert "None" not in text


def test_field_names_are_unique_and_have_help():
    fields = [one for _, one in group_fields()]
    assert len({one.name for one in fields}) == len(fields)
    for one in fields:
        assert one.metadata["help"] and "%" not in one.metadata["help"], one.name
        # the parser cannot know what None means
        assert (one.default is None) == bool(one.metadata["unset"]), one.name


def test_differences_list_same_run_fields_only():
    stored = resolve(silent(["demo", "--learning_rate", "0.001"]))
    free = {
        "logging_steps": 3, "save_steps": 5, "output_dir": "x", "mixed_precision": "bf16", "use_cpu": True,
        "max_tokens_per_micro_batch": 100, "early_stopping_patience": 3, "resume_from_checkpoint": "latest",
        "push_to_hub": True, "dataloader_num_workers": 2, "overwrite_cache": True, "skip_nonfinite": 2,
    }  # fmt: skip
    assert differences(stored, changed(stored, **free)) == []
    assert differences(stored, changed(stored, learning_rate=0.002, seed=7)) == [
        "--learning_rate: 0.001 in the run folder, 0.002 asked",
        "--seed: 42 in the run folder, 7 asked",
    ]
    bound = {"model_size": "small", "dataset_name": "d", "tokens_per_update": 9, "label_smoothing_factor": 0.1,
             "num_beams": 2, "max_source_length": 9, "num_train_epochs": 9, "split_seed": 9}  # fmt: skip
    assert len(differences(stored, changed(stored, **bound))) == len(bound)


def test_differences_ignore_values_resolved_later():
    asked = resolve(silent(TUNE))
    stored = changed(asked, num_warmup_steps=12, num_beams=4)
    assert differences(stored, asked) == []
    assert differences(stored, changed(asked, num_warmup_steps=13)) == [
        "--num_warmup_steps: 12 in the run folder, 13 asked"
    ]


def test_differences_ignore_the_number_of_processes():
    asked = resolve(silent([*TUNE, "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]))
    stored = changed(asked, sentences_per_update=32)  # 8 x 2 on 2 processes
    assert differences(stored, asked) == []
    assert differences(stored, changed(asked, sentences_per_update=16)) == []  # on 1 process: the stored 32 stays
    halved = changed(asked, gradient_accumulation_steps=1)
    assert differences(stored, halved) == ["--sentences_per_update: 32 in the run folder, 8 a process asked"]
    assert differences(stored, changed(halved, sentences_per_update=32)) == []  # 8 x 1 on 4 processes


# the parser


def test_help_is_grouped_and_lists_each_flag_once(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(["demo", "--help", "--no_such_flag"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    groups = [
        f"\n{name}:\n" for name in ["model", "data", "batches", "optimizer", "evaluation", "output", "hub", "hardware"]
    ]
    positions = [text.index(name) for name in groups]
    assert positions == sorted(positions)
    for name in DEFAULTS:
        assert f"\n  --{name} " in text, name
    assert "--max-source-length" not in text and "(default: None)" not in text
    words = " ".join(text.split())
    assert "maximum length of a source in tokens (default: 128)" in words


def test_build_parser_does_not_change_the_fields():
    before = [(one.name, one.type) for _, one in group_fields()]
    build_parser()
    assert [(one.name, one.type) for _, one in group_fields()] == before


@pytest.mark.slow
def test_parse_config_has_no_heavy_imports():
    script = (
        "import sys\nfrom mtloop.config.parse import parse_config\n"
        "from mtloop.config.settings import resolve\nfrom mtloop.config.yaml_file import to_yaml\n"
        "to_yaml(resolve(parse_config([])))\n"
        "heavy = {'torch', 'accelerate', 'datasets', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "parse_config(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python -m mtloop train [RECIPE")
