"""Makes the neighbours importable: `safety_kit` holds what several of these tests need."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves neighbours unimportable

from guardian_kit import world

__all__ = ["world"]
