"""Timings: durations by name, and what people read of them."""
import pickle
import threading

import pytest

from cocoseg import Timings, format_timings


def test_summary_is_that_of_numpy():
    timings = Timings()
    for seconds in (4.0, 1.0, 2.0):
        timings.add('reading', seconds)
    assert timings.summary() == {'reading': {
        'total': 7.0, 'min': 1.0, 'max': 4.0, 'lowerq': 1.5, 'median': 2.0, 'upperq': 3.0,
        'mean': 7 / 3, 'count': 3}}
    assert timings.total('reading') == 7 and timings.total('never') == 0


def test_an_interval_that_raises_is_not_counted():
    timings = Timings()
    with pytest.raises(ZeroDivisionError), timings.interval('work'):
        raise ZeroDivisionError
    assert timings.summary() == {}
    with timings.interval('work'):
        pass
    assert timings.summary()['work']['count'] == 1


def test_intervals_nest_and_come_from_threads():
    timings = Timings()

    def work():
        for _ in range(100):
            with timings.interval('outer'), timings.interval('inner'):
                pass
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: row['count'] for name, row in timings.summary().items()} == {
        'inner': 400, 'outer': 400}


def test_what_workers_send_home_is_merged():
    home, worker = Timings(), Timings()
    home.add('reading', 1.0)
    worker.add('reading', 2.0)
    worker.add('writing', 3.0)
    home.merge(pickle.loads(pickle.dumps(worker)))
    assert home.durations == {'reading': [1.0, 2.0], 'writing': [3.0]}


def test_table_has_a_row_per_name_and_no_walltime_row():
    timings = Timings()
    timings.add('walltime', 12.5)
    timings.add('a_name_that_is_long', 100.0)
    lines = format_timings(timings.summary(), 'Title').splitlines()
    assert lines[:2] == ['Title', 'Walltime: 12.50']
    assert [line.split()[0] for line in lines[3:]] == ['Timer', '-' * len(lines[3]),
                                                       'a_name_that_is_long']
    assert lines[-1].split()[1:] == ['100.00', '1', '100.00', '100.00']
    assert format_timings({}).splitlines()[0] == 'Timings'
