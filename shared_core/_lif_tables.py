"""Table I and II of EfficientLIF-Net beside what `lif_memory` gives, row by row: what `memext report --lif` prints."""
from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from .lif_memory import VGG16_NARROW, lif_memory
from .report import text_table

__all__ = ["NOTES", "rows", "table"]

# Name of the data set: side of its images, time steps. The paper gives neither for N-Caltech101; 48 and 10 make all its
# figures come out.
DATASETS = {"CIFAR10": (32, 5), "CIFAR100": (32, 5), "TinyImageNet": (64, 5), "ImageNet-100": (224, 5),
            "N-Caltech101": (48, 10)}
SIZES = (32, 64, 224, 48)
SHARINGS = ("baseline", "L", "C#2", "C#4", "C#8", "L+C#2")
NARROW = "vgg16_narrow"
WIDTHS = {"vgg16": None, "resnet19": None, NARROW: VGG16_NARROW}

# As printed: architecture, side: {sharing: (forward, backward)}. Table II is the C#4 and C#8 of ResNet19.
PAPER = {
    ("vgg16", 32): {"baseline": ("1.80", "9.0"), "L": ("1.23", "1.23"), "C#2": ("0.90", "0.90"),
                    "L+C#2": ("0.62", "0.62")},
    ("vgg16", 64): {"baseline": ("7.22", "36.1"), "L": ("4.91", "4.91"), "C#2": ("3.61", "3.61"),
                    "L+C#2": ("2.46", "2.46")},
    ("vgg16", 224): {"baseline": ("88.43", "442.15"), "L": ("60.10", "60.10"), "C#2": ("44.21", "44.21"),
                     "L+C#2": ("30.05", "30.05")},
    ("vgg16", 48): {"baseline": ("4.06", "40.6"), "L": ("2.76", "2.76"), "C#2": ("2.03", "2.03"),
                    "L+C#2": ("1.38", "1.38")},
    ("resnet19", 32): {"baseline": ("2.88", "14.40"), "L": ("1.31", "1.31"), "C#2": ("1.44", "1.44"),
                       "L+C#2": ("0.66", "0.66"), "C#4": ("0.72", "0.72"), "C#8": ("0.36", "0.36")},
    ("resnet19", 64): {"baseline": ("11.5", "57.5"), "L": ("5.25", "5.25"), "C#2": ("5.75", "5.75"),
                       "L+C#2": ("2.63", "2.63"), "C#4": ("2.88", "2.88"), "C#8": ("1.44", "1.44")},
    ("resnet19", 224): {"baseline": ("140.88", "704.4"), "L": ("64.31", "64.31"), "C#2": ("70.44", "70.44"),
                        "L+C#2": ("32.16", "32.16"), "C#4": ("35.22", "35.22"), "C#8": ("17.61", "17.61")},
    ("resnet19", 48): {"baseline": ("6.47", "64.7"), "L": ("2.95", "2.95"), "C#2": ("3.24", "3.24"),
                       "L+C#2": ("1.48", "1.48")},
}

EXACT, ROUNDED = "exact", "from the rounded figure"
NOTES = (
    "MiB (the paper writes MB) of 32-bit membranes, one sample. Backward: T times the forward figure for the baseline, "
    "the forward figure where membranes are shared. T = 5; 10 for N-Caltech101.",
    "VGG16 [L] and [L+C#2]: the paper's figures (1.23 and 0.62 at 32x32) belong to a narrower network than its "
    "baseline: 128 instead of 256 channels in stage two, as in the authors' code of the shared variants. The rows "
    "vgg16_narrow are that network, and give the printed figures; with the baseline's widths it is 1.35 and 0.68.",
    "Rounding: to two decimals, halves up. A baseline's backward figure is T times the rounded forward one (5 x 2.88 = "
    "14.40; exactly it is 14.375), and three figures, marked ~, are halves of a rounded one: of 1.23, 4.91 and 6.47.",
)


_WIDTHS_DIFFER = f"the paper's figure is of a narrower network than its baseline: see {NARROW}"


def rounded(value) -> Decimal:
    """To two decimals, halves up, as the paper's tables are (2.625 -> 2.63)."""
    return Decimal(value).quantize(Decimal("0.01"), ROUND_HALF_UP)


def rows() -> list[dict]:
    """One row for each architecture, size and sharing.

    forward_mib, backward_mib: rounded as the paper does (see NOTES).  rounding: EXACT or ROUNDED.
    forward_bytes, backward_bytes: exact.
    paper_forward, paper_backward: as printed, None where the paper has no such row.
    agrees: whether forward_mib and backward_mib are the printed figures; None where there are none.  note: why not.
    """
    return [_row(architecture, size, sharing) for architecture in WIDTHS for size in SIZES for sharing in SHARINGS
            if architecture != NARROW or "L" in sharing]  # all that the paper has of that network


def _row(architecture: str, size: int, sharing: str) -> dict:
    datasets = [name for name, (side, _) in DATASETS.items() if side == size]
    time_steps = DATASETS[datasets[0]][1]

    def memory(sharing: str):
        return lif_memory(architecture.removesuffix("_narrow"), size, sharing=sharing, time_steps=time_steps,
                          widths=WIDTHS[architecture])

    found, printed = memory(sharing), _printed(architecture, size, sharing)
    forward, how = rounded(found.forward_mib), EXACT
    if printed and rounded(Decimal(printed[0])) != forward and "C#" in sharing:
        unshared, _, groups = sharing.rpartition("C#")
        of_rounded = rounded(rounded(memory(unshared.rstrip("+") or "baseline").forward_mib) / int(groups))
        if of_rounded == rounded(Decimal(printed[0])):
            forward, how = of_rounded, ROUNDED
    backward = forward if sharing != "baseline" else forward * time_steps
    agrees = (forward, backward) == tuple(rounded(Decimal(text)) for text in printed) if printed else None
    return {"architecture": architecture, "size": size, "datasets": datasets, "time_steps": time_steps,
            "sharing": sharing, "forward_mib": float(forward), "backward_mib": float(backward), "rounding": how,
            "forward_bytes": found.forward_bytes, "backward_bytes": found.backward_bytes,
            "paper_forward": printed[0] if printed else None, "paper_backward": printed[1] if printed else None,
            "agrees": agrees, "note": _WIDTHS_DIFFER if agrees is False else ""}


def _printed(architecture: str, size: int, sharing: str) -> tuple[str, str] | None:
    """The paper's figures. Those of VGG16 with [L] stand beside both of its networks."""
    return PAPER["vgg16" if architecture == NARROW else architecture, size].get(sharing)


def table() -> str:
    """The rows as text, and how to read them."""
    lines = []
    for row in rows():
        mark = "~" if row["rounding"] == ROUNDED else ""
        paper = f"{row['paper_forward']} / {row['paper_backward']}" if row["paper_forward"] else "-"
        same = {True: "yes", False: "no: a narrower network", None: ""}[row["agrees"]]
        lines.append([row["architecture"], ", ".join(row["datasets"]), f"{row['size']}x{row['size']}", row["sharing"],
                      f"{mark}{row['forward_mib']:.2f}", f"{mark}{row['backward_mib']:.2f}", paper, same])
    columns = ("architecture", "data set", "image", "sharing", "forward", "backward", "in the paper", "same")
    return "\n".join([text_table(lines, columns), *NOTES])
