"""`python -m crossfade` is the command `crossfade`."""

import sys

from crossfade.cli import main

sys.exit(main())
