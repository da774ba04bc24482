"""`python -m kvferry ...` is `kvferry ...`."""

import os
import sys

from ._processes import binary

if __name__ == "__main__":
    command = binary()
    os.execv(command, [command, *sys.argv[1:]])
