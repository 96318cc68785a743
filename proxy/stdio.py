"""What standard input and output are called on the command line."""

from typing import Final

STDIO: Final = "-"
