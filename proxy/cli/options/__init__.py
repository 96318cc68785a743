"""Options that several commands have, and how options are read: once each, from the command line or a file."""
