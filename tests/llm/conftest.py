import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Under importlib mode a test cannot import its neighbour `loopback` otherwise.
sys.path.insert(0, str(Path(__file__).parent))

from loopback import Loopback


@pytest.fixture
def server() -> Iterator[Loopback]:
  with Loopback() as running:
    yield running
