"""What every test runs under."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# no deadline, for machines differ; few examples, for the whole suite runs at every change; the same ones each time in
# continuous integration, where a failure should be that of the change, and new ones at every other run
settings.register_profile(
    "default",
    deadline=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")
