"""Near-duplicates: texts most of whose word 5-grams are the same, found by MinHash and locality-sensitive hashing.

LSH names candidates (Broder 1997; Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, chapter 3); the Jaccard
similarity of the 5-grams themselves decides. The first document in order stays.
"""

import hashlib
import re
import tempfile
import zlib
from array import array
from dataclasses import dataclass

import numpy as np

from qwenlong_jax.data.documents import needed

WORDS = 5  # of a shingle
PERMUTATIONS = 128
# False negatives count 49 times as much as false positives, which the exact similarity clears: of pairs at the
# threshold 0.8, 2 in 100 are missed, of pairs at 0.85 one in 1,000.
WEIGHTS = (0.02, 0.98)
_BATCH = 1024  # shingles that are hashed at once: 1 MB, which stays in the cache

# Scripts without spaces: there a character is a word.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_SPACELESS}]|[^\\W{_SPACELESS}]+")
_ODD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Signature:
  """What is compared of a text: its digest, its distinct shingles as sorted hashes, and their MinHash."""

  digest: bytes
  shingles: np.ndarray
  minhash: np.ndarray


@dataclass(frozen=True, slots=True)
class Match:
  """The earlier document that a text repeats, and the similarity of the two (1 where only case or signs differ)."""

  first: str
  jaccard: float
  exact: bool


def words(text: str) -> list[str]:
  """The words of a text, folded; where words are not parted by spaces, its characters."""
  return _WORD.findall(text.casefold())


def shingles(text: str) -> np.ndarray:
  """Sorted distinct 64-bit hashes of the text's word 5-grams; of a shorter text, of all its words."""
  hashes = _mixed(np.array([zlib.crc32(word.encode()) for word in words(text)], np.uint64))
  width = min(WORDS, len(hashes))
  grams = np.zeros(len(hashes) - width + 1 if width else 0, np.uint64)
  for i in range(width):
    grams = grams * _ODD + hashes[i : i + len(grams)]
  return np.unique(_mixed(grams))


def _mixed(hashes: np.ndarray) -> np.ndarray:
  """Every bit of the input in every bit of the output (the finisher of SplitMix64, shortened)."""
  hashes = (hashes ^ (hashes >> _HALF)) * _ODD
  return (hashes ^ (hashes >> _HALF)) * _ODD


def signature(text: str) -> Signature:
  """Pure, and the costly part: a pool of processes may compute it ahead."""
  found = shingles(text)
  # datasketch as it is: 0.3 s for a million shingles, a third of the time that cutting the words takes.
  minhash = needed("datasketch").MinHash(PERMUTATIONS, scheme="affine32", hashfunc=int)
  low = (found & np.uint64(0xFFFFFFFF)).tolist()
  for start in range(0, len(low), _BATCH):
    minhash.update_batch(low[start : start + _BATCH])
  return Signature(hashlib.sha256(text.encode()).digest(), found, minhash.hashvalues)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
  """Of two sets as sorted arrays of distinct elements."""
  both = len(np.intersect1d(a, b, assume_unique=True))
  return both / max(1, len(a) + len(b) - both)


class Duplicates:
  """The documents so far. In memory: digest, MinHash and buckets, 8 KB each; their shingles lie in a temporary file."""

  def __init__(self, threshold: float = 0.8):
    if not 0 < threshold <= 1:
      raise ValueError(
        f"{threshold=} must be above 0 and at most 1: the share of 5-grams that two texts have in common"
      )
    self.threshold = threshold
    self._exact: dict[bytes, int] = {}
    self._names: list[str] = []
    self._ends = array("q", [0])
    # It lives as long as this object.
    self._file = tempfile.TemporaryFile()  # noqa: SIM115
    self._lsh = needed("datasketch").MinHashLSH(min(threshold, 0.99), PERMUTATIONS, weights=WEIGHTS)

  def match(self, name: str, signature: Signature) -> Match | None:
    """The first earlier document that this one repeats; where there is none, it is remembered."""
    if (known := self._exact.get(signature.digest)) is not None:
      return Match(self._names[known], 1.0, True)
    minhash = needed("datasketch").MinHash(PERMUTATIONS, scheme="affine32", hashvalues=signature.minhash)
    for candidate in sorted(self._lsh.query(minhash)):
      similarity = jaccard(signature.shingles, self._shingles(candidate))
      if similarity >= self.threshold:
        return Match(self._names[candidate], similarity, False)
    self._remember(name, signature, minhash)
    return None

  def _remember(self, name: str, signature: Signature, minhash: object) -> None:
    number = len(self._names)
    self._exact[signature.digest] = number
    self._names.append(name)
    self._file.seek(8 * self._ends[-1])
    self._file.write(signature.shingles.tobytes())
    self._ends.append(self._ends[-1] + len(signature.shingles))
    self._lsh.insert(number, minhash)

  def _shingles(self, number: int) -> np.ndarray:
    start, end = self._ends[number], self._ends[number + 1]
    self._file.seek(8 * start)
    return np.frombuffer(self._file.read(8 * (end - start)), np.uint64)
