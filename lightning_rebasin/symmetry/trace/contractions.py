"""The operations that contract two operands: where the units of a network can be observed.

A spec names such a place by the operation and by which of its runs it is (``aten.addmm``, the third), so an operation
that is added to the table renumbers nothing.  Specs of format version 1 counted the runs of all operations together;
the table as it was then is frozen beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Names of the two operands of each operation.
CONTRACTIONS: Mapping[str, tuple[str, str]] = {
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.mv": ("self", "vec"),
    "aten.dot": ("self", "tensor"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.addmv": ("mat", "vec"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.convolution": ("input", "weight"),
    "aten._scaled_dot_product_flash_attention_for_cpu": ("query", "key"),
    "aten._scaled_dot_product_flash_attention": ("query", "key"),
    "aten._scaled_dot_product_efficient_attention": ("query", "key"),
    "aten._scaled_dot_product_cudnn_attention": ("query", "key"),
}

#: What format version 1 counted together.  Never changed: old files rely on it.
COUNTED_TOGETHER = frozenset(
    (
        "aten.mm",
        "aten.bmm",
        "aten.mv",
        "aten.dot",
        "aten.addmm",
        "aten.addmv",
        "aten.baddbmm",
        "aten.convolution",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
    )
)
