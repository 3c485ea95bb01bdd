"""Test what becomes of flags of run_translation.py, run_translation_no_trainer.py and Seq2SeqTrainingArguments."""

import re
import shlex
from dataclasses import replace

import pytest

from mtloop.cli.main import main as run_command
from mtloop.config.conversions import CONVERSIONS
from mtloop.config.fields import MAX_COUNT
from mtloop.config.foreign import KINDS, MODES, foreign_flags, other_values
from mtloop.config.parse import config_from, parse_config
from mtloop.config.settings import DEFAULTS, FIELDS, changed, flat, resolve
from mtloop.errors import UserError
from tests.support.command_lines import COMMAND_LINES, flags_of

TUNE = ["--model_name_or_path", "some/model", "--train_file", "a.tsv", "--source_lang", "en", "--target_lang", "fr"]
SCORED = ["--model_name_or_path", "some/model", "--source_lang", "en", "--target_lang", "fr"]
OVERWRITE = (
    "--overwrite_output_dir is ignored: a run folder is never overwritten; the same command resumes its run, another "
    "--output_dir starts a new one"
)


def read(argv, base=TUNE):
    """Parse; return the settings that differ from those of the base, the lines said, and the warnings."""
    said, warned = [], []
    found = flat(parse_config([*base, *argv], warn=warned.append, say=said.append))
    plain = flat(parse_config(base))
    return {name: value for name, value in found.items() if value != plain[name]}, said, warned


def refusal(argv, base=TUNE):
    with pytest.raises(UserError) as caught:
        parse_config([*base, *argv], warn=pytest.fail, say=lambda line: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# the table


def hf_kind(action):
    """Return how many values an argparse action of HfArgumentParser takes."""
    is_switch = action.nargs in ("?", 0) or getattr(action.type, "__name__", "") == "string_to_bool"
    return "lists" if action.nargs == "+" else "switches" if is_switch else "values"


@pytest.mark.slow
def test_foreign_flags_cover_training_arguments():
    from transformers import HfArgumentParser, Seq2SeqTrainingArguments

    ours = {name: foreign.kind for name, foreign in foreign_flags().items()}
    wrong = []
    for action in HfArgumentParser(Seq2SeqTrainingArguments)._actions:
        name = action.dest
        if name in DEFAULTS or name == "help":
            continue
        # --fsdp takes an optional text, not an optional bool
        if name not in ours or (ours[name] != hf_kind(action) and name != "fsdp"):
            wrong.append((name, ours.get(name), hf_kind(action)))
    assert not wrong


def test_foreign_flags_are_no_settings_and_their_advice_exists():
    foreign = foreign_flags()
    assert not set(DEFAULTS) & set(foreign)
    assert {one.effect for one in foreign.values()} == {"translated", "modes", "ignored", "changes_result", "refused"}
    assert {one.kind for one in foreign.values()} == set(KINDS)
    assert {one.convert for one in foreign.values()} - {""} == set(CONVERSIONS)
    assert {name for name, one in foreign.items() if one.effect == "modes"} == set(MODES)
    for name, one in foreign.items():
        ways = [bool(one.to), bool(one.set), bool(one.convert)]
        assert sum(ways) == (one.effect == "translated"), name
        assert one.advice or one.to or one.set, name
        assert {one.to, *one.set} - {""} <= set(FIELDS), name
        # whatever an advice tells to use exists: --adam_* stands for the three of that name
        for word in re.findall(r"--([a-z_]+)(?!\*)\b", one.advice.replace("--adam_*", "")):
            assert word in {*DEFAULTS, *MODES, "config_file"}, (name, word)
    for name, words in other_values().items():
        assert not set(words) & set(words.values())
        config = parse_config(TUNE)
        assert all(changed(config, **{name: value}) for value in words.values())


# what each becomes


@pytest.mark.parametrize(
    ("argv", "settings", "said"),
    [
        ("--max_steps 100", {"max_train_steps": 100}, "--max_steps 100 -> --max_train_steps 100"),
        ("--max_steps -1", {}, None),
        ("--fp16", {"mixed_precision": "fp16"}, "--fp16 true -> --mixed_precision fp16"),
        ("--bf16 True", {"mixed_precision": "bf16"}, "--bf16 true -> --mixed_precision bf16"),
        ("--bf16=yes --mixed_precision bf16", {"mixed_precision": "bf16"}, "--bf16 true -> --mixed_precision bf16"),
        ("--fp16 false", {}, None),
        ("--no_fp16", {}, None),
        ("--warmup_steps 500", {"num_warmup_steps": 500}, "--warmup_steps 500 -> --num_warmup_steps 500"),
        ("--warmup_steps 0.1", {"num_warmup_steps": 0.1}, "--warmup_steps 0.1 -> --num_warmup_steps 0.1"),
        ("--warmup_ratio 0.06", {"num_warmup_steps": 0.06}, "--warmup_ratio 0.06 -> --num_warmup_steps 0.06"),
        (
            "--warmup_steps 0 --warmup_ratio 0.1",
            {"num_warmup_steps": 0.1},
            "--warmup_ratio 0.1 -> --num_warmup_steps 0.1",
        ),
        ("--max_length 64", {"max_source_length": 64}, "--max_length 64 -> --max_source_length 64"),
        ("--max_length 64 --max_source_length 32", {"max_source_length": 32}, None),
        (
            "--per_device_eval_batch_size 8",
            {"eval_max_tokens": 1024},  # 8 sentences of 128 tokens
            "--per_device_eval_batch_size 8 -> --eval_max_tokens 1024",
        ),
        (
            "--per_gpu_eval_batch_size 8 --max_source_length 64",
            {"eval_max_tokens": 512, "max_source_length": 64},
            "--per_gpu_eval_batch_size 8 -> --eval_max_tokens 512",
        ),
        (
            "--per_gpu_train_batch_size 4",
            {"per_device_train_batch_size": 4},
            "--per_gpu_train_batch_size 4 -> --per_device_train_batch_size 4",
        ),
        (
            "--gradient_accumulation_steps 4",
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
            "--gradient_accumulation_steps 4 -> --per_device_train_batch_size 8, the default of TrainingArguments",
        ),
        ("--eval_strategy epoch", {}, "--eval_strategy epoch -> no --eval_steps (one evaluation per epoch)"),
        (
            "--eval_strategy epoch --eval_steps 50",
            {},
            "--eval_strategy epoch -> no --eval_steps (one evaluation per epoch)",
        ),
        ("--evaluation_strategy steps --eval_steps 50", {"eval_steps": 50}, None),
        ("--eval_strategy=steps", {"eval_steps": 500}, "--eval_strategy steps -> --eval_steps 500"),
        (
            "--eval_strategy steps --logging_steps 20",
            {"eval_steps": 20, "logging_steps": 20},
            "--eval_strategy steps -> --eval_steps 20",
        ),
        (
            "--eval_strategy no --eval_steps 50",
            {"eval_steps": MAX_COUNT, "eval_on_start": False},
            f"--eval_strategy no -> --eval_steps {MAX_COUNT} --eval_on_start false",
        ),
        ("--save_strategy epoch", {}, "--save_strategy epoch -> no --save_steps (one checkpoint per epoch)"),
        ("--save_strategy steps --save_steps 7", {"save_steps": 7}, None),
        ("--save_strategy steps", {"save_steps": 500}, "--save_strategy steps -> --save_steps 500"),
        ("--save_strategy no", {"save_steps": MAX_COUNT}, f"--save_strategy no -> --save_steps {MAX_COUNT}"),
        (
            "--save_strategy best --eval_steps 5",
            {"save_steps": 5, "save_total_limit": 1, "eval_steps": 5},
            "--save_strategy best -> --save_steps 5 --save_total_limit 1",
        ),
        ("--checkpointing_steps 9", {"save_steps": 9}, "--checkpointing_steps 9 -> --save_steps 9"),
        (
            "--checkpointing_steps epoch",
            {},
            "--checkpointing_steps epoch -> no --save_steps (one checkpoint per epoch)",
        ),
        ("--pad_to_max_length", {"pad_to": "fixed"}, "--pad_to_max_length true -> --pad_to fixed"),
        ("--pad_to_max_length False", {}, None),
        ("--forced_bos_token fr_XX", {}, None),
        ("--forced_bos_token __fr__", {}, None),
        ("--generation_num_beams 3", {"num_beams": 3}, "--generation_num_beams 3 -> --num_beams 3"),
        (
            "--generation_max_length 50",
            {"val_max_target_length": 50},
            "--generation_max_length 50 -> --val_max_target_length 50",
        ),
        ("--max_test_samples 5", {"max_predict_samples": 5}, "--max_test_samples 5 -> --max_predict_samples 5"),
        ("--max_val_samples 5", {"max_eval_samples": 5}, "--max_val_samples 5 -> --max_eval_samples 5"),
        (
            "--model_revision v2",
            {"model_name_or_path": "some/model@v2"},
            "--model_revision v2 -> --model_name_or_path some/model@v2",
        ),
        ("--model_revision main", {}, None),
        (
            "--push_to_hub_model_id mine --push_to_hub_organization team",
            {"hub_model_id": "team/mine"},
            "--push_to_hub_model_id mine -> --hub_model_id team/mine\n"
            "--push_to_hub_organization team -> --hub_model_id team/mine",
        ),
        (
            "--push_to_hub_organization team --output_dir runs/x",
            {"hub_model_id": "team/x", "output_dir": "runs/x"},
            "--push_to_hub_organization team -> --hub_model_id team/x",
        ),
        ("--ddp_timeout 60", {"process_timeout": 60.0}, "--ddp_timeout 60 -> --process_timeout 60"),
        ("--no_cuda", {"use_cpu": True}, "--no_cuda true -> --use_cpu true"),
        ("--full_determinism", {"deterministic": True}, "--full_determinism true -> --deterministic true"),
        ("--num_workers 2", {"dataloader_num_workers": 2}, "--num_workers 2 -> --dataloader_num_workers 2"),
        ("--with_tracking", {"report_to": "all"}, "--with_tracking true -> --report_to all"),
        ("--with_tracking --report_to wandb", {"report_to": "wandb"}, None),
        (
            "--with_tracking false --report_to all",
            {"report_to": "none"},
            "--with_tracking false -> --report_to none",
        ),
        ("--report_to tensorboard", {"report_to": "tensorboard"}, None),
        ("--fsdp 'full_shard auto_wrap'", {"shard_model": True}, "--fsdp full_shard auto_wrap -> --shard_model true"),
        ("--metric_for_best_model loss", {"metric_for_best_model": "eval_loss"},
         "--metric_for_best_model loss -> --metric_for_best_model eval_loss"),
        ("--metric_for_best_model eval_bleu", {}, "--metric_for_best_model eval_bleu -> --metric_for_best_model bleu"),
        (
            "--hub_strategy all_checkpoints",
            {"hub_strategy": "checkpoint"},
            "--hub_strategy all_checkpoints -> --hub_strategy checkpoint",
        ),
        (
            "--resume_from_checkpoint True",
            {"resume_from_checkpoint": "latest"},
            "--resume_from_checkpoint True -> --resume_from_checkpoint latest",
        ),
        (
            "--group_by_length --predict_with_generate --do_train --do_eval --optim adamw_torch --no_adafactor "
            "--dataloader_drop_last 0 --train_sampling_strategy random --logging_strategy steps --save_safetensors",
            {},
            None,
        ),
    ],
)  # fmt: skip
def test_translate_flags_with_a_counterpart(argv, settings, said):
    assert read(shlex.split(argv)) == (settings, said.split("\n") if said else [], [])


def test_translate_takes_values_and_warns():
    argv = (
        "--do_train --neftune_noise_alpha 5 kde4-en-fr --label_names a b --tf32 true --no_dataloader_pin_memory "
        "--num_beams 3 --group-by-length false --local_rank -1 --max-steps=5 --bf16_full_eval"
    )
    config, said, warned = [], [], []
    config = parse_config(argv.split(), warn=warned.append, say=said.append)
    assert config == changed(parse_config(["kde4-en-fr"]), num_beams=3, max_train_steps=5)
    assert said == ["--max_steps 5 -> --max_train_steps 5"]
    assert [line.split()[0] for line in warned] == [
        "--neftune_noise_alpha", "--label_names", "--tf32", "--dataloader_pin_memory", "--group_by_length",
        "--bf16_full_eval",
    ]  # fmt: skip
    assert warned[0] == "--neftune_noise_alpha is IGNORED AND THE RESULT CHANGES: not supported"
    assert warned[4] == "--group_by_length is ignored: batches are always grouped by length"


def test_switch_does_not_take_the_recipe():
    assert parse_config(["--do_train", "kde4-en-fr"]).recipe == "kde4-en-fr"


def test_accumulation_alone_keeps_the_update_of_a_recipe():
    with pytest.raises(UserError, match="--gradient_accumulation_steps: only valid with --per_device_train_batch_size"):
        parse_config(["kde4-en-fr", "--gradient_accumulation_steps", "2"])


def test_lines_are_printed_once_from_the_first_process(capsys, monkeypatch):
    parse_config([*TUNE, "--max_steps", "5", "--tf32"])
    out, err = capsys.readouterr()
    assert out == "--max_steps 5 -> --max_train_steps 5\n"
    assert err == "mtloop: warning: --tf32 is ignored: the precision is that of --mixed_precision\n"
    monkeypatch.setenv("RANK", "1")
    parse_config([*TUNE, "--max_steps", "5", "--tf32"])
    assert capsys.readouterr() == ("", "")


# contradictions and refusals


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--fp16 --mixed_precision bf16", "--fp16: --mixed_precision bf16 is given as well (got true). Leave one out."),
        ("--fp16 --bf16", "--bf16: --fp16 is given as well (got true). Leave one out."),
        ("--max_steps 5 --max_train_steps 6", "--max_steps: --max_train_steps 6 is given as well (got 5)."),
        ("--warmup_steps 5 --warmup_ratio 0.1", "--warmup_ratio: --warmup_steps is given as well (got 0.1)."),
        ("--generation_num_beams 5 --num_beams 4", "--generation_num_beams: --num_beams 4 is given as well (got 5)."),
        ("--eval_strategy no --evaluation_strategy epoch", "--evaluation_strategy: --eval_strategy is given as well"),
        ("--with_tracking --report_to none", "--with_tracking: --report_to none is given as well (got true)."),
        ("--forced_bos_token ro_RO", "--forced_bos_token: not the language of --target_lang fr, which chooses this"),
        ("--optim adafactor", "--optim: not supported (got adafactor). The optimizer is AdamW"),
        ("--adafactor", "--adafactor: not supported (got true)."),
        ("--fp16 maybe", "maybe: neither a YAML file nor a recipe"),
        ("--fp16=maybe", "--fp16: expected true or false (got 'maybe')."),
        ("--eval_strategy often", "--eval_strategy: expected one of no, steps, epoch (got 'often')."),
        ("--per_device_eval_batch_size x", "--per_device_eval_batch_size: expected a whole number (got 'x')."),
        ("--max_steps many", "--max_train_steps: expected a whole number from 1 to 1000000000 (got 'many')."),
        (
            "--warmup_steps 1.5",
            "--num_warmup_steps: expected a whole number of updates, or a fraction below 1 (got 1.5)",
        ),
        ("--fsdp none", "--fsdp: expected one of full_shard, hybrid_shard"),
        ("--no_such", "--no_such: no such flag"),
        ("--no_max_steps 3", "--no_max_steps: no such flag"),
        ("--do_train false", "--do_train: leaves nothing to do (got false). Give true, --do_eval or --do_predict."),
        ("--do_train --do_predict", "--do_predict: no test data is given. Add --test_file FILE."),
        ("--do_predict", "--do_predict: no test data is given. Add --test_file FILE."),
        ("--push_to_hub_organization team", "--push_to_hub_organization: the repository has no name (got team)."),
    ],
)
def test_contradictions_and_refusals_are_one_line(argv, line):
    assert line in refusal(argv.split())


@pytest.mark.parametrize(
    "argv",
    [
        ["--hub_token", "hf_SECRET"],
        ["--token=hf_SECRET"],
        ["--hub-token", "hf_SECRET"],
        ["-hub_token", "hf_SECRET"],
        ["--use_auth_token", "hf_SECRET"],
        ["--use_auth_token=hf_SECRET"],
    ],
)
def test_secrets_are_refused_without_their_value(argv):
    line = refusal(argv)
    assert "HF_TOKEN" in line and "hf auth login" in line and "SECRET" not in line


def test_use_auth_token_as_a_switch_is_accepted():
    assert read(["--use_auth_token", "True"]) == read(["--use_auth_token"]) == ({}, [], [])


def test_passwords_are_not_shown(capsys):
    assert run_command(["train", *TUNE, "--model_revision", "https://me:SECRET@hub/x"]) == 2
    assert "SECRET" not in "".join(capsys.readouterr())


# files and dicts


def test_flags_in_files_are_read_and_warn_with_their_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "model_name_or_path: m\ndataset_name: d\nsource_lang: en\ntarget_lang: fr\nfp16: true\ntf32: true\n"
    )
    said, warned = [], []
    config = parse_config([str(path), "--mixed_precision", "no"], warn=warned.append, say=said.append)
    assert config.hardware.mixed_precision == "no"  # the command line wins over the file
    assert said == [f"{path}:5: --fp16 true -> --mixed_precision fp16"]
    assert warned == [f"{path}:6: --tf32 is ignored: the precision is that of --mixed_precision"]
    path.write_text("optim: adafactor\n")
    assert refusal([str(path)], base=[]).startswith(f"{path}:1: --optim: not supported (got adafactor)")
    path.write_text("fp16: true\nmixed_precision: bf16\n")
    assert refusal([str(path)], base=[]).startswith(f"{path}:1: --fp16: --mixed_precision bf16 is given as well")
    path.write_text("hub_token: hf_SECRET\n")
    line = refusal([str(path)], base=[])
    assert line.startswith(f"{path}:1: --hub_token: refused") and "SECRET" not in line


def test_flags_in_a_dict_are_read(capsys):
    config = config_from({"config": "kde4-en-fr", "fp16": True, "max_steps": 7, "eval_strategy": "epoch"})
    assert (config.hardware.mixed_precision, config.optimizer.max_train_steps) == ("fp16", 7)
    assert "--max_steps 7 -> --max_train_steps 7" in capsys.readouterr().out


# training or scoring


@pytest.mark.parametrize(
    ("argv", "scored"),
    [
        ("--train_file a.tsv", ()),
        ("--train_file a.tsv --do_train", ()),
        ("--train_file a.tsv --do_train --do_eval --do_predict --test_file c.tsv", ()),
        ("--train_file a.tsv --do_eval false", ()),
        ("--do_predict --test_file c.tsv", ("test",)),
        ("--do_eval --do_predict --validation_file b.tsv --test_file c.tsv --do_train False", ("valid", "test")),
        ("--do_eval --dataset_name d", ("valid",)),
    ],
)
def test_scored_splits(argv, scored):
    assert parse_config([*SCORED, *argv.split()], warn=pytest.fail).scored == scored


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            [*SCORED, "--do_eval", "--train_file", "a.tsv"],
            "--do_eval: no validation data is given. Add --validation_file",
        ),
        ([*SCORED, "--do_predict"], "--do_predict: no test data is given. Add --test_file FILE."),
        (["--do_eval"], "--do_eval: no model is given. Add --model_name_or_path NAME, or --do_train to train one."),
        (["--do_eval", "--model_name_or_path", "m", "--validation_file", "b.tsv"], "--source_lang: required"),
    ],
)
def test_scoring_needs_a_model_and_rows(argv, line):
    assert line in refusal(argv, base=[])


# whole command lines

RUN = {"source_lang": "en", "target_lang": "ro", "output_dir": "out"}
WMT16 = {"dataset_name": "wmt16", "dataset_config_name": "ro-en"}
FOUR = {"per_device_train_batch_size": 4, "eval_max_tokens": 512}
MEANINGS = {
    "marian": {**RUN, **WMT16, **FOUR, "model_name_or_path": "Helsinki-NLP/opus-mt-en-ro"},
    "t5": {
        **RUN, "model_name_or_path": "t5-small", "source_prefix": "translate English to Romanian: ",
        "train_file": ["files/train.json"], "validation_file": ["files/validation.json"],
        "test_file": ["files/test.json"], "learning_rate": 2e-5, "per_device_train_batch_size": 16,
        "eval_max_tokens": 2048, "weight_decay": 0.01, "save_total_limit": 3, "num_train_epochs": 2,
        "mixed_precision": "fp16",
    },
    "t5_and_data_set": {
        **RUN, **WMT16, **FOUR, "model_name_or_path": "google-t5/t5-small",
        "source_prefix": "translate English to Romanian: ",
    },
    "mbart": {
        **RUN, **WMT16, **FOUR, "model_name_or_path": "facebook/mbart-large-en-ro", "source_lang": "en_XX",
        "target_lang": "ro_RO",
    },
    "no_trainer": {**RUN, **WMT16, "model_name_or_path": "Helsinki-NLP/opus-mt-en-ro"},
    "course": {
        **RUN, **WMT16, "model_name_or_path": "Helsinki-NLP/opus-mt-en-ro", "eval_steps": MAX_COUNT,
        "eval_on_start": False, "learning_rate": 2e-5, "per_device_train_batch_size": 32, "eval_max_tokens": 8192,
        "weight_decay": 0.01, "save_total_limit": 3, "mixed_precision": "fp16",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_command_lines_of_others_mean_the_same_here(name):
    warned = []
    config = parse_config(flags_of(name), warn=warned.append, say=lambda line: None)
    assert {key: value for key, value in flat(config).items() if value != DEFAULTS[key]} == MEANINGS[name]
    expected = [OVERWRITE] if name not in ("no_trainer", "course") else []
    if name == "t5_and_data_set":
        others = "ignored, as in run_translation.py: --dataset_name is given as well"
        expected.append(f"--train_file, --validation_file: {others}")
    assert warned == expected
    assert resolve(replace(config)).scored == ()
