"""
What the reference did wrong with its options: item 39. And: no item is without a test.
"""
import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import kwconf


# ---- 39 --------------------------------------------------------------------

def find_configs():
    """Return the configuration classes of all subcommands."""
    package = importlib.import_module('cocoseg.cli')
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f'cocoseg.cli.{info.name}')
        for name, value in vars(module).items():
            if (inspect.isclass(value) and issubclass(value, kwconf.Config)
                    and value.__module__ == module.__name__):
                found[f'{info.name}.{name}'] = value
    return found


def test_39_options_are_declared_once():
    """An option was declared twice; names and aliases must all be different."""
    configs = find_configs()
    assert {'predict.PredictConfig', 'demo.DemoConfig'} <= set(configs)
    for label, config in configs.items():
        options = config.__default__
        assert options, label
        flags = [key.replace('-', '_') for key in options]
        for option in options.values():
            for names in (getattr(option, 'alias', None), getattr(option, 'short_alias', None)):
                flags += [names] if isinstance(names, str) else list(names or [])
        assert len(flags) == len(set(flags)), f'{label}: {sorted(flags)}'
        positions = [getattr(option, 'position', None) for option in options.values()]
        taken = [position for position in positions if position is not None]
        assert len(taken) == len(set(taken)), label


def test_39_class_bodies_do_not_hide_an_option():
    """In a class the second of two equal names wins silently; there must be no second."""
    for label, config in find_configs().items():
        module = importlib.import_module(config.__module__)
        tree = ast.parse(Path(module.__file__).read_text())
        body = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
                    and node.name == config.__name__).body
        names = [target.id for node in body if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)]
        assert len(names) == len(set(names)), label
        for node in ast.walk(ast.Module(body, [])):
            if isinstance(node, ast.Dict):
                keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
                assert len(keys) == len(set(keys)), label


def test_39_manager_arguments_have_one_meaning(make_dataset, make_manager):
    """The old spelling of stitching_space must work, and both must read the same."""
    manager = make_manager(make_dataset(), stiching_space='video')
    assert manager.stitching_space == manager.stiching_space == 'video'


def test_all_items_have_a_test():
    """Each of the 39 known defects must be guarded by a test with its number."""
    folder = Path(__file__).parent
    numbers = {int(node.name[5:7]) for path in folder.glob('test_reference_*.py')
               for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.FunctionDef) and node.name[:5] == 'test_'
               and node.name[5:7].isdigit()}
    assert numbers == set(range(1, 40))
