"""``python -m flyweight`` is the command line."""

import sys

from flyweight.cli.main import main

sys.exit(main())
