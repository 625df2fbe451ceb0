"""What an evaluation and a generation will take, in work that can be timed."""

from __future__ import annotations

from collections.abc import Sequence

from taylorder.evaluation import continuations, task_prompts
from taylorder.evaluation.comparison import stage_of
from taylorder.evaluation.evaluate import TASKS, TOKENS
from taylorder.evaluation.task_prompts import prompt_tokens
from taylorder.models.description import ModelDescription
from taylorder.storage.stages import Stage, StagePlan, Work, together

ADAPTED = 4
"""What ``eval`` compares the exact model with unless asked for every rival."""

_LOGITS = 2**25
"""Bytes of a block of logits, of each contender."""

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


def eval_plan(description: ModelDescription, lengths: Sequence[int]) -> StagePlan:
    """The stages of ``taylorder eval`` with sequences of these lengths, on as many tokens as it takes by default."""
    adapted = ADAPTED if description.causal else 1
    stages = [comparison_stage(description, length, max(1, TOKENS // length), adapted) for length in lengths]
    if description.causal:
        prompt, new = continuations.PROMPT_TOKENS, continuations.NEW_TOKENS
        read = continuations.PROMPTS * prompt
        both = together(exact_run(read, prompt), adapted_run(description, read, prompt))
        about = f"{new} tokens after each of {continuations.PROMPTS} prompts, exact and adapted"
        # Tokens of all prompts are made together; each costs little more than that of one.
        stages.append(Stage(continuations.STAGE, about, together(both, {"step": 2 * 2 * new})))
        prompts, longest = prompt_tokens(description.max_context), max(task_prompts.LENGTHS)
        tried = together(exact_run(prompts, longest), together(adapted_run(description, prompts, longest), times=2))
        stages.append(Stage(TASKS, "lookup, copy and recall: exact, the config, one window", tried))
    return StagePlan(tuple(stages), states_bytes(description, max(lengths)) + _LOGITS * (1 + adapted))


def generate_plan(description: ModelDescription, *, prompt: int, new_tokens: int) -> StagePlan:
    """The one stage of ``taylorder generate``: a prompt of so many tokens, and the tokens after it one by one."""
    work = together(adapted_run(description, prompt, prompt), {"step": new_tokens})
    about = f"{new_tokens} tokens after a prompt of {prompt}"
    return StagePlan((Stage("generate", about, work),), states_bytes(description, prompt + new_tokens))


def states_bytes(description: ModelDescription, length: int) -> int:
    """Bytes of a few copies of all modules' queries, keys and values for one sequence, in float32."""
    return 2 * module_bytes(description) * length


def module_bytes(description: ModelDescription) -> int:
    """Bytes per token of all open modules' queries, keys, values, outputs and the gradients by these, in float32."""
    return 4 * sum(
        module.heads * (module.head_dim + 2 * module.value_dim) + module.kv_heads * (module.head_dim + module.value_dim)
        for module in description.open_modules
    )
