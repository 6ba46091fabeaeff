"""
The program ``cocoseg``: hands over to one of its subcommands.
"""
from __future__ import annotations

import sys


def main(argv=None):
    """
    Run the command line.

    Args:
        argv (list[str] | None): arguments; None is those of the process.

    Returns:
        int: exit code, 0 if all went well.

    Example:
        >>> from cocoseg.cli.main import main
        >>> assert main(['--version']) == 0
    """
    import kwconf

    from cocoseg import __version__
    from cocoseg.cli.demo import DemoConfig
    from cocoseg.cli.mask import MaskConfig
    from cocoseg.cli.plan import PlanConfig
    from cocoseg.cli.predict import PredictConfig
    from cocoseg.cli.segment import SegmentConfig
    from cocoseg.cli.stats import StatsConfig
    from cocoseg.cli.subset import SubsetConfig
    from cocoseg.cli.verify import VerifyConfig, flags_last
    from cocoseg.cli.watershed import WatershedConfig, protect_vectors

    class CocosegModal(kwconf.ModalCLI):
        """Stitch window-by-window predictions into Cloud-Optimized GeoTIFFs."""

        __prog__ = 'cocoseg'
        demo = DemoConfig
        mask = MaskConfig
        plan = PlanConfig
        predict = PredictConfig
        segment = SegmentConfig
        stats = StatsConfig
        subset = SubsetConfig
        verify = VerifyConfig
        watershed = WatershedConfig

    CocosegModal.__version__ = __version__
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [VerifyConfig.__command__]:
        argv[1:] = flags_last(argv[1:])
    if argv[:1] == [WatershedConfig.__command__]:
        # The parser of all subcommands knows no --config.
        return WatershedConfig.main(argv=protect_vectors(argv[1:]))
    if argv[:1] == [MaskConfig.__command__]:
        return MaskConfig.main(argv=argv[1:])
    try:
        code = CocosegModal().run(argv=argv)
    except kwconf.modal.NoCommandError:
        return 2
    return code if isinstance(code, int) else 0


if __name__ == '__main__':
    sys.exit(main())
