"""Fixtures of the server tests: models that are there, servers that are started once for a module."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launch import RheoServer

from common.checkpoints import MODELS
from convert_model import make_checkpoint
from make_tiny_models import TINY_MODELS, make

SMOLLM2 = "smollm2-135m-instruct"
TESTS = Path(__file__).resolve().parent
ServerFactory = Callable[..., RheoServer]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test in this directory as a server test."""
    for item in items:
        if TESTS in item.path.parents:
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session")
def tiny_models() -> list[str]:
    """Names of the tiny random models, made if needed."""
    return [make(model, MODELS).name for model in TINY_MODELS]


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Name of SmolLM2-135M-Instruct, converted if needed."""
    return make_checkpoint(SMOLLM2).name


@pytest.fixture(scope="module")
def serve(tiny_models: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerFactory]:
    """Start servers; each runs until its module ends or it is stopped.

    Returns
    -------
    callable
        Takes a model name and `RheoServer`'s keyword arguments, returns a server that is ready.
    """
    started: list[RheoServer] = []

    def start(model: str, **options: Any) -> RheoServer:
        log = tmp_path_factory.mktemp(model) / "server.log"
        server = RheoServer(model, log, **options)
        started.append(server)
        return server.__enter__()

    yield start
    for server in started:
        server.stop()
