"""
Shepherd segmentation: images to segments of pixels that are alike.

One image in memory: config, clusters (by lloyd), assign, clumps, eliminate,
put together in segment; locations looks at the result. A raster of any size:
raster, sampling, tiles, recode and output, put together in tiled. Figures of
segments: statspec, user_stats, band_stats, shape_stats, put together in stats;
segment_table holds them, and subset cuts parts out.
"""
