"""
The public names for type checkers, which do not see what ``__getattr__`` loads.

They are those of ``_HOMES``; a test holds the two together.
"""
from cocoseg.grid.window import Window as Window
from cocoseg.grid.area import Area as Area
from cocoseg.grid.box import Box as Box
from cocoseg.grid.roi import Roi as Roi
from cocoseg.grid.windows import WindowGrid as WindowGrid
from cocoseg.grid.blocks import Block as Block, BlockGrid as BlockGrid
from cocoseg.stitch.blend import BlendPlan as BlendPlan, edge_weights as edge_weights
from cocoseg.stitch.soft import SoftStitcher as SoftStitcher
from cocoseg.stitch.budget import MemoryBudget as MemoryBudget
from cocoseg.stitch.label import LabelStitcher as LabelStitcher, Seam as Seam
from cocoseg.stitch.layers import (ClassMap as ClassMap, Disagreement as Disagreement,
                                   ThresholdMask as ThresholdMask)
from cocoseg.stitch.quantize import Quantization as Quantization, quantize_image as quantize_image
from cocoseg.engine.prefetch import predict_windows as predict_windows
from cocoseg.engine.executors import get_executor as get_executor
from cocoseg.engine.timings import Timings as Timings, format_timings as format_timings
from cocoseg.shepherd.config import ShepherdConfig as ShepherdConfig
from cocoseg.shepherd.segment import (ShepherdResult as ShepherdResult,
                                      shepherd_segment as shepherd_segment)
from cocoseg.shepherd.tiled import (TiledShepherdResult as TiledShepherdResult,
                                    segment_raster as segment_raster)
from cocoseg.shepherd.stats import segment_stats as segment_stats
from cocoseg.shepherd.statspec import UserStat as UserStat
from cocoseg.shepherd.segment_table import SegmentTable as SegmentTable
from cocoseg.shepherd.subset import SubsetResult as SubsetResult, subset_segments as subset_segments
from cocoseg.io.vector import write_segment_polygons as write_segment_polygons
from cocoseg.postprocess.blocks import BlockMapResult as BlockMapResult, map_blocks as map_blocks
from cocoseg.postprocess.masks import (compute_mask as compute_mask,
                                       prepare_selector as prepare_selector)
from cocoseg.coco.masks import mask_dataset as mask_dataset
from cocoseg.postprocess.components import connected_components as connected_components
from cocoseg.postprocess.result import LabelResult as LabelResult
from cocoseg.postprocess.watershed import blockwise_watershed as blockwise_watershed
from cocoseg.postprocess.mutex import mutex_watershed as mutex_watershed
from cocoseg.postprocess.seeded import seeded_watershed as seeded_watershed
from cocoseg.postprocess.scores import (LabelScores as LabelScores, OverlapTable as OverlapTable,
                                        agree_objects as agree_objects,
                                        score_labels as score_labels)
from cocoseg.postprocess.search import (SearchResult as SearchResult,
                                        search_parameters as search_parameters)
from cocoseg.postprocess.parameters import (WatershedParameters as WatershedParameters,
                                            enumerate_parameters as enumerate_parameters)
from cocoseg.io.zarr_array import ZarrArray as ZarrArray
from cocoseg.io.zarr_place import ArrayIdentifier as ArrayIdentifier
from cocoseg.io.cog import CogWriter as CogWriter, write_cog as write_cog
from cocoseg.io.verify import verify_cog as verify_cog
from cocoseg.io.queue import WriterQueue as WriterQueue
from cocoseg.coco.manager import CocoStitchingManager as CocoStitchingManager
from cocoseg.coco.compat import fix_slice as fix_slice
from cocoseg.coco.predict import predict_dataset as predict_dataset
from cocoseg.coco.predictors import (EstimatorPredictor as EstimatorPredictor,
                                     load_predictor as load_predictor)
from cocoseg.coco.instances import watershed_dataset as watershed_dataset
from cocoseg.coco.shepherd_predictor import ShepherdPredictor as ShepherdPredictor
from cocoseg.coco.drawing import (draw_classes as draw_classes, draw_heatmap as draw_heatmap,
                                  draw_segments as draw_segments)
from cocoseg.coco.styles import write_styles as write_styles
from cocoseg.coco.report import write_report as write_report
from cocoseg.coco.example import demo_coco_stitching_manager as demo_coco_stitching_manager

__version__: str
__all__: list[str]
