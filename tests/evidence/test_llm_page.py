"""The page of a language model's evaluation."""

import copy
import re
from html.parser import HTMLParser

import pytest

from secateur.evidence.llm_page import comparable, render_llm

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}


def evaluation(model="small", perplexity=65.1, kept=80.0e6, sha="a", **changes):
    note = "30,660 tokens scored in 60 windows of 512, which do not overlap"
    figure = {"unit": "", "asked": None, "ok": None, "note": ""}
    return {
        "model": model,
        "dense": "big <dense>",
        "class": "LlamaForCausalLM",
        "rows": [
            {**figure, "what": "perplexity", "dense": 30.4, "pruned": perplexity, "low": 60.0, "high": 70.0, "note": note},
            {**figure, "what": "top-1 agreement with dense", "dense": None, "pruned": 0.61, "low": 0.6, "high": 0.62},
            {**figure, "what": "parameters that are not zero", "dense": 134.5e6, "pruned": kept, "low": None, "high": None},
        ],
        "speed": [],
        "tasks": [{"task": "choice", "metric": "acc", "dense": 0.5, "pruned": 0.25, "standard_error": None}],
        "blocks": [
            {"block": f"model.layers.{i}", "size": 100, "kept": 50 - i, "density": (50 - i) / 100, "error": 0.1 * i, "solved": None}
            for i in range(3)
        ],
        "protocol": {
            "words": note, "dtype": "float32", "device": "cpu", "window": 512, "stride": 512, "tokens": 30660,
            "texts": [{"name": "news.txt", "characters": 120_000, "sha256": sha}],
        },
        "made_by": {"file": "llm.json", "made": {"solver": "sparsegpt", "sparsity": 0.5}},
        "made": {"date": "2026-01-02", "versions": {"torch": "2.0"}, "machine": {"cores": 2}},
    } | changes  # fmt: skip


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.outside, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.outside += [v for k, v in attrs if k in ("src", "href", "action") and v and not v.startswith("#")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page):
    found = Checker()
    found.feed(page)
    assert found.open == []
    assert found.outside == []  # works offline
    assert len(found.ids) == len(set(found.ids))
    return page


def test_the_protocol_stands_beside_the_figures():
    page = checked(render_llm(evaluation()))
    for words in ("30,660 tokens scored in 60 windows of 512", "news.txt", "65.1", "30.4", "sparsegpt", "choice"):
        assert words in page
    assert "big &lt;dense&gt;" in page
    assert "<dense>" not in page


def test_every_block_has_its_bars():
    page = render_llm(evaluation())
    for title in ("Error of the hidden state by block", "Density by block"):
        assert title in page
    assert "Error of the matrices by block" not in page  # nothing told of it
    told = evaluation()
    told["blocks"] = [{**b, "solved": 0.02} for b in told["blocks"]]
    assert "Error of the matrices by block" in checked(render_llm(told))
    assert len(re.findall(r'scope="row" class="mono">model\.layers\.\d<', page)) == 3


def test_the_trade_off_shows_what_compares():
    other = evaluation("smaller", 120.0, 50e6)
    foreign = evaluation("foreign", 20.0, 50e6, sha="b")
    page = checked(render_llm(evaluation(), [other, foreign]))
    assert "Perplexity against parameters that are not zero" in page
    assert re.search(r"small: 80.0 M at 65.1; smaller: 50.0 M at 120; dense: 135 M at 30.4|134", page)
    assert "Left out, since they are of other texts or windows: foreign" in page
    assert "foreign: " not in page


def test_other_windows_do_not_compare():
    one = evaluation()
    for key in ("window", "stride", "tokens"):
        two = copy.deepcopy(one)
        two["protocol"][key] = 7
        assert not comparable(one, two)
    assert comparable(one, evaluation("another"))


@pytest.mark.parametrize("gone", ["rows", "blocks", "tasks"])
def test_what_was_not_asked_for_is_left_out(gone):
    whole, page = (checked(render_llm(evaluation(**change))) for change in ({}, {gone: []}))
    assert len(page) < len(whole)
    assert set(re.findall(r'<h2 id="([^"]+)"', page)) < set(re.findall(r'<h2 id="([^"]+)"', whole))


def test_without_a_dense_model():
    alone = evaluation(dense=None)
    alone["rows"] = [{**r, "dense": None} for r in alone["rows"] if "agreement" not in r["what"]]
    alone["blocks"] = [{**b, "error": None} for b in alone["blocks"]]
    page = checked(render_llm(alone))
    assert '<h2 id="h-trade"' not in page
    assert "Error of the hidden state" not in page
