"""Test --eval_engine: evaluations with CTranslate2 do not change the training and equal those of generate()."""

import sys

import pytest
import torch
from transformers import LEDConfig, MarianConfig

from mtloop.atomic import read_json_lines
from mtloop.config.parse import parse_config
from mtloop.errors import UserError
from mtloop.trainer.loop import train
from mtloop.trainer.report import check_eval_engine, eval_engine
from tests.unit.test_trainer import records

FLAGS = {"max_train_steps": 2, "eval_steps": 1, "learning_rate": 3e-3, "num_warmup_steps": 0}


def hypotheses_of(run, step):
    return [row["hypothesis"] for row in read_json_lines(run.folder.hypotheses_dir / f"step_{step}.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"lora_rank": 2, "learning_rate": 0.1}], ids=["whole", "lora"])
def test_eval_engine_scores_current_weights_and_changes_nothing(new_run, model_path, capsys, flags):
    if flags:
        pytest.importorskip("peft")
    flags = {**FLAGS, **flags, "model_name_or_path": model_path, "model_size": None, "num_beams": 1}
    plain = new_run("plain", **flags)
    train(plain)
    plain.folder.unlock()
    capsys.readouterr()
    run = new_run("converted", **flags, eval_engine="ctranslate2")
    train(run)
    out = capsys.readouterr().out
    for step in (0, 1, 2):
        pairs = list(zip(hypotheses_of(run, step), hypotheses_of(plain, step), strict=True))
        assert sum(mine == its for mine, its in pairs) >= len(pairs) - 1  # two tokens may be all but equally likely
    assert hypotheses_of(run, 0) != hypotheses_of(run, 2)
    assert [record["eval_loss"] for record in records(run) if "eval_loss" in record] == [
        record["eval_loss"] for record in records(plain) if "eval_loss" in record
    ]
    weights = plain.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in run.model.state_dict().items())
    assert out.count("--eval_engine ctranslate2: 6 of 6 hypotheses are those of generate() (100.0 %)") == 1
    assert not [path for path in run.folder.path.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.slow
def test_eval_engine_removes_its_copy_after_a_failure(new_run):
    run = new_run(eval_engine="ctranslate2", source_prefix="translate: ")
    with pytest.raises(KeyError), eval_engine(run) as engine:
        assert engine.max_source_length == run.config.data.max_source_length
        assert engine.source_prefix == "translate: "
        raise KeyError("something")
    assert not [path for path in run.folder.path.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.slow
def test_eval_engine_failed_conversion_names_the_flag(new_run, monkeypatch):
    run = new_run(eval_engine="ctranslate2")

    def fail(*arguments, **options):
        raise UserError("--model x: CTranslate2 4.8 cannot convert it (ValueError: no)")

    monkeypatch.setattr("mtloop.generation.conversion.convert", fail)
    with pytest.raises(UserError, match="^--eval_engine ctranslate2 x: "), eval_engine(run):
        pass
    assert not [path for path in run.folder.path.iterdir() if path.name.startswith(".tmp")]


def test_check_eval_engine_refuses_an_unsupported_model(monkeypatch):
    config = parse_config(["--eval_engine", "ctranslate2"])
    check_eval_engine(config, MarianConfig())
    with pytest.raises(
        UserError, match="^--eval_engine ctranslate2: a model of type led cannot be converted .*marian, .*bart"
    ):
        check_eval_engine(config, LEDConfig())
    check_eval_engine(parse_config([]), LEDConfig())
    with pytest.raises(UserError, match="^--eval_engine: --max_length_ratio is only valid with generate"):
        parse_config(["--eval_engine", "ctranslate2", "--max_length_ratio", "3"])
    monkeypatch.setitem(sys.modules, "ctranslate2.converters", None)
    monkeypatch.delitem(sys.modules, "mtloop.generation.conversion", raising=False)
    with pytest.raises(UserError, match="^--eval_engine ctranslate2: ctranslate2 is not installed. .*pip install "):
        check_eval_engine(config, MarianConfig())
