"""Property tests: 100 fixed examples in the fast suite, 10,000 random examples in the slow one."""

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
    """Turn a function of generated arguments into a fast and a slow property test."""

    def decorate(check: Callable[..., None]) -> Any:
        @pytest.mark.parametrize("profile", ["fast", pytest.param("slow", marks=pytest.mark.slow)])
        def test(profile: str) -> None:
            settings(settings.get_profile(profile))(given(**strategies)(check))()

        test.__doc__ = check.__doc__
        return test

    return decorate
