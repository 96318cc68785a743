"""Words that reports and commands have in common."""


def counted(number: int, what: str) -> str:
    """Return a number of things, for people: `1 vCPU`, `2 vCPUs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
