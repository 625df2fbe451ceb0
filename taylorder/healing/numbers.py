"""The numbers of a config while they are trained: coefficients of polynomials, key centres and rotations."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from taylorder.adapt.config import LayerOrders, OrderConfig
from taylorder.adapt.prepared import LayerNumbers, LayerPlan, PreparedConfig, plan_layer
from taylorder.errors import UsageError
from taylorder.healing.trained import TrainedConfig
from taylorder.kernels.spec import Taylor

_COEFFICIENTS, _CENTRE, _ROTATION = "coefficients", "centre", "query_rotation"


class TrainedNumbers(TrainedConfig):
    """What is trained is the config; the weights of the model stay as they are.

    Of a pair of rotations ``A_q`` is trained, and ``A_k`` is its inverse transposed, so that scores at full rank never
    change.
    """

    def __init__(self, config: OrderConfig) -> None:
        """Begin with the numbers that a config has.

        Raises:
            UsageError: it has no polynomial.

        """
        self._plans = {
            layer.module: plan_layer(config, layer)
            for layer in config.layers
            if any(isinstance(head.spec.far, Taylor) for head in layer.heads)
        }
        parameters = {}
        for module, plan in self._plans.items():
            parameters[f"{module}.{_COEFFICIENTS}"] = _coefficients(plan)
            for name in (_CENTRE, _ROTATION):
                numbers: Tensor | None = getattr(plan.numbers, name)
                if numbers is not None:
                    parameters[f"{module}.{name}"] = numbers
        if not parameters:
            raise UsageError(
                "no head of the config has a polynomial, so it has no numbers to train; take --train lora, qkvo or qk"
            )
        super().__init__({name: nn.Parameter(numbers.detach().clone()) for name, numbers in parameters.items()})

    def prepared(self, prepared: PreparedConfig) -> PreparedConfig:
        """The same plans with the numbers of now."""
        if not self.is_on:
            return prepared
        plans = {
            module: replace(plan, numbers=self._numbers(plan)) if plan.name in self._plans else plan
            for module, plan in prepared.plans.items()
        }
        return replace(prepared, plans=plans)

    def into(self, config: OrderConfig) -> OrderConfig:
        """The config with the numbers of now."""
        with torch.no_grad():
            numbers = {module: self._numbers(plan) for module, plan in self._plans.items()}
        centres, rotations = dict(config.key_centres), dict(config.rotations)
        for module, of_layer in numbers.items():
            if of_layer.centre is not None:
                centres[module] = torch.where(self._moved(module), of_layer.centre.detach(), centres[module])
            if of_layer.query_rotation is not None and of_layer.key_rotation is not None:
                rotations[module] = of_layer.query_rotation.detach().clone(), of_layer.key_rotation.detach().clone()
        layers = tuple(
            _with_coefficients(layer, numbers[layer.module]) if layer.module in numbers else layer
            for layer in config.layers
        )
        config = config.model_copy(update={"layers": layers})
        config = config.with_key_centres(centres) if centres else config
        return config.with_rotations(rotations) if rotations else config

    def _numbers(self, plan: LayerPlan) -> LayerNumbers:
        """Those of one layer, through which gradients flow to the parameters."""
        made = LayerNumbers(None, None, None if plan.numbers is None else plan.numbers.probe)
        # A copy, which may follow the model to another device while the parameter stays.
        made.coefficients = self.parameters[f"{plan.name}.{_COEFFICIENTS}"].clone()
        centre, rotation = (self.parameters.get(f"{plan.name}.{name}") for name in (_CENTRE, _ROTATION))
        if centre is not None:
            made.centre = torch.where(self._moved(plan.name), centre, torch.zeros_like(centre))
        if rotation is not None:
            made.query_rotation, made.key_rotation = rotation, torch.linalg.inv(rotation).mT
        return made

    def _moved(self, module: str) -> Tensor:
        """Which KV heads have centred keys, bool ``[G, 1]``: those of groups that are expanded around zero have not."""
        numbers = self._plans[module].numbers
        centre = None if numbers is None else numbers.centre
        return torch.zeros(1, 1, dtype=torch.bool) if centre is None else centre.ne(0).any(-1, keepdim=True)


def _coefficients(plan: LayerPlan) -> Tensor:
    """Of all query heads of a layer, ``[H, P]``, zero above a head's own order."""
    far = [spec.far if isinstance(spec.far, Taylor) else None for spec in plan.heads or ()]
    order = max(one.order for one in far if one is not None)
    made = torch.zeros(len(far), order)
    for head, one in enumerate(far):
        if one is not None:
            plain = [1 / math.factorial(degree) for degree in range(one.order)]
            made[head, : one.order] = torch.tensor(one.coefficients or plain)
    return made


def _with_coefficients(layer: LayerOrders, numbers: LayerNumbers) -> LayerOrders:
    values: list[list[float]] = [] if numbers.coefficients is None else numbers.coefficients.tolist()
    heads = []
    for head, coefficients in zip(layer.heads, values, strict=True):
        far = head.spec.far
        if isinstance(far, Taylor):
            spec = replace(head.spec, far=replace(far, coefficients=tuple(coefficients[: far.order])))
            heads.append(head.model_copy(update={"spec": spec}))
        else:
            heads.append(head)
    return layer.model_copy(update={"heads": tuple(heads)})
