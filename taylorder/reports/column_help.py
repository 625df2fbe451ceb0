"""What the columns of tables mean, for the page: a question mark beside a title opens the sentence."""

from __future__ import annotations

EXPLAINED = {
    "heads within": "How many heads have an error no larger than the tolerance at this order.",
    "state per KV head": "Nominal bytes of the sums that stand for all far keys of a KV head, however many there are.",
    "breaks even at": "From how many tokens on this takes no more than the cache of keys and values that it replaces.",
    "pays off": "Whether it takes no more than exact attention at the context of this run.",
    "bytes per KV head": "Nominal bytes at the length that was measured, the mean over the KV heads that see the whole "
    "context: keys and values in 16 bits, states in 32.",
    "NLL, nats per token [95% interval]": "Negative log-likelihood, the loss that language models are trained on: less "
    "is better. The interval is over sequences.",
    "perplexity": "The exponential of the loss: among how many equally likely tokens the model seems to choose.",
    "mean KL to exact": "How far the predictions are from those of exact attention, in nats per token: 0 is the same.",
    "same top token": "How often the most likely next token is the one that exact attention finds most likely.",
    "needs guard": "Share of rows whose polynomial gave a vanishing or negative sum of weights, and which fell back to "
    "the plain mean of the far values.",
    "to exact [95%]": "Loss less that of exact attention on the same sequences. An interval that holds 0 tells no "
    "difference.",
    "to window [95%]": "Loss less that of sinks and one window of the same bytes for all KV heads, on the same "
    "sequences. Below 0 the choice is the better use of the bytes.",
    "better on": "On how many KV heads the polynomial loses less than the same bytes of near field.",
}
"""By the title of the column."""
