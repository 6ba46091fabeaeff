"""
The pages for those who come from elsewhere name all that is documented there.

That of geowatch is checked in test_docs, that of dacapo in test_migrate_dacapo.
"""
import importlib
import inspect

import pytest

import cocoseg

from .test_docs import list_names, read_page, read_tables

# What the public documentation of each shows. Their code is no part of this repository.
SEAMLESS_SEG = {
    'Functions': (
        'plan_regular_grid plan_from_grid get_plan_input_geoms run_plan shape_to_slices '
        'batched_tile_get threaded_batched_tile_get overlap_weights'),
    'Arguments and results': (
        'image_size tile_size overlap area plan grid index geom in_geom in_tiles out_geom '
        'out_tile max_tiles disk_cache_dir batch_size max_prefetched argmax'),
}
RIOGRANDE = {
    'Functions': (
        'compute_mask prepare_selector create_views process_block process_masks runner_call '
        'combine_views data_writer fill_matrix TimedTask'),
    'Arguments': (
        'source block_size nodata logic bands extra_masking_band nbrcpu start_method verbose task '
        'task_params read_params open_params view matrix output_params writer writer_params out_q '
        'aggr_q job_out_q queue callback params wrapper'),
    'What the documentation refers to': (
        'Source Band reduced_mask aggregated_selector mask_writer get_mask_reader get_nbr_workers '
        'get_or_set_context view_to_window update_view multiprocessing.pool.Pool'),
}
PYSHEPSEG = {
    'doTiledShepherdSegmentation': (
        'infile outfile tileSize overlapSize bandNumbers subsamplePcnt simpleTileRecode '
        'outputDriver creationOptions writeHistogram tempfilesDriver tempfilesExt '
        'tempfilesCreationOptions returnGDALDS concurrencyCfg maxSegId numTileRows numTileCols '
        'subsamplePcnt maxSpectralDiff kmeans hasEmptySegments timings'),
    'SegmentationConcurrencyConfig': (
        'SegmentationConcurrencyConfig concurrencyType numWorkers maxConcurrentReads '
        'tileCompletionTimeout segResultCacheSize segResultCacheAddTimeout barrierTimeout '
        'fargateCfg FargateConfig'),
    'Other names of pyshepseg.tiling': (
        'TiledSegmentationResult TileInfo getTilesForFile addTile getNumTiles getTile '
        'fitSpectralClustersWholeFile readSubsampledImageBand getImgNullValue calcHistogramTiled '
        'HistogramAccumulator doHistAccum updateHist addTwoHistograms writeHistogramToFile '
        'setupOverviews writeOverviews PyShepSegTilingError selectConcurrencyClass '
        'SegmentationConcurrencyMgr SegNoConcurrencyMgr SegThreadsMgr SegSubprocMgr SegFargateMgr '
        'initialize specificChecks segmentAllTiles startWorkers worker setupNetworkComms shutdown '
        'popFromQue NetworkDataChannel addressStr checkWorkerExceptions checkTaskErrors '
        'getClusterTaskCount waitClusterTasksFinished SegmentationResultCache addResult '
        'waitForTile getTileSegmentation writeTileToTemp stitchTiles recodeTile '
        'recodeSharedSegments relabelSegments crossesMidline saveOverlap loadOverlap '
        'overlapCacheKey overlapCacheFilename checkForEmptySegments DFLT_TILESIZE '
        'DFLT_OVERLAPSIZE segIdNumbaType TILESIZE DFLT_CHUNKSIZE DFLT_TEMPFILES_DRIVER '
        'DFLT_TEMPFILES_EXT HORIZONTAL VERTICAL RIGHT_OVERLAP BOTTOM_OVERLAP updateCounts boto3'),
}
# Arguments that are passed on, so that the first table, or the text, has them.
PYSHEPSEG_ELSEWHERE = (
    'minSegmentSize numClusters imgNullVal fixedKMeansInit fourConnected verbose spectDistPcntile '
    'kmeansObj outDs CONC_NONE CONC_THREADS CONC_SUBPROC CONC_FARGATE').split()
FARGATE = (
    'containerImage taskRoleArn executionRoleArn subnet securityGroups cpu memory cpuArchitecture '
    'cloudwatchLogGroup tags').split()


def get_page(name):
    """Return the name of the page for those who come from there."""
    return f'docs/howto/migrate_from_{name}.rst'


def list_arguments(*functions):
    """Return the names of all arguments of some functions or classes."""
    return {name for function in functions for name in inspect.signature(function).parameters}


@pytest.mark.parametrize('name, reference', [
    ('seamless_seg', SEAMLESS_SEG), ('riogrande', RIOGRANDE), ('pyshepseg', PYSHEPSEG)])
def test_all_names_are_there(name, reference):
    tables = read_tables(get_page(name))
    for title, names in reference.items():
        assert sorted(list_names(tables[title], 0)) == sorted(names.split())
        assert all(row[1] for row in tables[title])


def test_what_pyshepseg_documents_elsewhere_is_there():
    text = read_page(get_page('pyshepseg'))
    assert [name for name in PYSHEPSEG_ELSEWHERE if f'``{name}``' not in text] == []
    rows = read_tables('docs/howto/clusters.rst')['Fargate, side by side']
    assert set(FARGATE) <= set(list_names(rows, 0))


def test_our_names_for_seamless_seg_exist():
    tables = read_tables(get_page('seamless_seg'))
    assert set(list_names(tables['Functions'], 1)) <= set(cocoseg.__all__)
    known = list_arguments(
        cocoseg.SoftStitcher, cocoseg.SoftStitcher.add, cocoseg.WindowGrid,
        cocoseg.predict_windows) | {'enumerate', 'write_block'}
    assert set(list_names(tables['Arguments and results'], 1)) <= known
    assert hasattr(cocoseg.CogWriter, 'write_block')


def test_our_names_for_riogrande_exist():
    tables = read_tables(get_page('riogrande'))
    assert set(list_names(tables['Functions'], 1)) <= set(cocoseg.__all__)
    from cocoseg.engine.blockmap import BlockRun
    known = list_arguments(cocoseg.map_blocks, cocoseg.compute_mask, cocoseg.prepare_selector,
                           BlockRun) | {'functools.partial', 'block'}
    assert set(list_names(tables['Arguments'], 1)) <= known
    arrays = importlib.import_module('cocoseg.io.arrays')
    assert all(name in cocoseg.__all__ or hasattr(arrays, name)
               for name in list_names(tables['What the documentation refers to'], 1))


def test_our_names_for_pyshepseg_exist():
    """Names of ours in the second column are of functions, arguments or results."""
    homes = [importlib.import_module(f'cocoseg.{home}') for home in (
        'errors', 'shepherd.sampling', 'io.attribute_table')]
    known = list_arguments(cocoseg.segment_raster) | set(cocoseg.__all__) | {
        name for home in homes for name in vars(home)}
    known |= {'run', 'n_workers', 'shares_memory', 'close', 'grid_shape', 'area',
              'has_empty_segments', 'compat', 'outDs', 'FargateCluster', 'CONC_NONE',
              'CONC_THREADS', 'CONC_SUBPROC', 'CONC_FARGATE'}
    for title in ('SegmentationConcurrencyConfig', 'Other names of pyshepseg.tiling'):
        names = list_names(read_tables(get_page('pyshepseg'))[title], 1)
        assert {name for name in names if name.isidentifier()} <= known
    executor = cocoseg.get_executor('serial')
    assert all(hasattr(executor, name) for name in ('run', 'n_workers', 'shares_memory'))
    result = cocoseg.TiledShepherdResult
    assert {'grid_shape', 'sizes', 'sample_percent', 'has_empty_segments'} <= set(
        result.__dataclass_fields__)
    assert hasattr(result, 'kmeans')
