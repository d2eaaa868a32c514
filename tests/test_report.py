"""`comigs-edge report` as a person meets it: a summary, one page, JSON, and homes without this or that."""

import json
import re

import pytest

from comigs_edge.commands.report_page import write_report
from comigs_edge.fleet.leaving import LEAVES
from comigs_edge.training import checkpoint
from tests.test_cli import error
from tests.test_explain import FOREIGN, Page


@pytest.fixture
def trained(run, ready):
    run("train", "--steps", "8", "--plan", "zero_expert=false")
    return ready


def report(run, *arguments):
    return json.loads(run("report", "--json", *arguments).stdout)


@pytest.mark.usefixtures("no_ordinary_text")
def test_its_scores_are_those_of_evaluate_and_its_curves_those_of_the_training(run, trained):
    found = report(run)
    scores = json.loads(run("evaluate", "--engine", "torch", "--json").stdout)
    assert found["bits_per_byte"] == pytest.approx(scores["bits_per_byte"], rel=1e-4)
    assert (found["test_bytes"], found["test_tokens"]) == (scores["test_bytes"], scores["test_tokens"])
    kept = checkpoint.load(trained / "state").progress
    assert found["training"]["curves"]["training"] == kept["curves"]["training"]
    assert [step for step, _ in found["training"]["curves"]["validation"]] == [0, 4, 8]
    assert found["training"]["validation_loss_before"] == kept["first_loss"]
    assert (found["experts"], found["blocks"]) == (["generalist", "specialist 1"], [0, 1])
    assert [sum(row) for row in found["expert_shares"]] == pytest.approx([1, 1])
    assert found["elsewhere"] is None
    assert found["fleet"] is None


def test_the_summary_says_the_figures_in_words(run, trained):
    found, shown = report(run), run("report").stdout
    bits = found["bits_per_byte"]
    for name in ("base", "generalist", "specialists", "mixture"):
        assert f"{bits[name]:.4f}" in shown
    assert f"{bits['mixture'] / bits['base'] - 1:+.1%}" in shown
    words = found["next_words"]
    assert f"next words, of {words['words']:,}: the first guess is right for {words['personal'][0]:.1%}" in shown
    assert shown.count("gained: ") == 3
    assert "shared: nothing, this device is in no fleet" in shown
    assert shown.rstrip().endswith("next: comigs-edge report --html report.html")


def test_what_is_lost_elsewhere_is_that_of_evaluate(run, trained):
    assert report(run, "--elsewhere")["elsewhere"] == pytest.approx(
        json.loads(run("evaluate", "--elsewhere", "--json").stdout)["elsewhere"], abs=1e-5
    )
    assert report(run)["elsewhere"] is not None  # now the base's answers are there
    assert "elsewhere, on answers of the base itself" in run("report").stdout


def test_the_page_is_one_file_that_asks_for_nothing_and_says_the_figures(run, trained, tmp_path):
    found = report(run, "--html", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & set(FOREIGN)
    assert not [attrs for _, attrs in page.tags if attrs.keys() & {"src", "href", "style"}]
    assert "url(" not in html
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 4
    for value in found["bits_per_byte"].values():
        assert f"{value:.3f}" in html
    assert len([tag for tag, _ in page.tags if tag == "mark"]) == len(found["gained"]) + len(found["lost"])
    titles = re.findall(r"<title>validation, step (\d+): ([\d.]+)</title>", html)
    assert titles == [(str(step), f"{loss:.4f}") for step, loss in found["training"]["curves"]["validation"]]
    assert "This device is in no fleet: nothing has left it" in html
    assert (tmp_path / "report.html").stat().st_mode & 0o077 == 0
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_text_that_looks_like_a_page_is_only_text_in_a_report(run, trained, tmp_path):
    facts, odd = report(run), "<script>\x1b[2J</mark> & <b>\ud800"
    facts["gained"][0] |= {"before": odd, "token": odd, "after": odd}
    facts["gained"][1] |= {"before": "one\n\n two", "token": "\n", "after": ""}
    fleet = {"name": odd, "address": odd, "bytes_sent": 1, "bytes_received": 1, "is_present": True, "receipts": []}
    strange = {"base": odd, "experts": [odd, odd], "mean_shares": {odd: 1}, "fleet": fleet, "left": [fleet]}
    write_report(tmp_path / "odd.html", facts | strange)
    html = (tmp_path / "odd.html").read_text()
    assert not re.search("<script|<b>|\x1b|\ufffd", html)
    assert '<span class="quote">one ⏎ two</span><mark> ⏎ </mark>' in html
    assert html.count(r"&lt;script&gt;\x1b[2J&lt;/mark&gt; &amp; &lt;b&gt;\ud800") > 8


def test_a_model_of_a_version_without_curves_is_reported_without_them(run, trained, tmp_path):
    state = checkpoint.load(trained / "state")
    del state.progress["curves"]
    checkpoint.save(trained / "state", state.arrays, state.progress)
    assert report(run, "--html", tmp_path / "report.html")["training"]["curves"] is None
    assert "kept no curves" in (tmp_path / "report.html").read_text()


def test_a_generalist_alone_is_reported_without_specialists_and_shares(run, ready, tmp_path):
    run("train", "--steps", "8", "--plan", "specialists=0", "--plan", "zero_expert=false")
    found = report(run, "--html", tmp_path / "report.html")
    assert found["bits_per_byte"]["specialists"] is None
    assert (found["expert_shares"], found["mean_shares"]) == ([], {})
    assert "Who speaks" not in (tmp_path / "report.html").read_text()
    run("report")


def test_a_device_of_a_fleet_reports_the_bytes_that_it_shared_and_what_leaves(run, ready, coordinator, tmp_path):
    run("join", coordinator.invite("kitchen-pi"))
    exchanged = [json.loads(run("train", "--steps", "8", "--json").stdout)["fleet"], json.loads(run("sync", "--json").stdout)]
    found = report(run, "--html", tmp_path / "report.html")
    fleet = found["fleet"]
    assert fleet["name"] == "kitchen-pi"
    assert fleet["bytes_sent"] == sum(row["bytes_in"] for row in coordinator.rounds()) > 0
    assert fleet["bytes_received"] == sum(each["bytes_received"] for each in exchanged) > 0
    assert fleet["updates"] > 0
    html = (tmp_path / "report.html").read_text()
    for each in found["leaves"]:
        assert each["what"].replace("'", "&#x27;") in html
    assert len(found["leaves"]) == len([each for each in LEAVES if not (each.only_with_report_loss or each.is_private)])
    assert "shared: " in run("report").stdout


def test_without_a_model_it_says_so_in_one_sentence(run, ready):
    assert "there is no personal model yet; make one with: comigs-edge train" in error(run("report", code=1))
