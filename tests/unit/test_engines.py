"""The choice of an engine: options that fit together, and typed errors for the others."""
import dataclasses
import threading

import numpy as np
import pytest

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.errors import OptionError
from cocoseg.grid.area import Area
from cocoseg.protocols import MemorySink
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.canvas import BlockCanvas
from cocoseg.stitch.carry import CarryCanvas
from cocoseg.stitch.engines import EngineOptions, make_canvas, make_carry
from cocoseg.stitch.layers import ClassMap, Disagreement
from cocoseg.stitch.products import Products

GRID = WindowGrid((40, 50), window=20, overlap=6)
BLOCKS = BlockGrid(GRID.shape, 16)
SHAPE = (40, 50, 2)

WRONG = {
    'dtype': ({'dtype': 'float16'}, 'cannot accumulate'),
    'no dtype': ({'dtype': None}, 'cannot accumulate'),
    'engine': ({'engine': 'carry'}, 'engine=.*unknown'),
    'no engine': ({'engine': None}, 'engine=.*unknown'),
    'nan_policy': ({'nan_policy': 'skip'}, 'nan_policy=.*unknown'),
    'memmap': ({'memmap': 3}, 'must be a folder'),
    'device': ({'device': 'nonsense'}, 'cannot be used'),
    'no device': ({'device': None}, 'cannot be used'),
    'no threads': ({'num_threads': 0}, 'num_threads=0'),
    'threads left': ({'num_threads': -1}, 'whole number >= 1'),
    'half a thread': ({'num_threads': 1.5}, 'whole number'),
    'threads of text': ({'num_threads': '2'}, 'whole number'),
    'True threads': ({'num_threads': True}, 'whole number'),
    'threads of nobody': ({'num_threads': None}, 'whole number'),
    'a negative budget': ({'memory_budget': -1}, 'memory_budget=-1'),
    'a budget of text': ({'memory_budget': '1GB'}, "memory_budget='1GB'"),
    'an endless budget': ({'memory_budget': float('inf')}, 'memory_budget=inf'),
    'a true budget': ({'memory_budget': True}, 'memory_budget=True'),
    'a folder without a budget': ({'spill_dir': '.'}, 'only used with a memory_budget'),
    'two folders': ({'spill_dir': '.', 'memory_budget': MemoryBudget(1)}, 'has its own'),
    'budget and memmap': ({'memory_budget': 9, 'memmap': True}, 'no memmap or device'),
    'budget 0 and memmap': ({'memory_budget': 0, 'memmap': '.'}, 'no memmap or device'),
}
WRONG_ON_DEVICE = {
    'memmap': ({'memmap': True}, 'exclude each other'),
    'threads': ({'num_threads': 2}, 'threads of the host'),
    'budget': ({'memory_budget': 5}, 'no memmap or device'),
    'shared budget': ({'memory_budget': MemoryBudget(5)}, 'no memmap or device'),
    'folder': ({'spill_dir': '.'}, 'only used with a memory_budget'),
}


@pytest.mark.parametrize('name', WRONG)
def test_options_that_contradict_each_other(name):
    options, text = WRONG[name]
    for make in (EngineOptions, lambda **options: SoftStitcher((4, 4), **options),
                 lambda **options: SoftStitcher((4, 4), sink=MemorySink(), **options)):
        with pytest.raises(OptionError, match=text):
            make(**options)


@pytest.mark.parametrize('name', WRONG_ON_DEVICE)
def test_options_that_contradict_a_device(name):
    pytest.importorskip('torch')
    options, text = WRONG_ON_DEVICE[name]
    for make in (EngineOptions, lambda **options: SoftStitcher((4, 4), **options)):
        with pytest.raises(OptionError, match=text):
            make(device='cpu', **options)


def test_options_are_plain_and_frozen():
    options = EngineOptions(dtype=np.dtype('>f8').newbyteorder('='), memory_budget=100,
                            spill_dir='folder')
    assert options.dtype == 'float64'
    assert (options.budget.nbytes, options.budget.spill_dir) == (100, 'folder')
    assert not options.on_device and not options.is_mapped
    assert EngineOptions().budget is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.engine = 'general'
    budget = MemoryBudget(5)
    assert EngineOptions(memory_budget=budget).budget is budget
    assert EngineOptions(memory_budget=0).budget.nbytes == 0
    assert EngineOptions(memmap='folder').is_mapped
    assert not EngineOptions(memmap=False, memory_budget=5).is_mapped


# ---- canvases --------------------------------------------------------------

@pytest.mark.parametrize('blocks', [None, BLOCKS])
@pytest.mark.parametrize('options', [
    {}, {'dtype': 'float64'}, {'memmap': True}, {'nan_policy': 'band'}, {'num_threads': 2},
    {'memory_budget': 100}, {'device': 'cpu'}, {'device': 'cpu', 'dtype': 'float64'}])
def test_the_general_canvas(options, blocks):
    lock = threading.RLock()
    if 'device' in options:
        pytest.importorskip('torch')
    options = EngineOptions(**options)
    canvas = make_canvas(SHAPE, blocks, options, deviations=True, lock=lock)
    assert isinstance(canvas, BlockCanvas) != options.on_device
    assert canvas.shape == SHAPE and canvas.dtype == options.dtype and canvas.lock is lock
    assert canvas.per_band == (options.nan_policy == 'band')
    data = np.random.RandomState(0).rand(*SHAPE)
    assert canvas.add(0, 0, data, np.ones(SHAPE[:2])) == (2000, 0)
    values = canvas.read(Window.from_shape(SHAPE))
    np.testing.assert_allclose(values.compute_mean(), data, rtol=1e-6)
    assert not values.deviations.any()
    canvas.close()
    assert canvas.nbytes == 0 and (options.budget is None or options.budget.used == 0)
    assert make_canvas(SHAPE, blocks, options).read(Window(0, 0, 1, 1)).deviations is None


def make_strip(options=None, products=None, grid=GRID):
    return make_carry(SHAPE, BlockGrid(SHAPE, 16), BlendPlan(grid), options or EngineOptions(),
                      products or Products())


@pytest.mark.parametrize('products', [
    Products(), Products(Quantization(0, 1)), Products(None, [ClassMap()]),
    Products(Quantization(0, 1), [ClassMap()])])
@pytest.mark.parametrize('options', [{}, {'dtype': 'float64'}, {'num_threads': 2},
                                     {'nan_policy': 'band'}, {'memory_budget': 10 ** 9}])
def test_windows_in_the_order_of_their_plan_are_carried(options, products):
    carry = make_strip(EngineOptions(**options), products)
    assert isinstance(carry, CarryCanvas) and carry.shape == SHAPE
    assert carry.next_window == Window(0, 0, 20, 20)
    carry.close()


def make_area():
    return Area({'type': 'Polygon', 'coordinates': [[[0, 0], [50, 0], [0, 40], [0, 0]]]})


@pytest.mark.parametrize('options, products', [
    ({'engine': 'general'}, Products()), ({'memmap': True}, Products()),
    ({'memory_budget': 0}, Products()), ({'memory_budget': 1000}, Products()),
    ({'device': 'cpu'}, Products()), ({}, Products(area=make_area())),
    ({}, Products(layers=[Disagreement()]))])
def test_what_asks_for_the_general_canvas(options, products):
    if 'device' in options:
        pytest.importorskip('torch')
    assert make_strip(EngineOptions(**options), products) is None


def test_windows_that_cannot_be_carried():
    assert make_strip(grid=list(GRID)[:-1]) is None
    assert make_strip(grid=[*GRID, Window(3, 3, 9, 9)]) is None


def test_a_budget_that_others_filled_is_not_carried_into():
    alone = make_strip(EngineOptions(memory_budget=10 ** 9))
    budget = MemoryBudget(4 * alone.nbytes + 4 * 40 * 50 * 2 * 4)
    alone.close()
    other = BlockCanvas((200, 200, 1), budget=budget)
    carry = make_strip(EngineOptions(memory_budget=budget))
    assert carry is not None and budget.used == carry.nbytes > 0
    carry.close()
    assert budget.used == 0
    other.add(0, 0, np.ones((200, 200, 1)), (np.ones(200), np.ones(200)))
    assert budget.used == 160000 > budget.nbytes // 2
    assert make_strip(EngineOptions(memory_budget=budget)) is None
    other.close()


@pytest.mark.parametrize('engine, expected', [('auto', 'carry'), ('general', 'general')])
def test_the_stitcher_says_which(engine, expected):
    stitcher = SoftStitcher(GRID.shape, GRID, sink=MemorySink(), engine=engine)
    assert stitcher.engine is None
    window = next(iter(GRID))
    stitcher.add(window, np.ones(window.shape))
    assert stitcher.engine == expected
    stitcher.close()
