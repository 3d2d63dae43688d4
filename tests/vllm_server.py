"""A small server that speaks the part of vLLM's API that a sampler uses, over this package's own language model.

It answers ``/v1/completions`` with tokens, and takes and forgets adapters at run time, with vLLM's answers and statuses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree


@dataclass
class VLLM:
    """A base model, the adapters that were loaded, and what was asked.

    Attributes:
        lm: the base.
        uses_adapters: whether requests for an adapter are answered with it, as they should be.
        leaves_out_end: whether the token that ended an answer is left out, as some versions do.
        asked: the requests, with their paths.
        url: where it listens.
    """

    lm: LanguageModel
    uses_adapters: bool = True
    leaves_out_end: bool = False
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def handle(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer of a request."""
        with self.lock:
            self.asked.append((path, body))
            if path == "/v1/load_lora_adapter":
                name = body["lora_name"]
                if name in self.lm.adapters:
                    return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
                self.lm.import_adapter(name, body["lora_path"])
                return 200, f"Success: LoRA adapter '{name}' added successfully."
            if path == "/v1/unload_lora_adapter":
                name = body["lora_name"]
                if name not in self.lm.adapters:
                    return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found."}}
                self.lm.remove_adapter(name)
                return 200, f"Success: LoRA adapter '{name}' removed successfully."
            if path == "/v1/completions":
                if body["model"] not in (*self.lm.adapters, self.lm.name):
                    return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
                return 200, self.complete(body)
            return 404, {"detail": "Not Found"}

    @torch.no_grad()
    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Continue a text token by token, by a plain forward pass each."""
        adapter = body["model"] if self.uses_adapters and body["model"] in self.lm.adapters else None
        generator = torch.Generator().manual_seed(int(body["seed"]))
        ids, out, log_probs, reason, ended = list(body["prompt"]), [], [], "length", None
        stop = set(body["stop_token_ids"])
        if not body["ignore_eos"]:
            stop.add(int(self.lm.tokenizer.eos_token_id))
        with self.lm.active(adapter):
            for _ in range(body["max_tokens"]):
                hidden, starts = self.lm.tree_hidden([TokenTree(ids)], [[len(ids) - 1]])
                logits = self.lm.logits(hidden[starts[0] + len(ids) - 1])
                log_prob = logits.log_softmax(-1)
                if body.get("allowed_token_ids") is not None:
                    masked = torch.full_like(logits, -torch.inf)
                    masked[body["allowed_token_ids"]] = logits[body["allowed_token_ids"]]
                    logits = masked
                if body["temperature"] == 0:
                    token = int(logits.argmax())
                else:
                    token = int(torch.multinomial((logits / body["temperature"]).softmax(-1), 1, generator=generator))
                ids.append(token)
                out.append(token)
                log_probs.append(float(log_prob[token]))
                if token in stop:
                    reason, ended = "stop", token
                    break
        if ended is not None and self.leaves_out_end:
            out = out[:-1]
        choice: dict[str, Any] = {
            "index": 0,
            "text": "",
            "finish_reason": reason,
            "stop_reason": ended,
            "token_ids": out,
        }
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": log_probs}
        n = len(body["prompt"])
        return {"choices": [choice], "usage": {"prompt_tokens": n, "completion_tokens": len(out)}}

    def of(self, path: str) -> list[dict[str, Any]]:
        """The bodies that were sent to a path."""
        return [body for asked, body in self.asked if asked == path]


@contextmanager
def serving(server: VLLM) -> Iterator[VLLM]:
    """Listen on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = server.handle(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        server.url = f"http://127.0.0.1:{httpd.server_port}/v1"
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
