"""
Files: rasters in, finished and verified images out, and the writer queue.

The only folder that imports GDAL, and only inside functions. Every file that
is written here is written under a temporary name, flushed to the disk and
checked before it gets its final name.
"""
