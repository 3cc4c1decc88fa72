"""One measure of one peer in a process of its own: `python -m tests.peers.measure MEASURE JOB RESULT`.

JOB is a `Job` as JSON; the file RESULT becomes {"found": ...}, {"cannot": why} or {"failed": why}.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.peers import measures
from tests.peers.job import Job
from tests.peers.protocol import Cannot

_CANNOT = f"{Cannot.__module__}.{Cannot.__name__}: "  # as a trace shows it


def outcome(measure: str, job: Job) -> dict[str, Any]:
    """What the measure found, or why it did not."""
    try:
        return {"found": measures.run(measure, job)}
    except Cannot as reason:
        return {"cannot": str(reason)}
    except BaseException as failure:  # noqa: BLE001 - whatever it is, the table says so
        told = _last_line(failure)
        if told.startswith(_CANNOT):  # in a process of the measure
            return {"cannot": told.removeprefix(_CANNOT)}
        return {"failed": f"{type(failure).__name__}: {told}"[:300], "trace": traceback.format_exc()}


def _last_line(failure: BaseException) -> str:
    """The last line that says something: a child's failure is the trace of the child."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    _measure, _job, _result = sys.argv[1:]
    Path(_result).write_text(json.dumps(outcome(_measure, Job.from_json(_job))))
