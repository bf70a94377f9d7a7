"""A server with an engine that needs no model: `python fake_server.py '{"port": 0}'`, settings as JSON; prints its address."""

import json
import sys
import time

from modernllm.data.templates import Template
from modernllm.data.tokenizers import train_bpe
from modernllm.rewriting.rewriter import Coder, Rewriter
from modernllm.rewriting.server import make_app, run_server
from modernllm.rewriting.server_settings import ServerSettings, bind, read_token

QUESTION = "Question: "


class Repeats:
    """Says the question again. A batch costs `SECONDS`, and a little for each question in it, as with a model.

    "slow" in a question: a second; "broken": an exception; "hangs": it never comes back."""

    SECONDS, EACH = 0.004, 0.0002

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def generate(self, ids, max_new_tokens):
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        asked = [text.split(QUESTION)[-1].removesuffix("\nRewrite:") for text in texts]
        if any(text.startswith("broken") for text in asked):
            raise RuntimeError(f"secret words: {asked}")
        hangs, slow = (any(text.startswith(word) for text in asked) for word in ("hangs", "slow"))
        time.sleep(3600 if hangs else 1 if slow else self.SECONDS + self.EACH * len(ids))
        return [row[:max_new_tokens] for row in self.tokenizer(asked, add_special_tokens=False)["input_ids"]]

    def close(self):
        print("closed", flush=True)


def fake_rewriter() -> Rewriter:
    tokenizer = train_bpe(["Conversation: Marie Curie\nQuestion: When was she born?\nRewrite:"] * 9)
    return Rewriter(Repeats(tokenizer), Coder(tokenizer, Template("", "input", "rewrite", ("Conversation", "Rewrite"))))


def serve(values: dict) -> None:
    settings, token = ServerSettings.make(values), read_token()
    bound = bind(settings.host, settings.port, token)
    run_server(make_app(fake_rewriter(), settings, token), bound, settings, lambda address: print(address, flush=True))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
