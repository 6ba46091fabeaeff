"""Integer geometry: windows, window grids and blocks. No arrays of pixels, no I/O."""
