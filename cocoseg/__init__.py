"""
cocoseg: the streaming stitcher for window-by-window predictions.

Windows of a model's output go in, in any order; finished Cloud-Optimized
GeoTIFFs, registered in a kwcoco manifest, come out. Import order of the
package, low to high: errors, protocols <- grid, labels <- stitch, engine, io <-
shepherd, postprocess <- coco <- cli.

Names are loaded when first used, so that ``import cocoseg`` stays cheap and
works without GDAL.

Example:
    >>> import cocoseg
    >>> stitcher = cocoseg.SoftStitcher((4, 4))
    >>> n_pixels = stitcher.add((slice(0, 4), slice(0, 4)), [[1.0] * 4] * 4)
    >>> float(stitcher.finalize().mean())
    1.0
"""

__version__ = '0.1.0'

_HOMES = {
    'cocoseg.grid.window': ['Window'],
    'cocoseg.grid.area': ['Area'],
    'cocoseg.grid.box': ['Box'],
    'cocoseg.grid.roi': ['Roi'],
    'cocoseg.grid.windows': ['WindowGrid'],
    'cocoseg.grid.blocks': ['Block', 'BlockGrid'],
    'cocoseg.stitch.blend': ['BlendPlan', 'edge_weights'],
    'cocoseg.stitch.soft': ['SoftStitcher'],
    'cocoseg.stitch.budget': ['MemoryBudget'],
    'cocoseg.stitch.label': ['LabelStitcher', 'Seam'],
    'cocoseg.stitch.layers': ['ClassMap', 'Disagreement', 'ThresholdMask'],
    'cocoseg.stitch.quantize': ['Quantization', 'quantize_image'],
    'cocoseg.engine.prefetch': ['predict_windows'],
    'cocoseg.engine.executors': ['get_executor'],
    'cocoseg.engine.timings': ['Timings', 'format_timings'],
    'cocoseg.shepherd.config': ['ShepherdConfig'],
    'cocoseg.shepherd.segment': ['ShepherdResult', 'shepherd_segment'],
    'cocoseg.shepherd.tiled': ['TiledShepherdResult', 'segment_raster'],
    'cocoseg.shepherd.stats': ['segment_stats'],
    'cocoseg.shepherd.statspec': ['UserStat'],
    'cocoseg.shepherd.segment_table': ['SegmentTable'],
    'cocoseg.shepherd.subset': ['SubsetResult', 'subset_segments'],
    'cocoseg.io.vector': ['write_segment_polygons'],
    'cocoseg.postprocess.blocks': ['BlockMapResult', 'map_blocks'],
    'cocoseg.postprocess.masks': ['compute_mask', 'prepare_selector'],
    'cocoseg.coco.masks': ['mask_dataset'],
    'cocoseg.postprocess.components': ['connected_components'],
    'cocoseg.postprocess.result': ['LabelResult'],
    'cocoseg.postprocess.watershed': ['blockwise_watershed'],
    'cocoseg.postprocess.mutex': ['mutex_watershed'],
    'cocoseg.postprocess.seeded': ['seeded_watershed'],
    'cocoseg.postprocess.scores': ['LabelScores', 'OverlapTable', 'agree_objects', 'score_labels'],
    'cocoseg.postprocess.search': ['SearchResult', 'search_parameters'],
    'cocoseg.postprocess.parameters': ['WatershedParameters', 'enumerate_parameters'],
    'cocoseg.io.zarr_array': ['ZarrArray'],
    'cocoseg.io.zarr_place': ['ArrayIdentifier'],
    'cocoseg.io.cog': ['CogWriter', 'write_cog'],
    'cocoseg.io.verify': ['verify_cog'],
    'cocoseg.io.queue': ['WriterQueue'],
    'cocoseg.coco.manager': ['CocoStitchingManager'],
    'cocoseg.coco.compat': ['fix_slice'],
    'cocoseg.coco.predict': ['predict_dataset'],
    'cocoseg.coco.predictors': ['EstimatorPredictor', 'load_predictor'],
    'cocoseg.coco.instances': ['watershed_dataset'],
    'cocoseg.coco.shepherd_predictor': ['ShepherdPredictor'],
    'cocoseg.coco.drawing': ['draw_classes', 'draw_heatmap', 'draw_segments'],
    'cocoseg.coco.styles': ['write_styles'],
    'cocoseg.coco.report': ['write_report'],
    'cocoseg.coco.example': ['demo_coco_stitching_manager'],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name):
    """Import a public name from its module on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    import importlib
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
