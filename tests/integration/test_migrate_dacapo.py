"""The page for those who come from dacapo names all of its names, and only names of ours."""
import inspect
import re

import cocoseg
from cocoseg.engine.blockmap import BlockRun

from .test_docs import LITERAL, list_names, read_tables

PAGE = 'docs/howto/migrate_from_dacapo.rst'

# What dacapo documents. Its code is no part of this repository.
REFERENCE = {
    'segment_blockwise': (
        'segment_blockwise segment_function_file spawn_worker start_worker check_function '
        'init_callback_fn context total_roi read_roi write_roi num_workers max_retries timeout '
        'upstream_tasks keep_tmpdir args kwargs Bool'),
    'ZarrArray': (
        'ZarrArray array_config __init__ __str__ __repr__ name file_name dataset mode attrs axes '
        '_axes dims snap_to_grid _daisy_array voxel_size roi writable dtype num_channels '
        'spatial_axes data __getitem__ __setitem__ create_from_array_identifier '
        'open_from_array_identifier _can_neuroglance _neuroglancer_source _neuroglancer_layer '
        '_transform_matrix _output_dimensions _source_name add_metadata'),
    'LocalArrayIdentifier': 'LocalArrayIdentifier container dataset',
    'WatershedPostProcessorParameters': 'offsets threshold sigma min_size bias context',
    'PostProcessor and WatershedPostProcessor': (
        'PostProcessor WatershedPostProcessor enumerate_parameters set_prediction '
        'prediction_array_identifier process parameters output_array_identifier num_workers '
        'chunk_size block_size'),
}


def list_arguments(function):
    return set(inspect.signature(function).parameters)


def test_all_names_are_there():
    tables = read_tables(PAGE)
    for title, names in REFERENCE.items():
        assert sorted(list_names(tables[title], 0)) == sorted(names.split())
        assert all(row[1] for row in tables[title])


def test_our_names_exist():
    tables = {title: list_names(rows, 1) for title, rows in read_tables(PAGE).items()}
    run = list_arguments(BlockRun)
    assert set(tables['segment_blockwise']) <= (
        list_arguments(cocoseg.map_blocks) | run | set(cocoseg.__all__) | {'functools.partial'})
    assert set(tables['PostProcessor and WatershedPostProcessor']) <= (
        list_arguments(cocoseg.blockwise_watershed) | run | set(cocoseg.__all__))
    assert set(tables['WatershedPostProcessorParameters']) <= list_arguments(
        cocoseg.WatershedParameters)
    for name in tables['ZarrArray']:
        owner, _, member = name.rpartition('.')
        assert member in dir(cocoseg.Roi if owner == 'Roi' else cocoseg.ZarrArray) or (
            member in ('name', 'mode', 'data'))
    assert all(hasattr(cocoseg, name) or name in list_arguments(cocoseg.ArrayIdentifier)
               for name in tables['LocalArrayIdentifier'])


def test_arguments_of_create_are_those_of_dacapo():
    row = next(row for row in read_tables(PAGE)['ZarrArray']
               if 'create_from_array_identifier' in row[0])
    assert LITERAL.findall(row[2]) == list(
        inspect.signature(cocoseg.ZarrArray.create_from_array_identifier).parameters)
    assert re.fullmatch(r'.* as there', row[2])
