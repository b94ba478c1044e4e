"""Killed at random moments, the scraper loses nothing, doubles nothing and fetches at most one photo again."""

import pytest

from benchmarks.scraper_kills import kill_run


@pytest.mark.slow
def test_random_kills_change_nothing():
    result = kill_run(kills=6, seed=1)
    assert result.pop("kills") == 6 and result.pop("folders") >= 1
    assert result.pop("most_fetched_again") <= 1
    assert not any(result.values()), result
