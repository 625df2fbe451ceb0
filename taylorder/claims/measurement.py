"""What a measurement for the claims is: its sizes, everything its result depends on, and how it is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from taylorder.analysis.losses import has_language_model_head
from taylorder.analysis.text import calibration_text
from taylorder.analysis.tokens import Tokens, tokenise
from taylorder.models.description import ModelDescription
from taylorder.storage.progress import Progress
from taylorder.storage.records import Records

Result = TypeVar("Result")


@dataclass(frozen=True)
class Subject:
    """A loaded model that is measured."""

    description: ModelDescription
    model: Any
    tokenizer: Any

    @property
    def predicts_tokens(self) -> bool:
        """Whether it is a causal language model in which some layers see all tokens."""
        causal = self.description.causal and bool(self.description.open_modules)
        return causal and has_language_model_head(self.model)

    @cached_property
    def calibration(self) -> Tokens:
        """The tokens of the calibration text."""
        return tokenise(self.tokenizer, calibration_text())


@dataclass(frozen=True)
class Measurement(ABC, Generic[Result]):
    """One measurement; a subclass is a frozen dataclass whose fields say how much is measured.

    ``name`` is that of its records, ``result`` the type of what it gives, to read it back; ``on_device`` says whether
    the result depends on the kind of device.
    """

    name: ClassVar[str]
    result: ClassVar[Any]
    on_device: ClassVar[bool] = False

    def key(self) -> dict[str, Any]:
        """What the result depends on beside the model, its dtype and the software, as JSON: first of all, the fields.

        A subclass adds the texts and constants it uses. Where anything in it changes, the model is measured anew.
        """
        return asdict(self)

    def applies(self, subject: Subject) -> bool:
        """Whether the model allows it at all."""
        return True

    @abstractmethod
    def measure(self, subject: Subject, records: Records, progress: Progress) -> Result | None:
        """Measure a model; what is finished may be kept in ``records``, which only ever holds pieces of this key."""
