"""A server with an engine that needs no model: `python fake_server.py '{"port": 0}'`, settings as JSON; prints its address."""

import json
import sys
import time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from modernllm.data.templates import Template
from modernllm.rewriting.rewriter import Coder, Rewriter
from modernllm.rewriting.server import make_app, run_server
from modernllm.rewriting.server_settings import ServerSettings, bind, read_token

QUESTION = "Question: "


class Bytes:
    "A tokenizer with a token a byte, which takes no import of transformers."

    eos_token_id = 0

    def __init__(self):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        self.backend_tokenizer = Tokenizer(models.BPE({"<end>": 0, **{letter: k for k, letter in enumerate(alphabet, 1)}}, []))
        self.backend_tokenizer.add_special_tokens(["<end>"])
        self.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend_tokenizer.decoder = decoders.ByteLevel()

    def __call__(self, text, **how):
        ids = self.backend_tokenizer.encode(text).ids
        return {"input_ids": ids, "special_tokens_mask": [0] * len(ids)}

    def decode(self, ids, skip_special_tokens=True):
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


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
        return [self.tokenizer(text)["input_ids"][:max_new_tokens] for text in asked]

    def close(self):
        print("closed", flush=True)


def fake_rewriter() -> Rewriter:
    coder = Coder(Bytes(), Template("", "input", "rewrite", ("Conversation", "Rewrite")), max_tokens_in=1024)
    return Rewriter(Repeats(coder.tokenizer), coder, max_new_tokens=1024)


def serve(values: dict) -> None:
    settings, token = ServerSettings.make(values), read_token()
    bound = bind(settings.host, settings.port, token)
    run_server(make_app(fake_rewriter(), settings, token), bound, settings, lambda address: print(address, flush=True))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
