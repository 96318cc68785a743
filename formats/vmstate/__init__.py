"""The device state: held until it is whole, cut into sections by two locators, read field by field, patched in place.

The `cpu` section is here, as every section; what its registers are called and mean is in `formats.arm`.
"""
