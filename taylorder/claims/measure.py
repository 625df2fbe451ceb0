"""Run a model again for the claims: everything that its finished analysis does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from taylorder.analysis.results import Analysis
from taylorder.claims import registry
from taylorder.claims.evidence import ModelEvidence
from taylorder.claims.layers import Layers
from taylorder.claims.measurement import Measurement, Subject
from taylorder.errors import ConfigError
from taylorder.models.fingerprint import fingerprint, way_out_of_rounding
from taylorder.models.loading import LoadedModel
from taylorder.models.refusals import dtype_name
from taylorder.models.running import input_device
from taylorder.storage.progress import Progress
from taylorder.storage.provenance import software_versions
from taylorder.storage.records import Records

_RESULT = "result"


def measured_before(
    analysis: Analysis,
    directory: str | Path,
    device: str,
    dtype: str,
    *,
    label: str | None = None,
    measurements: Sequence[Measurement[Any]] | None = None,
) -> ModelEvidence | None:
    """What earlier runs kept, if all of it was finished; arguments are as in :func:`measure`."""
    results = {}
    for measurement in registry.MEASUREMENTS if measurements is None else measurements:
        record = _records(measurement, analysis, Path(directory), device, dtype).get(_RESULT)
        if record is None:
            return None
        results[measurement.name] = _adapter(measurement).validate_python(record["value"])
    return ModelEvidence(Layers(analysis, label), results)


def measure(
    analysis: Analysis,
    loaded: LoadedModel,
    directory: str | Path,
    *,
    label: str | None = None,
    fresh: bool = False,
    progress: Progress = lambda *_: None,
    measurements: Sequence[Measurement[Any]] | None = None,
) -> ModelEvidence:
    """Measure a model whose analysis is finished; an interrupted run goes on from ``directory``.

    Args:
        analysis: of the model.
        loaded: the model and its tokenizer.
        directory: where finished pieces are kept.
        label: what to call the model, by default its name.
        fresh: start over.
        progress: called with a stage, what is done of it, and its size.
        measurements: what to measure, and how much of it; by default all that the claims need.

    Raises:
        ConfigError: the model is not the one that was analysed.
        NonFiniteError: the model breaks down.

    """
    description, model = analysis.model, loaded.model
    dtype = dtype_name(model)
    if fingerprint(model) != description.fingerprint:
        remedy = way_out_of_rounding(description.dtype, dtype)
        raise ConfigError(
            f"{loaded.name} is not the model that was analysed as {description.name}: its weights differ; "
            f"{remedy or 'name that one with --model, or run `taylorder analyze` again'}"
        )
    subject = Subject(description, model, loaded.tokenizer)
    results = {}
    for measurement in registry.MEASUREMENTS if measurements is None else measurements:
        records = _records(measurement, analysis, Path(directory), str(input_device(model)), dtype, fresh=fresh)
        results[measurement.name] = finished(measurement, subject, records, progress)
    return ModelEvidence(Layers(analysis, label), results)


def finished(measurement: Measurement[Any], subject: Subject, records: Records, progress: Progress) -> Any:
    """The result of a measurement that was kept, or else a new one, which is kept; None where it does not apply."""
    adapter = _adapter(measurement)
    record = records.get(_RESULT)
    if record is None:
        value = measurement.measure(subject, records, progress) if measurement.applies(subject) else None
        record = {"value": adapter.dump_python(value)}
        records.put(_RESULT, record)
    return adapter.validate_python(record["value"])


def _adapter(measurement: Measurement[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(measurement.result | None)


def _records(
    measurement: Measurement[Any], analysis: Analysis, directory: Path, device: str, dtype: str, *, fresh: bool = False
) -> Records:
    """Those of one measurement: where what it depends on changes, it is made anew, and no other."""
    settings = {
        "model": analysis.model.fingerprint,
        "dtype": dtype,
        "bos": analysis.calibration.bos,
        "software": software_versions(),
        "measurement": measurement.key(),
    }
    if measurement.on_device:
        settings["device"] = torch.device(device).type
    return Records(directory / measurement.name, settings, fresh=fresh)
