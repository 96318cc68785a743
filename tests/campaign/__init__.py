"""Campaigns: migrations between real QEMUs through one proxy, a fault in each, and one guest left; `make campaign`."""
