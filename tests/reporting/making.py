"""The workdir of a synthesis, made by hand: what it left behind, and the examples of its data sets."""

import json

from qwenlong_jax.types import Example, Span

SCRIPT = '<script>alert("x")</script><img src=x onerror=alert(1)></pre>'
KINDS = {"multi_hop": ("causal", "temporal"), "corpus_numeric": ("aggregation",), "dialogue_memory": ("needle",)}
COUNTS = {
  "train": {
    "dropped/multi_hop/causal/no_draft": 5,
    "dropped/multi_hop/temporal/does_not_fit": 2,
    "dropped/corpus_numeric/aggregation/no_draft": 1,
    "given_up/multi_hop": 1,
    "duplicate/multi_hop": 3,
    "contaminated/corpus_numeric": 4,
    "kept/multi_hop": 8,
    "kept/corpus_numeric": 4,
    "kept/dialogue_memory": 4,
  },
  "test": {"dropped/multi_hop/causal/does_not_fit": 7, "surplus/dialogue_memory": 6, "kept/multi_hop": 8},
}


def example(task, kind, number, split="train", **provenance):
  """Its evidence is the two words FACT of a context of a thousand characters or so, the script before the first."""
  filler = "all work and no play " * 10
  context = f"{filler}{SCRIPT} FACT {filler * 2} FACT & <b>{filler}"
  first, last = context.index("FACT"), context.rindex("FACT")
  spans = (Span("b.md", last, last + 4), Span(f"{SCRIPT}.md", first, first + 4))
  known = {"kind": kind, "domain": "code", "tokens": 1000 + number, "generator": f"{task}/{kind}/1"}
  known |= {"program": {"sql": f"SELECT 1 -- {SCRIPT}"}, "split": split} | provenance
  question = f"What of {SCRIPT}, {number}?"
  return Example(f"{task}/{split}/{kind}/{number}", task, context, question, f"{number} & {SCRIPT}", "", spans, known)


def examples(split, count=4, **provenance):
  return [
    example(task, kind, number, split, **provenance)
    for task, kinds in KINDS.items()
    for kind in kinds
    for number in range(count)
  ]


def write_making(folder, documents="", counts=COUNTS):
  """The files that the page and the card read; the data sets themselves are not among them."""
  clusters = folder / "parts" / "clusters"
  clusters.mkdir(parents=True)
  documents_found = {"documents": 30, "domains": {"code": 30}, "splits": {"train": 20, "test": 10}}
  (clusters / "counts.json").write_text(json.dumps(documents_found))
  reasons = ["too_short"] * 3 + ["near_duplicate"]
  lines = [json.dumps({"path": f"{SCRIPT}/{n}", "reason": r, "detail": SCRIPT}) for n, r in enumerate(reasons)]
  (clusters / "refused.jsonl").write_text("".join(line + "\n" for line in lines))
  for split, found in counts.items():
    (folder / "data" / split).mkdir(parents=True)
    (folder / "data" / split / "counts.json").write_text(json.dumps(found))
  synthesis = {"train": 8, "targets": [4096, 8192], "languages": ["en", "no"]}
  config = {"seed": 7, "documents": str(documents), "synthesis": synthesis, "tokenizer": {"path": ""}}
  (folder / "config.json").write_text(json.dumps(config))
  return folder
