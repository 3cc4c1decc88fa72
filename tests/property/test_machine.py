"""Random calls over several handles and processes against a plain dict.

`HYPOTHESIS_PROFILE=deep` searches for long; it wants `--timeout 0 -o faulthandler_timeout=0`, against the watchdogs.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.property.machine import PoolMachine, ProcessMachine

_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
_SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def _settings(examples: int, steps: int) -> settings:
    return settings(
        deadline=None,
        max_examples=examples * (100 if _DEEP else 1),
        stateful_step_count=steps * (2 if _DEEP else 1),
        suppress_health_check=_SLOW_IS_FINE,
    )


class TestHandlesOfOneProcess(PoolMachine.TestCase):  # type: ignore[misc,valid-type]
    """Several handles in this process, of one node or two."""

    settings = _settings(25, 40)


class TestProcesses(ProcessMachine.TestCase):  # type: ignore[misc,valid-type]
    """Several processes, of one node or two, some of which die."""

    settings = _settings(12, 40)
