"""The whole OpenAPI document against a running server of several workers: every answer is one that it documents."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server.app import create_app
from server.settings import Settings
from tests.server.serving import Crowd, Serving, said

#: Streams never end by themselves; test_events and the pool's tests listen to them.
STREAMS = ("/v1/events", "/v1/pool/watch")
EXAMPLES = 8
#: Rules of these that no schema can say: a vector as wide as the embedder's, a part with text, an ETag of now,
#: a printable name. What their schemas allow may be refused; all else about their answers is checked as everywhere.
BEYOND_SCHEMA = {
    ("POST", "/v1/ask"),
    ("POST", "/v1/conversations"),
    ("POST", "/v1/conversations/{conversation}"),
    ("POST", "/v1/conversations/{conversation}/items"),
    ("POST", "/v1/groups"),
    ("POST", "/v1/groups/{group}/keys"),
    ("POST", "/v1/groups/{group}/members"),
}

DOCUMENT = create_app(Settings()).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [one.ok() for one in SCHEMA.get_all_operations() if isinstance(one, Ok) and one.ok().path not in STREAMS]


@pytest.fixture(scope="module")
def real(serving: Serving) -> dict[str, str]:
    """What there is: a group with its owner's key, a conversation and an item."""
    crowd = Crowd(serving, "schemathesis")
    with crowd.as_user("ann", role="owner") as ann:
        conversation, (item, _) = said(ann, "Is there a ferry to Maui?", "No, fly.")
    return {"key": crowd.key("ann"), "group": crowd.group, "conversation": conversation, "item": item}


def test_the_running_server_has_this_document(serving: Serving) -> None:
    """What is tested below is what clients are given."""
    with serving.client(None) as nobody:
        assert nobody.get("/openapi.json").json()["paths"].keys() == DOCUMENT["paths"].keys()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method.upper()} {one.path}")
def test_every_answer_is_documented(operation: Any, serving: Serving, real: dict[str, str]) -> None:
    """Status, headers, media type and body are as the document says; what means nothing is refused, what is right taken."""

    @given(case=operation.as_strategy(), use_real=st.booleans())
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: Case[Any], use_real: bool) -> None:
        if use_real:  # names that mean something, so that the rest of the request counts too
            for name in case.path_parameters or {}:
                if name in real:
                    case.path_parameters[name] = real[name]
        case.call_and_validate(
            base_url=serving.url,
            headers={"Authorization": f"Bearer {real['key']}"},
            excluded_checks=[positive_data_acceptance] if beyond_schema else [],
            timeout=30,
        )

    beyond_schema = (operation.method.upper(), operation.path) in BEYOND_SCHEMA
    check()
