"""`python -m MedVLMReaderLib.worker`: started by a client, which it serves until its stdin ends."""

import sys

from MedVLMReaderLib.worker.serving import main

if __name__ == "__main__":
    sys.exit(main())
