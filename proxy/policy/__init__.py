"""What an operator vouches for: the policy, its rules and its whitelist, and the file that they stand in."""
