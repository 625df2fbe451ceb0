"""The card of a config, or of a model that was exported with one, as the Hub shows it; and how both are run."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id  # type: ignore[attr-defined]

from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import config_bytes
from taylorder.models.description import ModelDescription
from taylorder.models.sources import BUILTIN
from taylorder.reports import evaluation_tables, near_words
from taylorder.reports.markdown import markdown
from taylorder.reports.numbers import counted, percent, size
from taylorder.reports.sections import Block, Section, facts, paragraph
from taylorder.runs.recorded_config import RecordedConfig

_WHAT = (
    "Every attention head of this model keeps as much of the past as its measurements say that it needs, so the KV "
    "cache is smaller than that of exact attention. The Python package taylorder chose what and runs it."
)
_EXPORTED = """\
Where taylorder is installed, transformers runs the config by itself:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
prompt = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=32)[0]))
```

So does its server, with an OpenAI-compatible interface:

```sh
transformers serve {folder} --trust-remote-code
```

`generate` runs the config and leaves the model as it is: a forward pass outside it is exact attention, unless
`taylorder.attach` runs the config there too. `taylorder eval --config {folder}` measures it, and
`taylorder chat --config {folder}` talks.
"""
_PUSHED = """\
The weights are those of the model named above. Fetch the config, and run it:

```sh
taylorder pull {repository} --out config
taylorder generate "The capital of France is" --config config
```
"""


def exported(folder: str) -> str:
    """How an exported folder is run, as Markdown."""
    return _EXPORTED.format(folder=folder)


def pushed(repository: str) -> str:
    """How a config in a repository is run, as Markdown."""
    return _PUSHED.format(repository=repository)


def card(about: RecordedConfig, model: ModelDescription | None, run: str, per_head: OrderConfig | None = None) -> str:
    """The text of a card, with its front matter.

    Args:
        about: the config, and what its run measured.
        model: the model, None where it is not known; then no bytes are given.
        run: how it is run, as Markdown.
        per_head: where the config is layer-wise, that which it was made of.

    """
    named = about.config.model.name
    data: dict[str, Any] = {"library_name": "transformers", "tags": ["taylorder", "kv-cache", "custom_generate"]}
    if _on_the_hub(named):
        data["base_model"] = named
    sections = (
        Section(
            f"{short_name(named)} with a smaller KV cache", (paragraph(_WHAT), _facts(about, model, per_head)), level=1
        ),
        Section("What it costs", tuple(_costs(about))),
    )
    return f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{markdown(sections)}\n## How to run it\n\n{run}"


def _facts(about: RecordedConfig, model: ModelDescription | None, per_head: OrderConfig | None) -> Block:
    config, identity = about.config, about.config.model
    lines = {
        "Model": f"{short_name(identity.name)}, {identity.architecture}, weights {identity.fingerprint[:19]}",
        "Query heads": ", ".join(f"{kind}: {count}" for kind, count in config.counts().items()),
    }
    if (probe := near_words.probe_sentence(config)) is not None:
        lines["Kept keys"] = probe
    if model is not None and model.causal:
        tokens = config.context or model.max_context
        exact, cost = (config_bytes(one, model, tokens) for one in (OrderConfig.uniform(model, "exact"), config))
        change = f"{percent(abs(1 - cost / exact))} {'less' if cost <= exact else 'more'}"
        lines["KV cache"] = f"{size(cost)} instead of {size(exact)} ({change}), nominal bytes at {tokens:,} tokens"
        if per_head is not None:
            lines["Form"] = (
                "layer-wise: all KV heads of a layer hold as much as the one that needs most; each by itself, "
                f"they take {size(config_bytes(per_head, model, tokens))}"
            )
    return facts(lines)


def _costs(about: RecordedConfig) -> list[Block]:
    comparison = about.comparison
    if comparison is None or comparison.standings[0].nll is None:
        return [paragraph("Not measured yet: `taylorder eval --config` measures it, beside simpler uses of the bytes.")]
    where = f"{counted(comparison.sequences, 'sequence')} of {counted(comparison.length, 'token')}"
    return [
        evaluation_tables.figures(comparison),
        paragraph(f"On {where} of {comparison.text_source}, seed {comparison.seed}."),
    ]


def _on_the_hub(name: str) -> bool:
    """Whether a model's name can be that of a repository, and is not that of the built-in model or of a file."""
    if name == BUILTIN or "/" not in name or name.endswith(".gguf"):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def short_name(name: str) -> str:
    """A repository's name as it is, a path without its folders, which are nobody else's business."""
    return name if _on_the_hub(name) else name.rstrip("/").rpartition("/")[2]
