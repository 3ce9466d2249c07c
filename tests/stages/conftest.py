import sys
from pathlib import Path

HERE = Path(__file__).parent
# `small`, and the `loopback` server: under importlib mode neither can be imported otherwise.
sys.path[:0] = [str(HERE), str(HERE.parent / "llm")]
