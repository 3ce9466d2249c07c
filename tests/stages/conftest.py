import sys
from pathlib import Path

HERE = Path(__file__).parent
# `small`, the `base` that it builds on, and the `loopback` server: under importlib mode none can be imported otherwise.
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "experiments"), str(HERE.parent / "llm")]
