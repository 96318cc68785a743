"""What builds and installs; nothing here is part of the program."""
