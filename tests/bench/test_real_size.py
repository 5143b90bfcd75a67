"""Which rows of networks of real size are alive together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdrt_bench.experiment import Experiment, rows_of
from kdrt_bench.jobs import Model
from kdrt_bench.peers import PEERS
from kdrt_bench.real_size import in_groups, with_warm_up


@pytest.fixture
def plan(model: Model) -> Experiment:
    return Experiment(
        key="unet",
        title="A step",
        question="How long?",
        scenario="SingleStream",
        kind="rows",
        model=model,
        workloads=(),
        rows=(),
        rounds=10,
    )


PEOPLE_PICK = ("eager", "kdrt", "openvino-genai", "sd-cpp-f32", "sd-cpp-f16", "sd-cpp-q8_0")


@pytest.mark.parametrize("memory", [3.0, 5.1, 100.0])
def test_every_peer_has_its_turn_and_what_is_alive_fits(plan: Experiment, memory: float) -> None:
    groups = in_groups(plan, PEOPLE_PICK, memory, later_rounds=2)
    rows = [[row.peer for row in each.rows] for each in groups]
    assert [peer for group in rows for peer in group[1:]] == list(PEOPLE_PICK[1:])
    assert {group[0] for group in rows} == {"eager"}
    assert len({each.key for each in groups}) == len(groups)
    assert [each.rounds for each in groups] == [10, *[2] * (len(groups) - 1)]
    for each, group in zip(groups, rows, strict=True):
        fits = sum(PEERS[peer].memory for peer in group) <= memory
        assert each.apart is not fits
        assert fits or len(group) == 2


def test_where_no_two_fit_every_turn_is_a_process(plan: Experiment) -> None:
    groups = in_groups(plan, PEOPLE_PICK, 1.6)
    assert all(len(each.rows) == 2 and each.apart for each in groups)


def test_an_experiment_of_one_group_keeps_its_key(plan: Experiment, tmp_path: Path) -> None:
    first, *_ = in_groups(plan, PEOPLE_PICK, 100, most=3)
    assert (first.key, len(first.rows), first.rounds) == ("unet", 3, 10)


@pytest.mark.parametrize(
    ("peers", "apart", "first_call", "discard"),
    [
        (("eager", "kdrt"), False, True, 1),
        (("eager", "kdrt"), True, True, 0),
        (("eager", "sd-cpp-f32"), False, False, 0),
    ],
)
def test_runs_that_do_not_count(
    plan: Experiment, peers: tuple[str, ...], apart: bool, first_call: bool, discard: int
) -> None:
    whole = replace(plan, rows=rows_of(peers), apart=apart, discard=0)
    made = with_warm_up(whole)
    assert (made.first_call, made.discard) == (first_call, discard)
