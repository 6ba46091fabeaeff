"""
Files: the same pixels as a Cloud-Optimized GeoTIFF.

Images and writers are those of ``dev/bench/races_cog.py``. From RAM, or for
programs from an uncompressed file that both sides read. Ours ends with a file
on the disk (fsync), verified and renamed; a peer ends when it says so. All are
asked for ZSTD at level 1 with a predictor, tiles of 256 px and overviews by
average, but for kwimage, which is called as geowatch calls it. Compared are all
pixels of the full level, read by GDAL.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import bench_path  # noqa: F401
import harness
from cases import Agreement, Case, Trial, timed
from cog_problem import CogProblem
from races_cog import ABOUT, BLOCKSIZE, make_gdal_cog, make_kwimage, make_write_cog
from stream_problem import Absent

SIZE, KIND = 4096, 'bands5'
RIO_WORKER = Path(__file__).with_name('rio_worker.py')


def compare_files(folder):
    """Return a function that compares two files of a folder, which it keeps until then."""
    def compare(ours, theirs):
        from cocoseg.io.raster import read_raster
        paths = [os.path.join(folder.name, name) for name in (ours, theirs)]
        first, second = map(read_raster, paths)
        if first.shape != second.shape:
            raise ValueError(f'shapes {first.shape} and {second.shape} cannot be compared')
        sizes = dict(zip(('bytes', 'their_bytes'), map(os.path.getsize, paths)))
        return Agreement('equal pixels, %', 100 * float((first == second).all(axis=2).mean()), 100,
                         facts=sizes)
    return compare


def timed_file(folder, name, write):
    """Return a turn that writes a new file of that name, and returns the name."""
    fpath = os.path.join(folder.name, name)

    def run():
        # Neither side is to overwrite, nor to wait for what came before.
        Path(fpath).unlink(missing_ok=True)
        os.sync()
        return timed(lambda: write(fpath))()[0], name
    return run


def prepare_arrays(size, make_theirs):
    """Race from RAM to a file."""
    problem = CogProblem(KIND, size, size)
    folder = tempfile.TemporaryDirectory()
    problem.data  # noqa: B018  # computed before the clock starts
    return Trial(f'{size} x {size} x 5 int16 in RAM',
                 timed_file(folder, 'ours.tif', make_write_cog(problem)),
                 timed_file(folder, 'theirs.tif', make_theirs(problem)), compare_files(folder))


def prepare_gdal_cog(size):
    """Race GDAL's COG driver."""
    return prepare_arrays(size, make_gdal_cog)


def prepare_kwimage(size):
    """Race kwimage.imwrite."""
    return prepare_arrays(size, make_kwimage)


def prepare_programs(size, make_theirs):
    """Race from file to file; the peer's turn is made from (source, folder)."""
    from cocoseg.io.cog import write_cog
    from cocoseg.io.raster import read_raster
    folder = tempfile.TemporaryDirectory()
    src = os.path.join(folder.name, 'source.tif')
    write_cog(src, CogProblem(KIND, size, size).data, compress=None, overviews=None, **ABOUT)
    return Trial(f'{size} x {size} x 5 int16, uncompressed GeoTIFF',
                 timed_file(folder, 'ours.tif',
                            lambda fpath: write_cog(fpath, read_raster(src), **ABOUT)),
                 make_theirs(src, folder), compare_files(folder))


def prepare_gdal_translate(size):
    """Race the program gdal_translate; its start counts, some hundredths of a second."""
    program = shutil.which('gdal_translate')
    if program is None:
        raise Absent('no program gdal_translate: apt install gdal-bin')
    options = ['COMPRESS=ZSTD', 'LEVEL=1', 'PREDICTOR=YES', f'BLOCKSIZE={BLOCKSIZE}',
               'NUM_THREADS=ALL_CPUS', 'OVERVIEW_RESAMPLING=AVERAGE']
    command = [program, '-q', '-of', 'COG', *(word for option in options
                                              for word in ('-co', option))]

    def write(src, fpath):
        done = subprocess.run([*command, src, fpath], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f'gdal_translate: {done.returncode}')
    return prepare_programs(size, lambda src, folder: timed_file(
        folder, 'theirs.tif', lambda fpath: write(src, fpath)))


def prepare_rio_cogeo(size):
    """Race rio-cogeo, in a process of its own whose start does not count."""
    def make_theirs(src, folder):
        fpath = os.path.join(folder.name, 'theirs.tif')

        def run():
            Path(fpath).unlink(missing_ok=True)
            os.sync()
            return harness.run_worker(RIO_WORKER, src, [fpath])['wall_s'], 'theirs.tif'
        return run
    return prepare_programs(size, make_theirs)


CASES = [
    Case('files/gdal_cog', 'GDAL COG driver', 'GDAL', ('osgeo',), 'array, codec, tiles, overviews',
         prepare_gdal_cog, SIZE, 'install GDAL 3.1 or later with its Python binding'),
    Case('files/gdal_translate', 'gdal_translate -of COG', 'GDAL', ('osgeo',),
         'file, codec, tiles, overviews', prepare_gdal_translate, SIZE,
         'install GDAL 3.1 or later with its Python binding'),
    Case('files/rio_cogeo', 'rio-cogeo cog_translate', 'rio-cogeo', ('rio_cogeo',),
         'file, codec, tiles, overviews', prepare_rio_cogeo, SIZE, 'pip install rio-cogeo'),
    Case('files/kwimage', 'kwimage.imwrite, as geowatch calls it', 'kwimage', ('kwimage',),
         'array; DEFLATE, tiles of 128 px, two overviews', prepare_kwimage, SIZE,
         'pip install kwimage'),
]
