"""What decides whether a register may change: the judge, what it asks, and what its verdicts mean.

Plain values in, verdicts out: no socket, no stream. The two who know what a destination takes are `profile_acceptance`
(by its profile) and `kernel_trial` (by its KVM).
"""
