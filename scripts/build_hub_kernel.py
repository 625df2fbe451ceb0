"""Write taylorder/kernels as a repository of the Hugging Face Hub that the ``kernels`` library loads.

    python scripts/build_hub_kernel.py OUT

Each ``build/torch-<backend>/`` is the package and a ``metadata.json``: the library loads the folder of the backend that
torch was built for, and metadata can name only one.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "taylorder" / "kernels"
NAME = "taylor-attention"
VERSION = 0  # of the interface; on the Hub, 0 says that it may still change
LICENSE = "apache-2.0"  # as the Hub spells it
BACKENDS = ("cpu", "cuda", "rocm")  # those whose kernels the tests run or compile
OLDEST_LOADER = "0.14.0"  # the oldest version of the library that was tried; 0.15.2, 0.16.1 and 0.17.2 load it too

CARD = f"""---
library_name: kernels
license: {LICENSE}
---

# {NAME}

Softmax attention with the exponential truncated, per head, to its first terms
([arXiv 2602.00294](https://arxiv.org/abs/2602.00294)): time linear in the tokens, a state of constant size, an exact
near field. Triton on GPUs, PyTorch on CPUs; no gradients. In a checkout of this repository:

```python
import pathlib, kernels, torch
kernel = kernels.get_local_kernel(pathlib.Path("."))
q, k, v = torch.randn(1, 4, 100, 16), torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 16)
heads = [kernel.HeadSpec(kernel.Taylor(order=3, expansion="mean"), kernel.Near(window=8, sinks=1))] * 4
output, state = kernel.taylor_attention(q, k, v, heads, scaling=0.25)
```

From the Hub it is `kernels.get_kernel("<owner>/{NAME}", version={VERSION}, trust_remote_code=True)`.
"""


def build(target: Path) -> Path:
    """Write the repository, all of it or nothing, and return its folder.

    Raises:
        FileExistsError: the target is neither new nor an empty folder.

    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty, expected a new or empty folder: remove it or name another")
    files = {path.relative_to(SOURCE).as_posix(): path.read_bytes() for path in sorted(SOURCE.rglob("*.py"))}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        made = Path(folder) / "repository"
        for backend in BACKENDS:
            for name, content in {**files, "metadata.json": metadata(files, backend)}.items():
                path = made / "build" / f"torch-{backend}" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        (made / "README.md").write_text(CARD, encoding="utf-8")
        (made / "LICENSE").write_bytes((ROOT / "LICENSE").read_bytes())
        made.replace(target)
    return target


def metadata(files: dict[str, bytes], backend: str) -> bytes:
    """Say what the library has to know of one folder; its ``id`` is the name the package is imported under."""
    digests = {name: base64.b64encode(hashlib.sha256(content).digest()).decode() for name, content in files.items()}
    unique = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:7]  # so that versions can be loaded side by side
    document = {
        "name": NAME,
        "id": f"_{NAME.replace('-', '_')}_{backend}_{unique}",
        "version": VERSION,
        "kernels-minver": OLDEST_LOADER,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": digests},
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write taylorder/kernels as a kernel repository of the Hub.")
    parser.add_argument("out", type=Path, help="a folder that is new or empty")
    try:
        print(build(parser.parse_args().out))
    except FileExistsError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
