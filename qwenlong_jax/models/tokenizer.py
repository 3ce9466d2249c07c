"""Text to token ids and back: a Hugging Face tokenizer folder or a sentencepiece model, with Qwen's chat markers.

Documents and questions are only ever text: a marker that stands in them, like "<|im_end|>", becomes ordinary tokens.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2.exceptions
import jinja2.sandbox
import numpy as np
import sentencepiece
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"
LEAST = 256 + 5  # tokens of a vocabulary that is learnt: every byte and marker

# Used by `train` and with sentencepiece models, which carry no template. It opens the thinking, as Qwen3-Thinking does.
CHAT_TEMPLATE = (
  "{% for message in messages %}"
  "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
  "{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)

# Stand, with a message's number between them, for its text while the template is rendered.
PLACEHOLDER = "\U000f7a11", "\U000f7a12"


class Tokenizer:
  """Encodes documents, questions, chats and worked responses; decodes what was sampled. Made by `load`.

  Attributes:
    thinking_opened: a prompt ends inside an opened <think>, so that a response starts with the thinking.
    think_end: the text that ends the thinking; `think_end_id` its token.
    stop_ids: tokens that end a response.
    pad_id: fills unused slots.
    vocab_size: one more than the largest id (a model's embedding may have more rows).
  """

  think_end = THINK_END

  def __init__(self, backend: "_Fast | _Pieces", template: str, variables: dict[str, Any], origin: Path):
    for token in (TURN_END, THINK_START, THINK_END):
      if token not in backend.markers:
        raise ValueError(f"{origin} has no token {token!r}; add it as one added token, or use a Qwen3 tokenizer")
    for token, index in backend.markers.items():
      if index in backend.encode(token)[0]:
        raise ValueError(
          f"{origin} reads {token!r} in a document as a marker; use a BPE tokenizer without ignore_merges"
        )
    self._backend = backend
    self._marker = re.compile("|".join(map(re.escape, sorted(backend.markers, key=len, reverse=True))))
    self._template = template, variables, origin
    self._frames: dict[tuple[str, ...], list[str]] = {}  # by the roles of the messages
    after = self._frame(("user",))[-1]
    opened = after.rfind(THINK_START)
    self.thinking_opened = opened >= 0 and not after[opened + len(THINK_START) :].strip()
    self._opening = after[opened:] if self.thinking_opened else ""
    self.think_end_id = backend.markers[THINK_END]
    self.stop_ids = tuple(backend.markers[token] for token in (TURN_END, END_OF_TEXT) if token in backend.markers)
    self.pad_id = backend.markers.get(variables.get("pad_token") or END_OF_TEXT, self.stop_ids[-1])
    self.vocab_size = backend.vocab_size

  def encode(self, text: str) -> Int[np.ndarray, " n"]:
    """Ids of a text, normalised to NFC; no markers are added and none are read in it."""
    return self.encode_with_spans(text)[0]

  def encode_with_spans(self, text: str) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n 2"]]:
    """(ids, [start, end) of each token in characters of the NFC text).

    Tokens that share the bytes of one character have that character's span.
    """
    ids, spans = self._backend.encode(unicodedata.normalize("NFC", text))
    return np.asarray(ids, np.int32), np.asarray(spans, np.int32).reshape(-1, 2)

  def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = False) -> str:
    """Text of ids; markers are written out unless `skip_special` (the think tags are always written)."""
    return self._backend.decode([int(i) for i in ids], skip_special)

  def prompt(self, context: str, question: str) -> Int[np.ndarray, " n"]:
    """The chat template around the context and, after an empty line, the question; the assistant's turn is opened."""
    return self.chat([("user", f"{context}\n\n{question}" if context else question)])

  def chat(self, messages: Sequence[tuple[str, str]]) -> Int[np.ndarray, " n"]:
    """The chat template around messages (role, text), the assistant's turn opened.

    The template sees the roles alone: what it would read in a text, or change about it, stays as it is.

    Raises:
      ValueError: it cannot render these roles, or leaves a text out, shows it twice or elsewhere.
    """
    first, *others = self._frame(tuple(role for role, _ in messages))
    parts = [(first, True)]
    for (_, text), after in zip(messages, others, strict=True):
      parts += [(text, False), (after, True)]
    return self._assemble(parts)

  def response(self, reasoning: str, answer: str) -> Int[np.ndarray, " n"]:
    """A worked response as the model would have to sample it after `prompt`, the end of the turn included."""
    opening = "" if self.thinking_opened else f"{THINK_START}\n"
    parts = [(opening, True), (f"{reasoning}\n", False), (THINK_END, True), (f"\n\n{answer}", False), (TURN_END, True)]
    return self._assemble(parts)

  def response_text(self, ids: Sequence[int] | np.ndarray) -> str:
    """Text of a sampled response up to its first stop token, the <think> that the template opened put back in front."""
    ids = [int(i) for i in ids]
    end = next((place for place, token in enumerate(ids) if token in self.stop_ids), len(ids))
    return self._opening + self.decode(ids[:end])

  def _frame(self, roles: tuple[str, ...]) -> list[str]:
    if roles not in self._frames:
      self._frames[roles] = _render(*self._template, roles)
    return self._frames[roles]

  def _assemble(self, parts: Iterable[tuple[str, bool]]) -> Int[np.ndarray, " n"]:
    """Ids of (text, trusted) parts; markers count in trusted parts only, the text between two markers is one text."""
    ids: list[int] = []
    pending = ""
    for text, trusted in parts:
      start = 0
      for found in self._marker.finditer(text) if trusted else ():
        ids += [*self.encode(pending + text[start : found.start()]), self._backend.markers[found[0]]]
        pending, start = "", found.end()
      pending += text[start:]
    return np.asarray([*ids, *self.encode(pending)], np.int32)


def load(path: str | Path) -> Tokenizer:
  """Reads a folder with tokenizer.json, a sentencepiece `*.model`, or a folder with one such model.

  Raises:
    FileNotFoundError: nothing of the kind is there.
    ValueError: <|im_end|> or a think tag is missing, or markers cannot be told from text.
  """
  path = Path(path)
  if (path / "tokenizer.json").is_file():
    return _load_folder(path)
  pieces = [path] if path.is_file() else sorted(path.glob("*.model"))
  if len(pieces) != 1 or pieces[0].suffix != ".model":
    raise FileNotFoundError(
      f"{path} holds no tokenizer.json and {len(pieces)} sentencepiece *.model files; give a folder with "
      "tokenizer.json or the path of one *.model"
    )
  return Tokenizer(_Pieces(pieces[0].read_bytes()), CHAT_TEMPLATE, {}, pieces[0])


def train(texts: Iterable[str], folder: str | Path, vocab_size: int) -> Tokenizer:
  """Learns a byte-level BPE of at most `vocab_size` tokens, chat markers included, and writes it to `folder`.

  Digits are tokens of their own. The folder is readable by transformers' AutoTokenizer.
  """
  special, tags = [END_OF_TEXT, TURN_START, TURN_END], [THINK_START, THINK_END]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if vocab_size < LEAST:
    raise ValueError(f"{vocab_size=} is too small; every byte and marker needs a token, give at least {LEAST}")
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  )
  tokenizer.decoder = decoders.ByteLevel()
  size = vocab_size - len(special + tags)
  trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False)
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.add_special_tokens(special)
  tokenizer.add_tokens(tags)
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": TURN_END,
    "pad_token": END_OF_TEXT,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
  }
  (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
  return load(folder)


class _Fast:
  """A tokenizer.json twice: once without its added tokens, for text, and once whole, for decoding."""

  def __init__(self, text: str):
    raw = json.loads(text)
    plain = raw | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    self._whole = tokenizers.Tokenizer.from_str(text)
    self._plain = tokenizers.Tokenizer.from_str(json.dumps(plain))
    self.markers = {token["content"]: token["id"] for token in raw["added_tokens"]}
    self.vocab_size = max(self._whole.get_vocab(with_added_tokens=True).values()) + 1

  def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = self._plain.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

  def decode(self, ids: list[int], skip_special: bool) -> str:
    return self._whole.decode(ids, skip_special_tokens=skip_special)


class _Pieces:
  """A sentencepiece model twice: its markers are control pieces (never read in text) and user pieces (written out)."""

  def __init__(self, serialized: bytes):
    # Here: it asks for a newer protobuf than Apache Beam bears, and a Hugging Face tokenizer does without.
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2
    proto, kinds = model.ModelProto.FromString(serialized), model.ModelProto.SentencePiece.Type
    marked = [i for i, p in enumerate(proto.pieces) if p.type in (kinds.CONTROL, kinds.USER_DEFINED)]
    known = {END_OF_TEXT, TURN_START, TURN_END, THINK_START, THINK_END}
    self.markers = {proto.pieces[i].piece: i for i in marked if re.fullmatch(r"<.+>", proto.pieces[i].piece)}
    self.vocab_size = len(proto.pieces)
    self._skipped = set(self.markers.values()) - {self.markers.get(THINK_START), self.markers.get(THINK_END)}

    def processor(kind: int) -> sentencepiece.SentencePieceProcessor:
      for token in known & set(self.markers):
        proto.pieces[self.markers[token]].type = kind
      return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    self._reader, self._writer = processor(kinds.CONTROL), processor(kinds.USER_DEFINED)

  def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    found: Any = self._reader.encode(text, out_type="offset_mapping")
    ids, spans = found["ids"], found["offsets"]
    for place in reversed(range(len(ids) - 1)):  # of a character's bytes only the last has its span
      if self._reader.is_byte(ids[place]) and spans[place][0] == spans[place][1]:
        spans[place] = spans[place + 1]
    return ids, spans

  def decode(self, ids: list[int], skip_special: bool) -> str:
    return self._writer.decode([i for i in ids if not (skip_special and i in self._skipped)])


def _load_folder(folder: Path) -> Tokenizer:
  path = folder / "tokenizer_config.json"
  config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
  template = config.get("chat_template")
  if (folder / "chat_template.jinja").is_file():
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
  if isinstance(template, list):
    template = {entry["name"]: entry["template"] for entry in template}.get("default")
  if not template:
    raise ValueError(
      f"{folder} has no chat template; add chat_template.jinja or chat_template in tokenizer_config.json"
    )
  names = ("bos_token", "eos_token", "pad_token", "unk_token")
  variables = {
    name: config[name]["content"] if isinstance(config[name], dict) else config[name]
    for name in names
    if config.get(name) is not None
  }
  backend = _Fast((folder / "tokenizer.json").read_text(encoding="utf-8"))
  return Tokenizer(backend, template, variables, folder / "tokenizer.json")


def _render(template: str, variables: dict[str, Any], origin: Path, roles: tuple[str, ...]) -> list[str]:
  """What the template puts before, between and after texts of these roles, the assistant's turn opened."""

  def refuse(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
  )
  environment.globals["raise_exception"] = refuse
  start, end = PLACEHOLDER
  messages = [{"role": role, "content": f"{start}{number}{end}"} for number, role in enumerate(roles)]
  told = "one user message" if roles == ("user",) else f"messages of {', '.join(roles) or 'nobody'}"
  try:
    text = environment.from_string(template).render(messages=messages, add_generation_prompt=True, **variables)
  except jinja2.exceptions.TemplateError as error:
    raise ValueError(f"the chat template of {origin} cannot render {told}: {error}") from error
  for message in messages:
    if (shown := text.count(message["content"])) != 1:
      raise ValueError(
        f"the chat template of {origin} shows a {message['role']} message {shown} times; it must be exactly once"
      )
  around = re.split(f"{start}([0-9]+){end}", text)
  if around[1::2] != [str(number) for number in range(len(roles))]:
    raise ValueError(f"the chat template of {origin} changes the order of {told}; take one that keeps it")
  return around[::2]
