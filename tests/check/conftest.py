import pytest

from tests.check.serving import running, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with running(bundle, tmp_path_factory.mktemp("server")) as server:
        yield server
        text = server.log.read_text()
        assert "Traceback" not in text
        assert list(server.temporary.rglob("*")) == []  # no photo was stored, nor anything else
