"""The probe as one file for hosts where this program does not run.

Its modules are those of `proxy.hosts`; what is here makes them fit for older Pythons and puts them together.
"""
