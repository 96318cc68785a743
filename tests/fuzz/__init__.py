"""Fuzzing: whatever the bytes are, an answer that is documented, in bounded time; `make fuzz`."""
