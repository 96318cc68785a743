"""Who has the guest: migrations as small models, of which every order of steps and faults is walked through."""
