"""A real HTTP server on loopback that completes chats as it is told to, badly if so told."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Act:
  """What the server does to one request."""

  status: int = 200
  body: str = ""
  headers: dict[str, str] = field(default_factory=dict)
  wait: float = 0.0
  reset: bool = False
  drip: float = 0.0


def says(text: str | None, finish: str = "stop", wait: float = 0.0, **message: Any) -> Act:
  answer = {
    "id": "1",
    "object": "chat.completion",
    "model": "served",
    "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
  }
  return Act(body=json.dumps(answer), wait=wait)


def refuses(status: int, message: str = "no", wait: float = 0.0, code: str | None = None, **headers: str) -> Act:
  named = {name.replace("_", "-"): value for name, value in headers.items()}
  return Act(status, json.dumps({"error": {"message": message, "code": code}}), named, wait)


class Loopback:
  """`behave(body, hit)` says what to do with the hit-th request of the same last message; an echo by default."""

  def __init__(self, behave: Callable[[dict[str, Any], int], Act] | None = None):
    self.behave = behave or (lambda body, hit: says("echo " + prompt_of(body)))
    self.bodies: list[dict[str, Any]] = []
    self.times: list[float] = []
    self.keys: list[str] = []
    self.hits: Counter[str] = Counter()
    self.answered: Counter[str] = Counter()
    self.busy = self.peak = 0
    self.closed = threading.Event()
    self._lock = threading.Lock()
    outer = self

    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def do_POST(self) -> None:
        outer._serve(self)

      def log_message(self, *arguments: Any) -> None:
        pass

    self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self._http.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

  def __enter__(self) -> Self:
    threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
    return self

  def __exit__(self, *exception: object) -> None:
    self.closed.set()
    self._http.shutdown()
    self._http.server_close()

  def _serve(self, handler: BaseHTTPRequestHandler) -> None:
    body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
    prompt = prompt_of(body)
    with self._lock:
      self.bodies.append(body)
      self.times.append(time.monotonic())
      self.keys.append(handler.headers.get("Authorization", ""))
      self.hits[prompt] += 1
      self.busy += 1
      self.peak = max(self.peak, self.busy)
      hit = self.hits[prompt]
    try:
      self._act(handler, self.behave(body, hit))
      self.answered[prompt] += 1
    except OSError:
      handler.close_connection = True  # the client went away
    finally:
      with self._lock:
        self.busy -= 1

  def _act(self, handler: BaseHTTPRequestHandler, act: Act) -> None:
    self.closed.wait(act.wait)
    data = act.body.encode()
    handler.send_response(act.status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **act.headers}.items():
      handler.send_header(name, value)
    handler.end_headers()
    if act.reset:
      handler.wfile.write(data[: len(data) // 2])
      handler.wfile.flush()
      # With no time to linger, closing resets the connection.
      handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
      handler.connection.shutdown(socket.SHUT_RDWR)
      handler.close_connection = True
      raise ConnectionResetError
    if act.drip:
      for byte in data:
        handler.wfile.write(bytes([byte]))
        self.closed.wait(act.drip)
    else:
      handler.wfile.write(data)


def prompt_of(body: dict[str, Any]) -> str:
  return str(body["messages"][-1]["content"])
