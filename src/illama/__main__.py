"""`python -m illama`: the command line."""

import sys

from illama.cli.main import main

sys.exit(main())
