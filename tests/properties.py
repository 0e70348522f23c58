"""Define property tests with 100 fixed examples (fast) or 10,000 random examples (slow)."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

settings.register_profile("fast", max_examples=100, deadline=None, database=None, derandomize=True)
settings.register_profile(
    "slow",
    max_examples=10_000,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def property_test(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator that turns a check into a fast and a slow property test.

    `strategies` generate the arguments of the check.
    """

    def decorate(check: Callable[..., None]) -> Any:
        @pytest.mark.parametrize("profile", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
        def test(profile: str) -> None:
            settings(settings.get_profile(profile))(given(**strategies)(check))()

        test.__doc__ = check.__doc__
        return test

    return decorate
