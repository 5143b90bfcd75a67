"""The report on paper holds every card, load and way, with the sources of its numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import in_flight_on_paper as paper
from kdrt_bench.arrivals import LOADS

ROOT = Path(__file__).resolve().parents[2]


def test_it_simulates_all_cards_and_writes_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    paper.main(tmp_path, requests=60)

    report = json.loads((tmp_path / "in_flight_paper.json").read_text())
    text = (tmp_path / "in_flight_paper.md").read_text()
    summary = capsys.readouterr().out.strip()
    assert summary in text
    assert len(report["cards"]) == len(paper.CARDS)
    for card, given in zip(report["cards"], paper.CARDS, strict=True):
        assert {(row["load"], row["way"]) for row in card["rows"]} == {
            (load, way) for load in LOADS for way in paper.WAYS
        }
        assert card["most"].keys() == set(paper.WAYS)
        assert f"## {given.name}" in text
        assert all(source in text for source in given.sources)
    assert (tmp_path / "in_flight_paper.png").stat().st_size > 10_000


def test_step_times_follow_from_the_published_figures() -> None:
    card = paper.sdxl("it", whole=3100.0, four_unguided=200.0, clip=10.0, vae=90.0)
    assert card.cost.seconds(1) == pytest.approx(0.05)
    assert card.cost.seconds(2) == pytest.approx(0.1)
    assert card.cost.decode == pytest.approx(0.09)
    card = paper.sd15("it", one=paper.A100_STEPS / 2, four=5.0, sixteen=1.25)
    assert card.cost.seconds(8) == pytest.approx(0.2)
    assert card.cost.seconds(32) == pytest.approx(0.8)
    # Half the steps a second: decoding takes twice as long.
    assert card.cost.decode == pytest.approx(2 * paper.A100_VAE / 1000)


def test_the_page_on_growing_follows_from_the_published_times() -> None:
    """Images a second of 20 guided steps, one at a time and in runs of 8 rows."""
    page = (ROOT / "docs" / "howto" / "growing.md").read_text(encoding="utf-8")
    cards = {card.name.rpartition(", ")[0].replace(" at ", " "): card for card in paper.CARDS}
    shown = re.findall(r"^\| (\w.*?) at (\d+²) \| (.* a second\*?) \|$", page, re.MULTILINE)
    assert len(shown) == 5
    for name, size, row in shown:
        cost = cards[f"{name} {size}"].cost
        few, many, decode, alone, full = (
            float(re.findall(r"[\d.]+", c)[0]) for c in row.split("|")
        )
        assert few == pytest.approx(1000 * cost.seconds(2), rel=5e-3)
        assert many == pytest.approx(1000 * cost.seconds(8), rel=5e-3)
        assert decode == pytest.approx(1000 * cost.decode, rel=5e-3)
        assert alone == pytest.approx(1 / (20 * cost.seconds(2) + cost.decode), rel=2e-2)
        assert full == pytest.approx(1 / (20 * 2 * cost.seconds(8) / 8 + cost.decode), rel=2e-2)
