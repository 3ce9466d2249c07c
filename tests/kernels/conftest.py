import sys
from pathlib import Path

# Under importlib mode a test cannot import its neighbour `oracle` otherwise.
sys.path.insert(0, str(Path(__file__).parent))
