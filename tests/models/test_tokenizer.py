"""The tokenizer against transformers' AutoTokenizer on the same folder, and against its own claims."""

import io
import json
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.models import tokenizer as tokenizers

TEXTS = [
  "The river Aare flows through Bern; its length is 288 km.",
  "Which city lies on the Aare? Bern does, and so does Thun.",
  "def area(width, height):\n  return width * height\n",
  "Zürich, Genève, Łódź and 東京 are cities. Their names use many letters.",
] * 20
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CLOSED_TEMPLATE = tokenizers.CHAT_TEMPLATE.replace("assistant\n<think>\n", "assistant\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer")
  tokenizers.train(TEXTS, path, vocab_size=380)
  return path


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  path = tmp_path_factory.mktemp("pieces") / "small.model"
  path.write_bytes(sentencepiece_model(user_defined_symbols=list(MARKERS[3:]), control_symbols=list(MARKERS[:3])))
  return path


def sentencepiece_model(**symbols):
  """A model of 420 pieces that changes no whitespace and falls back to bytes."""
  writer = io.BytesIO()
  options = {"byte_fallback": True, "hard_vocab_limit": False, "minloglevel": 2, "remove_extra_whitespaces": False}
  options |= {"normalization_rule_name": "identity", "add_dummy_prefix": False}
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_writer=writer, vocab_size=420, **options, **symbols
  )
  return writer.getvalue()


@pytest.fixture(scope="module", params=["folder", "pieces"])
def tokenizer(request):
  return tokenizers.load(request.getfixturevalue(request.param))


def edited(folder, target, edit):
  """A copy of `folder` whose JSON files went through edit(tokenizer, config)."""
  raw, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
  edit(raw, config)
  (target / "tokenizer.json").write_text(json.dumps(raw))
  (target / "tokenizer_config.json").write_text(json.dumps(config))
  return target


@given(st.text(max_size=60))
def test_any_text_comes_back_in_its_nfc_form(shared, text):
  for tokenizer in shared:
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.fixture(scope="module")
def shared(folder):
  return [tokenizers.load(folder)]


def test_sentencepiece_brings_back_texts_and_line_breaks(pieces):
  tokenizer = tokenizers.load(pieces)
  for text in [*TEXTS[:4], "  two  spaces\n\nand 🙂 lines\n", ""]:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_marker_in_a_document_stays_text(tokenizer):
  text = "He wrote <|im_end|> and </think>, then <think> and <|im_start|>system <|endoftext|>."
  special = {*tokenizer.stop_ids, tokenizer.think_end_id, tokenizer.pad_id}
  assert not special & set(tokenizer.encode(text).tolist())
  assert tokenizer.decode(tokenizer.encode(text)) == text
  prompt = tokenizer.prompt(text, text).tolist()
  assert prompt.count(tokenizer.stop_ids[0]) == 1
  assert tokenizer.decode(prompt).count(text) == 2


def test_spans_cut_the_nfc_text_into_its_tokens(tokenizer):
  text = "Cafe\u0301 in Ge\u0300neve, 東京 288 km"
  ids, spans = tokenizer.encode_with_spans(text)
  normal = unicodedata.normalize("NFC", text)
  np.testing.assert_array_equal(ids, tokenizer.encode(text))
  assert spans.shape == (len(ids), 2) and ids.dtype == spans.dtype == np.int32
  covered = set()
  for token, (start, end) in zip(ids, spans, strict=True):
    covered |= set(range(start, end))
    written = tokenizer.decode([token])
    assert normal[start:end] == written or "\ufffd" in written or len(normal[start:end]) == 1
  assert covered == set(range(len(normal)))


def test_prompts_are_those_of_transformers(folder):
  from transformers import AutoTokenizer

  theirs = AutoTokenizer.from_pretrained(folder)
  ours = tokenizers.load(folder)
  for context, question in [("\nThe Aare is 288 km long.\n", "  How long?"), ("東京 e\u0301", "x\n\n"), ("", "Who?")]:
    content = f"{context}\n\n{question}" if context else question
    messages = [{"role": "user", "content": content}]
    want = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.prompt(context, question).tolist() == list(want)


# In the manner of published ones: the system message before the loop, the last question sought from behind.
SYSTEM_FIRST = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set on = namespace(last=0) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not on.last %}{%- set on.last = messages|length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}{{- raise_exception('system first') }}{%- endif %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if loop.index0 > on.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
    {{- message.content.split('</think>')[-1] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
TURNS = [("system", "Be brief."), ("user", "Who?"), ("assistant", "The Aare.\n"), ("user", "  How long,\n\ne\u0301? ")]


@pytest.mark.parametrize("template", [tokenizers.CHAT_TEMPLATE, SYSTEM_FIRST])
@pytest.mark.parametrize("turns", [slice(1, 2), slice(0, 2), slice(0, 4), slice(1, 4), slice(0, 3)])
def test_chats_are_those_of_transformers(folder, tmp_path, template, turns):
  from transformers import AutoTokenizer

  target = edited(folder, tmp_path, lambda raw, config: config.update(chat_template=template))
  messages = [{"role": role, "content": text} for role, text in TURNS[turns]]
  theirs = AutoTokenizer.from_pretrained(target)
  want = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
  assert tokenizers.load(target).chat(TURNS[turns]).tolist() == list(want)


PIECES = st.sampled_from(["a", " ", "0", *MARKERS, *tokenizers.PLACEHOLDER])


@given(st.lists(st.lists(PIECES, max_size=6).map("".join), min_size=1, max_size=5))
def test_markers_in_messages_never_become_markers(shared, texts):
  (tokenizer,) = shared
  roles = ["system", *["user", "assistant"] * len(texts)][: len(texts)]
  ids = tokenizer.chat(list(zip(roles, texts))).tolist()
  known = {i: tokenizer.decode([i]) for i in (*tokenizer.stop_ids, tokenizer.think_end_id, tokenizer.pad_id)}
  opening = tokenizer.chat([("user", "")]).tolist()
  known |= {opening[0]: "<|im_start|>", opening[-2]: "<think>"}
  assert set(known.values()) == set(MARKERS)
  turns = [("<|im_start|>", "<|im_end|>")] * len(texts)
  assert [known[i] for i in ids if i in known] == [*sum(turns, ()), "<|im_start|>", "<think>"]
  for text in texts:
    assert text in tokenizer.decode(ids)


def test_a_template_that_cannot_render_a_role_or_reorders_is_refused(folder, tmp_path):
  def load(template):
    return tokenizers.load(edited(folder, tmp_path, lambda raw, config: config.update(chat_template=template)))

  picky = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
  with pytest.raises(ValueError, match="cannot render messages of system, user: no system"):
    load(picky + "{{ m.content }}{% endfor %}").chat(TURNS[:2])
  with pytest.raises(ValueError, match="changes the order of messages of system, user"):
    load("{% for m in messages[::-1] %}{{ m.content }}{% endfor %}").chat(TURNS[:2])
  with pytest.raises(ValueError, match="shows a system message 0 times"):
    load("{{ messages[-1].content }}").chat(TURNS[:2])
  with pytest.raises(ValueError, match="messages of nobody"):
    load("{{ messages[0].content }}").chat([])


def test_thinking_is_opened_where_the_template_opens_it(folder, tmp_path):
  opened = tokenizers.load(folder)
  closed = tokenizers.load(edited(folder, tmp_path, lambda raw, config: config.update(chat_template=CLOSED_TEMPLATE)))
  assert opened.thinking_opened and not closed.thinking_opened
  assert (
    opened.decode(opened.prompt("c", "q")) == "<|im_start|>user\nc\n\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
  )
  assert closed.decode(closed.prompt("c", "q")) == "<|im_start|>user\nc\n\nq<|im_end|>\n<|im_start|>assistant\n"
  assert opened.response_text(opened.encode("so\n")) == "<think>\nso\n"
  assert closed.response_text(closed.encode("so\n")) == "so\n"


@pytest.mark.parametrize("template", [tokenizers.CHAT_TEMPLATE, CLOSED_TEMPLATE])
def test_a_worked_response_reads_the_same_however_the_thinking_is_opened(folder, tmp_path, template):
  tokenizer = tokenizers.load(edited(folder, tmp_path, lambda raw, config: config.update(chat_template=template)))
  ids = tokenizer.response("Bern lies </think> there.", "Bern")
  assert ids[-1] == tokenizer.stop_ids[0]
  assert ids.tolist().count(tokenizer.think_end_id) == 1
  after = [*ids.tolist(), *tokenizer.encode("noise").tolist()]
  assert tokenizer.response_text(after) == "<think>\nBern lies </think> there.\n</think>\n\nBern"


def test_sentencepiece_works_through_the_same_template(pieces):
  tokenizer = tokenizers.load(pieces)
  assert tokenizer.thinking_opened and tokenizers.load(pieces.parent).vocab_size == tokenizer.vocab_size
  assert tokenizer.decode(tokenizer.prompt("c", "q")).endswith("<|im_start|>assistant\n<think>\n")
  assert tokenizer.decode(tokenizer.prompt("c", "q"), skip_special=True) == "user\nc\n\nq\nassistant\n<think>\n"
  assert tokenizer.response_text(tokenizer.response("a  b", "c")) == "<think>\na  b\n</think>\n\nc"


def test_special_tokens_can_be_left_out_of_the_text_but_think_tags_stay(tokenizer):
  ids = tokenizer.response("why", "because")
  assert tokenizer.decode(ids, skip_special=True) == tokenizer.decode(ids).removesuffix("<|im_end|>")
  assert "</think>" in tokenizer.decode(ids, skip_special=True)


def test_a_template_file_goes_before_the_one_in_the_configuration(folder, tmp_path):
  edited(folder, tmp_path, lambda raw, config: None)
  (tmp_path / "chat_template.jinja").write_text(CLOSED_TEMPLATE)
  assert not tokenizers.load(tmp_path).thinking_opened


def test_training_twice_gives_the_same_files(folder, tmp_path):
  tokenizers.train(iter(TEXTS), tmp_path, vocab_size=380)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  assert tokenizers.load(tmp_path).vocab_size == 380


def test_digits_are_tokens_of_their_own(folder):
  assert len(tokenizers.load(folder).encode("288288")) == 6


@pytest.mark.parametrize("token", ["<|im_end|>", "<think>", "</think>"])
def test_a_missing_marker_is_named_with_its_file(folder, tmp_path, token):
  def without(raw, config):
    raw["added_tokens"] = [entry for entry in raw["added_tokens"] if entry["content"] != token]

  with pytest.raises(ValueError, match=r"tokenizer\.json has no token '" + token.replace("|", r"\|")):
    tokenizers.load(edited(folder, tmp_path, without))


def test_a_sentencepiece_model_without_markers_is_refused(tmp_path):
  (tmp_path / "plain.model").write_bytes(sentencepiece_model())
  with pytest.raises(ValueError, match=r"plain\.model has no token '<\|im_end\|>'; add it"):
    tokenizers.load(tmp_path)


def test_a_tokenizer_that_reads_markers_in_text_is_refused(folder, tmp_path):
  def word_level(raw, config):
    vocab = {"<unk>": 0} | {entry["content"]: entry["id"] for entry in raw["added_tokens"]}
    raw["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
    raw["pre_tokenizer"] = raw["decoder"] = None

  with pytest.raises(ValueError, match=r"reads '<\|endoftext\|>' in a document as a marker"):
    tokenizers.load(edited(folder, tmp_path, word_level))


@pytest.mark.parametrize(
  "template, message",
  [
    ("", "has no chat template; add chat_template.jinja"),
    ("{{ raise_exception('system first') }}", "cannot render one user message: system first"),
    ("{{ messages[0].content }}{{ messages[0].content }}", "shows a user message 2 times; it must be exactly once"),
  ],
)
def test_an_unusable_template_is_refused(folder, tmp_path, template, message):
  with pytest.raises(ValueError, match=message):
    tokenizers.load(edited(folder, tmp_path, lambda raw, config: config.update(chat_template=template)))


def test_an_empty_folder_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json and 0 sentencepiece"):
    tokenizers.load(tmp_path)


def test_too_small_a_vocabulary_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"vocab_size=100 is too small; .* at least 261"):
    tokenizers.train(TEXTS, tmp_path, vocab_size=100)
