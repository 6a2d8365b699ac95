"""`python -m MedVLMReaderLib`: the command line, also for `accelerate launch -m MedVLMReaderLib`."""

import sys

from MedVLMReaderLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
