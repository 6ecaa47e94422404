"""`python -m experiments` is the `stepseer` command."""

import sys

from experiments.cli import main

sys.exit(main())
