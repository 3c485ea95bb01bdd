"""Show a run to a person: the bar, lines without a terminal, the table of evaluations, samples."""

import re
import sys

import pytest

from mtloop.trainer import display as module
from mtloop.trainer.display import Display, one_line
from tests.support.records import evaluation, update

INTERVALS = {"bleu_ci": 1.204, "chrf_ci": 0.8}
GAIN = {"bleu_gain": 13.7, "bleu_p_value": 1 / 1001}
SAMPLE = ("a source", "a reference", "a hypothesis")


@pytest.fixture
def display(runtime, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return Display(runtime=runtime, total_steps=1_200)


def become_terminal(monkeypatch):
    """Let standard output and standard error be a terminal with colours, for which pytest's capture stands."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)


def shown(display, *records, name="valid", **options):
    for record in records:
        display.evaluation(name, record, **options)


# lines without a terminal


def test_without_a_terminal_the_first_and_the_last_update_and_one_every_30_s_are_lines(display, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    display.start(0)
    for step in (*range(100, 1_200, 100), 1_199, 1_200):
        display.update(update(step))
        now += 10.0
    display.close()
    text = capsys.readouterr()
    assert text.out.startswith("update 100 of 1,200: loss 4.500, lr 2e-05, 12,346 tokens/s\n") and text.err == ""
    steps = re.findall(r"update ([\d,]+) of", text.out)
    assert steps == ["100", "400", "700", "1,000", "1,200"]


# the bar


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_a_bar_that_does_not_wrap_shows_the_update(display, capsys, monkeypatch, columns):
    become_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    display.total_steps = 123_456
    display.start(10)
    display._bar.mininterval = 0
    display.update({**update(11), "tokens_per_s": 123_456.7})
    display.advance()
    text = capsys.readouterr()
    *_, bar = text.err.split("\r")
    assert re.fullmatch(r"  0% .+ 11/123,456  loss 4\.500  123,457 tokens/s  [\d:]+ left *", bar)
    assert max(map(len, text.err.split("\r"))) <= columns and text.out == ""
    display.close()
    closing = capsys.readouterr().err
    assert closing.strip() == "" and "\n" not in closing  # it is gone: the table is one table
    display.advance()  # a closed bar stays closed


# the table


@pytest.mark.parametrize(
    ("columns", "pretrained", "titles"),
    [
        (60, True, "epoch step train loss eval loss BLEU time"),
        (80, True, "epoch step train loss eval loss BLEU ± gain chrF time"),
        (80, False, "epoch step train loss eval loss BLEU ± chrF time"),
        (120, True, "epoch step train loss eval loss perplexity BLEU ± gain p chrF tokens/s sent/s time"),
        (120, False, "epoch step train loss eval loss perplexity BLEU ± chrF ± tokens/s sent/s time"),
    ],
)  # fmt: skip
def test_the_table_has_the_columns_that_fit(display, capsys, monkeypatch, columns, pretrained, titles):
    monkeypatch.setenv("COLUMNS", str(columns))
    gain = GAIN if pretrained else {}
    first = evaluation(0 if pretrained else 600) | INTERVALS
    shown(display, first, evaluation(600) | INTERVALS | gain, evaluation(1_200, bleu=52.9) | INTERVALS | gain)
    empty, header, *rows = capsys.readouterr().out.splitlines()
    assert empty == "" and header.split() == titles.split() and len(rows) == (3 if columns > 60 else 6)
    assert {len(row) for row in rows if "chrF" not in row} == {len(header)} and len(header) <= columns


def test_a_row_has_the_numbers_below_their_titles(display, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    display.update(update(1))
    capsys.readouterr()
    shown(display, {**evaluation(1_100), **INTERVALS, **GAIN, "epoch": 0.06666})
    shown(display, {**evaluation(1_200), "epoch": 2.0}, name="test")
    _, header, row, last = capsys.readouterr().out.splitlines()
    assert row.split()[:-1] == [
        "0.07", "1,100", "4.5000", "1.5000", "4.48", "31.25", "1.20", "+13.70", "0.001", "55.50", "12,346", "98.8",
    ]  # fmt: skip
    assert last.split()[:2] == ["test", "1,200"] and last.split()[6:9] == ["-", "-", "-"]
    assert header.index("BLEU") + len("BLEU") == row.index("31.25") + len("31.25")
    assert re.fullmatch(r"\d+:\d\d:\d\d", row.split()[-1])


def test_a_row_without_an_update_before_it_has_a_dash(display, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    shown(display, {**evaluation(0), "perplexity": 1e300, "bleu": None})
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert cells[2] == "-" and cells[4:6] == ["1.0e+300", "-"]


def test_scores_without_room_and_those_of_pairs_are_lines_below(display, capsys):
    own = {"user_metrics": dict.fromkeys(("formality", "terminology"), True), "formality": 0.5, "terminology": 0.25}
    of_pairs = {
        f"{name}_{pair}": 12.5 for name in ("bleu", "chrf", *own["user_metrics"]) for pair in ("en-fr", "en-de")
    }
    record = evaluation(600) | INTERVALS | own | of_pairs | {"bleu_en-fr_ci": 1.5}
    shown(display, record, pairs=["en-fr", "en-de"])
    _, header, row, *below = capsys.readouterr().out.splitlines()
    assert header.split()[-3:] == ["chrF", "formality", "time"] and "±" not in header
    assert below == [
        "  terminology 0.25",
        "  en-fr: BLEU 12.50 ± 1.50, chrF 12.50, formality 12.50, terminology 12.50",
        "  en-de: BLEU 12.50, chrF 12.50, formality 12.50, terminology 12.50",
    ]
    assert max(map(len, [header, row, *below])) <= 80


# samples


def test_samples_of_the_last_evaluation_come_after_the_table(display, capsys):
    shown(display, evaluation(600), samples=[("another", "", "")])
    shown(display, evaluation(1_200), samples=[SAMPLE, ("word " * 30, "词" * 50, "")])
    display.finish()
    lines = capsys.readouterr().out.splitlines()
    assert sum("epoch" in line for line in lines) == 1 and "another" not in "".join(lines)
    assert lines[4:9] == ["", "source      a source", "reference   a reference", "hypothesis  a hypothesis", ""]
    assert lines[9:] == [
        "source      " + " ".join(["word"] * 13),
        "            " + " ".join(["word"] * 13),
        "            " + " ".join(["word"] * 4),
        "reference   " + "词" * 34,  # two columns each
        "            " + "词" * 16,
        "hypothesis",
        "",
    ]
    display.finish()
    assert capsys.readouterr().out == ""


def test_a_sample_stays_on_its_line():
    assert one_line("a\nb\tc\x1b[31m") == r"a\nb\tc\x1b[31m"
    assert one_line("10\xa0%") == "10\xa0%" and one_line("a\u200bb") == r"a\u200bb"
    assert one_line("x" * 241) == "x" * 237 + "..." and len(one_line("x" * 240)) == 240


# colours


def test_a_terminal_shows_the_header_bold_and_the_best_row_green(display, capsys, monkeypatch):
    become_terminal(monkeypatch)
    shown(display, evaluation(600))
    shown(display, evaluation(1_200), is_best=True)
    _, header, row, best = capsys.readouterr().out.splitlines()
    assert header.startswith("\x1b[1m") and "\x1b" not in row and best.startswith("\x1b[32m")
    assert header.endswith("\x1b[0m") and best.endswith("\x1b[0m")


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb"), None])
def test_no_colour_without_a_terminal_or_where_it_is_not_wanted(display, capsys, monkeypatch, variable):
    become_terminal(monkeypatch)
    if variable is None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    else:
        monkeypatch.setenv(*variable)
    shown(display, evaluation(600), is_best=True, samples=[SAMPLE])
    display.finish()
    assert "\x1b" not in capsys.readouterr().out


def test_a_process_that_is_not_main_prints_nothing(display, runtime, capsys):
    runtime.is_main = False
    display.start(0)
    display.update(update(1))
    shown(display, evaluation(1), samples=[SAMPLE])
    display.finish()
    assert capsys.readouterr() == ("", "")
