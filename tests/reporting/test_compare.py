import pytest
from synthetic import write_run

from qwenlong_jax.reporting import Result, compare_page, result, table
from qwenlong_jax.reporting.compare import against, over_seeds

ROWS = [
  Result("grpo", 0, {"overall": 0.40, "multi_hop": 0.3}),
  Result("grpo", 1, {"overall": 0.50, "multi_hop": 0.4}),
  Result("aepo", 0, {"overall": 0.46, "multi_hop": 0.5}),
  Result("aepo", 1, {"overall": 0.58, "multi_hop": 0.5}),
  Result("one|seed", 1, {"overall": 0.7}),
]


def test_the_standard_error_is_that_of_the_mean_over_seeds():
  cell = over_seeds([1.0, 2.0, 3.0])  # sample standard deviation 1
  assert (cell.mean, cell.seeds) == (2.0, 3)
  assert cell.error == pytest.approx(3**-0.5)
  assert over_seeds([0.5]).error is None and over_seeds([]) is None


def test_the_table_reads_as_text():
  assert table(ROWS, baseline="grpo").splitlines() == [
    "variant   seeds        overall      multi_hop  overall - grpo",
    "grpo          2  0.450 ± 0.050  0.350 ± 0.050               -",
    "aepo          2  0.520 ± 0.060  0.500 ± 0.000  +0.070 ± 0.010",
    "one|seed      1          0.700              -          +0.200",
  ]


def test_the_table_reads_as_markdown():
  assert table(ROWS[:1] + ROWS[4:], markdown=True).splitlines() == [
    "| variant | seeds | overall | multi_hop |",
    "| --- | ---: | ---: | ---: |",
    "| grpo | 1 | 0.400 | 0.300 |",
    "| one\\|seed | 1 | 0.700 | - |",
  ]


def test_differences_are_paired_by_seed():
  found = against(ROWS, "grpo", "overall")
  assert found["aepo"].mean == pytest.approx(0.07) and found["aepo"].error == pytest.approx(0.01)
  assert found["one|seed"].mean == pytest.approx(0.2)  # against seed 1 only


def test_a_seed_counts_once():
  with pytest.raises(ValueError, match="two results of seed 0"):
    table([ROWS[0], ROWS[0]])


def test_runs_are_compared_on_one_page(tmp_path):
  runs = {
    name: [write_run(tmp_path / f"{name}{seed}", warm=3, stages={"rl": count}, seed=seed) for seed in range(2)]
    for name, count in (("grpo", 8), ("<b>aepo</b>", 14))
  }
  page = compare_page(runs, tmp_path / "compare.html", baseline="grpo").read_text()
  assert "&lt;b&gt;aepo" in page and "<b>aepo" not in page
  assert page.count('<img src="data:image/svg+xml;base64,') == 3
  assert "overall - grpo" in page
  found = result("grpo", runs["grpo"][1])
  assert found.seed == 1 and set(found.scores) > {"overall", "multi_hop"}


def test_a_run_without_an_evaluation_is_named(tmp_path):
  with pytest.raises(ValueError, match="holds no evaluation"):
    result("grpo", write_run(tmp_path / "run", warm=2, stages={}, evaluations=False))
