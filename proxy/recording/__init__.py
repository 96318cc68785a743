"""Recording a migration into a file, and replaying one to a destination.

The bytes stay as they are; what is changed is changed by `proxy.captures` or `proxy.live`.
"""
