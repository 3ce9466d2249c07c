"""An HTML page taken apart, for what tests claim about it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
  """Collects a page's elements and fails on tags that do not nest."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.elements, self.words = [], [], []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self) -> str:
    return re.sub(r"\s+", " ", " ".join(self.words))

  def count(self, tag: str) -> int:
    return sum(name == tag for name, _ in self.elements)
