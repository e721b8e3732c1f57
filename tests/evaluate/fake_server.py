"""A small server that answers like vLLM, SGLang or llama.cpp's, and misbehaves as it is told to."""

import contextlib
import http.server
import json
import threading


class FakeServer(http.server.ThreadingHTTPServer):
    """Answers on a free port of this machine.

    `style` is the layout: "vllm", "sglang" or "llama.cpp". `likelihoods` turns a prompt's token ids into a
    log-probability for each token of the vocabulary. `planned` holds answers that are given first, to
    completions only: a status, headers and a body, or something to call with the handler. `refuse` may give
    such an answer to any request, by its body.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, tokenizer, likelihoods):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokenizer, self.likelihoods = tokenizer, likelihoods
        self.style, self.max_logprobs = "vllm", None
        self.models = [{"id": "tuned", "max_model_len": 4000}]
        self.text, self.reason = " Since it is so.\n", "stop"
        self.planned, self.asked, self.headers, self.pause = [], [], [], None
        self.refuse = lambda body: None
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Clients hang up on purpose here."""

    def complete(self, body):
        choice = {"index": 0, "text": self.text, "logprobs": None, "finish_reason": self.reason}
        if "logprobs" in body:
            values = self.likelihoods(body["prompt"])
            top = sorted(range(len(values)), key=lambda token: -values[token])[: body["logprobs"]]
            choice["logprobs"] = self.layout([(token, values[token]) for token in top], body)
        return {"choices": [choice]}

    def layout(self, top, body):
        def text(token):
            return self.tokenizer.decode([token])

        if self.style == "llama.cpp":
            rows = [{"id": token, "token": text(token), "logprob": value} for token, value in top]
            return {"content": [{**rows[0], "top_logprobs": rows}]}
        by_id = self.style == "vllm" and body.get("return_tokens_as_token_ids")
        return {"top_logprobs": [{f"token_id:{t}" if by_id else text(t): value for t, value in top}]}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def do_GET(self):
        self.server.headers.append(dict(self.headers))
        if self.path == "/v1/models":
            self.reply(200, {}, json.dumps({"object": "list", "data": self.server.models}))
        else:
            self.reply(404, {}, json.dumps({"detail": "Not Found"}))

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append(body)
            server.headers.append(dict(self.headers))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            planned = server.planned.pop(0) if server.planned else server.refuse(body)
        try:
            if server.pause:
                server.pause()
            self.answer(body, planned)
        finally:
            with server.lock:
                server.under_way -= 1

    def answer(self, body, planned):
        server = self.server
        if callable(planned):
            planned(self)
        elif planned is not None:
            self.reply(*planned)
        elif server.max_logprobs and body.get("logprobs", 0) > server.max_logprobs:
            # vLLM's words.
            message = (
                f"Requested sample logprobs of {body['logprobs']}, which is greater than max allowed: 20"
            )
            self.reply(400, {}, json.dumps({"error": {"message": message, "code": 400}}))
        elif body.get("stream"):
            self.stream([(word, None) for word in server.text.split(" ")] + [("", server.reason)])
        else:
            self.reply(200, {}, json.dumps(server.complete(body)))

    def reply(self, status, headers, text):
        data = text if isinstance(text, bytes) else text.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, pieces, end="data: [DONE]\n\n"):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for text, reason in pieces:
            event = {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}
            self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(end.encode())
        self.close_connection = True

    def left(self):
        """Say nothing, and wait for the client to hang up."""
        self.connection.settimeout(30)
        try:
            return self.connection.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        finally:
            self.close_connection = True

    def hang_up(self):
        self.close_connection = True


@contextlib.contextmanager
def fake_server(tokenizer, likelihoods):
    server = FakeServer(tokenizer, likelihoods)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
