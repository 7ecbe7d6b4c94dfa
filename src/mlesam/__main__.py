"""``python -m mlesam``."""

import sys

from mlesam.cli import main

sys.exit(main())
