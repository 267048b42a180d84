"""Servers, robots and lines between them that end with the test."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from proxy_kit import Proxy
from serve_kit import Arm, Serving
from stranger_kit import Stranger


def _maker(cls, end):
    @pytest.fixture
    def fixture():
        made = []

        def make(*args, **options):
            made.append(cls(*args, **options))
            return made[-1]

        yield make
        for one in made:
            getattr(one, end)()

    return fixture


serving, arm, proxy = _maker(Serving, "kill"), _maker(Arm, "close"), _maker(Proxy, "close")
stranger = _maker(Stranger, "close")
