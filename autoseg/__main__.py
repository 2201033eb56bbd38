"""``python -m autoseg <verb> ...``"""

from __future__ import annotations

import sys

from autoseg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
