"""RobustBench: board records, submissions, the released package and its model zoo. Torch-free at import.

F. Croce et al., RobustBench: a standardized adversarial robustness benchmark, NeurIPS 2021 Datasets and Benchmarks,
arXiv:2010.09670. Nothing outside this package knows RobustBench.
"""

from timm_robust.robustbench.bundle import Bundle, Paper, write_bundle
from timm_robust.robustbench.official import Benchmark, benchmark, benchmark_entry, board_images, require_board
from timm_robust.robustbench.package import released
from timm_robust.robustbench.record import BOARDS, Board, check_id, find_board, problems
from timm_robust.robustbench.zoo import ZooEntry, list_zoo, load_zoo

__all__ = [
    "BOARDS",
    "Benchmark",
    "Board",
    "Bundle",
    "Paper",
    "ZooEntry",
    "benchmark",
    "benchmark_entry",
    "board_images",
    "check_id",
    "find_board",
    "list_zoo",
    "load_zoo",
    "problems",
    "released",
    "require_board",
    "write_bundle",
]
