"""``python -m taylorder``."""

from __future__ import annotations

from taylorder.cli import main

if __name__ == "__main__":
    main()
