"""``python -m benchmarks``: what ``make bench`` and ``make bench-full`` call."""

import sys

from benchmarks.run import main

sys.exit(main())
