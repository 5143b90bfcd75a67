"""Whatever the schema allows, and much that it does not: never a fault of ours."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.generation.modes import GenerationMode
from starlette.testclient import TestClient

from tests.support.serving import HOST


@pytest.mark.filterwarnings("ignore::kdrt.TruncationWarning")
@pytest.mark.filterwarnings("ignore:Use 'content")
def test_no_request_makes_it_fail(client: TestClient) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert len(operations) > 10
    statuses: set[int] = set()

    @settings(
        max_examples=300,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.data(), st.sampled_from(operations), st.sampled_from(GenerationMode))
    def ask(data: st.DataObject, operation: Any, mode: GenerationMode) -> None:
        if operation.path.endswith("/edits"):
            # schemathesis fails when it looks at whether a file is wrong.
            mode = GenerationMode.POSITIVE
        case = data.draw(operation.as_strategy(generation_mode=mode))
        asked = case.as_transport_kwargs(base_url=HOST)
        answer = client.request(**{name: asked[name] for name in asked if name != "cookies"})
        statuses.add(answer.status_code)
        # Absurd guidance may make numbers that are not finite, which is told.
        assert answer.status_code < 500 or "not_finite" in answer.text

    ask()
    assert {200, 400} <= statuses
