"""A server that completes every prompt with the same words: what a peer's server is, without a model.

Arguments: what it does (`words`, `late`, `broken`, `loads`, `refuses`, `dies`), then `--host HOST --port PORT`.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

MODE = sys.argv[1] if __name__ == "__main__" else ""
WORDS = ("The", " red", " one", ".")
asked = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        global asked
        asked += 1
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if MODE == "loads" or (MODE == "late" and asked < 3):
            return self.send_error(503)
        if MODE == "refuses":
            return self.send_error(404)
        self.send_response(200)
        self.end_headers()
        for word in WORDS[: request["max_tokens"]]:
            self.wfile.write(b"data: " + json.dumps({"choices": [{"text": word}]}).encode() + b"\n\n")
            self.wfile.flush()
        if MODE == "broken":
            self.wfile.write(b'data: {"error": "out of memory"}\n\n')
        self.wfile.write(b'data: {"choices": []}\n\ndata: [DONE]\n\n')
        return None

    def log_message(self, form: str, *values: object) -> None:
        pass


if __name__ == "__main__":
    if MODE == "dies":
        sys.exit("the model cannot be loaded")
    _, host, _, port = sys.argv[2:6]
    HTTPServer((host, int(port)), Handler).serve_forever()
