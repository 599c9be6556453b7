"""The process that `_jacobian_processes` starts: one workload, from the request to its row."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from _jacobian_jax import load_jax
from _jacobian_measure import Settings, measure
from _jacobian_workloads import select


def main() -> int:
    """Read the request, measure, say in lines of JSON what is going on, and what came of it.

    Returns:
        0; an exception is the other way out.
    """
    # What libraries print must not get between the lines.
    with os.fdopen(os.dup(1), "w", buffering=1) as channel:
        os.dup2(2, 1)

        def say(**what: Any) -> None:
            channel.write(json.dumps(what) + "\n")

        request = json.loads(sys.argv[1])
        torch.set_num_threads(request["threads"])
        jax = load_jax(request["threads"]) if request["jax"] else None
        (case,) = select([request["workload"]])
        row = measure(case, Settings.from_json(request["settings"]), jax, request["left_out"], say)
        say(row=row)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
