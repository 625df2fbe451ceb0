"""What an evaluation and a generation will take, in work that can be timed."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.evaluation import continuations
from taylorder.evaluation.comparison import stage_of
from taylorder.evaluation.evaluate import TASKS, lengths_of
from taylorder.models.description import ModelDescription
from taylorder.storage.stages import Plan, Stage, Work, together

CONTENDERS, ADAPTED = 7, 6
"""What ``eval`` compares at most, and how many of them do not attend exactly."""

ADAPTED_NEAR = 2.0
"""Attention of a model that runs adapted, in passes of a near field over its scores."""


def exact_run(tokens: int, length: int) -> Work:
    """So many tokens in sequences of a length through the model as it is, without losses."""
    return {"token": tokens, "pair": tokens * length}


def adapted_run(description: ModelDescription, tokens: int, length: int) -> Work:
    """The same through a model whose KV heads run something else."""
    return {"token": tokens, "near": ADAPTED_NEAR * tokens * length * query_heads(description)}


def query_heads(description: ModelDescription) -> int:
    """Query heads of the modules that see the whole context."""
    return sum(module.heads for module in description.open_modules)


def comparison_stage(
    description: ModelDescription,
    length: int,
    sequences: int,
    adapted: int,
    *,
    budget: str = "",
    most: float | None = None,
) -> Stage:
    """The losses of the exact model and of so many others on sequences of one length."""
    tokens = sequences * length
    work = together(
        exact_run(tokens, length),
        together(adapted_run(description, tokens, length), times=adapted),
        {"loss": tokens * (1 + adapted)},
    )
    about = f"losses of {sequences} held-out sequences, exact and {adapted} others"
    return Stage(stage_of(length), about, work, budget, most)


def eval_plan(
    description: ModelDescription, *, lengths: Sequence[int] | None, tokens: int, task_tokens: int, logits: int
) -> Plan:
    """The stages of ``taylorder eval``.

    Args:
        description: the model.
        lengths: as asked for, None for the default.
        tokens: used at every length.
        task_tokens: of the prompts of all tasks together; 0 leaves tasks and continuations out.
        logits: bytes of the logits of one token.

    """
    wanted = lengths_of(lengths, description.max_context, tokens)
    stages = [comparison_stage(description, length, max(1, tokens // length), ADAPTED) for length in wanted]
    if task_tokens:
        made = continuations.PROMPTS * (continuations.PROMPT_TOKENS + continuations.NEW_TOKENS)
        both = together(
            exact_run(made, continuations.PROMPT_TOKENS), adapted_run(description, made, continuations.PROMPT_TOKENS)
        )
        about = f"{continuations.NEW_TOKENS} tokens after each of {continuations.PROMPTS} prompts, exact and adapted"
        stages.append(Stage(continuations.STAGE, about, together(both, {"step": 2 * continuations.NEW_TOKENS})))
        tried = together(exact_run(task_tokens, 1), together(adapted_run(description, task_tokens, 1), times=2))
        stages.append(Stage(TASKS, "lookup, copy and recall, exact, with the config and with one window", tried))
    return Plan(tuple(stages), states_bytes(description, max(wanted)) + 2**23 * 4 * CONTENDERS + logits)


def generate_plan(description: ModelDescription, *, prompt: int, new_tokens: int) -> Plan:
    """The one stage of ``taylorder generate``: a prompt of so many tokens, and the tokens after it one by one."""
    work = together(adapted_run(description, prompt, prompt), {"step": new_tokens})
    about = f"{new_tokens} tokens after a prompt of {prompt}"
    return Plan((Stage("generate", about, work),), states_bytes(description, prompt + new_tokens))


def states_bytes(description: ModelDescription, length: int) -> int:
    """Bytes of a few copies of all modules' queries, keys and values for one sequence, in float32."""
    return 2 * module_bytes(description) * length


def module_bytes(description: ModelDescription) -> int:
    """Bytes per token of all open modules' queries, keys, values, outputs and the gradients by these, in float32."""
    return 4 * sum(
        module.heads * (module.head_dim + 2 * module.value_dim) + module.kv_heads * (module.head_dim + module.value_dim)
        for module in description.open_modules
    )
