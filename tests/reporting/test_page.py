import json

import numpy as np
import pytest
from pages import Page
from synthetic import write_run

from qwenlong_jax.reporting import Reporter, StepMetrics, report
from qwenlong_jax.reporting.canvas import running_mean, spans
from qwenlong_jax.reporting.page import compare, read_evaluations, sample_transcripts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("run") / "synthetic")


@pytest.fixture(scope="module")
def text(run):
  return report(run).read_text()


def test_the_page_loads_nothing_and_runs_nothing(text):
  page = Page(text)
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
  for tag, attributes in page.elements:
    assert not any(name.startswith("on") for name in attributes), tag
    for name in ("src", "href"):
      assert attributes.get(name, "data:").startswith("data:")
  assert "url(" not in text and "@import" not in text
  policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
  assert policy.startswith("default-src 'none'")


def test_html_in_documents_questions_and_responses_is_shown_not_obeyed(text):
  assert "<script" not in text and "<img src=x" not in text
  assert text.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;") >= 20


def test_the_headline_is_the_paired_difference_of_first_and_last_evaluation(run, text):
  first, *_, last = read_evaluations(run)
  overall = compare(first, last)[0]
  pooled = [np.concatenate([np.mean(one.rewards[task], axis=1) for task in one.tasks]) for one in (first, last)]
  assert overall.difference.mean == pytest.approx((pooled[1] - pooled[0]).mean())
  assert f"{overall.difference.mean:+.3f}" in text
  assert "Mean held-out reward over 200 prompts" in Page(text).text


def test_every_figure_has_words_for_who_cannot_see_it(text):
  pictures = [a for tag, a in Page(text).elements if tag == "img"]
  assert len(pictures) == 15
  assert all(len(picture["alt"]) > 20 for picture in pictures)


def test_ten_transcripts_come_from_all_tasks_and_are_the_same_every_time(run, text):
  last = read_evaluations(run)[-1]
  chosen = sample_transcripts(run, last)
  assert len(chosen) == 10 and len({one["task"] for one in chosen}) == 5
  assert [one["id"] for one in chosen] == [one["id"] for one in sample_transcripts(run, last)]
  assert Page(text).count("article") == 10


def test_the_page_is_a_function_of_the_files(run, text):
  assert report(run).read_text() == text


def test_evaluations_can_be_chosen_by_name(run):
  page = Page(report(run, before="after-rl-1", after="after-rl-2").read_text())
  assert "Before: after-rl-1, step 110" in page.text
  with pytest.raises(ValueError, match="no evaluation is named 'nothing'"):
    report(run, before="nothing")


def test_a_change_that_could_be_chance_is_called_so(tmp_path):
  (tmp_path / "evaluation").mkdir()
  for number, rewards in enumerate(([0, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 1])):
    entry = {"mean": 0.5, "low": 0.2, "high": 0.8, "rewards": rewards}
    body = {"name": f"e{number}", "stage": "rl", "step": number, "tasks": {"multi_hop": entry}, "overall": entry}
    (tmp_path / "evaluation" / f"0{number}-e{number}.json").write_text(json.dumps(body))
  page = report(tmp_path).read_text()
  assert "includes 0: this run does not show a change" in page and "<strong>" not in page


def test_different_prompts_have_no_paired_difference(tmp_path):
  (tmp_path / "evaluation").mkdir()
  for number, rewards in enumerate(([0, 1, 0], [0, 1])):
    entry = {"mean": 0.4, "low": 0.2, "high": 0.8, "rewards": rewards}
    body = {"name": f"e{number}", "stage": "rl", "step": number, "tasks": {"multi_hop": entry}, "overall": entry}
    (tmp_path / "evaluation" / f"0{number}-e{number}.json").write_text(json.dumps(body))
  assert "did not see the same prompts" in Page(report(tmp_path).read_text()).text


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
  page = Page(report(tmp_path).read_text())
  assert "No evaluation yet." in page.text and "No steps yet." in page.text and page.count("img") == 0


def test_a_run_in_its_warm_start_is_reported(tmp_path):
  page = Page(report(write_run(tmp_path / "warm", warm=20, stages={}, evaluations=False)).read_text())
  assert "Warm start" in page.text and "No evaluation yet." in page.text
  assert page.count("img") == 3  # the warm start, the gradient norm and the speed


@pytest.mark.parametrize("count", [1, 15])
def test_rows_without_a_finite_number_do_not_stop_the_report(tmp_path, count):
  nan = float("nan")
  with Reporter(tmp_path) as reporter:
    for step in range(count):
      broken = StepMetrics("rl", step, reward=nan, entropy=nan, gap_mean=nan, gradient_norm=nan, skipped="nonfinite")
      reporter.write(broken, seconds=1.0, tokens=10)
  assert "Speed" in Page(report(tmp_path).read_text()).text


@pytest.mark.parametrize("count", [1, 2, 15])
def test_a_run_of_a_few_equal_steps_is_drawn(tmp_path, count):
  with Reporter(tmp_path) as reporter:
    for step in range(count):
      numbers = dict(reward=0.0, entropy=0.2, band_low=0.1, band_high=0.3, latch=1, masked_samples=2, gap_max=0.0)
      counts = dict(zero_variance_groups=0, gradient_norm=0.5, gap_mean=1e-4, response_length=3, stopped_fraction=0)
      reporter.write(StepMetrics("rl", step, reward_by_task={"multi_hop": 0.0}, **numbers, **counts), seconds=1.0)
  assert Page(report(tmp_path).read_text()).count("img") == 7


def test_the_running_mean_is_that_of_the_finite_neighbours():
  values = np.array([1.0, 3.0, np.nan, 5.0, 7.0])
  np.testing.assert_allclose(running_mean(values, 3), [2.0, 2.0, 4.0, 6.0, 6.0])
  np.testing.assert_allclose(running_mean(np.full(5, np.nan), 3), np.full(5, np.nan))


def test_spans_are_the_runs_of_active_steps():
  assert spans(np.arange(6.0), [True, True, False, False, True, False]) == [(-0.5, 1.5), (3.5, 4.5)]
  assert spans(np.arange(2.0), [False, False]) == []
