"""What every test runs under."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# no deadline, for machines differ; few examples, for the whole suite runs at every change
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
