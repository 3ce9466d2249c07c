"""What a run tells people: console, metrics.jsonl, TensorBoard, figures and an HTML page."""

from qwenlong_jax.reporting.compare import Result, compare_page, result, table
from qwenlong_jax.reporting.page import report
from qwenlong_jax.reporting.writer import Reporter, StepMetrics, read_rows

__all__ = ["Reporter", "Result", "StepMetrics", "compare_page", "read_rows", "report", "result", "table"]
