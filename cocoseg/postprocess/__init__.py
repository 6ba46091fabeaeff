"""Masks, components and instances of rasters and volumes, block by block."""
