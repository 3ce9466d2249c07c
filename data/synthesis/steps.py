"""From files to samples in four steps, each a function of one element that writes one part, all of it or nothing.

  read     a few files               -> parts/read/       documents, refused ones, signatures
  gather   (all of them, in order)   -> parts/clusters/   documents without repeats, by split, domain and cluster
  survey   a cluster                 -> parts/survey/     its sections' lengths, which tasks it bears
  write    some samples of a cluster -> parts/samples/    examples, and why drafts were dropped

Models, where there are any, write parts of samples as well, reword those about tables (parts/reworded/), and screen all
of them (parts/screened/).

A part that is there is not made again; a run that was killed anywhere goes on to the same bytes.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qwenlong_jax.data.deduplication import Duplicates, Signature, signature
from qwenlong_jax.data.documents import DOMAINS, Document, Rejected, Source, is_separated, judge
from qwenlong_jax.data.folders import documents_of, files
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.generate import Order, capable, sample
from qwenlong_jax.data.synthesis.parts import Block, Chunk, Cluster, Settings, as_line, cut, write_lines
from qwenlong_jax.files import publish, write_text
from qwenlong_jax.models import tokenizer
from qwenlong_jax.types import TASKS, Example

FILES = 32  # of a chunk
_TOKENIZER_CHARACTERS = 20_000_000


def chunks(settings: Settings) -> list[Chunk]:
  """All files below the roots, in order.

  Raises:
    FileNotFoundError: a root is not there.
  """
  found = files(settings.documents)
  return [Chunk(n, tuple(found[first : first + FILES])) for n, first in enumerate(range(0, len(found), FILES))]


def read_chunk(settings: Settings, chunk: Chunk) -> None:
  documents, refused, signatures = [], [], []
  for file in chunk.files:
    for found in documents_of(*file):
      rejected = found if isinstance(found, Rejected) else judge(found, settings.languages)
      if rejected is not None:
        refused.append(asdict(rejected))
      elif isinstance(found, Document):
        documents.append(asdict(found))
        signatures.append(signature(found.text))
  part = chunk.part(settings)
  arrays = {f"{kind}{n}": getattr(s, kind) for n, s in enumerate(signatures) for kind in ("shingles", "minhash")}
  with publish(part.with_suffix(".npz")) as partial:
    np.savez(partial, **arrays)
  digests = [s.digest.hex() for s in signatures]
  write_text(part, json.dumps({"documents": documents, "refused": refused, "digests": digests}, ensure_ascii=False))


def gather(settings: Settings, chunks: Sequence[Chunk]) -> None:
  """Deals the documents of all chunks, in order and without repeats, to clusters; memory holds none of their text."""
  folder = settings.parts("clusters")
  done = folder / "counts.json"
  if done.exists():
    return
  folder.mkdir(parents=True, exist_ok=True)
  duplicates, refused = Duplicates(settings.threshold), []
  sizes: dict[tuple[str, str], int] = {}
  counts: dict[str, Any] = {"documents": 0, "characters": 0, "bytes": 0, "domains": {}, "splits": {}}
  for path in folder.glob("*.jsonl"):
    path.unlink()
  tables = splits_of_tables(settings, chunks)
  for chunk in chunks:
    part = chunk.part(settings)
    read_part = json.loads(part.read_text(encoding="utf-8"))
    refused += read_part["refused"]
    with np.load(part.with_suffix(".npz")) as arrays:
      for n, (fields, digest) in enumerate(zip(read_part["documents"], read_part["digests"])):
        found = Signature(bytes.fromhex(digest), arrays[f"shingles{n}"], arrays[f"minhash{n}"])
        if match := duplicates.match(fields["id"], found):
          reason = "duplicate" if match.exact else "near_duplicate"
          refused.append({"path": fields["id"], "reason": reason, "detail": f"of {match.first}, {match.jaccard:.2f}"})
          continue
        split = tables.get(fields["source"]["path"]) or split_of(fields["id"], settings.shares)
        key = split, fields["domain"]
        sizes[key] = sizes.get(key, 0) + 1
        cluster = Cluster(*key, (sizes[key] - 1) // settings.cluster)
        with (folder / f"{cluster.name}.jsonl").open("a", encoding="utf-8") as file:
          file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        counts["documents"] += 1
        counts["characters"] += len(fields["text"])
        counts["bytes"] += len(fields["text"].encode())
        for group, value in (("domains", key[1]), ("splits", key[0])):
          counts[group][value] = counts[group].get(value, 0) + 1
  write_text(folder / "refused.jsonl", "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in refused))
  write_text(done, json.dumps(counts, indent=2))


def splits_of_tables(settings: Settings, chunks: Iterable[Chunk]) -> dict[str, str]:
  """By the path of each file of separated values the split that all its parts go to. Of each domain the largest file is
  dealt first, each to the split that lacks most of its share of their parts."""
  sizes: Counter[str] = Counter()
  domains: dict[str, str] = {}
  for chunk in chunks:
    if not any(is_separated(path.name) for _, path, _ in chunk.files):
      continue
    for fields in json.loads(chunk.part(settings).read_text(encoding="utf-8"))["documents"]:
      path = fields["source"]["path"]
      if is_separated(path):
        sizes[path] += 1
        domains.setdefault(path, fields["domain"])
  shares = {split: share for split, share in settings.shares if share}
  lacking = {
    (domain, split): share * sum(sizes[path] for path in sizes if domains[path] == domain) / sum(shares.values())
    for domain in set(domains.values())
    for split, share in shares.items()
  }
  dealt: dict[str, str] = {}
  for path in sorted(sizes, key=lambda path: (-sizes[path], path)):
    dealt[path] = max(shares, key=lambda split: lacking[domains[path], split])
    lacking[domains[path], dealt[path]] -= sizes[path]
  return dealt


def split_of(ident: str, shares: Sequence[tuple[str, int]]) -> str:
  """By a hash of the document's id: the same on every machine, whatever else there is."""
  bucket = int.from_bytes(hashlib.sha256(ident.encode()).digest()[:8], "big") % sum(share for _, share in shares)
  for split, share in shares:
    if bucket < share:
      return split
    bucket -= share
  raise AssertionError(bucket)


def clusters(settings: Settings) -> list[Cluster]:
  found = []
  for path in settings.parts("clusters").glob("*-*-*.jsonl"):
    split, domain, number = path.stem.rsplit("-", 2)
    found.append(Cluster(split, domain, int(number)))
  order = [split for split, _ in settings.shares]
  return sorted(found, key=lambda c: (order.index(c.split), DOMAINS.index(c.domain), c.number))


def documents(settings: Settings, cluster: Cluster) -> Iterator[Document]:
  with (settings.parts("clusters") / f"{cluster.name}.jsonl").open(encoding="utf-8") as lines:
    for line in lines:
      fields = json.loads(line)
      yield Document(**fields | {"source": Source(**fields["source"])})


def learn_tokenizer(settings: Settings) -> None:
  """A byte-level BPE of the training documents, where no tokenizer was given."""
  folder = Path(settings.tokenizer)
  if folder.exists():
    return
  partial = folder.with_name(folder.name + ".partial")

  def texts() -> Iterator[str]:
    left = _TOKENIZER_CHARACTERS
    for cluster in clusters(settings):
      for document in documents(settings, cluster) if cluster.split == settings.shares[0][0] else ():
        if left > 0:
          yield document.text
        left -= len(document.text)

  tokenizer.train(texts(), partial, settings.vocab_size)
  partial.rename(folder)


def survey(settings: Settings, cluster: Cluster) -> None:
  count = counter(settings.tokenizer)
  corpus = corpora.make(*_called(cluster), list(documents(settings, cluster)), lambda texts: list(map(count, texts)))
  found = {
    "documents": len(corpus.documents),
    "tokens": corpus.tokens,
    "entities": len(corpus.entities),
    "tasks": [task for task in TASKS if capable(corpus, task, settings.targets)],
  }
  write_text(cluster.part(settings), json.dumps(found))


def blocks(settings: Settings, wanted: Mapping[tuple[str, str], int], before: Sequence[Block]) -> list[Block]:
  """What to write that so many samples more of each (split, task) come about: in equal parts from all clusters that
  bear the task, a fifth more than wanted, since some are given up and some ask the same. Numbers go on after `before`.
  """
  every = clusters(settings)
  able = {cluster: json.loads(cluster.part(settings).read_text(encoding="utf-8"))["tasks"] for cluster in every}
  written: Counter[tuple[Cluster, str]] = Counter()
  for block in before:
    written[block.cluster, block.task] += 0 if block.maker else block.count
  found: list[Block] = []
  for (split, task), number in wanted.items():
    bearing = [cluster for cluster in every if cluster.split == split and task in able[cluster]]
    count = math.ceil(1.2 * number / max(len(bearing), 1))
    for cluster in bearing:
      found += cut(Block(cluster, task, written[cluster, task], count))
  # A cluster's blocks together: who has read it goes on with it.
  return sorted(found, key=lambda block: (every.index(block.cluster), block.task, block.first))


def planned(
  settings: Settings, most: Mapping[Cluster, int], task: str, maker: str = "", brings: int = 1
) -> Iterator[Block]:
  """Blocks of the things that clusters have, `most` each: as many as make the samples that a split wants, if each
  `brings` so many, in equal parts from all clusters that have any."""
  for split, wanted in settings.samples:
    found = {cluster: count for cluster, count in most.items() if cluster.split == split and count}
    enough = math.ceil(wanted / max(len(found) * brings, 1))
    for cluster, count in found.items():
      yield from cut(Block(cluster, task, 0, min(count, enough), maker))


def write_block(settings: Settings, block: Block) -> None:
  corpus, length = load(settings, block.cluster), counter(settings.tokenizer)
  write_samples(settings, block, lambda order: sample(corpus, order, length))


def write_samples(
  settings: Settings, block: Block, draw: Callable[[Order], tuple[Example | None, list[str]]]
) -> None:
  """What comes of the orders of a block, given to `draw` one by one."""
  orders = (Order(block.task, block.first + n, settings.seed, settings.targets) for n in range(block.count))
  write_lines(block.part(settings), [as_line(order.number, *draw(order)) for order in orders])


@lru_cache(maxsize=2)
def load(settings: Settings, cluster: Cluster) -> Corpus:
  counted = iter(json.loads(cluster.part(settings).read_text(encoding="utf-8"))["tokens"])
  return corpora.make(*_called(cluster), list(documents(settings, cluster)), lambda texts: next(counted))


def _called(cluster: Cluster) -> tuple[str, str, str]:
  return cluster.split, cluster.domain, f"{cluster.number:04d}"


@lru_cache(maxsize=1)
def counter(path: str) -> Callable[[str], int]:
  """Counts a text's tokens."""
  encode = tokenizer.load(path).encode
  return lambda text: len(encode(text))
