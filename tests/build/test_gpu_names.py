"""GPUs by name."""

from __future__ import annotations

import pytest

from kdrt.build.gpu_names import _BY_KEY, GPU_NAMES, gpu_capabilities
from kdrt.errors import EngineError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("RTX 4090", 89),
        ("rtx4090", 89),
        ("4090", 89),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 89),
        ("NVIDIA GeForce RTX 3080 Laptop GPU", 86),
        ("geforce_rtx_5090", 120),
        ("NVIDIA RTX 6000 Ada Generation", 89),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 120),
        ("Quadro RTX 6000", 75),
        ("Tesla T4", 75),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("NVIDIA H100 80GB HBM3", 90),
        ("NVIDIA GB10", 121),
        ("1660 Ti", 75),
    ],
)
def test_names_are_read_as_people_and_drivers_write_them(text: str, number: int) -> None:
    assert gpu_capabilities([text]) == (number,)


def test_names_and_numbers_can_be_mixed() -> None:
    assert gpu_capabilities(["RTX 4090,sm86", "12.0", "L40S"]) == (86, 89, 120)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RTX 4900", "did you mean 'RTX 4090'"),
        ("RTX 6000", "'Quadro RTX 6000'"),
        ("RTX 6000", "'RTX 6000 Ada'"),
        ("RTX 50900", "did you mean 'RTX 5090'"),
        ("ada", "no GPU 'ada' is known; write sm89 or 8.9"),
        ("RX 7900 XTX", "no GPU 'RX 7900 XTX' is known; write sm89 or 8.9"),
        ("\x1b[31m", "no GPU '\N{REPLACEMENT CHARACTER}[31m' is known"),
        ("", "'' is no compute capability"),
        ("GTX 1080 Ti", "sm61 is too old"),
        ("V100", "sm70 is too old"),
    ],
)
def test_what_is_not_known_is_answered_with_what_is_near(text: str, said: str) -> None:
    with pytest.raises(EngineError) as refused:
        gpu_capabilities([text])
    assert said in str(refused.value)


def test_no_two_cards_are_told_apart_by_words_that_are_not_read() -> None:
    assert len(_BY_KEY) == len(GPU_NAMES)
