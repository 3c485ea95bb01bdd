"""What a person sees of a run: the bar, lines without a terminal, the table of evaluations, samples."""

import sys

import pytest

from mtloop.trainer.display import Display, _one_line
from tests.support.records import evaluation, update


@pytest.fixture
def display(runtime):
    return Display(runtime=runtime, total_steps=1_200)


def test_without_a_terminal_an_update_is_a_line(display, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    display.start(0)
    display.update(update(1_000))
    display.close()
    assert capsys.readouterr() == ("update 1,000 of 1,200: loss 4.500, lr 2e-05, 12,346 tokens/s\n", "")


def test_on_a_terminal_a_bar_shows_the_update(display, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    display.start(10)
    display.advance()
    display.update(update(11))
    assert display._bar.n == 11 and display._bar.total == 1_200
    display.close()
    shown = capsys.readouterr()
    assert "11/1200" in shown.err and "loss 4.500" in shown.err and "update 11 of" not in shown.out
    display.advance()  # a closed bar stays closed


def test_the_table_aligns_its_columns_and_names_them_once_until_samples_come_between(display, capsys):
    display.evaluation("valid", evaluation(1), epoch=0)
    display.update(update(1))
    capsys.readouterr()
    display.evaluation("valid", evaluation(1_100), epoch=1.23456)
    display.samples([("a source", "a reference", "a hypothesis")])
    display.evaluation("test", evaluation(1_100), epoch=2.0)
    lines = capsys.readouterr().out.splitlines()
    row, *samples, empty, header, last = lines
    assert row.split()[:9] == ["1.235", "1,100", "4.5000", "1.5000", "4.48", "31.25", "55.50", "12,346", "98.8"]
    assert [line.split(maxsplit=1)[-1].strip() for line in samples] == [
        "source      a source",
        "a reference",
        "a hypothesis",
    ]
    assert empty == "" and header.split()[:2] == ["epoch", "step"] and last.split()[0] == "test"
    assert len(row) == len(header) == len(last)
    assert header.index("BLEU") + len("BLEU") == row.index("31.25") + len("31.25")


def test_a_row_says_what_chance_makes_of_bleu_and_fits_a_wide_terminal(display, capsys):
    display.evaluation("valid", {**evaluation(1_199, bleu=52.9), "bleu_ci": 1.2}, epoch=1)
    display.samples([])
    gain = {"bleu_ci": 1.204, "bleu_gain": 13.7, "bleu_p_value": 1 / 1001}
    display.evaluation("valid", {**evaluation(1_200, bleu=52.9), **gain}, epoch=2)
    _, plain_header, plain, _, header, row = capsys.readouterr().out.splitlines()
    assert "  52.90 ± 1.20  " in plain and "  52.90 ± 1.20 (+13.70, p = 0.001)  " in row
    assert header.index("BLEU") + len("BLEU") == row.index("0.001)") + len("0.001)")
    assert len(plain_header) == len(plain) == 103 and len(header) == len(row) <= 123


def test_a_row_without_an_update_before_it_has_dashes(display, capsys):
    display.evaluation("valid", {**evaluation(0), "perplexity": 1e300}, epoch=0)
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert cells[2] == cells[7] == "-" and cells[4] == "1.0e+300"


def test_a_sample_stays_on_its_line():
    assert _one_line("a\nb\tc\x1b[31m") == r"a\nb\tc\x1b[31m"
    assert _one_line("10\xa0%") == "10\xa0%" and _one_line("a\u200bb") == r"a\u200bb"
    assert _one_line("x" * 161) == "x" * 157 + "..." and len(_one_line("x" * 160)) == 160


def test_a_process_that_is_not_main_prints_nothing(display, runtime, capsys):
    runtime.is_main = False
    display.start(0)
    display.update(update(1))
    display.evaluation("valid", evaluation(1), epoch=1)
    assert capsys.readouterr() == ("", "")
