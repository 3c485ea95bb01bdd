"""Show a run in a notebook: one display that is updated in place."""

import sys
import types

import pytest

from mtloop.trainer import notebook as module
from mtloop.trainer.display import Display
from mtloop.trainer.notebook import NotebookDisplay, open_display
from tests.support.records import evaluation, update


class Cell:
    """The output of a cell: what was displayed in it, and how often it was updated."""

    def __init__(self):
        self.displays, self.num_updates = [], 0

    def display(self, content, *, raw, display_id):
        assert raw and display_id
        self.displays.append(content)
        return self

    def update(self, content, *, raw):
        self.displays[-1] = content
        self.num_updates += 1


@pytest.fixture
def cell(monkeypatch):
    """A kernel, for whose libraries this stands: they need not be installed."""
    cell = Cell()
    shell = types.SimpleNamespace(kernel="a kernel")
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=cell.display))
    return cell


@pytest.fixture
def display(runtime, cell):
    return open_display(runtime, 1_200)


def test_open_display_knows_a_kernel(runtime, display, monkeypatch):
    assert type(display) is NotebookDisplay
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", types.SimpleNamespace)  # as in a terminal
    assert type(open_display(runtime, 1)) is Display
    monkeypatch.delitem(sys.modules, "IPython")
    assert type(open_display(runtime, 1)) is Display


def test_a_run_is_one_display_that_is_updated(display, cell, capsys):
    display.evaluation("valid", evaluation(0), samples=[("former", "former", "former")])
    display.start(0)
    display.advance()
    display.update(update(1))
    display.evaluation(
        "valid", evaluation(1, bleu=35.5), samples=[("a < b", "a reference", "a hypothesis")], is_best=True
    )
    display.close()
    display.finish()
    assert capsys.readouterr() == ("", "")
    (content,) = cell.displays
    text, html = content["text/plain"], content["text/html"]
    assert text.splitlines()[0].startswith("update 1 of 1,200, loss 4.500, 12,346 tokens/s, 0:")
    assert [line.split()[1] for line in text.splitlines() if "31.25" in line or "35.50" in line] == ["0", "1"]
    assert "a < b" in text and "a &lt; b" in html and "former" not in text + html
    assert html.count("<tr") == 5  # two rows and a sample, and their heads
    assert html.count('<tr><td style="text-align: right; font-weight: bold') == 1
    assert '<progress value="1" max="1200"' in html


def test_the_display_is_refreshed_twice_a_second(display, cell, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    display.start(100)
    for step in range(101, 201):
        now += 0.01
        display.advance()
        display.update(update(step))
    assert cell.num_updates in (1, 2)  # 100 updates in a second
    display.close()
    assert cell.displays[0]["text/plain"].startswith("update 200 of 1,200, loss 4.500, 12,346 tokens/s, 0:00:10 left")


def test_pairs_have_lines(display, cell):
    record = {**evaluation(1), "bleu_en-fr": 30.0, "bleu_en-fr_ci": 1.0, "chrf_en-fr": 50.0}
    display.evaluation("valid", record, pairs=["en-fr"])
    assert "en-fr: BLEU 30.00 ± 1.00" in cell.displays[0]["text/plain"]


def test_a_front_end_that_fails_does_not_stop_the_run(display, cell, monkeypatch):
    def fail(content, *, raw):
        raise ConnectionError("gone")

    display.start(0)
    monkeypatch.setattr(cell, "update", fail)
    display.evaluation("valid", evaluation(1))


def test_other_ranks_show_nothing(display, cell, monkeypatch):
    monkeypatch.setattr(display.runtime, "is_main", False)
    display.start(0)
    display.evaluation("valid", evaluation(1))
    assert cell.displays == []
