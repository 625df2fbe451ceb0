"""What the files of a run are called; apart, since the modules that write and read them take seconds to import."""

from __future__ import annotations

FILES = {
    "orders": "orders.json",
    "heads": "heads.csv",
    "spectral": "spectral.csv",
    "report": "report.json",
    "page": "report.html",
}
CLAIMS_FILE, CLAIMS_PAGE = "claims.json", "claims.html"
"""What `taylorder claims` made of the run, where it was asked to; and the page, where it was asked about several."""

LEVERS_FILE = "levers.csv"
"""One row per KV head and candidate, where levers were measured."""

ALL = (
    FILES["orders"], "orders.safetensors", FILES["heads"], FILES["spectral"], LEVERS_FILE, FILES["page"], CLAIMS_FILE,
    FILES["report"],
)  # fmt: skip
"""The files of a run, and of what was found out about it; the last says that the others are complete."""
