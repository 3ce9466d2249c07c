"""From a folder of documents to verified long-context training data, with a language model or without one.

  python experiments/collect_documents.py --out=documents
  python experiments/run.py --config=synthesize.py --config.documents=documents
  python experiments/run.py --config=synthesize.py --config.documents=documents \\
    --config.llm.url=http://localhost:8000/v1 --config.llm.model=NAME --workdir=runs/synthesize_by_model
  python experiments/run.py --config=synthesize.py --config.documents=documents \\
    --config.llm.model=FOLDER --config.model.dtype=bfloat16 --workdir=runs/synthesize_by_own

Folders of text, Markdown, HTML, PDF, source code, JSONL, Parquet or Hugging Face data sets on disk. Writes
runs/synthesize/data/{train,validation,test}, which the learner reads: --config.data.folder=runs/synthesize/data.
"""

from base import get_config as base
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base()
  c.documents = "documents"
  return c
