"""selfcheck: what counts as equal, the table, the settings of the children, and its own mistakes."""

import math

import pytest

from mtloop.config.parse import config_from, parse_config
from mtloop.config.settings import Config, changed, flat, resolve
from mtloop.config.yaml_file import to_yaml
from mtloop.selfcheck.compare import Row, compare_coverage, compare_evaluations, compare_updates, compare_weights
from mtloop.selfcheck.parent import Selfcheck, choose_save_step, estimate, shrink
from tests.support.commands import command

main = command("selfcheck")


def updates(**changes):
    """Two epochs of six sentences, two an update, and the beginning of a third; changes: field=(step, value)."""
    records = [
        {"step": s + 1, "epoch": s // 3, "ids": [2 * (s % 3), 2 * (s % 3) + 1], "loss": 2.0 / (s + 1), "grad_norm": 1.0}
        for s in range(7)
    ]
    for name, (step, value) in changes.items():
        records[step - 1][name] = value
    return records


def test_every_sentence_once():
    row = compare_coverage("name", updates(), 6)
    assert row == Row("name", True, "14 in 3 epoch(s) of 6: 0 twice, 0 left out")


@pytest.mark.parametrize(
    ("records", "figures"),
    [
        (updates(ids=(2, [0, 3])), "14 in 3 epoch(s) of 6: 1 twice, 1 left out"),  # one again, in place of another
        (updates(ids=(7, [1, 1])), "14 in 3 epoch(s) of 6: 1 twice, 0 left out"),  # in the part of an epoch
        (updates(ids=(1, [0])), "13 in 3 epoch(s) of 6: 0 twice, 1 left out"),
        (updates()[:2] + updates()[1:], "16 in 3 epoch(s) of 6: 2 twice, 0 left out"),  # an update again
    ],
)
def test_a_sentence_twice_or_never_is_not_equal(records, figures):
    assert compare_coverage("name", records, 6) == Row("name", False, figures)


def test_the_same_updates_are_equal_in_any_order_of_their_sentences():
    row = compare_updates("name", updates(), updates(ids=(3, [5, 4])))
    assert row.is_equal and "loss within 0.0e+00, gradient norm within 0.0e+00" in row.figures


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
@pytest.mark.parametrize(("factor", "is_equal"), [(1 + 5e-6, True), (1 + 2e-5, False), (1 - 2e-5, False), (-1, False)])
def test_a_difference_counts_from_the_tolerance_on(what, factor, is_equal):
    other = updates(**{what: (2, updates()[1][what] * factor)})
    for pair in ((updates(), other), (other, updates())):
        assert compare_updates("name", *pair).is_equal == is_equal
        assert not compare_updates("name", *pair, is_bitwise=True).is_equal


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_never_equal(value):
    broken = updates(loss=(4, value))
    for pair in ((updates(), broken), (broken, updates()), (broken, broken)):
        row = compare_updates("name", *pair)
        assert not row.is_equal and "loss within inf" in row.figures


@pytest.mark.parametrize("other", [updates()[1:], updates()[:-1], [], updates()[:3] + updates()[4:]])
def test_updates_that_are_missing_are_not_equal(other):
    assert not compare_updates("name", updates(), other).is_equal
    assert not compare_updates("name", other, updates()).is_equal
    assert not compare_updates("name", [], []).is_equal


def test_other_sentences_are_named_by_their_update():
    row = compare_updates("name", updates(), updates(ids=(5, [0, 1])))
    assert row == Row("name", False, "update 5 has other sentences, and 0 more")


def test_weights_are_equal_bit_by_bit():
    assert compare_weights("name", "ab" * 32, "ab" * 32, steps="s") == Row("name", True, "s; bitwise the same weights")
    row = compare_weights("name", "ab" * 32, "cd" * 32, steps="s")
    assert row == Row("name", False, "s; weights abababababab and cdcdcdcdcdcd")


def evaluation(**changes):
    return {"num_sentences": 2, "hypotheses": ["un", "deux"], "bleu": 12.5, "eval_loss": 3.0, **changes}


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        ({}, True),
        ({"eval_loss": 3.0 * (1 + 1e-6)}, True),
        ({"eval_loss": 3.0 * (1 + 1e-4)}, False),
        ({"eval_loss": math.nan}, False),
        ({"hypotheses": ["un", "dix"]}, False),
        ({"hypotheses": ["un"]}, False),
        ({"num_sentences": 3, "hypotheses": ["un", "deux", "deux"]}, False),
        ({"bleu": 12.51}, False),
    ],
)
def test_evaluations_are_equal_sentence_by_sentence(changes, is_equal):
    assert compare_evaluations("name", evaluation(), evaluation(**changes)).is_equal == is_equal
    assert compare_evaluations("name", evaluation(**changes), evaluation()).is_equal == is_equal


@pytest.mark.parametrize("texts", [[], ["", ""], ["", " "]])
def test_empty_hypotheses_prove_nothing(texts):
    same = evaluation(hypotheses=texts, num_sentences=len(texts))
    row = compare_evaluations("name", same, same)
    assert not row.is_equal and "0 hypotheses are not empty, 0 differ" in row.figures
    assert compare_evaluations("name", *[evaluation(hypotheses=["", "dix"])] * 2).is_equal


def test_the_children_train_what_was_asked_but_less_and_exactly(tmp_path):
    asked = {
        "train_file": "a.jsonl", "validation_file": "b.jsonl", "test_file": "c.jsonl", "source_lang": "en",
        "target_lang": "fr", "model_name_or_path": "m", "learning_rate": 3e-4, "weight_decay": 0.1,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5, "seed": 7,
        "mixed_precision": "bf16", "dropout": 0.3, "push_to_hub": True, "report_to": "all", "num_warmup_steps": 500,
        "early_stopping_patience": 2, "max_eval_samples": 12, "expect_processes": 8, "save_total_limit": 1,
    }  # fmt: skip
    small = shrink(resolve(config_from(asked)))
    values = flat(small)
    kept = ("train_file", "learning_rate", "weight_decay", "max_grad_norm", "seed", "per_device_train_batch_size")
    assert all(values[name] == flat(resolve(config_from(asked)))[name] for name in kept)
    assert (values["max_train_samples"], values["max_eval_samples"], values["max_train_steps"]) == (160, 12, 20)
    assert (values["mixed_precision"], values["dropout"], values["num_warmup_steps"]) == ("no", 0.0, 10)
    assert values["test_file"] is values["early_stopping_patience"] is values["expect_processes"] is None
    assert not values["push_to_hub"] and values["report_to"] is None
    # It is handed over as YAML.
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small), encoding="utf-8")
    assert changed(parse_config([str(path)]), **flat(small)) == parse_config([str(path)])


@pytest.mark.parametrize("updates_per_epoch", range(1, 30))
def test_the_kill_falls_within_an_epoch(updates_per_epoch):
    step = choose_save_step(updates_per_epoch)
    assert step >= 8 and step + 2 < 20 and step * 2 > step + 2
    if updates_per_epoch > 2:
        # No epoch ends at the save, nor between it and the kill, in the second update after it.
        assert step % updates_per_epoch and (step + 1) % updates_per_epoch


def test_the_estimate_adds_up():
    text = estimate({"start": 10, "update": 0.5, "evaluation": 4, "num_ranks": 2})
    # 3 * 10 + (62 + 80) * 0.5 + 3 * 4 = 113 s
    assert text.startswith("this takes about 2 min: 3 starts of 10 s, about 142 updates of 0.50 s, 3 evaluations")


@pytest.mark.parametrize(
    ("num_ranks", "device", "unproven"),
    [
        (2, "cpu", []),
        (1, "cpu", ["that several processes give the same (the launch started one: give --config_file)"]),
        (2, "cuda", ["that a resume gives bitwise the same weights (not checked on cuda)"]),
    ],
)
def test_what_cannot_be_shown_is_named(tmp_path, num_ranks, device, unproven):
    results = {"all": {"num_ranks": num_ranks, "device": device}}
    assert Selfcheck(Config(), launch=[], work_dir=tmp_path, results=results).unproven == unproven


@pytest.mark.parametrize(
    ("names", "unproven", "status", "line"),
    [
        ([], [], 0, "all equal"),
        ([], ["a", "b"], 0, "all equal; not proven: a, b"),
        (["x"], ["a"], 1, "not equal: x; not proven: a"),
    ],
)
def test_the_last_line_names_what_differs_and_what_is_not_proven(monkeypatch, capsys, names, unproven, status, line):
    rows = [Row("y", True, "figures"), *(Row(name, False, "figures") for name in names)]
    monkeypatch.setattr(Selfcheck, "run", lambda self: rows)
    monkeypatch.setattr(Selfcheck, "unproven", unproven)
    assert main(["demo"]) == status
    assert capsys.readouterr().out.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config_file", "nowhere.yaml"], "--config_file: no such launch file (got nowhere.yaml)"),
        (["--learning_rat", "1"], "--learning_rat: no such flag, did you mean --learning_rate?"),
        (["--learning_rate", "-1"], "--learning_rate"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line_before_any_child_starts(argv, message, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"mtloop: error: {message}") and captured.err.count("\n") == 1
    assert captured.out == ""
