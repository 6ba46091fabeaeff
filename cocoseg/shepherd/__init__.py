"""
Shepherd segmentation: images to segments of pixels that are alike.

Data flows down the files: config, clusters, clumps, eliminate, segment (one
image in memory), tiled (rasters of any size), stats (tables of segments).
"""
