import pytest

from tests.scraper.misbehaving_site import MisbehavingSite
from tests.scraper.without_browser import Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def site():
    with MisbehavingSite() as running:
        yield running
