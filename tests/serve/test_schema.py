"""Whatever the schema allows, and much that it does not: never a fault of ours."""

from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from kdrt.serve.app import create_app
from kdrt.serve.service import ImageService
from tests.support.serving import HOST


@pytest.fixture(scope="module")
def interface(service: ImageService) -> schemathesis.openapi.OpenApiSchema:
    app: FastAPI = create_app(service)
    document = schemathesis.openapi.from_dict(app.openapi())
    document.config.update(base_url=HOST)
    document.app = app
    return document


schema = schemathesis.pytest.from_fixture("interface")


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True)
def test_no_request_makes_it_fail(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=[not_a_server_error])
