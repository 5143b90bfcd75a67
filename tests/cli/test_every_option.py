"""Every option of every command, with values that nobody means: a result or a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdrt import cli as command_line

GROUP = typer.main.get_command(command_line.app)
# A run of `bench` takes minutes where its options are right.
OPTIONS = [
    (name, option)
    for name, command in sorted(GROUP.commands.items())  # type: ignore[attr-defined]
    for option in command.params
    if option.param_type_name == "option" and name != "bench"
]
ARGUMENTS = {
    "export": ["./nothing.safetensors"],
    "build": ["nothing"],
    "compare": ["nothing"],
    "tune": ["nothing"],
    "inspect": ["nothing"],
    "generate": ["nothing", "a red circle"],
    "info": ["nothing.png"],
    "serve": ["nothing"],
}

NASTY = st.one_of(
    st.sampled_from(
        [
            *("", " ", "-", "--", "-1", "0", "1", "nan", "inf", "-inf", "1e999", "0x10", "½"),
            *("9" * 30, "-" + "9" * 30, "1" + "0" * 4400, "1:2", ":", ",", "=", "a=", "=a", "a=b"),
            *("~nouser/x", "/dev/null", "/dev/full", "/", ".", "..", "x" * 300, "x" * 5000),
            *(
                "[" * 200,
                "(" * 2000,
                "{}",
                "None",
                "true",
                "\ud800",
                "\udcff",
                "é",
                "\n",
                "\x1b[0m",
            ),
            *("__import__('os')", "9**9**9", "1,2,3,4", "nan,nan,nan,nan", "sm86", "static:0x0x0"),
            *("static:" + "9" * 30 + "x1x1", "sm" + "9" * 30, "file:///etc/passwd", "a/b/c"),
        ]
    ),
    st.text(max_size=20).filter(lambda text: "\0" not in text),  # no system passes it on
)


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A working folder and a home of its own: a value may be taken for a place to write to."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KDRT_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@settings(
    max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(which=st.sampled_from(OPTIONS), value=NASTY)
def test_an_option_is_used_or_refused(
    which: tuple[str, typer.core.TyperOption], value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    command, option = which
    values = [] if option.is_flag else [value]
    code = command_line.run([command, *ARGUMENTS.get(command, []), option.opts[0], *values])
    error = capfd.readouterr().err
    assert code in (0, 2), f"{command} {option.opts[0]} {value!r}: {error}"
    assert "Traceback" not in error
    assert not Path("nothing").exists()
    made = {path.name for path in Path().iterdir()} - {"home"}
    assert not made or option.name == "plot"


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(command=st.sampled_from(sorted(ARGUMENTS)), value=NASTY, other=NASTY)
def test_an_argument_is_used_or_refused(
    command: str, value: str, other: str, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [value, other] if command == "generate" else [value]
    code = command_line.run([command, *arguments])
    error = capfd.readouterr().err
    assert code in (0, 2), f"{command} {arguments!r}: {error}"
    assert "Traceback" not in error
