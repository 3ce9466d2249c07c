"""What a run tells people: console, metrics.jsonl, TensorBoard, figures and an HTML page."""

from qwenlong_jax.reporting.card import data_card
from qwenlong_jax.reporting.compare import Result, compare_page, result, table
from qwenlong_jax.reporting.facts import Survey, survey
from qwenlong_jax.reporting.gates import evolution, triples
from qwenlong_jax.reporting.page import report
from qwenlong_jax.reporting.synthesis import synthesis_report
from qwenlong_jax.reporting.writer import Reporter, StepMetrics, read_rows

__all__ = [
  "Reporter",
  "Result",
  "StepMetrics",
  "Survey",
  "compare_page",
  "data_card",
  "evolution",
  "read_rows",
  "report",
  "result",
  "survey",
  "synthesis_report",
  "table",
  "triples",
]
