"""Perplexity, long texts, attention, comparison with a baseline. Public names are loaded when they are first used."""

from modernllm import lazily

_EXPORTS = {
    "PerplexityCard": "perplexity",
    "perplexity_card": "perplexity",
    "prefix_loss": "perplexity",
    "token_nats": "perplexity",
    "SinkWatch": "attention_viz",
    "attention_maps": "attention_viz",
    "draw_attention": "attention_viz",
    "sink_shares": "attention_viz",
    "chosen_maps": "head_scores",
    "draw_maps": "head_scores",
    "draw_scores": "head_scores",
    "repeated_sequences": "head_scores",
    "score_heads": "head_scores",
    "top_heads": "head_scores",
    "continue_long": "long_text",
    "read_long": "long_text",
    "with_cache": "long_text",
    "distinct": "text_statistics",
    "repeated": "text_statistics",
    "topic_retention": "text_statistics",
    "greedy_answers": "seq2seq",
    "score_pairs": "seq2seq",
}
__getattr__, __dir__, __all__ = lazily(__name__, _EXPORTS)
