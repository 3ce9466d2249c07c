"""What a run tells people: console, metrics.jsonl, TensorBoard, figures and an HTML page."""

from qwenlong_jax.reporting.writer import Reporter, StepMetrics, read_rows

__all__ = ["Reporter", "StepMetrics", "read_rows"]
